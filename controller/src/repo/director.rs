//! The director repository of each device.
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use dunlin_protocol::{Assignment, Bytes, DeviceId, Now, ReleaseId, RepoFiles, RepoVersions};
use dunlin_trust::metadata::{Snapshot, Targets, Timestamp};
use dunlin_trust::write::{self, TargetSpec};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ONLINE_TARGETS_LIFE_MS, RepoError, Repos, SNAPSHOT_LIFE_MS, State, TIMESTAMP_LIFE_MS, disk, is_due, parse,
};
use crate::keys::OnlineRole;

/// The files of one device.
pub(super) struct Director {
    pub(super) versions: RepoVersions,
    pub(super) timestamp: Vec<u8>,
    pub(super) snapshot: Vec<u8>,
    pub(super) targets: Vec<u8>,
    expires: Expires,
    custom: Value,
    listed: Value,
}

/// Expiries, Unix milliseconds.
struct Expires {
    timestamp: u64,
    snapshot: u64,
    targets: u64,
}

impl Repos {
    /// Publishes what a device shall run: each manifest that its line-ups name is listed as the image
    /// repository lists it. The same assignment again changes nothing.
    ///
    /// # Errors
    /// A release is not approved, the generation does not rise, or a file can not be written.
    pub fn publish_assignment(
        &self,
        assignment: &Assignment,
        now_ms: u64,
    ) -> Result<RepoVersions, RepoError> {
        let _publishing = self.publishing();
        let state = self.state()?;
        let listed = list(&state, assignment)?;
        let custom = json!(assignment);
        let held = self.director(&assignment.device)?;
        if let Some(held) = &held {
            let have = held.assignment().map_or(0, |held| held.generation);
            let entries: Value =
                listed.iter().map(|(name, spec)| (name.clone(), write::target(spec))).collect();
            if held.custom == custom && held.listed == entries {
                return Ok(held.versions);
            }
            if assignment.generation <= have {
                let device = assignment.device.clone();
                return Err(RepoError::Generation { device, got: assignment.generation, have });
            }
        }
        let last = held.map(|held| held.versions).unwrap_or_default();
        let expires_ms = now_ms.saturating_add(ONLINE_TARGETS_LIFE_MS);
        let value = write::targets(last.targets + 1, expires_ms, &listed, &[], custom);
        let value = value.map_err(RepoError::trust("sign an assignment"))?;
        self.commit_director(&state, &assignment.device, last, Some(&value), true, now_ms)
    }

    /// What a device shall run, as published last.
    ///
    /// # Errors
    /// A file is damaged.
    pub fn assignment(&self, device: &DeviceId) -> Result<Option<Assignment>, RepoError> {
        Ok(self.director(device)?.and_then(|held| held.assignment()))
    }

    /// The files of a device, none of them past half of its life. A device without an assignment gets an empty
    /// one of generation 0, so that it can tell "nothing for you" from "somebody hides it".
    pub(super) fn fresh_director(&self, device: &DeviceId, now_ms: u64) -> Result<Director, RepoError> {
        if let Some(held) = self.director(device)?.filter(|held| !held.is_due(now_ms)) {
            return Ok(held);
        }
        let _publishing = self.publishing();
        self.director_renewed(device, now_ms)
    }

    /// The same. The caller holds the publishing lock, so that what is returned stays the newest while it does.
    pub(super) fn director_renewed(&self, device: &DeviceId, now_ms: u64) -> Result<Director, RepoError> {
        let state = self.state()?;
        match self.director(device)? {
            Some(held) if !held.is_due(now_ms) => return Ok(held),
            Some(held) => {
                let targets = is_due(held.expires.targets, ONLINE_TARGETS_LIFE_MS, now_ms);
                self.resign(
                    &state,
                    device,
                    &held,
                    targets,
                    is_due(held.expires.snapshot, SNAPSHOT_LIFE_MS, now_ms),
                    now_ms,
                )?;
            }
            None => {
                let empty = Assignment {
                    device: device.clone(),
                    class: None,
                    generation: 0,
                    correlation: String::new(),
                    tasks: vec![],
                    program: None,
                };
                let expires_ms = now_ms.saturating_add(ONLINE_TARGETS_LIFE_MS);
                let value = write::targets(1, expires_ms, &BTreeMap::new(), &[], json!(empty));
                let value = value.map_err(RepoError::trust("sign an assignment"))?;
                self.commit_director(&state, device, RepoVersions::default(), Some(&value), true, now_ms)?;
            }
        }
        self.director(device)?.ok_or_else(|| RepoError::Damaged { path: self.director_folder(device) })
    }

    fn resign(
        &self,
        state: &State,
        device: &DeviceId,
        held: &Director,
        targets: bool,
        snapshot: bool,
        now_ms: u64,
    ) -> Result<(), RepoError> {
        let failed = RepoError::trust("sign an assignment anew");
        let value = if targets {
            let signed = write::signed_value(&held.targets).map_err(&failed)?;
            let expires_ms = now_ms.saturating_add(ONLINE_TARGETS_LIFE_MS);
            Some(write::renew(&signed, held.versions.targets + 1, expires_ms).map_err(&failed)?)
        } else {
            None
        };
        self.commit_director(state, device, held.versions, value.as_ref(), snapshot || targets, now_ms)?;
        Ok(())
    }

    /// Signs every device's files anew, after a root that may name other keys.
    pub(super) fn resign_directors(&self, now_ms: u64) -> Result<(), RepoError> {
        let state = self.state()?;
        let folder = self.folder.join("director");
        let failed = |source| RepoError::File { attempted: "list", path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(device) = name.to_str().and_then(|name| name.parse::<DeviceId>().ok()) else { continue };
            if let Some(held) = self.director(&device)? {
                self.resign(&state, &device, &held, true, true, now_ms)?;
            }
        }
        Ok(())
    }

