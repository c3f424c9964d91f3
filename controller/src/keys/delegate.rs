//! The signers of a single task: a delegation of the image targets, and the file of the role that it names.
use std::collections::BTreeMap;

use dunlin_protocol::{ModelName, ReleaseId, TargetsCustom, TaskId, TaskPolicy};
use dunlin_trust::metadata::{Targets, glob};
use dunlin_trust::{DELEGATIONS_MAX, Signed, Signer, task_role, write};
use serde_json::{Value, json};

use super::ceremony::{refs, sign};
use super::offline::sign_targets_with;
use super::roots::{change_keys, drop_unused_keys};
use super::{Addition, KeyError, Keyring, Request, RoleChange, TARGETS_LIFE_MS};

/// First labels of target names that have a meaning of their own, so that neither a task nor a line of a task's own signers
/// may be called so.
const RESERVED: [&str; 3] = ["agent", "auto", "policy"];

/// What becomes of the delegation of a task.
#[derive(Debug, Clone)]
pub struct Delegation {
    /// The task.
    pub task: TaskId,
    /// Model lines its signers may list besides `{task}` and `{task}.*`; those from before stay.
    pub lines: Vec<ModelName>,
    /// Its keys.
    pub keys: RoleChange,
}

/// The files that put a delegation in force; they are published together.
#[derive(Debug, Clone)]
pub struct Delegated {
    /// The next top-level targets.
    pub targets: Vec<u8>,
    /// The next file of the task's role.
    pub role: Vec<u8>,
}

/// What the key files of a task's signers begin with. A task has no dot, so that none is the beginning of another's.
pub fn task_prefix(task: &TaskId) -> String {
    format!("{}.key", task_role(task))
}

/// Delegates a task to keys of its own, or changes these. What the task's signers may list and the targets do, releases and
/// policy, goes over to their file. `role` is that file as published, if there is one.
///
/// # Errors
/// A name is reserved, the change does not fit, there are too many delegations, or signing failed.
pub fn delegate(
    targets: &[u8],
    role: Option<&[u8]>,
    delegation: &Delegation,
    targets_signers: &[&dyn Signer],
    role_signers: &[&dyn Signer],
    now_ms: u64,
) -> Result<Delegated, KeyError> {
    let task = &delegation.task;
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let names = delegation.lines.iter().map(ModelName::as_str).chain([task.as_str()]);
    if let Some(name) = names.map(first).find(|name| RESERVED.contains(&name.as_str())) {
        return Err(KeyError::Request(format!("names that begin with {name:?} have a meaning of their own")));
    }
    let mut next = following(targets, now_ms)?;
    let mut own = match role {
        Some(role) => following(role, now_ms)?,
        None => {
            let floors = json!(TargetsCustom::default());
            let expires_ms = now_ms.saturating_add(TARGETS_LIFE_MS);
            write::targets(1, expires_ms, &BTreeMap::new(), &[], floors)
                .map_err(KeyError::trust("make the file of a task's role"))?
        }
    };
    let patterns = change_role(&mut next, delegation, role.is_some())?;
    let moved: Vec<(String, Value)> = next["targets"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, entry)| is_of(task, name, &entry["custom"]))
        .filter(|(name, _)| patterns.iter().any(|pattern| glob(pattern, name)))
        .map(|(name, entry)| (name.clone(), entry.clone()))
        .collect();
    for (name, entry) in moved {
        if let Some(listed) = next["targets"].as_object_mut() {
            listed.remove(&name);
        }
        own["targets"][name] = entry;
    }
    Ok(Delegated { targets: sign(&next, targets_signers)?, role: sign(&own, role_signers)? })
}

/// The next file of a task's role: [`super::sign_targets`] for the holders of its keys.
///
/// # Errors
/// The request is about another task, or as there.
pub fn sign_task<'a>(
    task: &TaskId,
    current: &[u8],
    request: &Request,
    keys: impl Into<Keyring<'a>>,
    now_ms: u64,
) -> Result<Vec<u8>, KeyError> {
    let signers = keys.into().signers(&task_prefix(task))?;
    sign_task_with(task, current, request, &refs(&signers), now_ms)
}

