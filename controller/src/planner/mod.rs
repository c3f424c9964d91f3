//! From what is known of the fleet to what each device shall run.
//!
//! One look ([`tick`]) moves rollouts on, chooses a release per device and task, stores every decision with
//! its reasons, and publishes an assignment where it differs from the last. What is to happen is stored before
//! it is done, and doing it twice does nothing, so a controller that is killed in between goes on where it was.
use std::collections::BTreeMap;
use std::time::Duration;

mod assign;
mod definition;
mod lineup;
mod programs;
mod progress;
mod records;
mod still;
mod tick;

pub use definition::{Choice, DefinitionError, Retraining, TaskDefinition};
pub use lineup::{Lineup, MemberDefinition};
pub use records::{
    AssignmentRow, Decided, Decision, DeviceOutcome, PairedWindow, RolloutOrder, RolloutRow, RolloutStance,
    TaskRow,
};
pub use tick::{PlannerError, tick};

use crate::api::AppState;
use crate::serve::Shutdown;

/// What the loop keeps between looks: sums that would be costly to make anew. Losing it costs time only.
#[derive(Debug, Default)]
pub struct Memory {
    ledgers: BTreeMap<String, progress::Ledger>,
    bundles: BTreeMap<dunlin_protocol::Digest, dunlin_select::Predicted>,
    /// Time of the first look, Unix milliseconds.
    began_ms: Option<u64>,
}

/// Runs until shutdown: a look each tick and whenever something wakes the planner.
pub async fn run(state: AppState, mut shutdown: Shutdown) {
    let every = Duration::from_millis(state.config.planner.tick_ms.max(1));
    let mut memory = Memory::default();
    while !shutdown.is_requested() {
        if let Err(error) = tick(&state, &mut memory).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the planner's look at the fleet failed"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = state.wake.planner.notified() => {}
            () = shutdown.requested() => {}
        }
    }
}
