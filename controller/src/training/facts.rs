//! What is known of a task when its triggers are weighed.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_monitor::rate::Rate;
use dunlin_pipeline::{DriftFact, Facts, RunState, Triggers};
use dunlin_protocol::{ReferenceProfile, ReleaseId, TaskId, cbor};

use super::{TrainingError, WAITING};
use crate::api::AppState;
use crate::evidence::{self, Ledger, Place, Roster};
use crate::planner::TaskRow;
use crate::store::DeviceState;

/// Largest reference profile, bytes: some hundred features of 64 bins.
const PROFILE_BYTES_MAX: usize = 4 << 20;

/// Sums of windows by task, kept between looks.
pub(super) type Ledgers = BTreeMap<TaskId, (Ledger, BTreeSet<ReleaseId>)>;

/// The part that runs decide: schedule, budget, cool-down.
pub(super) async fn of_runs(state: &AppState, task: &TaskRow, now_ms: u64) -> Result<Facts, TrainingError> {
    let id = &task.definition.task;
    let runs = state.store.runs(Some(id)).await?;
    let pending = runs.iter().find(|run| run.state == WAITING || run.state == RunState::Running.name());
    let last_ms = runs.iter().map(|run| run.created_ms).max().unwrap_or(task.created_ms);
    let judged_ms = task.definition.retraining.as_ref().map_or(0, |retraining| retraining.judged_ms);
    let last_end_ms = runs.iter().filter_map(|run| run.ended_ms).max();
    let exclude = excluded(task);
    // What was answered before the last run ended is what that run was about.
    let since_ms = now_ms.saturating_sub(judged_ms).max(last_end_ms.unwrap_or(0));
    let (labelled, correct) = state.store.labelled_since(id, since_ms, &exclude).await?;
    Ok(Facts {
        accuracy: Rate::new(correct, labelled),
        drift: None,
        labels_new: state.store.labels_since(id, last_ms).await?,
        schedule_from_ms: task.schedule_ms,
        last_end_ms,
        runs_last_day: u32::try_from(
            runs.iter().filter(|run| now_ms.saturating_sub(run.created_ms) < Triggers::BUDGET_MS).count(),
        )
        .unwrap_or(u32::MAX),
        pending: pending.map(|run| run.id.clone()),
    })
}

/// Groups that are neither judged nor learnt from: those that retraining leaves out, and those that are held.
pub(super) fn excluded(task: &TaskRow) -> Vec<&str> {
    let named = task.definition.retraining.iter().flat_map(|retraining| &retraining.exclude);
    named.chain(&task.definition.held).map(|group| group.as_str()).collect()
}

/// Confirmed drift of what the task's devices serve, the widest first.
pub(super) async fn drift(
    state: &AppState,
    task: &TaskRow,
    ledgers: &mut Ledgers,
    now_ms: u64,
) -> Result<Option<DriftFact>, TrainingError> {
    let id = &task.definition.task;
    let (ledger, profiled) = ledgers
        .entry(id.clone())
        .or_insert_with(|| (Ledger::new(id.clone(), state.config.evidence), BTreeSet::new()));
    let devices = state.store.devices().await?;
    let excluded: BTreeSet<&str> = excluded(task).into_iter().collect();
    let roster: Roster = devices
        .into_iter()
        .filter(|device| device.state == DeviceState::Active && task.definition.covers(&device.groups))
        .filter(|device| !device.groups.iter().any(|group| excluded.contains(group.as_str())))
        .map(|device| (device.id, Place { class: device.profile.class, groups: device.groups }))
        .collect();
    let installed = state.store.installed_all().await?;
    let serving: BTreeSet<ReleaseId> =
        roster.keys().filter_map(|device| installed.get(device)?.get(id)?.release.clone()).collect();
    ledger.set_roster(roster);
    for release in &serving {
        if profiled.contains(release) {
            continue;
        }
        let Some(blob) = state.store.release(release).await?.and_then(|row| row.bundle.profile) else {
            continue;
        };
        let Some(bytes) = state.registry.blobs().get(&blob.digest).await? else { continue };
        match cbor::decode::<ReferenceProfile>(&bytes, PROFILE_BYTES_MAX) {
            Ok(profile) => {
                ledger.set_profile(release.clone(), blob.digest, profile);
                profiled.insert(release.clone());
            }
            Err(error) => {
                tracing::warn!(%release, %error, "a reference profile can not be read, so drift of its inputs is not watched")
            }
        }
    }
    ledger.read(&state.store, now_ms).await?;
    ledger.advance(now_ms);
    evidence::alert(&state.store, ledger, now_ms).await?;
    Ok(serving.iter().filter_map(|release| ledger.drift(release).fact()).max_by_key(|fact| fact.share_ppm))
}
