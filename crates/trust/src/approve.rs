//! The match of both repositories (Uptane, "full verification"): a device runs only what its director assigns
//! and the image repository approves, byte for byte the same.
use std::collections::BTreeSet;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{
    Assignment, Blob, DeviceId, DeviceProfile, Digest, Hard, LineUp, PROGRAM_BYTES_MAX, PROGRAM_REACH_S,
    ProgramCustom, ReasonCode, ReleaseId, SCHEMA, TargetCustom, TaskAssignment, TaskId, TaskPolicy,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::canonical::canonical;
use crate::constraints::{Refusal, check_hard};
use crate::document::Verified;
use crate::key::sha256;
use crate::repo::{RETRAINED, TARGETS};
use crate::{CountedBy, Floors, Lookup, TargetInfo, TrustError, TrustedRepo, speaks_for};

/// Tasks of one assignment; a device has few, and every one costs two look-ups in each repository.
pub const TASKS_MAX: usize = 64;

/// An assignment with a verdict for each task.
#[derive(Debug, Clone)]
pub struct Approved {
    /// What the director said.
    pub assignment: Assignment,
    /// By task: what may be staged, or why nothing may.
    pub tasks: Vec<(TaskId, Result<ApprovedTask, Refusal>)>,
    /// The program that is to run as the agent, or why it may not; `None` if none is named.
    pub program: Option<Result<ApprovedProgram, Refusal>>,
    /// The floors, raised; to be made durable before anything of this is acted upon.
    pub floors: Floors,
}

/// A task whose models are all approved.
#[derive(Debug, Clone)]
pub struct ApprovedTask {
    /// What the director said.
    pub task: TaskAssignment,
    /// The release that answers.
    pub champion: ApprovedRelease,
    /// The release that answers if the champion can not.
    pub fallback: Option<ApprovedRelease>,
    /// The releases of the further members, in the order of the line-up.
    pub members: Vec<ApprovedRelease>,
    /// The task's policy, if the image repository holds one.
    pub policy: Option<ApprovedFile>,
}

impl ApprovedTask {
    /// Its releases: the champion, the fallback, the members in their order.
    pub fn releases(&self) -> impl Iterator<Item = &ApprovedRelease> {
        std::iter::once(&self.champion).chain(&self.fallback).chain(&self.members)
    }
}

/// An approved release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovedRelease {
    /// The release.
    pub release: ReleaseId,
    /// Its manifest.
    pub manifest: ApprovedFile,
    /// Task and constraints, as signed.
    pub custom: TargetCustom,
    /// Whether only the controller's online key vouches for it, so that the policy's bounds apply.
    pub retrained: bool,
}

/// An approved program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovedProgram {
    /// The release.
    pub release: ReleaseId,
    /// The program itself.
    pub file: Blob,
    /// Release of the agent that its signers say it is.
    pub agent: String,
    /// How long it has after a start to reach its controller, milliseconds, as the director says.
    pub reach_ms: u64,
}

/// A file as signed metadata names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovedFile {
    /// Name of the TUF target.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the content.
    pub sha256: Digest,
}

impl ApprovedFile {
    fn of(name: String, info: &TargetInfo) -> Self {
        Self { name, length: info.length, sha256: info.sha256 }
    }
}

