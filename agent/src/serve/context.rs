//! When a device is better served by a smaller model.

use dunlin_protocol::{ContextRule, Signal};

/// What the device says of itself at one moment. What it does not tell moves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Charge of the battery, parts per million.
    pub battery_ppm: Option<u32>,
    /// Hottest sensor, thousandths of a degree Celsius.
    pub temperature_mc: Option<i64>,
    /// Memory that is available, bytes.
    pub available_bytes: Option<u64>,
    /// Load of the last minute as a share of the cores, parts per million.
    pub load_ppm: Option<u64>,
    /// Whether the link to the controller is up.
    pub link_up: Option<bool>,
}

impl Reading {
    fn of(&self, signal: Signal) -> Option<i64> {
        let large = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        match signal {
            Signal::BatteryPpm => self.battery_ppm.map(i64::from),
            Signal::TemperatureMc => self.temperature_mc,
            Signal::AvailableBytes => self.available_bytes.map(large),
            Signal::LoadPpm => self.load_ppm.map(large),
            Signal::Link => self.link_up.map(i64::from),
        }
    }
}

/// A rule and whether it holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    rule: ContextRule,
    holds: bool,
    /// Since when the value asks for the contrary.
    since_ms: Option<u64>,
}

impl Held {
    fn look(&mut self, reading: &Reading, now_ms: u64) {
        let Some(value) = reading.of(self.rule.signal) else {
            self.since_ms = None;
            return;
        };
        let bound = if self.holds { self.rule.leave } else { self.rule.enter };
        // Downwards into a low that is bad, and out of a high that is.
        let turns = if self.rule.signal.low_is_bad() == self.holds { value >= bound } else { value <= bound };
        if !turns {
            self.since_ms = None;
            return;
        }
        let since = *self.since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since) >= self.rule.dwell_ms {
            (self.holds, self.since_ms) = (!self.holds, None);
        }
    }
}

/// Follows the context of one task.
#[derive(Debug, Default)]
pub(super) struct Degrader {
    held: Vec<Held>,
}

impl Degrader {
    /// None of the rules holds yet.
    pub(super) fn new(rules: &[ContextRule]) -> Self {
        Self { held: rules.iter().map(|&rule| Held { rule, holds: false, since_ms: None }).collect() }
    }

    /// Whether it follows these rules.
    pub(super) fn follows(&self, rules: &[ContextRule]) -> bool {
        self.held.iter().map(|held| &held.rule).eq(rules)
    }

    /// Takes a reading.
    pub(super) fn look(&mut self, reading: &Reading, now_ms: u64) {
        self.held.iter_mut().for_each(|held| held.look(reading, now_ms));
    }

    /// What holds, in words; `None` if nothing does.
    pub(super) fn holds(&self) -> Option<String> {
        let holds = self.held.iter().filter(|held| held.holds).map(|held| held.rule.signal.as_str());
        let words: Vec<&str> = holds.collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hot(mc: i64) -> Reading {
        Reading { temperature_mc: Some(mc), ..Reading::default() }
    }

    fn degrader(signal: Signal, enter: i64, leave: i64, dwell_ms: u64) -> Degrader {
        Degrader::new(&[ContextRule { signal, enter, leave, dwell_ms }])
    }

    #[test]
    fn it_takes_a_while_to_enter_and_to_leave_and_between_the_bounds_nothing_moves() {
        let mut heat = degrader(Signal::TemperatureMc, 80_000, 70_000, 10_000);
        let mut at = |seconds: u64, mc: i64| {
            heat.look(&hot(mc), seconds * 1_000);
            heat.holds().is_some()
        };
        assert!(!at(0, 60_000) && !at(5, 85_000) && !at(10, 85_000));
        assert!(!at(14, 79_000), "a dip begins the wait anew");
        assert!(!at(15, 80_000) && !at(24, 80_000) && at(25, 80_000));
        assert!(at(30, 75_000) && at(60, 70_001), "hysteresis: not cool enough to leave");
        assert!(at(61, 70_000) && at(65, 90_000), "hot again in the meantime");
        assert!(at(66, 60_000) && at(75, 60_000) && !at(76, 60_000));
    }

    #[test]
    fn every_signal_has_its_bad_side() {
        let reading = |good: bool| Reading {
            battery_ppm: Some(if good { 900_000 } else { 100_000 }),
            temperature_mc: Some(if good { 20_000 } else { 90_000 }),
            available_bytes: Some(if good { 1 << 40 } else { 1 }),
            load_ppm: Some(if good { 100_000 } else { 3_000_000 }),
            link_up: Some(good),
        };
        for (signal, enter, leave) in [
            (Signal::BatteryPpm, 200_000, 300_000),
            (Signal::TemperatureMc, 80_000, 70_000),
            (Signal::AvailableBytes, 1 << 20, 1 << 30),
            (Signal::LoadPpm, 2_000_000, 1_000_000),
            (Signal::Link, 0, 1),
        ] {
            let mut degrader = degrader(signal, enter, leave, 0);
            for (now, good) in [true, false, false, true].into_iter().enumerate() {
                degrader.look(&reading(good), now as u64);
                assert_eq!(degrader.holds(), (!good).then(|| signal.as_str().to_owned()));
            }
            degrader.look(&reading(false), 9);
            degrader.look(&Reading::default(), 10);
            assert!(degrader.holds().is_some(), "what is not told moves nothing");
        }
    }

    #[test]
    fn a_signal_that_swings_faster_than_the_dwell_moves_nothing() {
        let mut load = degrader(Signal::LoadPpm, 2_000_000, 1_000_000, 5_000);
        for second in 0..1_000u64 {
            let load_ppm = Some(if second % 5 < 4 { 3_000_000 } else { 500_000 });
            load.look(&Reading { load_ppm, ..Reading::default() }, second * 1_000);
            assert!(load.holds().is_none());
        }
    }
}
