//! Which requests a challenger answers.

/// Shares are parts of this.
const WHOLE: u64 = 1_000_000;

/// Where a request id falls among a million places: the same on every device and at every time, and even over ids that
/// differ in little.
pub(super) fn place(id: &str) -> u64 {
    // FNV-1a, whose low bits alone are weak, through the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % WHOLE
}

/// Which of the challengers with these shares, parts per million, answers a request; `None` is the champion.
pub(super) fn challenger(id: &str, shares: impl Iterator<Item = u32>) -> Option<usize> {
    let mut end = 0;
    let mut ends = shares.map(|share| {
        end += u64::from(share);
        end
    });
    let place = place(id);
    ends.position(|end| place < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_hold_over_many_ids_of_every_kind() {
        let ids: [fn(u32) -> String; 3] =
            [|i| i.to_string(), |i| format!("00000000cafe-{i}"), |i| format!("{:032x}", u128::from(i) << 64)];
        for id in ids {
            let mut counts = [0i64; 3];
            for i in 0..100_000 {
                let chosen = challenger(&id(i), [50_000, 250_000].into_iter());
                counts[chosen.unwrap_or(2)] += 1;
            }
            for (count, share) in counts.into_iter().zip([5_000, 25_000, 70_000]) {
                assert!((count - share).abs() < 1_000, "{count} of {share}");
            }
        }
    }

    #[test]
    fn the_same_id_is_always_answered_by_the_same_and_all_or_none_are_exact() {
        for i in 0..1_000 {
            let id = format!("request-{i}");
            let of = |shares: [u32; 1]| challenger(&id, shares.into_iter());
            assert_eq!(of([300_000]), of([300_000]));
            assert_eq!((of([0]), of([1_000_000])), (None, Some(0)));
        }
    }
}
