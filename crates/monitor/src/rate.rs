//! Shares of a whole with honest intervals.
use serde::{Deserialize, Serialize};

/// 97.5 % point of the standard normal distribution: two-sided 95 % intervals.
pub const Z95: f64 = 1.959963984540054;

/// `hits` of `n` trials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Trials that hit.
    pub hits: u64,
    /// All trials.
    pub n: u64,
}

/// Bounds of a share, both in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Rate {
    /// `hits` of `n`; more hits than trials count as all.
    pub fn new(hits: u64, n: u64) -> Self {
        Self { hits: hits.min(n), n }
    }

    /// The share itself; `None` without trials.
    pub fn value(self) -> Option<f64> {
        (self.n > 0).then(|| self.hits as f64 / self.n as f64)
    }

    /// Wilson's score interval (Wilson 1927) at `z` standard normal deviations; everything if there were no trials.
    /// It assumes independent trials.
    pub fn wilson(self, z: f64) -> Interval {
        let Some(p) = self.value() else { return Interval { low: 0.0, high: 1.0 } };
        let n = self.n as f64;
        let z2 = z * z;
        let centre = p + z2 / (2.0 * n);
        let half = z * libm::sqrt(p * (1.0 - p) / n + z2 / (4.0 * n * n));
        let scale = 1.0 + z2 / n;
        Interval { low: ((centre - half) / scale).max(0.0), high: ((centre + half) / scale).min(1.0) }
    }

    /// The same share on `n` trials at most.
    pub fn at_most(self, n: u64) -> Self {
        if self.n <= n {
            return self;
        }
        let hits = u128::from(self.hits) * u128::from(n) / u128::from(self.n);
        Self { hits: u64::try_from(hits).unwrap_or(n), n }
    }

    /// Both sets of trials together.
    pub fn plus(self, other: Self) -> Self {
        Self { hits: self.hits.saturating_add(other.hits), n: self.n.saturating_add(other.n) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_intervals() {
        // Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
        for (hits, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (15, 148, 0.0624, 0.1605)]
        {
            let got = Rate::new(hits, n).wilson(Z95);
            assert!((got.low - low).abs() < 5e-5 && (got.high - high).abs() < 5e-5, "{hits}/{n}: {got:?}");
        }
        assert_eq!(Rate::default().wilson(Z95), Interval { low: 0.0, high: 1.0 });
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_share(hits in 0u64..1000, misses in 0u64..1000, z in 0.0..5.0f64) {
            let rate = Rate::new(hits, hits + misses);
            let Interval { low, high } = rate.wilson(z);
            prop_assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high) && low <= high);
            if let Some(p) = rate.value() {
                prop_assert!(low <= p + 1e-12 && p <= high + 1e-12);
            }
        }
    }
}
