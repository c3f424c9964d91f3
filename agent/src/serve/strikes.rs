//! When a member that fails is no longer asked.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Strikes that take a member out.
pub const STRIKES_MAX: u32 = 5;
/// Answers that make up for one strike. A member is taken out that fails at more than about one request in so many, not
/// one that has met a few odd inputs in a year.
pub const ANSWERS_PER_STRIKE: u32 = 100;

/// The strikes of one loaded member. They begin anew when it is loaded anew.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    /// What is not made up for yet, in answers.
    owed: AtomicU32,
    out: OnceLock<String>,
}

impl Strikes {
    /// Counts a failure; true if it is the one that takes the member out.
    pub(super) fn strike(&self, detail: &str) -> bool {
        let owed = self.owed.fetch_add(ANSWERS_PER_STRIKE, Ordering::Relaxed) + ANSWERS_PER_STRIKE;
        owed > (STRIKES_MAX - 1) * ANSWERS_PER_STRIKE && self.out.set(detail.to_owned()).is_ok()
    }

    /// Counts an answer.
    pub(super) fn answered(&self) {
        if self.owed.load(Ordering::Relaxed) > 0 {
            // Two answers at the same moment may count as one; none is counted that was not there.
            let _raced =
                self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1));
        }
    }

    /// Why the member is out, if it is.
    pub(super) fn out(&self) -> Option<&str> {
        self.out.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_failures_in_a_row_take_a_member_out_once() {
        let strikes = Strikes::default();
        for _ in 1..STRIKES_MAX {
            assert!(!strikes.strike("odd"));
        }
        assert!(strikes.out().is_none());
        assert!(strikes.strike("the last"));
        assert!(!strikes.strike("more"), "it is told once");
        assert_eq!(strikes.out(), Some("the last"));
    }

    #[test]
    fn answers_make_up_for_failures() {
        let strikes = Strikes::default();
        for _ in 0..100 {
            assert!(!strikes.strike("one in so many"));
            (0..ANSWERS_PER_STRIKE).for_each(|_| strikes.answered());
        }
        let strikes = Strikes::default();
        let out = (0..100).any(|_| {
            (0..ANSWERS_PER_STRIKE / 2).for_each(|_| strikes.answered());
            strikes.strike("twice as often")
        });
        assert!(out);
    }
}
