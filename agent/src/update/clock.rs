use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dunlin_protocol::Now;

/// 2025-01-01: before it, a clock shows a board's idea of its own birth, not the time.
const WALL_MS_MIN: u64 = 1_735_689_600_000;

/// The one place where the update shell reads clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The present. Wall time is unknown while the system clock stands before 2025.
    pub fn now(&self) -> Now {
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(millis);
        Now { mono_ms: millis(self.start.elapsed()), wall_ms: wall.filter(|wall| *wall >= WALL_MS_MIN) }
    }

    /// The instant at which [`Now::mono_ms`] reads `mono_ms`.
    pub fn at(&self, mono_ms: u64) -> Instant {
        self.start + std::time::Duration::from_millis(mono_ms)
    }
}
