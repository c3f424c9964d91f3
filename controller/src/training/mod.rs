//! The training loop.
mod records;

pub use records::{RunRow, TrainingRow};

use crate::api::AppState;
use crate::serve::Shutdown;

/// Runs until shutdown.
pub async fn run(_state: AppState, mut shutdown: Shutdown) {
    shutdown.requested().await;
}
