//! Bent copies of good inputs: bits, bytes, runs, words of the format, and pieces of other inputs.

/// Length of most inputs at most; short ones are many a second.
const SHORT_BYTES_MAX: usize = 64 * 1024;
/// One in this many inputs is drawn out to the length that its parser takes at most, and beyond.
const LONG_EVERY: usize = 4096;
/// Changes to one input at most.
const CHANGES_MAX: usize = 6;

/// splitmix64: good enough to choose by, and the same inputs for the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; zero if there is none.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.next().checked_rem(n as u64).unwrap_or(0) as usize
    }
}

/// Words that break parsers wherever they stand.
const WORDS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1.5",
    b"1e999",
    b"18446744073709551615",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\"\"",
    b"\\u0000",
    b"\\ud800",
    b"[[[[[[[[",
    b"{\"a\":",
    b"\xff\xff\xff\xff",
    b"\x00",
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xbf",
    b"\x9f",
    b"../",
    b"%00",
    b"9999-12-31T23:59:59Z",
    b"1969-12-31T23:59:59Z",
];

/// Bends `input`; `other` lends pieces, `words` are the format's own; no input is longer than `bytes_max`.
pub(crate) fn mutate(
    input: &[u8],
    other: &[u8],
    words: &[&[u8]],
    bytes_max: usize,
    random: &mut Random,
) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.below(out.len() + 1);
        let length = 1 + random.below(16);
        let end = (at + length).min(out.len());
        match random.below(9) {
            0 if at < out.len() => out[at] ^= 1 << random.below(8),
            1 if at < out.len() => out[at] = random.next() as u8,
            2 => drop(out.drain(at..end)),
            3 => {
                let piece: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                drop(out.splice(at..at, piece));
            }
            4 => {
                let piece = out[at..end].to_vec();
                let piece = piece.repeat(1 + random.below(64));
                drop(out.splice(at..at, piece));
            }
            5 | 6 => {
                let all = WORDS.len() + words.len();
                let pick = random.below(all);
                let word =
                    WORDS.get(pick).or_else(|| words.get(pick - WORDS.len())).copied().unwrap_or_default();
                drop(out.splice(at..end, word.iter().copied()));
            }
            7 => {
                let from = random.below(other.len() + 1);
                let to = (from + random.below(256)).min(other.len());
                drop(out.splice(at..end, other[from..to].iter().copied()));
            }
            _ => number(&mut out, random),
        }
        out.truncate(SHORT_BYTES_MAX.min(bytes_max));
    }
    if random.below(LONG_EVERY) == 0 {
        draw_out(&mut out, bytes_max, random);
    }
    out
}

/// Repeats a piece until the input is as long as it may be.
fn draw_out(out: &mut Vec<u8>, bytes_max: usize, random: &mut Random) {
    let at = random.below(out.len());
    let end = (at + 1 + random.below(64)).min(out.len());
    let (piece, missing) = (out[at..end].to_vec(), bytes_max.saturating_sub(out.len()));
    if let Some(times) = missing.checked_div(piece.len()) {
        drop(out.splice(end..end, piece.repeat(times)));
    }
}

/// Changes a run of digits into another number.
fn number(out: &mut Vec<u8>, random: &mut Random) {
    let start = random.below(out.len() + 1);
    let Some(first) = out[start..].iter().position(u8::is_ascii_digit).map(|at| start + at) else { return };
    let last = out[first..].iter().position(|byte| !byte.is_ascii_digit()).map_or(out.len(), |at| first + at);
    let value = match random.below(4) {
        0 => random.next().to_string(),
        1 => random.below(4).to_string(),
        2 => (u64::MAX - random.below(3) as u64).to_string(),
        _ => random.below(100_000).to_string(),
    };
    drop(out.splice(first..last, value.into_bytes()));
}
