//! Unsigned LEB128 integers: how histogram counts travel, because most of them are below 128. Protobuf's are the same.
use alloc::vec::Vec;

/// Appends `value`.
pub fn push(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Encodes a run of counts.
pub fn encode(values: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        push(&mut out, value);
    }
    out
}

/// Takes one integer off the front; `None` if the bytes end before it does or it is over 64 bits.
pub fn pull(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Decodes exactly `count` integers; `None` if the bytes hold fewer, more, or an integer over 64 bits.
pub fn decode(mut bytes: &[u8], count: usize) -> Option<Vec<u64>> {
    if bytes.len() < count {
        return None;
    }
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(pull(&mut bytes)?);
    }
    bytes.is_empty().then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_round_trip(values in proptest::collection::vec(any::<u64>(), 0..200)) {
            let bytes = encode(values.iter().copied());
            prop_assert_eq!(decode(&bytes, values.len()), Some(values));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), count in 0usize..80) {
            let _ = decode(&bytes, count);
        }
    }

    #[test]
    fn over_64_bits_is_refused() {
        let of = |last: &[u8]| pull(&mut &[&[0xff; 9][..], last].concat()[..]);
        assert_eq!([of(&[1]), of(&[2]), of(&[0x81, 0])], [Some(u64::MAX), None, None]);
    }

    #[test]
    fn left_over_bytes_are_refused() {
        assert_eq!(decode(&[1, 2, 3], 2), None);
    }
}
