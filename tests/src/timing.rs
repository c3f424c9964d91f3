//! Quantiles of many short times.
use std::time::{Duration, Instant};

/// Times of single calls.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Times `calls` calls, one by one; `call` is told its number.
    pub fn of(calls: usize, mut call: impl FnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let mut times = Vec::with_capacity(calls);
        for i in 0..calls {
            let start = Instant::now();
            call(i)?;
            times.push(start.elapsed());
        }
        Ok(Self(times))
    }

    /// Times `calls` calls that are due at a steady pace, from when each was due: one that comes late because the one
    /// before took long has waited, and that counts. That this thread woke up late does not, neither to the call it
    /// woke for nor to those that fell due meanwhile.
    pub fn paced(
        calls: usize,
        pause: Duration,
        offset: Duration,
        mut call: impl FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut times = Vec::with_capacity(calls);
        let mut awake = Instant::now();
        let mut due = awake + offset;
        for i in 0..calls {
            let ahead = due.saturating_duration_since(Instant::now());
            if !ahead.is_zero() {
                std::thread::sleep(ahead);
                awake = Instant::now();
            }
            let start = due.max(awake);
            call(i)?;
            times.push(start.elapsed());
            due += pause;
        }
        Ok(Self(times))
    }

    /// Adds the times of another run.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Number of calls.
    pub fn calls(&self) -> usize {
        self.0.len()
    }

    /// The `q` quantile by rank, microseconds; not a number if there are no times.
    pub fn quantile_us(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = ((sorted.len() as f64 * q) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

/// The middle of some numbers; not a number if there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_slow_call_has_waited() {
        let slow = Duration::from_millis(20);
        let call = |i: usize| {
            if i == 0 {
                std::thread::sleep(slow);
            }
            Ok(())
        };
        let times = Times::paced(2, Duration::from_millis(1), Duration::ZERO, call).unwrap();
        assert!(times.0[1] >= slow - Duration::from_millis(2), "{times:?}");
    }
}
