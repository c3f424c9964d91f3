use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{
    Assignment, Bundle, ClassName, Desired as Hint, DeviceId, ProgramAssignment, ReleaseId, TaskId,
};
use dunlin_rollout::{Inventory, Member, Progress, State, Verdict, plan};
use dunlin_select::Predicted;
use serde_json::json;

use super::assign::{Approved, Desired, DeviceView, TaskView, desire};
use super::programs::{Programs, Wanted};
use super::progress::{Ledger, Outcomes, Sums};
use super::still::Still;
use super::{AssignmentRow, Memory, RolloutRow, TaskRow};
use crate::api::AppState;
use crate::clock;
use crate::evidence::{self, Fleet, Measures};
use crate::ingest::chain;
use crate::repo::{Approval, RepoError};
use crate::store::{DeviceRow, DeviceState, Store, StoreError};

/// Why a look at the fleet failed.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// The database.
    #[error("planning needs the database")]
    Store(#[from] StoreError),
    /// The repositories.
    #[error("planning needs the repositories")]
    Repo(#[from] RepoError),
}

/// One look at the fleet.
pub async fn tick(state: &AppState, memory: &mut Memory) -> Result<(), PlannerError> {
    let began_ms = *memory.began_ms.get_or_insert_with(clock::wall_ms);
    let approvals = match state.repos.approvals() {
        Ok(approvals) => approvals,
        // Before the key ceremony nothing is approved, so there is nothing to plan.
        Err(RepoError::NotSetUp) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let approved = catalogue(state, memory, approvals);
    let tasks = state.store.tasks_read().await?;
    let devices: Vec<DeviceRow> = state
        .store
        .devices()
        .await?
        .into_iter()
        .filter(|device| device.state == DeviceState::Active)
        .collect();
    let installed = state.store.installed_all().await?;
    let rollouts = state.store.rollouts_read().await?;
    let still = Still::new(&tasks, &rollouts);
    // What stands still is neither moved on nor chosen anew: what can not be read may say anything.
    let tasks: Vec<TaskRow> =
        tasks.rows.into_iter().filter(|task| !still.holds(&task.definition.task)).collect();
    let mut rollouts = rollouts.rows;
    memory.ledgers.retain(|id, _| {
        rollouts.iter().any(|rollout| rollout.plan.rollout == *id && !rollout.plan.state.is_final())
    });

    let mut outcomes: BTreeMap<TaskId, Outcomes> = BTreeMap::new();
    for task in &tasks {
        let id = &task.definition.task;
        let releases: Vec<&ReleaseId> =
            approved.iter().filter(|(_, a)| a.task == *id).map(|(release, _)| release).collect();
        outcomes.insert(id.clone(), Outcomes::new(state.store.outcomes_of(Some(id), &releases).await?));
    }
    let mut progress: BTreeMap<String, BTreeMap<DeviceId, Progress>> = BTreeMap::new();
    for rollout in &mut rollouts {
        let Some(task) = tasks.iter().find(|task| task.definition.task == rollout.plan.task) else {
            continue;
        };
        let inherited = rollout.created_ms < began_ms;
        if rollout.plan.state.is_final() || (inherited && weaken::off(Defence::Takeover)) {
            continue;
        }
        let Some(outcomes) = outcomes.get(&rollout.plan.task) else { continue };
        let ledger = memory.ledgers.entry(rollout.plan.rollout.clone()).or_default();
        let inventory = inventory(state, task, rollout, &devices, &installed, outcomes, ledger).await?;
        look(state, rollout, &inventory).await?;
        let devices = inventory.devices.into_iter().map(|(device, member)| (device, member.progress));
        progress.insert(rollout.plan.rollout.clone(), devices.collect());
    }

    let classes: BTreeMap<&DeviceId, &ClassName> =
        devices.iter().map(|device| (&device.id, &device.profile.class)).collect();
    let fleet = Fleet { devices: &devices, installed: &installed };
    let mut views = Vec::with_capacity(tasks.len());
    for task in &tasks {
        let id = &task.definition.task;
        let now_ms = clock::wall_ms();
        let about = (&state.store, &*state.registry);
        let ledger = state.ledgers.refresh(about, state.config.evidence, task, fleet, now_ms).await?;
        let since_ms = now_ms.saturating_sub(task.definition.choice.judged_ms);
        let measures = Measures::new(&ledger, &classes, since_ms);
        drop(ledger);
        views.push(TaskView {
            definition: &task.definition,
            rollouts: rollouts.iter().filter(|rollout| rollout.plan.task == *id).collect(),
            progress: progress.iter().map(|(rollout, devices)| (rollout.as_str(), devices.clone())).collect(),
            outcomes: outcomes.remove(id).unwrap_or_default(),
            measures,
            policy: state.repos.has_policy(id)?,
        });
    }
    assign(state, &devices, &installed, (&views, &still), &approved).await
}

/// Approved releases with what their manifests say. A manifest that can not be read costs its prediction.
fn catalogue(
    state: &AppState,
    memory: &mut Memory,
    approvals: Vec<Approval>,
) -> BTreeMap<ReleaseId, Approved> {
    let mut approved = BTreeMap::new();
    for Approval { release, manifest, custom, retrained, .. } in approvals {
        let predicted = *memory.bundles.entry(manifest).or_insert_with(|| {
            let file = state.repos.target_file(&format!("{manifest}.{}", release.target_name()));
            let bundle = file.ok().flatten().and_then(|bytes| serde_json::from_slice::<Bundle>(&bytes).ok());
            bundle.map_or_else(Predicted::default, |bundle| evidence::predicted(&bundle))
        });
        let (task, hard) = (custom.task, custom.hard);
        approved.insert(release, Approved { task, hard, predicted, retrained });
    }
    approved
}

async fn inventory(
    state: &AppState,
    task: &TaskRow,
    rollout: &RolloutRow,
    devices: &[DeviceRow],
    installed: &BTreeMap<DeviceId, BTreeMap<TaskId, dunlin_protocol::Installed>>,
    outcomes: &Outcomes,
    ledger: &mut Ledger,
) -> Result<Inventory, PlannerError> {
    let candidates: Vec<&ReleaseId> = rollout.plan.candidates.iter().collect();
    loop {
        let (windows, cursor) = state
            .store
            .windows_of(&rollout.plan.task, &candidates, rollout.created_ms, ledger.cursor)
            .await?;
        if cursor == ledger.cursor {
            break;
        }
        ledger.cursor = cursor;
        ledger.add(windows);
    }
    let orders = state.store.orders(&rollout.plan.rollout).await?;
    let mut inventory = Inventory::default();
    for device in devices {
        if !task.definition.covers(&device.groups) || task.definition.holds(&device.groups) {
            continue;
        }
        let member = rollout.plan.members.contains_key(&device.id);
        let progress = outcomes.progress(&device.id, orders.get(&device.id), member);
        let Sums { requests, pairs, paired } = ledger.of(&device.id, progress.release());
        let serving = installed
            .get(&device.id)
            .and_then(|tasks| tasks.get(&rollout.plan.task))
            .and_then(|installed| installed.release.clone());
        let heard_ms = (device.seen_ms > 0).then_some(device.seen_ms);
        let class = device.profile.class.clone();
        inventory.devices.insert(
            device.id.clone(),
            Member { class, heard_ms, serving, progress, requests, pairs, paired },
        );
    }
    Ok(inventory)
}

/// Moves a rollout on: the next plan is stored before anything follows from it.
async fn look(state: &AppState, rollout: &mut RolloutRow, inventory: &Inventory) -> Result<(), PlannerError> {
    let now = clock::now();
    let (next, report) = plan(&rollout.policy, inventory, &rollout.plan, now);
    if next != rollout.plan {
        let mut change = state.audit.begin().await?;
        match Store::plan_add(change.tx(), &next, clock::wall_ms()).await {
            Ok(()) => {}
            // An operator was faster; the next look starts from what they made of it.
            Err(StoreError::Conflict(_)) => {
                rollout.plan = state.store.rollout(&next.rollout).await?.plan;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let before = json!({ "rollout": next.rollout, "generation": rollout.plan.generation });
        let after =
            json!({ "rollout": next.rollout, "generation": next.generation, "verdict": report.verdict });
        change.commit("planner", verb(&report.verdict), before, after).await?;
        tracing::info!(
            rollout = next.rollout,
            generation = next.generation,
            state = next.state.name(),
            "a rollout moved on"
        );
        if let State::Stopped { reason, .. } = &next.state {
            let facts = json!(reason);
            let detail = format!(
                "rollout {} of task {} stopped; its devices return to what they ran",
                next.rollout, next.task
            );
            state
                .store
                .alert_raise(
                    "rollout_stopped",
                    &format!("rollout:{}", next.rollout),
                    &detail,
                    &facts,
                    clock::wall_ms(),
                )
                .await?;
        }
        rollout.plan = next;
    }
    if rollout.report.as_ref() != Some(&report) {
        state.store.rollout_report(&rollout.plan.rollout, &report).await?;
        rollout.report = Some(report);
    }
    Ok(())
}

fn verb(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Open { .. } => "rollout.open",
        Verdict::Promote { .. } => "rollout.promote",
        Verdict::Stop(_) => "rollout.stop",
        Verdict::Wait(_) | Verdict::Ended => "rollout.look",
    }
}

async fn assign(
    state: &AppState,
    devices: &[DeviceRow],
    installed: &BTreeMap<DeviceId, BTreeMap<TaskId, dunlin_protocol::Installed>>,
    (views, still): (&[TaskView<'_>], &Still),
    approved: &BTreeMap<ReleaseId, Approved>,
) -> Result<(), PlannerError> {
    let assigned = state.store.assignments().await?;
    let decided = state.store.decided().await?;
    let mut alerted = state.store.alerted(UNASSIGNED).await?;
    let told = |device: &DeviceId| assigned.get(device)?.assignment.program.as_ref();
    let any = assigned.keys().any(|device| told(device).is_some());
    let mut programs = Wanted::default();
    if let Some(known) = known_programs(state, any).await? {
        programs = known.wanted(devices, told);
        held(state, &programs.held).await?;
    }
    let (mut decisions, mut all) = (Vec::new(), Vec::new());
    for device in devices {
        let before = assigned.get(&device.id);
        if before.is_none() && still.any() {
            // Nothing tells what it was told of what stands still.
            continue;
        }
        let view = DeviceView { row: device, installed: installed.get(&device.id), assigned: before };
        let mut desired = desire(&view, (views, still), approved, clock::wall_ms());
        for decision in std::mem::take(&mut desired.decisions) {
            // What only says the same with fresher numbers is not worth a write at every look.
            let key = (device.id.clone(), decision.task.clone());
            let fresh = decided.get(&key).is_some_and(|last| {
                last.is_said_by(&decision) && decision.made_ms.saturating_sub(last.made_ms) < DECISION_MS
            });
            if !fresh && !weaken::off(Defence::Explain) {
                decisions.push(decision);
            }
        }
        all.push((device, before, desired, programs.told.remove(&device.id)));
    }
    // The reasons are there before any device can do what it is told. Where they can not be kept, it is told all the same.
    let kept = state.store.decisions_put(&decisions).await;
    for (device, before, desired, program) in all {
        let subject = format!("device:{}", device.id);
        match tell(state, device, before, desired, program).await {
            Ok(()) if alerted.remove(&subject) => {
                state.store.alert_clear(UNASSIGNED, &subject, clock::wall_ms()).await?;
            }
            Ok(()) => {}
            // One device's trouble is not the fleet's; the next look tries again.
            Err(error) => {
                let chain = chain(&error);
                tracing::error!(error = chain, device = %device.id, "an assignment was not published");
                let detail = format!("{} gets no new assignment: {chain}", device.id);
                state.store.alert_raise(UNASSIGNED, &subject, &detail, &json!({}), clock::wall_ms()).await?;
            }
        }
    }
    kept?;
    Ok(())
}

/// What is known of programs; nothing where none was ever ordered or `told`.
async fn known_programs(state: &AppState, told: bool) -> Result<Option<Programs>, PlannerError> {
    let orders = state.store.program_orders().await?;
    if orders.is_empty() && !told {
        return Ok(None);
    }
    let releases: Vec<&ReleaseId> = orders.iter().map(|order| &order.release).collect();
    let outcomes = state.store.outcomes_of(None, &releases).await?;
    Ok(Some(Programs::new(orders, state.repos.programs()?, &state.store.programs().await?, outcomes)))
}

/// Alert: a device failed with a program, which is held back from all that were not told of it.
const HELD: &str = "program_held";

/// Tells which programs are held back, and which are so no more.
async fn held(state: &AppState, held: &BTreeMap<ReleaseId, DeviceId>) -> Result<(), PlannerError> {
    let subject = |release: &ReleaseId| format!("program:{release}");
    let mut alerted = state.store.alerted(HELD).await?;
    for (release, device) in held {
        let subject = subject(release);
        if !alerted.remove(&subject) {
            let detail = format!(
                "{device} failed with {release}, so that no other device is told of it: \
                 have it try again with `dunlin device retarget {device} {release}`, or order another program"
            );
            let facts = json!({ "device": device });
            state.store.alert_raise(HELD, &subject, &detail, &facts, clock::wall_ms()).await?;
        }
    }
    for subject in alerted {
        state.store.alert_clear(HELD, &subject, clock::wall_ms()).await?;
    }
    Ok(())
}

/// Alert: what a device shall run can not be stored, signed or published.
const UNASSIGNED: &str = "assignment_failed";

/// Stores and publishes what a device shall run, where that differs from what it was told.
async fn tell(
    state: &AppState,
    device: &DeviceRow,
    before: Option<&AssignmentRow>,
    desired: Desired,
    program: Option<ProgramAssignment>,
) -> Result<(), PlannerError> {
    let same = |before: &AssignmentRow| {
        before.assignment.tasks == desired.tasks && before.assignment.program == program
    };
    let assignment = match before {
        Some(before) if same(before) && is_of_class(before, device) => {
            if before.published {
                return Ok(());
            }
            before.assignment.clone()
        }
        None if desired.tasks.is_empty() && program.is_none() => return Ok(()),
        Some(_) | None => {
            // Above whatever was ever published, also if database and repository are older copies: then the device tells,
            // within bounds that leave room above a number it made up.
            let published = state.repos.assignment(&device.id)?.map_or(0, |assignment| assignment.generation);
            let stored = before.map_or(0, |before| before.assignment.generation);
            let generation = published.max(stored).max(device.generation).saturating_add(1);
            let correlation =
                desired.orders.keys().next().cloned().unwrap_or_else(|| format!("g{generation}"));
            let assignment = Assignment {
                device: device.id.clone(),
                class: Some(device.profile.class.clone()),
                generation,
                correlation,
                tasks: desired.tasks,
                program,
            };
            state.store.assignment_put(&assignment, &desired.orders, clock::wall_ms()).await?;
            assignment
        }
    };
    publish(state, &assignment).await
}

/// Whether an assignment is for the hardware class that a device says it is of.
fn is_of_class(before: &AssignmentRow, device: &DeviceRow) -> bool {
    before.assignment.class.as_ref().is_none_or(|class| *class == device.profile.class)
}

/// A decision that only says the same with fresher numbers is written this often, milliseconds.
const DECISION_MS: u64 = 15_000;

/// Signs and publishes an assignment, then tells the device. Publishing the same again changes nothing.
async fn publish(state: &AppState, assignment: &Assignment) -> Result<(), PlannerError> {
    let (repos, to_sign) = (Arc::clone(&state.repos), assignment.clone());
    let signed = tokio::task::spawn_blocking(move || repos.publish_assignment(&to_sign, clock::wall_ms()));
    signed.await.expect("publishing does not panic")?;
    state.store.assignment_published(&assignment.device, assignment.generation).await?;
    let hint = Hint { generation: assignment.generation, files: None };
    if let Err(error) = state.downlink.desired(&assignment.device, &hint).await {
        // The hint only saves the device's polling interval.
        tracing::warn!(error = &error as &dyn std::error::Error, "a hint was not sent");
    }
    Ok(())
}
