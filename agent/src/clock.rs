//! The clocks, as windows and messages see them.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dunlin_protocol::Now;

/// 2025-01-01 in Unix milliseconds: before it, a clock shows a board's idea of its own birth, not the time.
const WALL_MS_MIN: u64 = 1_735_689_600_000;

static STARTED: OnceLock<Instant> = OnceLock::new();

/// The present: milliseconds since the first call, and the wall time where the board seems to know it.
pub fn now() -> Now {
    let elapsed = STARTED.get_or_init(Instant::now).elapsed();
    let mono_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let wall_ms = wall.and_then(|wall| u64::try_from(wall.as_millis()).ok()).filter(|ms| *ms >= WALL_MS_MIN);
    Now { mono_ms, wall_ms }
}
