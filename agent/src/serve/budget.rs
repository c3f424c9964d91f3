//! What a shadow may cost.

use super::context::Reading;

/// A shadow that was not asked for a while may catch up on this much time, milliseconds.
const BURST_MS: u64 = 10_000;

/// The budget of one shadow.
#[derive(Debug)]
pub(super) struct Budget {
    cpu_ppm: u32,
    ram_bytes: u64,
    battery_ppm_min: u32,
    /// What it may take, in nanoseconds times a million; below zero after a run that took more.
    left: i128,
    at_ms: Option<u64>,
}

impl Budget {
    pub(super) fn new(cpu_ppm: u32, ram_bytes: u64, battery_ppm_min: u32) -> Self {
        Self { cpu_ppm, ram_bytes, battery_ppm_min, left: Self::earned(cpu_ppm, BURST_MS), at_ms: None }
    }

    fn earned(cpu_ppm: u32, ms: u64) -> i128 {
        i128::from(ms) * 1_000_000 * i128::from(cpu_ppm)
    }

    /// Whether it may run.
    pub(super) fn allows(&mut self, reading: &Reading, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms.unwrap_or(now_ms));
        // Requests end in another order than they came in: no time is earned twice.
        self.at_ms = self.at_ms.max(Some(now_ms));
        let most = Self::earned(self.cpu_ppm, BURST_MS);
        self.left = (self.left + Self::earned(self.cpu_ppm, passed)).min(most);
        // A device that can not tell its memory has none to spare for records.
        let memory =
            self.ram_bytes == 0 || reading.available_bytes.is_some_and(|free| free >= self.ram_bytes);
        let charge = reading.battery_ppm.is_none_or(|charge| charge >= self.battery_ppm_min);
        self.left > 0 && memory && charge
    }

    /// Counts a run.
    pub(super) fn spent(&mut self, ns: u64) {
        self.left -= i128::from(ns) * 1_000_000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stays_within_its_share() {
        let mut budget = Budget::new(50_000, 0, 0);
        let (run_ns, mut runs) = (20_000_000, 0u64);
        for ms in (0..600_000).step_by(10) {
            if budget.allows(&Reading::default(), ms) {
                budget.spent(run_ns);
                runs += 1;
            }
        }
        let spent_ms = runs * run_ns / 1_000_000;
        assert!((30_000..=30_000 + 1_000).contains(&spent_ms), "{spent_ms} of 600 s at 5 %");
    }

    #[test]
    fn time_that_goes_back_is_not_earned_twice() {
        let mut budget = Budget::new(1_000_000, 0, 0);
        let mut allows = |ms, spent_ns| {
            let allowed = budget.allows(&Reading::default(), ms);
            budget.spent(spent_ns);
            allowed
        };
        assert!(allows(1_000, BURST_MS * 1_000_000), "all that it had");
        assert!(![1_000, 500, 1_000, 0, 1_000].into_iter().any(|ms| allows(ms, 0)));
        assert!(allows(1_001, 0));
    }

    #[test]
    fn memory_and_battery_hold_it_back() {
        let reading = |free: u64, charge: Option<u32>| Reading {
            available_bytes: Some(free),
            battery_ppm: charge,
            ..Reading::default()
        };
        let mut budget = Budget::new(1_000_000, 1_000, 500_000);
        for (reading, expected) in [
            (reading(1_000, None), true),
            (reading(999, None), false),
            (reading(1_000, Some(499_999)), false),
            (reading(1_000, Some(500_000)), true),
            (Reading::default(), false),
        ] {
            assert_eq!(budget.allows(&reading, 1), expected, "{reading:?}");
        }
        assert!(!Budget::new(0, 0, 0).allows(&Reading::default(), 1), "no share, no run");
    }
}
