//! The controller's clock: read in one place, and held against what was signed before.
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dunlin_protocol::Now;

use crate::repo::{RepoError, Repos};
use crate::store::{Store, StoreError};

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

/// How far back a clock may go between two starts: more than a correction over the network takes.
const BACK_MS_MAX: u64 = 10 * 60 * 1000;
/// How long a controller may have been off before it asks whether its clock is right: it signs every day.
const AHEAD_MS_MAX: u64 = 30 * 86_400_000;
/// Alert: the clock stands long after what was signed or noted last.
pub const CLOCK_AHEAD: &str = "clock_ahead";
/// What that alert is about.
const SUBJECT: &str = "clock";

/// Why a controller does not start at this time.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// Devices would take what it signs for out of date.
    #[error(
        "the clock stands {behind_s} s before what this controller signed or noted last; set the clock, or start with \
         --clock-is-right if it was ahead then"
    )]
    Behind {
        /// Seconds.
        behind_s: u64,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repositories.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

/// Compares the clock with what was signed and noted last: one that stands before it is refused unless somebody said
/// that it is right, one that stands long after it raises an alert.
///
/// # Errors
/// [`ClockError::Behind`], and what can not be read.
pub async fn check(store: &Store, repos: &Repos, is_right: bool) -> Result<(), ClockError> {
    let now_ms = wall_ms();
    let noted_ms = store.audit_last().await?.map(|entry| entry.at_ms);
    let Some(last_ms) = noted_ms.max(repos.signed_ms()?) else { return Ok(()) };
    if now_ms.saturating_add(BACK_MS_MAX) < last_ms {
        let behind_s = (last_ms - now_ms) / 1000;
        if !is_right {
            return Err(ClockError::Behind { behind_s });
        }
        tracing::warn!(
            behind_s,
            "the clock stands before what was signed or noted last, and is taken as right"
        );
    }
    if now_ms > last_ms.saturating_add(AHEAD_MS_MAX) {
        let days = (now_ms - last_ms) / 86_400_000;
        let detail = format!(
            "the clock stands {days} days after what was signed or noted last; set it unless the controller was off as long"
        );
        tracing::error!(days, "the clock may be ahead");
        store
            .alert_raise(CLOCK_AHEAD, SUBJECT, &detail, &serde_json::json!({ "days": days }), now_ms)
            .await?;
    } else {
        store.alert_clear(CLOCK_AHEAD, SUBJECT, now_ms).await?;
    }
    Ok(())
}
