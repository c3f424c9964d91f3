//! Quantiles of many short times.
use std::time::{Duration, Instant};

/// Times of single calls.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Times `calls` calls, one by one; `call` is told its number.
    pub(crate) fn of(
        calls: usize,
        mut call: impl FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut times = Vec::with_capacity(calls);
        for i in 0..calls {
            let start = Instant::now();
            call(i)?;
            times.push(start.elapsed());
        }
        Ok(Self(times))
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The `q` quantile by rank, microseconds; not a number if there are no times.
    pub(crate) fn quantile_us(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = ((sorted.len() as f64 * q) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

/// The middle of some numbers; not a number if there are none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
