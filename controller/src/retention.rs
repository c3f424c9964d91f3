//! Takes what is old out of the database, so that it does not grow for ever.
use std::time::{Duration, Instant};

use crate::clock;
use crate::config::Retention;
use crate::serve::Shutdown;
use crate::store::{Result, Store};

/// Time between two looks: rows go by days.
const EVERY: Duration = Duration::from_secs(3600);
/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// Runs until shutdown.
pub async fn run(store: Store, config: Retention, mut shutdown: Shutdown) {
    let begun = Instant::now();
    let mut newest_ms = None;
    while !shutdown.is_requested() {
        match look(&store, &config, &mut newest_ms, begun.elapsed()).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "old rows were taken out of the database"),
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "old rows could not be taken out of the database"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.requested() => {}
        }
    }
}

/// What is old is told by the newest window of the time before this start, and by how long ago that start was: a clock
/// that is ahead makes nothing old.
async fn look(
    store: &Store,
    config: &Retention,
    newest_ms: &mut Option<u64>,
    since_start: Duration,
) -> Result<u64> {
    let newest_ms = match *newest_ms {
        Some(newest_ms) => newest_ms,
        None => *newest_ms.insert(store.newest_window_ms().await?),
    };
    let since_ms = u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX);
    forget(store, config, clock::wall_ms().min(newest_ms.saturating_add(since_ms))).await
}

async fn forget(store: &Store, config: &Retention, now_ms: u64) -> Result<u64> {
    let before = |days: u64| now_ms.saturating_sub(days.saturating_mul(DAY_MS));
    let windows = store.forget_windows(before(config.windows_days)).await?;
    Ok(windows + store.forget_events(before(config.events_days)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_store;

    #[tokio::test]
    async fn a_clock_that_is_ahead_makes_nothing_old() {
        let (_dir, store) = test_store().await;
        // Rows of 1970, as the clock of a test sees them.
        for (id, day) in [(1, 1), (2, 90), (3, 100)] {
            sqlx::query("INSERT INTO windows VALUES (?1, 1, ?1, 'cam', 'meter', NULL, 1, 1, 2, 1, ?2, 0, 1, 0, 0, 0, x'')")
                .bind(id)
                .bind(day * i64::try_from(DAY_MS).unwrap())
                .execute(store.writer())
                .await
                .unwrap();
        }
        let config = Retention { windows_days: 30, events_days: 30 };
        let mut newest_ms = None;
        assert_eq!(
            look(&store, &config, &mut newest_ms, Duration::ZERO).await.unwrap(),
            1,
            "the first day's"
        );
        assert_eq!(look(&store, &config, &mut newest_ms, Duration::from_secs(3600)).await.unwrap(), 0);
        let later = Duration::from_millis(25 * DAY_MS);
        assert_eq!(look(&store, &config, &mut newest_ms, later).await.unwrap(), 1, "it ages as time passes");
    }
}