/// The same with keys wherever they live.
///
/// # Errors
/// The request is about another task or does not fit the file, or signing failed.
pub fn sign_task_with(
    task: &TaskId,
    current: &[u8],
    request: &Request,
    signers: &[&dyn Signer],
    now_ms: u64,
) -> Result<Vec<u8>, KeyError> {
    let foreign = |entry: &&Addition| !is_of(task, &entry.name, &entry.custom);
    if let Some(entry) = request.add.iter().find(foreign) {
        return Err(KeyError::Request(format!("{} is not for the task {task}", entry.name)));
    }
    sign_targets_with(current, request, signers, now_ms)
}

/// Whether a target is a release for a task, or its policy.
pub fn is_of(task: &TaskId, name: &str, custom: &Value) -> bool {
    if ReleaseId::from_target_name(name).is_some() {
        custom["task"] == task.as_str()
    } else {
        name == TaskPolicy::target_name(task)
    }
}

/// Writes the delegation into the targets; the patterns of what it covers.
fn change_role(next: &mut Value, delegation: &Delegation, has_file: bool) -> Result<Vec<String>, KeyError> {
    let (task, name) = (&delegation.task, task_role(&delegation.task));
    if !next["delegations"].is_object() {
        next["delegations"] = json!({ "keys": {}, "roles": [] });
    }
    let known = roles(next)?.iter().position(|role| role["name"] == name.as_str());
    if known.is_some() != has_file {
        let text = if has_file { "do not delegate to it" } else { "delegate to it: its file is needed too" };
        return Err(KeyError::Request(format!("the targets {text}, {name}")));
    }
    let at = match known {
        Some(at) => at,
        None if roles(next)?.len() >= DELEGATIONS_MAX => {
            let text = format!("devices follow at most {DELEGATIONS_MAX} delegations");
            return Err(KeyError::Request(text));
        }
        None => {
            let paths = [TaskPolicy::target_name(task), format!("{task}.*.json")];
            let entry =
                json!({ "name": name, "keyids": [], "threshold": 1, "paths": paths, "terminating": true });
            roles(next)?.push(entry);
            roles(next)?.len() - 1
        }
    };
    let entry = &mut roles(next)?[at];
    change_keys(entry, &delegation.keys)?;
    let mut paths: Vec<String> = serde_json::from_value(entry["paths"].take()).unwrap_or_default();
    for line in &delegation.lines {
        let pattern = format!("{line}.*.json");
        if !paths.contains(&pattern) {
            paths.push(pattern);
        }
    }
    entry["paths"] = json!(paths);
    for key in &delegation.keys.add {
        next["delegations"]["keys"][key.id()] = key.declared().clone();
    }
    drop_unused_delegation_keys(next);
    Ok(paths)
}

/// Leaves out keys of delegations that no role names any more.
pub(super) fn drop_unused_delegation_keys(targets: &mut Value) {
    let roles = targets["delegations"]["roles"].clone();
    drop_unused_keys(&mut targets["delegations"]["keys"], roles.as_array().into_iter().flatten());
}

fn roles(targets: &mut Value) -> Result<&mut Vec<Value>, KeyError> {
    let roles = targets["delegations"]["roles"].as_array_mut();
    roles.ok_or_else(|| KeyError::Request("the targets' delegations do not read".to_owned()))
}

fn following(file: &[u8], now_ms: u64) -> Result<Value, KeyError> {
    let failed = KeyError::trust("read the targets file");
    let version = Signed::<Targets>::parse("targets", file).map_err(&failed)?.head().version;
    let signed = write::signed_value(file).map_err(&failed)?;
    write::renew(&signed, version + 1, now_ms.saturating_add(TARGETS_LIFE_MS)).map_err(&failed)
}
