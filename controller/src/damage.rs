//! Looks for damaged rows while the controller runs, so that an operator hears of them before they are needed.
use std::time::Duration;

use serde_json::json;

use crate::clock;
use crate::serve::Shutdown;
use crate::store::{NAMED_MAX, Result, Store};

/// Alert: a row of the database can not be read. What it is about stands still until somebody repairs it.
pub const ROW_DAMAGED: &str = "row_damaged";
/// Time between two looks: as much as some looks of the planner, and damage is rare.
const EVERY: Duration = Duration::from_secs(30);

/// Runs until shutdown.
pub async fn run(store: Store, mut shutdown: Shutdown) {
    while !shutdown.is_requested() {
        if let Err(error) = look(&store, clock::wall_ms()).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the database could not be examined for damaged rows"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.requested() => {}
        }
    }
}

/// Raises an alert for each damaged row, and clears those of rows that can be read again.
pub async fn look(store: &Store, now_ms: u64) -> Result<()> {
    let damaged = store.damaged_deciding().await?;
    let mut over = store.alerted(ROW_DAMAGED).await?;
    for damage in &damaged {
        let subject = format!("row:{}/{}", damage.table, damage.row);
        let facts = json!({ "table": damage.table, "row": damage.row, "what": damage.what });
        let detail = format!("{damage}; what it is about stands still until it is repaired");
        over.remove(&subject);
        if store.alert_raise(ROW_DAMAGED, &subject, &detail, &facts, now_ms).await? {
            tracing::error!(%damage, "a row of the database is damaged");
        }
    }
    // With as many as are named there may be more, so nothing is known to be over.
    if damaged.len() < NAMED_MAX {
        for subject in over {
            store.alert_clear(ROW_DAMAGED, &subject, now_ms).await?;
        }
    }
    Ok(())
}
