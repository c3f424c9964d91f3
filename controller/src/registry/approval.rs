//! Approval: what waits for offline signatures, and what published targets have put in force.
use std::collections::BTreeMap;

use dunlin_protocol::{ReleaseId, TargetCustom, TaskId, TaskPolicy};
use dunlin_trust::task_role;
use serde_json::{Value, json};

use super::{Registry, RegistryError};
use crate::clock;
use crate::keys::Addition;
use crate::repo::ProgramApproval;
use crate::store::{Followed, PolicyRow, ReleaseRow, ReleaseState, Store};

/// Largest policy file.
pub const POLICY_BYTES_MAX: usize = 1 << 20;

/// Row of the audit log: signed targets came into force.
const APPROVE: &str = "model.approve";

type Programs = BTreeMap<ReleaseId, ProgramApproval>;

/// What the audit log holds of targets that came into force: the state of what changed, before and after.
fn told(followed: &Followed, facts: Value) -> (Value, Value) {
    let states = |pick: fn(&(ReleaseId, ReleaseState, ReleaseState)) -> ReleaseState| -> Value {
        followed.releases.iter().map(|one| (one.0.to_string(), json!(pick(one)))).collect()
    };
    let before = json!({ "releases": states(|one| one.1), "policies": followed.policies_before });
    let mut after = facts;
    after["releases"] = states(|one| one.2);
    after["policies"] = json!(followed.policies_after);
    (before, after)
}

impl ReleaseRow {
    /// The target to list for this release.
    pub fn addition(&self) -> Addition {
        let custom = TargetCustom { task: self.bundle.task.clone(), hard: self.bundle.hard.clone() };
        Addition {
            name: self.bundle.release.target_name(),
            length: self.manifest.len() as u64,
            sha256: self.sha256,
            custom: serde_json::to_value(custom).expect("constraints are plain data"),
        }
    }
}

impl PolicyRow {
    /// The target to list for this policy.
    pub fn addition(&self) -> Addition {
        Addition {
            name: TaskPolicy::target_name(&self.policy.task),
            length: self.body.len() as u64,
            sha256: self.sha256,
            custom: Value::Null,
        }
    }
}

impl Registry {
    /// What waits for the holders of the offline keys: pending releases and policies. Retrained releases are
    /// not theirs to sign.
    ///
    /// # Errors
    /// The database can not be read.
    pub async fn pending(&self) -> Result<Vec<Addition>, RegistryError> {
        let releases = self.store.releases(None, None).await?;
        let releases = releases
            .iter()
            .filter(|row| row.state == ReleaseState::Pending && !row.bundle.release.model.is_retrained())
            .map(ReleaseRow::addition);
        let policies = self.store.policies_pending().await?;
        Ok(releases.chain(policies.iter().map(PolicyRow::addition)).collect())
    }

    /// Publishes targets that were signed offline, and brings releases and policies in line with them. `who` is what the audit
    /// log calls the caller.
    ///
    /// # Errors
    /// A device would refuse the file, or it lists something that is not here.
    pub async fn approve(
        &self,
        targets: Vec<u8>,
        who: &str,
    ) -> Result<Vec<(ReleaseId, ReleaseState)>, RegistryError> {
        let now_ms = clock::wall_ms();
        let mut file = json!({ "targets": dunlin_trust::sha256(&targets) });
        let before = self.repos.programs()?;
        self.on_repos(move |repos| repos.publish_targets(&targets, now_ms)).await?;
        let after = self.repos.programs()?;
        if !before.keys().eq(after.keys()) {
            let only = |these: &Programs, those: &Programs| -> Vec<ReleaseId> {
                these.keys().filter(|release| !those.contains_key(release)).cloned().collect()
            };
            file["programs"] = json!({ "approved": only(&after, &before), "left": only(&before, &after) });
        }
        self.follow(who, APPROVE, file, now_ms).await
    }

    /// The same with the file of a task's own role.
    ///
    /// # Errors
    /// As in [`Registry::approve`], or nothing delegates to the role.
    pub async fn approve_task(
        &self,
        task: TaskId,
        file: Vec<u8>,
        who: &str,
    ) -> Result<Vec<(ReleaseId, ReleaseState)>, RegistryError> {
        let now_ms = clock::wall_ms();
        let facts = json!({ "targets": dunlin_trust::sha256(&file), "task": task });
        self.on_repos(move |repos| repos.publish_task(&task, &file, now_ms)).await?;
        self.follow(who, APPROVE, facts, now_ms).await
    }

