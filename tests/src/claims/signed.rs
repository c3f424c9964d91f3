//! Who signed what the image repository lists, read from its files.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::controller::Controller;

/// The newest file of a role that lists releases.
#[derive(Debug)]
pub(super) struct Targets {
    /// Ids of the keys that signed it.
    signed_by: BTreeSet<String>,
    /// Ids of the keys that whoever delegates to the role names for it.
    named: BTreeSet<String>,
    body: Value,
}

impl Targets {
    /// The role of the offline keys, which the root names.
    pub(super) fn offline(controller: &Controller) -> Result<Self> {
        let root = newest(&folder(controller), ".root.json")?;
        let named = ids(&root["signed"]["roles"]["targets"]["keyids"], |id| id);
        Self::of(controller, ".targets.json", named)
    }

    /// The role of the controller's own key, which the offline keys delegate to.
    pub(super) fn retrained(controller: &Controller) -> Result<Self> {
        let offline = Self::offline(controller)?;
        let roles = offline.body["delegations"]["roles"].as_array().context("delegations")?;
        let role =
            roles.iter().find(|role| role["name"] == "retrained").context("the role of retrained models")?;
        let named = ids(&role["keyids"], |id| id);
        Self::of(controller, ".retrained.json", named)
    }

    fn of(controller: &Controller, suffix: &str, named: BTreeSet<String>) -> Result<Self> {
        let mut file = newest(&folder(controller), suffix)?;
        let signed_by = ids(&file["signatures"], |signature| &signature["keyid"]);
        Ok(Self { signed_by, named, body: file["signed"].take() })
    }

    /// Whether it is signed by keys that are named for it, and by no other.
    pub(super) fn by_its_own_keys(&self) -> bool {
        !self.signed_by.is_empty() && self.signed_by.is_subset(&self.named)
    }

    /// Whether a key may sign for both.
    pub(super) fn shares_a_key_with(&self, other: &Self) -> bool {
        !self.named.is_disjoint(&other.named) || !self.signed_by.is_disjoint(&other.signed_by)
    }

    /// Ids of the keys that signed it, shortened for people.
    pub(super) fn signers(&self) -> String {
        self.signed_by.iter().map(|id| id.chars().take(8).collect::<String>()).collect::<Vec<_>>().join(", ")
    }

    /// What it says of a release.
    pub(super) fn entry(&self, release: &str) -> Option<&Value> {
        self.body["targets"].get(format!("{}.json", release.replace('@', ".")))
    }

    /// Whether it lists a release with this manifest, SHA-256 in lower-case hex, and is signed as it must be.
    pub(super) fn lists(&self, release: &str, manifest: &str) -> bool {
        let listed = self.entry(release).is_some_and(|entry| entry["hashes"]["sha256"] == *manifest);
        listed && self.by_its_own_keys()
    }
}

fn folder(controller: &Controller) -> PathBuf {
    controller.data.join("repo/image")
}

fn ids(list: &Value, id: impl Fn(&Value) -> &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|one| id(one).as_str().map(str::to_owned)).collect()
}

/// The highest version of a metadata file.
fn newest(folder: &Path, suffix: &str) -> Result<Value> {
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(folder)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.strip_suffix(suffix)?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    files.sort();
    let (_, path) = files.last().with_context(|| format!("no *{suffix} in {}", folder.display()))?;
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}