/// Judges what the director assigns to `device` by what the image repository approves.
///
/// Both repositories should have been updated with the same [`crate::update_both`]; this adds no judgement of
/// freshness.
///
/// # Errors
/// What makes the whole assignment void: it is missing or malformed, names another device, or goes back.
/// What speaks against one task is a [`Refusal`] beside it.
pub fn approve(
    image: &TrustedRepo,
    director: &TrustedRepo,
    device: &DeviceId,
    profile: &DeviceProfile,
    floors: &Floors,
) -> Result<Verified<Approved>, TrustError> {
    let custom = director.targets_custom().ok_or_else(|| missing("director targets"))?;
    let assignment: Assignment = read(custom, "the director's targets hold no assignment")?;
    if assignment.device != *device && !weaken::off(Defence::AssignedDevice) {
        return Err(TrustError::WrongDevice { device: device.clone(), named: assignment.device });
    }
    if let Some(named) = assignment.class.clone().filter(|named| *named != profile.class) {
        return Err(TrustError::WrongClass { class: profile.class.clone(), named });
    }
    let content = content(director, custom)?;
    let counted_by = counted_by(director, floors)?;
    // Generations that other keys counted say nothing.
    let other_keys = floors.counted_by.is_some_and(|before| before != counted_by);
    let floor = if other_keys { 0 } else { floors.generation };
    let known = !other_keys && floors.assignment.is_some_and(|known| known != content);
    let back = assignment.generation < floor || (assignment.generation == floor && known);
    if back && !weaken::off(Defence::Generation) {
        return Err(TrustError::Generation { got: assignment.generation, floor });
    }
    check_tasks(&assignment)?;

    image.release_floors()?;
    let mut raised = floors.raised_by(image, director);
    raised.generation = assignment.generation;
    raised.assignment = Some(content);
    raised.counted_by = Some(counted_by);
    let judge = Judge { image, director, profile, floors: &raised };
    let mut tasks: Vec<_> =
        assignment.tasks.iter().map(|task| (task.task.clone(), judge.task(task))).collect();
    fit_together(&mut tasks, profile.ram_bytes);
    let program =
        assignment.program.as_ref().map(|program| judge.program(&program.release, program.reach_ms));
    Ok(Verified::new(Approved { assignment, tasks, program, floors: raised }))
}

/// The keys that the director's generations are counted by. They never go back to those of an older root.
fn counted_by(director: &TrustedRepo, floors: &Floors) -> Result<CountedBy, TrustError> {
    let now = director.targets_keys(floors.counted_by);
    let floor = floors.counted_by.map_or(0, |before| before.root);
    if now.root < floor {
        return Err(TrustError::Rollback { role: "root".to_owned(), got: now.root, floor });
    }
    Ok(now)
}

/// Releases that are each small enough may still be too many: the tasks are served in their order for as long as the device's
/// memory holds what all of them were signed to need.
fn fit_together(tasks: &mut [(TaskId, Result<ApprovedTask, Refusal>)], ram_bytes: u64) {
    let mut left = ram_bytes;
    for (task, verdict) in tasks {
        let Ok(approved) = verdict.as_ref() else { continue };
        let need =
            approved.releases().fold(0u64, |sum, release| sum.saturating_add(release.custom.hard.ram_bytes));
        match left.checked_sub(need) {
            Some(rest) => left = rest,
            None => {
                let detail = format!("{task} needs {need} bytes of memory, the tasks before it leave {left}");
                *verdict = Err(Refusal::new(ReasonCode::LineupConflict, detail));
            }
        }
    }
}

fn missing(role: &str) -> TrustError {
    TrustError::Missing { role: role.to_owned() }
}

fn read<T: DeserializeOwned>(custom: &Value, what: &'static str) -> Result<T, TrustError> {
    T::deserialize(custom).map_err(|source| TrustError::Malformed {
        role: TARGETS.to_owned(),
        what,
        source: Some(source),
    })
}

/// Digest of the assignment and of the targets listed with it, but not of version and expiry, which change
/// whenever the controller signs anew.
fn content(director: &TrustedRepo, custom: &Value) -> Result<Digest, TrustError> {
    let targets = director.current_targets().ok_or_else(|| missing("director targets"))?;
    let listed = targets
        .body
        .targets
        .iter()
        .map(|(name, file)| json!({ "name": name, "length": file.length, "hashes": file.hashes }));
    let content = json!({ "custom": custom, "targets": listed.collect::<Vec<_>>() });
    let bytes = canonical(&content).map_err(|_| TrustError::malformed(TARGETS, "it holds a float"))?;
    Ok(sha256(&bytes))
}

