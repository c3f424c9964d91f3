//! Takes what is old out of the database, so that it does not grow for ever.
use std::time::Duration;

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
    while !shutdown.is_requested() {
        match forget(&store, &config, clock::wall_ms()).await {
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

async fn forget(store: &Store, config: &Retention, now_ms: u64) -> Result<u64> {
    let before = |days: u64| now_ms.saturating_sub(days.saturating_mul(DAY_MS));
    let windows = store.forget_windows(before(config.windows_days)).await?;
    Ok(windows + store.forget_events(before(config.events_days)).await?)
}
