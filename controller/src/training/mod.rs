//! Retraining: when, whose turn, and one process per run.
//!
//! The supervisor weighs the triggers of each task, keeps the queue in the database, and drives each run's
//! machine. Training itself happens in a child process with a cleared environment and no keys, which limits and
//! confines itself before it looks at its job; what it leaves behind is examined as hostile input. A controller that is killed takes its runs up from their journals.
mod confine;
mod drive;
mod facts;
mod records;
mod snapshot;
mod steps;
mod supervisor;
mod worker;

use dunlin_pipeline::{RunState, Verdict, consider};
use dunlin_protocol::TaskId;
use serde_json::{Value, json};

pub use confine::{ConfineError, Confined, WorkerLimits, confine, limit};
pub use records::{RunDetail, RunRow, RunStanding, TrainingRow, Wanted};
pub use supervisor::run;

use crate::api::AppState;
use crate::clock;
use crate::init::short_id;
use crate::registry::RegistryError;
use crate::store::{Store, StoreError};

/// Why the supervisor did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// The database.
    #[error("retraining needs the database")]
    Store(#[from] StoreError),
    /// The registry.
    #[error("retraining needs the registry")]
    Registry(#[from] RegistryError),
    /// The folder of a run.
    #[error("could not {attempted} {path}")]
    Folder {
        /// What was attempted.
        attempted: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not now, or not this.
    #[error("{0}")]
    Refused(String),
}

/// State of a run that waits in the queue.
pub(crate) const WAITING: &str = "waiting";

/// Queues a run that an operator asks for, by name and by what the audit log calls them; `repeat` names one whose data, seed
/// and rules are used again.
pub async fn ask(
    state: &AppState,
    task: &TaskId,
    (by, signed): (&str, &str),
    repeat: Option<&str>,
) -> Result<String, TrainingError> {
    let row = state.store.task(task).await?;
    let Some(retraining) = &row.definition.retraining else {
        return Err(TrainingError::Refused(format!("task {task} has no [retraining] in its definition")));
    };
    let mut facts = facts::of_runs(state, &row, clock::wall_ms()).await?;
    facts.accuracy = dunlin_monitor::rate::Rate::default();
    match consider(&retraining.triggers, &facts, Some(by), Some(clock::wall_ms())).verdict {
        Verdict::Start(cause) => {
            let original = match repeat {
                Some(run) => Some(state.store.run(run).await?),
                None => None,
            };
            if original.as_ref().is_some_and(|run| run.task != *task) {
                return Err(TrainingError::Refused(format!("the run to repeat is not of task {task}")));
            }
            enqueue(state, &row, cause, original, signed).await
        }
        Verdict::Held { by: hold, .. } => Err(TrainingError::Refused(format!(
            "not now: {}",
            serde_json::to_string(&hold).expect("a hold is JSON")
        ))),
        Verdict::Quiet => Err(TrainingError::Refused("nobody asked".into())),
    }
}

/// Stores a run and puts it into the queue. `signed` is what the audit log calls whoever wants it.
async fn enqueue(
    state: &AppState,
    task: &crate::planner::TaskRow,
    cause: dunlin_pipeline::Cause,
    original: Option<RunRow>,
    signed: &str,
) -> Result<String, TrainingError> {
    let id = task.definition.task.clone();
    let runs = state.store.runs_standing(&id).await?.len() as u64;
    let first = task.definition.retraining.as_ref().map_or(0, |retraining| retraining.seed);
    let run = RunRow {
        id: format!("run-{}", short_id()),
        task: id.clone(),
        owner: task.owner.clone(),
        cause,
        state: WAITING.into(),
        definition: original.as_ref().map_or_else(|| task.definition.clone(), |run| run.definition.clone()),
        seed: original.as_ref().map_or(first + runs, |run| run.seed),
        repeats: original.map(|run| run.id),
        created_ms: clock::wall_ms(),
        started_ms: None,
        ended_ms: None,
        facts: json!({}),
    };
    let mut change = state.audit.begin().await?;
    let taken = Store::run_add(change.tx(), &run).await?;
    taken.map_err(|refusal| TrainingError::Refused(refusal.to_string()))?;
    let after = json!({ "run": run.id, "task": run.task, "cause": run.cause, "repeats": run.repeats });
    change.commit(signed, "run.create", Value::Null, after).await?;
    state.wake.training.notify_one();
    Ok(run.id)
}

/// Notes what an operator wants of a run, if its state allows it, for the supervisor to see to. `signed` is what the audit log
/// calls them.
pub async fn order(state: &AppState, id: &str, wanted: &Wanted, signed: &str) -> Result<(), TrainingError> {
    let mut change = state.audit.begin().await?;
    let run = state.store.run(id).await?;
    let (can, else_it) = match wanted {
        Wanted::Cancel { .. } => (run.state == WAITING || run.state == RunState::Running.name(), "has ended"),
        Wanted::Restart { .. } => (run.state == "failed", "has not failed"),
    };
    if !can {
        return Err(TrainingError::Refused(format!("run {id} {else_it}: {}", run.state)));
    }
    Store::run_want(change.tx(), id, wanted).await?;
    let before = json!({ "run": id, "state": run.state });
    change.commit(signed, "run.order", before, json!({ "run": id, "order": wanted })).await?;
    state.wake.training.notify_one();
    Ok(())
}