fn check_tasks(assignment: &Assignment) -> Result<(), TrustError> {
    if assignment.tasks.len() > TASKS_MAX {
        return Err(TrustError::malformed(TARGETS, "the assignment has too many tasks"));
    }
    let mut seen = BTreeSet::new();
    if assignment.tasks.iter().all(|task| seen.insert(&task.task)) {
        return Ok(());
    }
    Err(TrustError::malformed(TARGETS, "the assignment names a task twice"))
}

impl Floors {
    /// Floors with all that both repositories showed, whatever is assigned. Release floors come from offline-signed metadata
    /// alone, and keep the highest value ever seen; those that do not read, which [`approve`] refuses, raise none.
    #[must_use]
    pub fn raised_by(&self, image: &TrustedRepo, director: &TrustedRepo) -> Self {
        let mut raised = self.clone();
        raised.image = image.floors();
        raised.roles = image.role_floors().clone();
        raised.director = director.floors();
        raised.wall_ms = self.wall_ms.max(image.judged_ms()).max(director.judged_ms());
        for (model, floor) in image.release_floors().unwrap_or_default() {
            let kept = raised.releases.entry(model).or_insert(0);
            *kept = floor.max(*kept);
        }
        raised
    }
}

struct Judge<'a> {
    image: &'a TrustedRepo,
    director: &'a TrustedRepo,
    profile: &'a DeviceProfile,
    floors: &'a Floors,
}

