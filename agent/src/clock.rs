//! The clocks, as windows and messages see them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dunlin_protocol::Now;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// 2025-01-01 in Unix milliseconds: before it, a clock shows a board's idea of its own birth, not the time.
pub const WALL_MS_MIN: u64 = 1_735_689_600_000;

static STARTED: OnceLock<Instant> = OnceLock::new();
/// The wall time at the first call of [`now`] as the controller tells it, zero while it did not.
static LEARNED: AtomicU64 = AtomicU64::new(0);
/// A time that has surely passed.
static PASSED: AtomicU64 = AtomicU64::new(0);

/// The present: milliseconds since the first call, and the wall time where the board seems to know it, or the
/// controller told it.
pub fn now() -> Now {
    let mono_ms = mono_ms();
    let learned =
        Some(LEARNED.load(Ordering::Relaxed)).filter(|ms| *ms > 0).map(|ms| ms.saturating_add(mono_ms));
    Now { mono_ms, wall_ms: system_ms().filter(|ms| *ms >= WALL_MS_MIN).max(learned) }
}

fn mono_ms() -> u64 {
    let elapsed = STARTED.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

fn system_ms() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// Takes over what the controller says the time is, in place of what it said before: its clock may have been ahead and
/// put right since. Whether it may be believed is judged before, see `dunlin_trust::Floors::admits_hint`.
pub fn learn(wall_ms: u64) {
    LEARNED.store(wall_ms.saturating_sub(mono_ms()), Ordering::Relaxed);
}

/// Notes a time that has surely passed: a board without a clock judges certificates by it, as it can not fetch the time
/// before it has connected. What is fresh is not judged by it.
pub fn passed(wall_ms: u64) {
    PASSED.fetch_max(wall_ms, Ordering::Relaxed);
}

/// The time that certificates are judged by.
#[derive(Debug)]
pub struct CertificateTime;

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let known = now().wall_ms.or_else(system_ms).unwrap_or(0);
        let ms = known.max(PASSED.load(Ordering::Relaxed)).max(WALL_MS_MIN);
        Some(UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, as the clock is one for the whole process; the others only need it to go on.
    #[test]
    fn what_is_learned_moves_the_clock_forward_until_it_is_corrected() {
        let before = now().wall_ms.unwrap();
        learn(before - 60_000);
        assert!(now().wall_ms.unwrap() < before + 30_000);
        passed(before + 3_600_000);
        assert!(
            now().wall_ms.unwrap() < before + 30_000,
            "a time for certificates is no time to judge freshness by"
        );
        let certificates = CertificateTime.current_time().unwrap().as_secs();
        assert!(certificates >= before / 1000 + 3_600);
        learn(before + 60_000);
        let after = now().wall_ms.unwrap();
        assert!((before + 60_000..before + 90_000).contains(&after));
        learn(before);
        assert!(now().wall_ms.unwrap() < before + 30_000, "the controller's clock was put right");
    }
}