    /// Signs what changed, lets the verifier judge it, and writes it, the timestamp last. The caller holds the
    /// publishing lock.
    pub(super) fn commit_director(
        &self,
        state: &State,
        device: &DeviceId,
        mut last: RepoVersions,
        targets: Option<&Value>,
        snapshot: bool,
        now_ms: u64,
    ) -> Result<RepoVersions, RepoError> {
        let failed = RepoError::trust("publish an assignment");
        let folder = self.director_folder(device);
        let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        let now_or_held = |files: &[(PathBuf, Vec<u8>)], name: String| {
            let path = folder.join(name);
            let fresh = files.iter().find(|(new, _)| *new == path).map(|(_, bytes)| bytes.clone());
            fresh.map_or_else(|| disk::need(&path), Ok)
        };
        if let Some(value) = targets {
            last.targets += 1;
            let path = folder.join(format!("{}.targets.json", last.targets));
            files.push((path, self.sign(OnlineRole::DirectorTargets, value)?));
        }
        if snapshot {
            last.snapshot += 1;
            let roles = BTreeMap::from([("targets".to_owned(), last.targets)]);
            let expires_ms = now_ms.saturating_add(SNAPSHOT_LIFE_MS);
            let mut value = write::snapshot(last.snapshot, expires_ms, &roles).map_err(&failed)?;
            let named = now_or_held(&files, format!("{}.targets.json", last.targets))?;
            write::pin_length(&mut value, "targets", &named);
            let path = folder.join(format!("{}.snapshot.json", last.snapshot));
            files.push((path, self.sign(OnlineRole::DirectorSnapshot, &value)?));
        }
        last.timestamp += 1;
        last.root = state.director.versions().root;
        let expires_ms = now_ms.saturating_add(TIMESTAMP_LIFE_MS);
        let value = write::timestamp(last.timestamp, expires_ms, last.snapshot).map_err(&failed)?;
        files.push((folder.join("timestamp.json"), self.sign(OnlineRole::DirectorTimestamp, &value)?));

        let whole = |name: String| now_or_held(&files, name).map(Bytes);
        let check = RepoFiles {
            roots: vec![],
            timestamp: whole("timestamp.json".to_owned())?,
            snapshot: Some(whole(format!("{}.snapshot.json", last.snapshot))?),
            targets: Some(whole(format!("{}.targets.json", last.targets))?),
            delegated: BTreeMap::new(),
        };
        state.director.clone().update(&check, Now { mono_ms: 0, wall_ms: Some(now_ms) }).map_err(failed)?;
        files.iter().try_for_each(|(path, bytes)| disk::write_atomic(path, bytes))?;
        disk::prune(&folder, "snapshot", last.snapshot);
        disk::prune(&folder, "targets", last.targets);
        Ok(last)
    }

    /// The published files of a device.
    pub(super) fn director(&self, device: &DeviceId) -> Result<Option<Director>, RepoError> {
        let folder = self.director_folder(device);
        let path = folder.join("timestamp.json");
        let Some(timestamp) = disk::read(&path)? else { return Ok(None) };
        let head = parse::<Timestamp>(&path, &timestamp)?;
        let named = head.unverified().meta["snapshot.json"].version;
        let path = folder.join(format!("{named}.snapshot.json"));
        let snapshot = disk::need(&path)?;
        let listed = parse::<Snapshot>(&path, &snapshot)?;
        let version = listed.unverified().meta["targets.json"].version;
        let path = folder.join(format!("{version}.targets.json"));
        let targets = disk::need(&path)?;
        let file = parse::<Targets>(&path, &targets)?;
        let signed = write::signed_value(&targets).map_err(RepoError::trust("read an assignment"))?;
        Ok(Some(Director {
            versions: RepoVersions {
                root: self.state()?.director.versions().root,
                timestamp: head.head().version,
                snapshot: named,
                targets: version,
                retrained: 0,
            },
            expires: Expires {
                timestamp: head.head().expires_ms,
                snapshot: listed.head().expires_ms,
                targets: file.head().expires_ms,
            },
            custom: file.unverified().custom.clone(),
            listed: signed["targets"].clone(),
            timestamp,
            snapshot,
            targets,
        }))
    }

    pub(super) fn director_folder(&self, device: &DeviceId) -> PathBuf {
        self.folder.join("director").join(device.as_str())
    }
}

impl Director {
    fn is_due(&self, now_ms: u64) -> bool {
        is_due(self.expires.timestamp, TIMESTAMP_LIFE_MS, now_ms)
    }

    pub(super) fn assignment(&self) -> Option<Assignment> {
        Assignment::deserialize(&self.custom).ok()
    }
}

/// The manifests and the program of an assignment, with length and digest as the image repository has them. What is said about
/// them stays there: it would only be a second copy without authority.
fn list(state: &State, assignment: &Assignment) -> Result<BTreeMap<String, TargetSpec>, RepoError> {
    let releases = assignment.tasks.iter().flat_map(|task| task.lineup.releases());
    let releases = releases.map(|release| (release, release.target_name()));
    let program = assignment.program.iter().map(|program| (&program.release, program.release.program_name()));
    let entry = |(release, name): (&ReleaseId, String)| {
        let info = state.image.target(&name).ok_or_else(|| RepoError::NotApproved(release.clone()))?;
        Ok((name, TargetSpec { length: info.length, sha256: info.sha256, custom: Value::Null }))
    };
    releases.chain(program).map(entry).collect()
}
