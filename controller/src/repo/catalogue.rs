//! What is approved, for those who plan.
use std::collections::BTreeMap;

use dunlin_protocol::{Digest, ModelName, ProgramCustom, ReleaseId, TargetCustom, TaskId, TaskPolicy};
use dunlin_trust::{RETRAINED, TargetInfo, TrustedRepo, speaks_for, task_of};

use super::{RepoError, Repos};
use crate::store::{Listed, ProgramRow};

/// A release that devices may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The release.
    pub release: ReleaseId,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Length of its manifest, bytes.
    pub length: u64,
    /// Task and hard constraints, as signed.
    pub custom: TargetCustom,
    /// Whether only the controller's own key vouches for it.
    pub retrained: bool,
}

/// A program that devices may run as their agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramApproval {
    /// Digest of the program.
    pub digest: Digest,
    /// What it is built for, as signed.
    pub custom: ProgramCustom,
}

impl ProgramApproval {
    /// Whether it is of these very bytes: a number that was given again after the database was restored stands for others.
    pub fn is_of(&self, program: &ProgramRow) -> bool {
        self.digest == program.blob.digest
    }
}

impl Repos {
    /// Every approved release that is not below its floor, by release.
    ///
    /// # Errors
    /// There is no repository yet.
    pub fn approvals(&self) -> Result<Vec<Approval>, RepoError> {
        let image = self.image()?;
        let floors = self.release_floors()?;
        let approval = |name: &str| {
            let release = ReleaseId::from_target_name(name)?;
            let info = vouched(&image, name)?;
            let custom = serde_json::from_value(info.custom).ok()?;
            let above = floors.get(&release.model).is_none_or(|floor| release.version >= *floor);
            let retrained = info.role == RETRAINED;
            above.then_some(Approval {
                release,
                manifest: info.sha256,
                length: info.length,
                custom,
                retrained,
            })
        };
        let mut approvals: Vec<Approval> = image.target_names().into_iter().filter_map(approval).collect();
        approvals.sort_by(|a, b| a.release.cmp(&b.release));
        Ok(approvals)
    }

    /// Every approved program that is not below its floor, by release. The owner's own targets alone speak for one.
    ///
    /// # Errors
    /// There is no repository yet.
    pub fn programs(&self) -> Result<BTreeMap<ReleaseId, ProgramApproval>, RepoError> {
        let (image, floors) = (self.image()?, self.release_floors()?);
        let program = |name: &str| {
            let release = ReleaseId::from_program_name(name)?;
            let info = image.target(name).filter(TargetInfo::is_owners)?;
            let custom = serde_json::from_value(info.custom).ok()?;
            let above = floors.get(&release.model).is_none_or(|floor| release.version >= *floor);
            above.then_some((release, ProgramApproval { digest: info.sha256, custom }))
        };
        Ok(image.target_names().into_iter().filter_map(program).collect())
    }

    /// Release floors in force.
    ///
    /// # Errors
    /// There is no repository yet.
    pub fn release_floors(&self) -> Result<BTreeMap<ModelName, u32>, RepoError> {
        self.image()?.release_floors().map_err(RepoError::trust("read the release floors"))
    }

    /// What the published targets say at one moment. A task with signers of its own whose file is expired is silent: what
    /// they listed is not found until they renew it, which does not mean that they took it back.
    ///
    /// # Errors
    /// There is no repository yet, or floors do not read.
    pub fn listed(&self) -> Result<Listed, RepoError> {
        let image = self.image()?;
        let names = image.target_names();
        let targets =
            names.into_iter().filter_map(|name| Some((name.to_owned(), vouched(&image, name)?.sha256)));
        let held = image.role_versions();
        let silent = image.task_roles().filter(|role| !held.contains_key(*role)).filter_map(task_of);
        Ok(Listed {
            targets: targets.collect(),
            floors: image.release_floors().map_err(RepoError::trust("read the release floors"))?,
            silent: silent.map(str::to_owned).collect(),
        })
    }

    /// Whether a task has a signed policy in the eyes of devices: not one that the controller's own key or another task's
    /// role vouches for.
    ///
    /// # Errors
    /// There is no repository yet.
    pub fn has_policy(&self, task: &TaskId) -> Result<bool, RepoError> {
        let info = self.image()?.target(&TaskPolicy::target_name(task));
        Ok(info.is_some_and(|info| info.role != RETRAINED && speaks_for(&info.role, task)))
    }

    /// The content of a task's signed policy, if it is approved and here.
    ///
    /// # Errors
    /// There is no repository yet, or the file can not be read.
    pub fn policy(&self, task: &TaskId) -> Result<Option<TaskPolicy>, RepoError> {
        let name = TaskPolicy::target_name(task);
        let Some(info) = vouched(&self.image()?, &name) else { return Ok(None) };
        let content = self.target_file(&format!("{}.{name}", info.sha256))?;
        Ok(content.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}

/// A target, unless only the role of another task lists it.
fn vouched(image: &TrustedRepo, name: &str) -> Option<TargetInfo> {
    let info = image.target(name)?;
    if task_of(&info.role).is_none() {
        return Some(info);
    }
    let task: TaskId = if ReleaseId::from_target_name(name).is_some() {
        serde_json::from_value::<TargetCustom>(info.custom.clone()).ok()?.task
    } else {
        name.strip_prefix("policy.")?.strip_suffix(".json")?.parse().ok()?
    };
    speaks_for(&info.role, &task).then_some(info)
}