impl Judge<'_> {
    fn task(&self, task: &TaskAssignment) -> Result<ApprovedTask, Refusal> {
        let LineUp { champion, fallback, members, .. } = &task.lineup;
        task.lineup.check().map_err(|error| Refusal::new(ReasonCode::LineupConflict, error.to_string()))?;
        let policy = self.policy(&task.task)?;
        let champion = self.release(champion, &task.task, policy.as_ref())?;
        let other = |part: &str, release: &ReleaseId| {
            let approved = self.release(release, &task.task, policy.as_ref());
            approved.map_err(|refusal| Refusal::new(refusal.reason, format!("{part}: {}", refusal.detail)))
        };
        let fallback = fallback.as_ref().map(|release| other("fallback", release)).transpose()?;
        let members =
            members.iter().map(|member| other("member", &member.release)).collect::<Result<_, _>>()?;
        Ok(ApprovedTask { task: task.clone(), champion, fallback, members, policy })
    }

    /// What the image repository says of a target. A role that speaks for it and is not here may say anything, so that it
    /// is not the same as nothing.
    fn find(&self, name: &str) -> Result<Option<TargetInfo>, Refusal> {
        if let Lookup::Needs { role, .. } = self.image.lookup(name) {
            let detail =
                format!("{name}: the file of {role}, which speaks for it, did not come or is expired");
            return Err(Refusal::new(ReasonCode::MetadataMismatch, detail));
        }
        Ok(self.image.target(name))
    }

    /// The policy of a task; one that the controller's own key or another task's role vouches for is none.
    fn policy(&self, task: &TaskId) -> Result<Option<ApprovedFile>, Refusal> {
        let name = TaskPolicy::target_name(task);
        let info = self.find(&name)?.filter(|info| info.role != RETRAINED && speaks_for(&info.role, task));
        Ok(info.map(|info| ApprovedFile::of(name, &info)))
    }

    /// What both repositories say of the target that stands for a release.
    fn listed(&self, release: &ReleaseId, name: &str) -> Result<TargetInfo, Refusal> {
        let refuse = |reason, what: &str| Err(Refusal::new(reason, format!("{release}: {what}")));
        let unapproved = || self.director.target(name).filter(|_| weaken::off(Defence::Approval));
        let Some(info) = self.find(name)?.or_else(unapproved) else {
            return refuse(ReasonCode::NotApproved, "the image repository does not hold it");
        };
        let Some(assigned) = self.director.target(name) else {
            return refuse(ReasonCode::TargetMismatch, "the director assigns it without listing its file");
        };
        if (assigned.length, assigned.sha256) != (info.length, info.sha256) {
            return refuse(ReasonCode::TargetMismatch, "director and image repository name different files");
        }
        Ok(info)
    }

    fn not_withdrawn(&self, release: &ReleaseId) -> Result<(), Refusal> {
        if self.floors.releases.get(&release.model).is_some_and(|floor| release.version < *floor) {
            let detail = format!("{release}: it is withdrawn");
            return Err(Refusal::new(ReasonCode::BelowReleaseFloor, detail));
        }
        Ok(())
    }

    /// A program runs with all that the agent may do, so that the owner's own targets alone speak for one: no delegated role
    /// does, whatever names it covers.
    fn program(&self, release: &ReleaseId, reach_ms: u64) -> Result<ApprovedProgram, Refusal> {
        let refuse = |reason, what: &str| Err(Refusal::new(reason, format!("{release}: {what}")));
        let info = self.listed(release, &release.program_name())?;
        if !info.is_owners() {
            return refuse(ReasonCode::NotApproved, "only a delegated role lists this program");
        }
        let Ok(custom) = serde_json::from_value::<ProgramCustom>(info.custom) else {
            return refuse(ReasonCode::NotApproved, "the image repository does not say what program it is");
        };
        self.not_withdrawn(release)?;
        let hard = Hard {
            arch: [custom.arch].into(),
            classes: custom.classes,
            ops: BTreeSet::new(),
            bundle_bytes: 0,
            ram_bytes: 0,
            min_agent: String::new(),
        };
        check_hard(&hard, self.profile)
            .map_err(|refusal| Refusal::new(refusal.reason, format!("{release}: {}", refusal.detail)))?;
        if !custom.schemas.contains(&SCHEMA) {
            return refuse(
                ReasonCode::SchemaUnknown,
                "it does not speak as this agent and its controller do",
            );
        }
        if info.length > PROGRAM_BYTES_MAX {
            return refuse(ReasonCode::SizeExceeded, "it is larger than any program may be");
        }
        let file = Blob { digest: info.sha256, length: info.length };
        // The key that says so lies with the controller.
        let reach_ms = reach_ms.clamp(PROGRAM_REACH_S.start() * 1000, PROGRAM_REACH_S.end() * 1000);
        Ok(ApprovedProgram { release: release.clone(), file, agent: custom.agent, reach_ms })
    }

    fn release(
        &self,
        release: &ReleaseId,
        task: &TaskId,
        policy: Option<&ApprovedFile>,
    ) -> Result<ApprovedRelease, Refusal> {
        let refuse = |reason, what: &str| Err(Refusal::new(reason, format!("{release}: {what}")));
        let name = release.target_name();
        let info = self.listed(release, &name)?;
        let Ok(custom) = serde_json::from_value::<TargetCustom>(info.custom.clone()) else {
            return refuse(ReasonCode::NotApproved, "the image repository does not say what it needs");
        };
        if custom.task != *task {
            return refuse(ReasonCode::NotApproved, "it is approved for another task");
        }
        if !speaks_for(&info.role, task) {
            return refuse(ReasonCode::NotApproved, "only the signers of another task list it");
        }
        self.not_withdrawn(release)?;
        let retrained = info.role == RETRAINED;
        if retrained && !release.model.is_retrained_for(task) {
            return refuse(ReasonCode::RetrainedNotAllowed, "a retrained release of another line or task");
        }
        if retrained && policy.is_none() {
            return refuse(ReasonCode::RetrainedNotAllowed, "its task has no signed policy");
        }
        check_hard(&custom.hard, self.profile)
            .map_err(|refusal| Refusal::new(refusal.reason, format!("{release}: {}", refusal.detail)))?;
        let manifest = ApprovedFile::of(name, &info);
        Ok(ApprovedRelease { release: release.clone(), manifest, custom, retrained })
    }
}
