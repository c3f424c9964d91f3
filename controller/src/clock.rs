//! The controller's clock, read in one place.
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dunlin_protocol::Now;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Unix milliseconds.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a controller's clock stands after 1970");
    u64::try_from(since.as_millis()).expect("milliseconds since 1970 fit 64 bits for half a billion years")
}

/// The present as pure crates take it.
pub fn now() -> Now {
    let mono_ms = u64::try_from(START.elapsed().as_millis()).expect("uptime in milliseconds fits 64 bits");
    Now { mono_ms, wall_ms: Some(wall_ms()) }
}
