//! The search for a target through delegations (specification §5.6.7).
use std::collections::BTreeSet;

use dunlin_protocol::{Digest, IntoTree};
use serde_json::Value;

use crate::TrustedRepo;
use crate::metadata::{TargetFile, Targets};
use crate::repo::{DELEGATIONS_MAX, TARGETS};

/// Where the search for a target ended.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// The target.
    Found {
        /// What its signers say about it.
        file: &'a TargetFile,
        /// The role that names it.
        role: &'a str,
    },
    /// No role that may name it does.
    Absent,
    /// This delegated role comes next and is not held; give it to [`TrustedRepo::step_delegated`] and search
    /// again.
    Needs {
        /// The role that delegates.
        delegator: &'a str,
        /// The role to fetch.
        role: &'a str,
        /// Its version.
        version: u64,
    },
}

/// A target as both repositories can be compared by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetInfo {
    /// Length in bytes.
    pub length: u64,
    /// SHA-256.
    pub sha256: Digest,
    /// What the signers say about it.
    pub custom: Value,
    /// The role that names it.
    pub role: String,
}

impl TargetInfo {
    /// Whether the top-level targets name it, and no delegated role.
    pub fn is_owners(&self) -> bool {
        self.role == TARGETS
    }
}

impl TrustedRepo {
    /// Searches for a target: pre-order through the delegations that cover its name, at most
    /// [`DELEGATIONS_MAX`] roles, ending at a terminating one.
    pub fn lookup<'a>(&'a self, name: &str) -> Lookup<'a> {
        let Some(top) = self.current_targets() else { return Lookup::Absent };
        // Roles to visit, the next one last: the role and who delegated to it.
        let mut open: Vec<(&str, &str)> = vec![("", TARGETS)];
        let mut visited: BTreeSet<&str> = BTreeSet::new();
        while let Some((delegator, role)) = open.pop() {
            if visited.len() >= DELEGATIONS_MAX || !visited.insert(role) {
                continue;
            }
            let targets: &Targets = if role == TARGETS {
                &top.body
            } else {
                // A role that the snapshot does not list can not be had; what ranks below it must not win.
                let Some(meta) = self.snapshot_meta(role) else { return Lookup::Absent };
                match self.current_role(delegator, role) {
                    Some(held) => held,
                    None => return Lookup::Needs { delegator, role, version: meta.version },
                }
            };
            if let Some(file) = targets.targets.get(name) {
                return Lookup::Found { file, role };
            }
            let mut children = Vec::new();
            for child in targets.delegations.iter().flat_map(|delegations| &delegations.roles) {
                if child.covers(name) {
                    children.push((role, child.name.as_str()));
                    if child.terminating {
                        open.clear();
                        break;
                    }
                }
            }
            open.extend(children.into_iter().rev());
        }
        Lookup::Absent
    }

    /// A delegated role as the current snapshot names it and this role vouches for it.
    pub(crate) fn current_role(&self, delegator: &str, role: &str) -> Option<&Targets> {
        let named = self.snapshot_meta(role)?.version;
        let held = self
            .delegated
            .get(role)
            .filter(|held| held.document.head.version == named && held.trusted_by.contains(delegator))?;
        Some(&held.document.body)
    }

    /// The target of this name, if a trusted role names it with a SHA-256 digest.
    pub fn target(&self, name: &str) -> Option<TargetInfo> {
        let Lookup::Found { file, role } = self.lookup(name) else { return None };
        let sha256 = file.hashes.get("sha256")?.to_ascii_lowercase().parse().ok()?;
        Some(TargetInfo { length: file.length, sha256, custom: file.custom.clone(), role: role.to_owned() })
    }

    /// Every target of the top-level targets and the delegated roles that are held, by name; a name that
    /// [`TrustedRepo::target`] would not find is left out.
    pub fn target_names(&self) -> BTreeSet<&str> {
        let top = self.current_targets().into_iter().map(|targets| &targets.body);
        let delegated = self.delegated.values().map(|held| &held.document.body);
        let names = top.chain(delegated).flat_map(|targets| targets.targets.keys());
        names.map(String::as_str).filter(|name| matches!(self.lookup(name), Lookup::Found { .. })).into_tree()
    }
}
