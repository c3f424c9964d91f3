//! Roles of single tasks: delegations by which a team approves the releases of its own task and of no other.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use dunlin_protocol::{Assignment, IntoTree, ModelName, ReleaseId, TargetsCustom, TaskId};
use serde::Deserialize;

use crate::key::sha256;
use crate::metadata::Targets;
use crate::repo::TARGETS;
use crate::{TrustError, TrustedRepo};

/// What the names of such roles begin with.
const PREFIX: &str = "task-";
/// Hexadecimal digits of a digest over such roles: enough that two sets never look alike by accident. Whoever would seek such
/// a pair signs for the task anyway.
const DIGEST_CHARS: usize = 16;

/// Name of the role that speaks for a task alone.
pub fn task_role(task: &TaskId) -> String {
    format!("{PREFIX}{task}")
}

/// The task that a role speaks for, if it speaks for a single one.
pub fn task_of(role: &str) -> Option<&str> {
    role.strip_prefix(PREFIX)
}

/// Whether what a role lists may count for a task. Its delegation confines a task's role to names; this confines it to the
/// task, whatever its owner says that a release of such a name is for.
pub fn speaks_for(role: &str, task: &TaskId) -> bool {
    task_of(role).is_none_or(|own| own == task.as_str())
}

/// What the composite check says of the roles of single tasks: hexadecimal digits over name and version of those that speak
/// for one of `tasks`; nothing where none does. The controller makes the same of what it has, so that a device that holds
/// all of it is given none of it again, in an answer whose size does not depend on their number.
pub fn roles_digest(versions: &BTreeMap<String, u64>, tasks: &BTreeSet<TaskId>) -> String {
    let mut text = String::new();
    for (role, version) in versions {
        if tasks.iter().any(|task| task_of(role) == Some(task.as_str())) {
            writeln!(text, "{role} {version}").expect("writing to a string");
        }
    }
    if text.is_empty() {
        return text;
    }
    sha256(text.as_bytes()).to_string().chars().take(DIGEST_CHARS).collect()
}

/// The same of what a device holds: its tasks are those of the assignment that it holds.
pub fn held_roles(image: &TrustedRepo, director: &TrustedRepo) -> String {
    let targets = director.current_targets();
    let assignment = targets.and_then(|targets| Assignment::deserialize(&targets.body.custom).ok());
    let tasks = assignment.into_iter().flat_map(|assignment| assignment.tasks).map(|task| task.task);
    roles_digest(&image.role_versions(), &tasks.into_tree())
}

impl TrustedRepo {
    /// The roles of single tasks that the top-level targets delegate to.
    pub fn task_roles(&self) -> impl Iterator<Item = &str> {
        let delegations = self.current_targets().and_then(|targets| targets.body.delegations.as_ref());
        let roles = delegations.into_iter().flat_map(|delegations| &delegations.roles);
        roles.map(|role| role.name.as_str()).filter(|role| task_of(role).is_some())
    }

    /// Versions of the roles of single tasks that are held.
    pub fn role_versions(&self) -> BTreeMap<String, u64> {
        let held = self.delegated.iter().filter(|(role, _)| task_of(role).is_some());
        held.map(|(role, held)| (role.clone(), held.document.head.version)).into_tree()
    }

    /// The least versions of roles of single tasks that are accepted from now on; to be kept in the floors record.
    pub fn role_floors(&self) -> &BTreeMap<String, u64> {
        &self.role_floors
    }

    /// Takes up the floors of such roles from the floors record. A file that lies below is dropped.
    #[must_use]
    pub fn with_role_floors(mut self, floors: &BTreeMap<String, u64>) -> Self {
        for (role, floor) in floors {
            let known = self.role_floors.entry(role.clone()).or_insert(0);
            *known = (*known).max(*floor);
        }
        let floors = &self.role_floors;
        self.delegated
            .retain(|role, held| floors.get(role).is_none_or(|floor| held.document.head.version >= *floor));
        self
    }

    /// Release floors by model line: those of the top-level targets, and those of each task's role for the lines that its
    /// delegation covers.
    ///
    /// # Errors
    /// The top-level targets are not there, or floors do not read.
    pub fn release_floors(&self) -> Result<BTreeMap<ModelName, u32>, TrustError> {
        let top = self.current_targets().ok_or_else(|| TrustError::Missing { role: TARGETS.to_owned() })?;
        let mut floors = read(TARGETS, &top.body)?;
        for delegation in top.body.delegations.iter().flat_map(|delegations| &delegations.roles) {
            let role = &delegation.name;
            let held = task_of(role).and_then(|_| self.current_role(TARGETS, role));
            for (model, version) in held.map(|held| read(role, held)).transpose()?.unwrap_or_default() {
                if delegation
                    .covers(&ReleaseId { model: model.clone(), version: version.max(1) }.target_name())
                {
                    let kept = floors.entry(model).or_insert(0);
                    *kept = version.max(*kept);
                }
            }
        }
        Ok(floors)
    }
}

fn read(role: &str, targets: &Targets) -> Result<BTreeMap<ModelName, u32>, TrustError> {
    if targets.custom.is_null() {
        return Ok(BTreeMap::new());
    }
    let custom = TargetsCustom::deserialize(&targets.custom);
    custom.map(|custom| custom.floors).map_err(|source| TrustError::Malformed {
        role: role.to_owned(),
        what: "its release floors do not read",
        source: Some(source),
    })
}
