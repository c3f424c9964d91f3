//! k of the last m windows: one odd window is not news.
use serde::{Deserialize, Serialize};

/// Most windows a voter remembers: the bits of one word.
pub const WINDOWS_MAX: u32 = 64;

/// Whether the last windows agree that something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Fewer windows were judged than could raise an alarm.
    Learning,
    /// At most k - 1 of the last m windows drifted.
    Stable,
    /// At least k of the last m windows drifted.
    Drifted,
}

/// Memory of the last verdicts. Its serialised form is its whole state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    k: u32,
    m: u32,
    /// The newest window in the lowest bit.
    bits: u64,
    /// Windows judged so far, at most `m`.
    seen: u32,
    /// End of the last window that voted, Unix milliseconds.
    last_ms: Option<u64>,
}

impl Voter {
    /// A voter that calls `k` of the last `m` windows; both are brought into `1 <= k <= m <= 64`.
    pub fn new(k: u32, m: u32) -> Self {
        let m = m.clamp(1, WINDOWS_MAX);
        Self { k: k.clamp(1, m), m, bits: 0, seen: 0, last_ms: None }
    }

    /// Counts the window that ends at `end_ms`. A window that is not newer than the last one changes nothing, so
    /// that evaluating the same stretch twice is harmless. Windows with too few samples are not to be voted on.
    pub fn vote(&mut self, end_ms: u64, drifted: bool) -> Verdict {
        if self.last_ms.is_none_or(|last| end_ms > last) {
            self.last_ms = Some(end_ms);
            self.bits = (self.bits << 1) | u64::from(drifted);
            if self.m < WINDOWS_MAX {
                self.bits &= (1 << self.m) - 1;
            }
            self.seen = (self.seen + 1).min(self.m);
        }
        self.verdict()
    }

    /// The present verdict.
    pub fn verdict(&self) -> Verdict {
        if self.bits.count_ones() >= self.k {
            Verdict::Drifted
        } else if self.seen < self.k {
            Verdict::Learning
        } else {
            Verdict::Stable
        }
    }

    /// End of the last window that voted, Unix milliseconds.
    pub fn last_ms(&self) -> Option<u64> {
        self.last_ms
    }

    /// Drifted windows among the last `m`, and how many were judged.
    pub fn tally(&self) -> (u32, u32) {
        (self.bits.count_ones(), self.seen)
    }

    /// Whether it votes by this rule; a stored voter of another rule is to be replaced.
    pub fn is_of(&self, k: u32, m: u32) -> bool {
        let rule = Self::new(k, m);
        (self.k, self.m) == (rule.k, rule.m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use dunlin_protocol::cbor;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_sliding_count(k in 1u32..6, m in 1u32..8, votes in proptest::collection::vec(any::<bool>(), 0..40)) {
            let (mut voter, mut last) = (Voter::new(k, m), VecDeque::new());
            for (at, vote) in votes.into_iter().enumerate() {
                last.push_back(vote);
                if last.len() > m as usize {
                    last.pop_front();
                }
                let verdict = voter.vote(at as u64, vote);
                let drifted = last.iter().filter(|vote| **vote).count() >= k.min(m) as usize;
                prop_assert_eq!(verdict == Verdict::Drifted, drifted);
                // Saying it again, or late, changes nothing; nor does a restart.
                prop_assert_eq!(voter.vote(at as u64, !vote), verdict);
                prop_assert_eq!(&cbor::decode::<Voter>(&cbor::encode(&voter), 1000).unwrap(), &voter);
            }
        }
    }

    #[test]
    fn it_learns_first_and_forgets_at_last() {
        let mut voter = Voter::new(3, 5);
        let verdicts =
            [true, true, true, false, false, false].iter().enumerate().map(|(i, &v)| voter.vote(i as u64, v));
        let verdicts: alloc::vec::Vec<_> = verdicts.collect();
        use Verdict::{Drifted, Learning, Stable};
        assert_eq!(verdicts, [Learning, Learning, Drifted, Drifted, Drifted, Stable]);
        assert_eq!(Voter::new(9, 100), Voter::new(9, 64));
        let mut wide = Voter::new(64, 64);
        assert_eq!((0..64).map(|i| wide.vote(i, true)).last(), Some(Drifted));
    }
}