    /// Brings releases and policies in line with the published targets, with one row of the audit log that tells what came
    /// into force by `facts`. The files are published before; where the process is cut in between, [`Registry::settle`]
    /// does this at the next start.
    pub(super) async fn follow(
        &self,
        who: &str,
        what: &str,
        facts: Value,
        now_ms: u64,
    ) -> Result<Vec<(ReleaseId, ReleaseState)>, RegistryError> {
        let mut change = self.audit.begin().await?;
        // Read within the change: a publication that came in between would be followed first and then taken back.
        let listed = self.repos.listed()?;
        let followed = self.store.registry_listed(change.tx(), &listed, now_ms).await?;
        let (before, after) = told(&followed, facts);
        change.commit(who, what, before, after).await?;
        Ok(followed.releases.into_iter().map(|(release, _, state)| (release, state)).collect())
    }

    /// The same at the start, where the process was cut between publishing and following; leaves no row if nothing is left to
    /// do.
    ///
    /// # Errors
    /// There is no repository yet, or the database can not be written.
    pub async fn settle(&self, now_ms: u64) -> Result<(), RegistryError> {
        let mut change = self.audit.begin().await?;
        let listed = self.repos.listed()?;
        let followed = self.store.registry_listed(change.tx(), &listed, now_ms).await?;
        if !followed.releases.is_empty() || followed.policies_before != followed.policies_after {
            let (before, after) = told(&followed, json!({}));
            change.commit("controller", APPROVE, before, after).await?;
        }
        Ok(())
    }

    /// Takes a task policy in; it comes into force when published targets list it. Who brings it goes by two names, as in
    /// [`Registry::push`].
    ///
    /// # Errors
    /// It is no policy, or its anchor set is not here.
    pub async fn policy(
        &self,
        body: Vec<u8>,
        (by, signed): (&str, &str),
    ) -> Result<PolicyRow, RegistryError> {
        let refuse = |text: String| RegistryError::Refused(text);
        if body.len() > POLICY_BYTES_MAX {
            return Err(refuse(format!(
                "a policy of {} bytes; at most {POLICY_BYTES_MAX} are read",
                body.len()
            )));
        }
        let policy: TaskPolicy = serde_json::from_slice(&body)
            .map_err(|error| refuse(format!("this is no task policy: {error}")))?;
        if policy.format != 1 {
            return Err(refuse(format!("a policy of format {}; this release reads 1", policy.format)));
        }
        if let Some(bounds) = &policy.retrained
            && self.blobs.length(&bounds.anchor.digest).await? != Some(bounds.anchor.length)
        {
            return Err(refuse(format!(
                "the anchor set {} is not here; upload it first: dunlin model blob FILE",
                bounds.anchor.digest
            )));
        }
        let sha256 = dunlin_trust::sha256(&body);
        let row = PolicyRow { policy, body, sha256, in_force: false, created_ms: clock::wall_ms() };
        // The file first: without a row nothing names it, and the same upload is taken again.
        let (name, body) = (TaskPolicy::target_name(&row.policy.task), row.body.clone());
        self.on_repos(move |repos| repos.put_target(&name, &body)).await?;
        let task = &row.policy.task;
        let mut change = self.audit.begin().await?;
        let in_force = self.store.policy_in_force(task).await?.map(|held| held.sha256);
        Store::policy_add(change.tx(), &row, by).await?;
        let before = json!({ "task": task, "in_force": in_force });
        let after = json!({ "task": task, "in_force": in_force, "uploaded": row.sha256 });
        change.commit(signed, "policy.upload", before, after).await?;
        Ok(row)
    }

    /// The published top-level targets, exact bytes; what the next ones are made from.
    ///
    /// # Errors
    /// There is no repository yet.
    pub fn current_targets(&self) -> Result<Vec<u8>, RegistryError> {
        let stored = self.repos.image()?.stored();
        stored
            .targets
            .map(|bytes| bytes.0)
            .ok_or_else(|| RegistryError::Refused("no targets are published yet".into()))
    }

    /// The same of a task's own role.
    ///
    /// # Errors
    /// There is none, or it is expired.
    pub fn current_role(&self, task: &TaskId) -> Result<Vec<u8>, RegistryError> {
        let held = self.repos.image()?.stored().delegated.remove(&task_role(task));
        let none = || {
            let text = format!(
                "{task} has no signers of its own, or their file is expired; see `dunlin key delegate`"
            );
            RegistryError::Refused(text)
        };
        held.map(|bytes| bytes.0).ok_or_else(none)
    }
}
