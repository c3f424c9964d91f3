//! What is known of a task when its triggers are weighed.
use std::collections::BTreeSet;

use dunlin_monitor::rate::Rate;
use dunlin_pipeline::{DriftFact, Facts, RunState, Triggers};
use dunlin_protocol::ReleaseId;

use super::{TrainingError, WAITING};
use crate::api::AppState;
use crate::evidence::{self, Fleet};
use crate::planner::TaskRow;

/// The part that runs decide: schedule, budget, cool-down.
pub(super) async fn of_runs(state: &AppState, task: &TaskRow, now_ms: u64) -> Result<Facts, TrainingError> {
    let id = &task.definition.task;
    let runs = state.store.runs_standing(id).await?;
    let pending = runs.iter().find(|run| run.state == WAITING || run.state == RunState::Running.name());
    // What a clock noted that was ahead holds nothing back.
    let noted = || runs.iter().filter(|run| run.created_ms <= now_ms);
    let last_ms = noted().map(|run| run.created_ms).max().unwrap_or(task.created_ms);
    let judged_ms = task.definition.retraining.as_ref().map_or(0, |retraining| retraining.judged_ms);
    let last_end_ms = noted().filter_map(|run| run.ended_ms).filter(|ended_ms| *ended_ms <= now_ms).max();
    let exclude: Vec<&str> = task.definition.excluded().into_iter().map(|group| group.as_str()).collect();
    // What was answered before the last run ended is what that run was about.
    let since_ms = now_ms.saturating_sub(judged_ms).max(last_end_ms.unwrap_or(0));
    let (labelled, correct) = state.store.labelled_since(id, since_ms, &exclude).await?;
    Ok(Facts {
        accuracy: Rate::new(correct, labelled),
        drift: None,
        labels_new: state.store.labels_since(id, last_ms).await?,
        schedule_from_ms: task.schedule_ms.min(now_ms),
        last_end_ms,
        runs_last_day: u32::try_from(
            noted().filter(|run| now_ms.saturating_sub(run.created_ms) < Triggers::BUDGET_MS).count(),
        )
        .unwrap_or(u32::MAX),
        pending: pending.map(|run| run.id.clone()),
    })
}

/// Looks at the inputs of what the task's devices serve, raises and clears the alerts that follow, and returns
/// confirmed drift, the widest.
pub(super) async fn drift(
    state: &AppState,
    task: &TaskRow,
    now_ms: u64,
) -> Result<Option<DriftFact>, TrainingError> {
    let devices = state.store.devices().await?;
    let installed = state.store.installed_all().await?;
    let fleet = Fleet { devices: &devices, installed: &installed };
    let about = (&state.store, &*state.registry);
    let ledger = state.ledgers.refresh(about, state.config.evidence, task, fleet, now_ms).await?;
    evidence::alert(&state.store, &ledger, now_ms).await?;
    let id = &task.definition.task;
    let serving: BTreeSet<&ReleaseId> =
        installed.values().filter_map(|tasks| tasks.get(id)?.release.as_ref()).collect();
    Ok(serving
        .into_iter()
        .filter_map(|release| ledger.drift(release).fact())
        .max_by_key(|fact| fact.share_ppm))
}
