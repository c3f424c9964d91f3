/// First wait after a passing failure: long enough for a link to come back.
pub const BACKOFF_MS_MIN: u64 = 5_000;
/// Longest wait: a device that was offline for a day is heard within the hour.
pub const BACKOFF_MS_MAX: u64 = 3_600_000;

/// Waits that double, each shortened by up to a half at random, so that a fleet that failed together does not
/// come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    state: u64,
}

impl Backoff {
    /// `seed` differs between devices.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The wait before attempt `tries + 1`, not below what the server asked for, in milliseconds.
    pub(crate) fn wait_ms(&mut self, tries: u32, asked_ms: Option<u64>) -> u64 {
        let whole = BACKOFF_MS_MIN.checked_shl(tries.min(20)).unwrap_or(BACKOFF_MS_MAX).min(BACKOFF_MS_MAX);
        let wait = whole - self.draw() % (whole / 2 + 1);
        wait.max(asked_ms.unwrap_or(0).min(BACKOFF_MS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_stay_within_their_bounds(seed: u64, tries: u32, asked: Option<u64>) {
            let wait = Backoff::new(seed).wait_ms(tries, asked);
            prop_assert!((BACKOFF_MS_MIN / 2..=BACKOFF_MS_MAX).contains(&wait));
            prop_assert!(wait >= asked.unwrap_or(0).min(BACKOFF_MS_MAX));
        }
    }

    #[test]
    fn two_devices_wait_differently() {
        assert_ne!(Backoff::new(1).wait_ms(9, None), Backoff::new(2).wait_ms(9, None));
    }
}
