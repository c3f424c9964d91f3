//! Publishing the image repository.
use std::collections::BTreeMap;
use std::path::Path;

use dunlin_protocol::{Bytes, Now, ReleaseId, RepoFiles, RepoVersions, TargetsCustom, TaskId};
use dunlin_trust::metadata::{Snapshot, Targets, Timestamp};
use dunlin_trust::write::{self, TargetSpec};
use dunlin_trust::{RETRAINED, Signed, Signer, TrustError, task_role};
use serde::Deserialize;
use serde_json::Value;

use super::{
    ONLINE_TARGETS_LIFE_MS, RepoError, Repos, SNAPSHOT_LIFE_MS, State, TIMESTAMP_LIFE_MS, disk, due_of,
    is_due, parse, targets_head,
};
use crate::keys::{Addition, OnlineRole};

/// Files of the image repository that are new, besides snapshot and timestamp.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) targets: Option<Vec<u8>>,
    pub(super) retrained: Option<Vec<u8>>,
    /// Of single tasks, by name of the role.
    pub(super) roles: BTreeMap<String, Vec<u8>>,
}

impl Changes {
    fn is_none(&self) -> bool {
        self.targets.is_none() && self.retrained.is_none() && self.roles.is_empty()
    }
}

impl State {
    /// What a snapshot lists.
    pub(super) fn listed(&self) -> BTreeMap<String, u64> {
        let mut roles = self.roles.clone();
        roles.insert("targets".to_owned(), self.last.targets);
        roles.insert(RETRAINED.to_owned(), self.last.retrained);
        roles
    }

    /// Pins the lengths of the files that are served, in a snapshot that lists them.
    pub(super) fn pin_lengths(&self, snapshot: &mut Value) {
        let targets = self.served.targets.iter().map(|bytes| ("targets", bytes));
        let delegated = self.served.delegated.iter().map(|(role, bytes)| (role.as_str(), bytes));
        targets
            .chain(delegated)
            .for_each(|(role, bytes)| write::pin_length(snapshot, role, bytes.as_slice()));
    }
}

impl Repos {
    /// Publishes new top-level targets, signed offline.
    ///
    /// # Errors
    /// A device would refuse the file: too few signatures, an old version, expired, malformed.
    pub fn publish_targets(&self, bytes: &[u8], now_ms: u64) -> Result<RepoVersions, RepoError> {
        let _publishing = self.publishing();
        let state = self.state()?;
        rises("targets", bytes, state.last.targets)?;
        // The delegation may name another key, so the delegated role is signed anew with it.
        let retrained = self.sign_retrained(state.last.retrained + 1, &retrained_listed(&state)?, now_ms)?;
        let targets = Some(bytes.to_vec());
        let changes = Changes { targets, retrained: Some(retrained), ..Changes::default() };
        self.commit_image(&state, changes, now_ms)?;
        Ok(self.state()?.last)
    }

    /// Publishes a new file of a task's own role, signed offline by the holders of its keys.
    ///
    /// # Errors
    /// A device would refuse the file, nothing delegates to it, or it speaks of what its delegation does not cover.
    pub fn publish_task(&self, task: &TaskId, bytes: &[u8], now_ms: u64) -> Result<(), RepoError> {
        let _publishing = self.publishing();
        let state = self.state()?;
        let role = task_role(task);
        let file = rises(&role, bytes, state.roles.get(&role).copied().unwrap_or(0))?;
        let changes = Changes { roles: BTreeMap::from([(role, bytes.to_vec())]), ..Changes::default() };
        let (next, files) = self.build_image(&state, changes, now_ms)?;
        let listed = &file.unverified().targets;
        if let Some(name) = listed.keys().find(|name| next.image.target(name).is_none()) {
            return Err(RepoError::Name(name.clone()));
        }
        let own = TargetsCustom::deserialize(&file.unverified().custom).unwrap_or_default().floors;
        let floors = next.image.release_floors().map_err(RepoError::trust("read the release floors"))?;
        if let Some((model, _)) =
            own.iter().find(|(model, floor)| floors.get(*model).is_none_or(|kept| kept < *floor))
        {
            return Err(RepoError::Name(model.to_string()));
        }
        self.write_image(next, &files)
    }

    /// Lists retrained releases, signed by the controller's own key.
    ///
    /// # Errors
    /// A name outside `auto.*`, a release that is listed with other content, or a file can not be written.
    pub fn publish_retrained(&self, additions: &[Addition], now_ms: u64) -> Result<RepoVersions, RepoError> {
        let _publishing = self.publishing();
        let state = self.state()?;
        let mut listed = retrained_listed(&state)?;
        for addition in additions {
            let release =
                ReleaseId::from_target_name(&addition.name).filter(|release| release.model.is_retrained());
            release.ok_or_else(|| RepoError::Name(addition.name.clone()))?;
            match listed.iter().find(|old| old.name == addition.name) {
                Some(old) if (old.length, old.sha256) != (addition.length, addition.sha256) => {
                    return Err(RepoError::Immutable(addition.name.clone()));
                }
                Some(_) => {}
                None => listed.push(addition.clone()),
            }
        }
        let retrained = self.sign_retrained(state.last.retrained + 1, &listed, now_ms)?;
        let changes = Changes { retrained: Some(retrained), ..Changes::default() };
        self.commit_image(&state, changes, now_ms)?;
        Ok(self.state()?.last)
    }

    /// Signs anew what has less than half of its life left. Returns when to look again, Unix milliseconds. The
    /// director's files are signed anew when a device asks for them.
    ///
    /// # Errors
    /// There is no repository yet, the offline-signed targets are expired, or a file can not be written.
    pub fn refresh(&self, now_ms: u64) -> Result<u64, RepoError> {
        // Due later than a whole life from now: signed by a clock that was ahead.
        let fresh =
            |state: &State| now_ms < state.due_ms && state.due_ms <= now_ms.saturating_add(TIMESTAMP_LIFE_MS);
        let state = self.state()?;
        if fresh(&state) {
            return Ok(state.due_ms);
        }
        let _publishing = self.publishing();
        let state = self.state()?;
        if !fresh(&state) {
            let due =
                Lives::of(&state)?.retrained.is_none_or(|ms| is_due(ms, ONLINE_TARGETS_LIFE_MS, now_ms));
            let retrained = if due {
                Some(self.sign_retrained(state.last.retrained + 1, &retrained_listed(&state)?, now_ms)?)
            } else {
                None
            };
            self.commit_image(&state, Changes { retrained, ..Changes::default() }, now_ms)?;
        }
        Ok(self.state()?.due_ms)
    }

    /// When the image repository was last signed, Unix milliseconds; `None` before the ceremony's files are imported.
    ///
    /// # Errors
    /// A file is damaged.
    pub fn signed_ms(&self) -> Result<Option<u64>, RepoError> {
        let state = match self.state() {
            Err(RepoError::NotSetUp) => return Ok(None),
            other => other?,
        };
        let expires_ms = Lives::of(&state)?.timestamp;
        Ok(expires_ms.map(|expires_ms| expires_ms.saturating_sub(TIMESTAMP_LIFE_MS)))
    }

    pub(super) fn sign_retrained(
        &self,
        version: u64,
        listed: &[Addition],
        now_ms: u64,
    ) -> Result<Vec<u8>, RepoError> {
        let listed: BTreeMap<String, TargetSpec> =
            listed.iter().map(|entry| (entry.name.clone(), entry.spec())).collect();
        let expires_ms = now_ms.saturating_add(ONLINE_TARGETS_LIFE_MS);
        let failed = RepoError::trust("sign the retrained role");
        let value = write::targets(version, expires_ms, &listed, &[], Value::Null).map_err(&failed)?;
        self.sign(OnlineRole::Retrained, &value)
    }

    pub(super) fn sign(&self, role: OnlineRole, value: &Value) -> Result<Vec<u8>, RepoError> {
        let signer: &dyn Signer = self.signers.of(role);
        write::sign(value, &[signer]).map_err(RepoError::trust("sign a file"))
    }

    /// Makes snapshot and timestamp for what changed, lets the verifier judge all of it, and writes it. The
    /// caller holds the publishing lock.
    pub(super) fn commit_image(&self, state: &State, changes: Changes, now_ms: u64) -> Result<(), RepoError> {
        let (next, files) = self.build_image(state, changes, now_ms)?;
        self.write_image(next, &files)
    }

    /// The next state and its files, verified but not written.
    pub(super) fn build_image(
        &self,
        state: &State,
        changes: Changes,
        now_ms: u64,
    ) -> Result<(State, RepoFiles), RepoError> {
        let failed = RepoError::trust("publish the image repository");
        let folder = self.image_folder();
        let mut next = state.clone();
        next.last.timestamp += 1;
        let snapshot_due = Lives::of(state)?.snapshot.is_none_or(|ms| is_due(ms, SNAPSHOT_LIFE_MS, now_ms));
        let snapshot = if !changes.is_none() || snapshot_due {
            next.last.snapshot += 1;
            if let Some(bytes) = &changes.targets {
                next.last.targets = targets_head(&folder, bytes)?.0;
            }
            if let Some(bytes) = &changes.retrained {
                next.last.retrained = targets_head(&folder, bytes)?.0;
            }
            for (role, bytes) in &changes.roles {
                next.roles.insert(role.clone(), targets_head(&folder, bytes)?.0);
            }
            let expires_ms = now_ms.saturating_add(SNAPSHOT_LIFE_MS);
            let mut value =
                write::snapshot(next.last.snapshot, expires_ms, &next.listed()).map_err(&failed)?;
            let fresh = changes.retrained.iter().map(|bytes| (RETRAINED, bytes));
            let fresh = fresh.chain(changes.targets.iter().map(|bytes| ("targets", bytes)));
            let fresh = fresh.chain(changes.roles.iter().map(|(role, bytes)| (role.as_str(), bytes)));
            state.pin_lengths(&mut value);
            fresh.for_each(|(role, bytes)| write::pin_length(&mut value, role, bytes));
            Some(Bytes(self.sign(OnlineRole::ImageSnapshot, &value)?))
        } else {
            None
        };
        let expires_ms = now_ms.saturating_add(TIMESTAMP_LIFE_MS);
        let value = write::timestamp(next.last.timestamp, expires_ms, next.last.snapshot).map_err(&failed)?;
        let timestamp = Bytes(self.sign(OnlineRole::ImageTimestamp, &value)?);
        let retrained = changes.retrained.map(|bytes| (RETRAINED.to_owned(), bytes));
        let delegated = changes.roles.into_iter().chain(retrained);
        let delegated = delegated.map(|(role, bytes)| (role, Bytes(bytes))).collect();
        let targets = changes.targets.map(Bytes);
        let files = RepoFiles { roots: vec![], timestamp, snapshot, targets, delegated };
        next.image.update(&files, Now { mono_ms: 0, wall_ms: Some(now_ms) }).map_err(failed)?;
        next.last.root = next.image.versions().root;
        // A client that is sent to a role which the snapshot does not list finds nothing of what it covers.
        if let Some(role) = next.image.task_roles().find(|role| !next.roles.contains_key(*role)) {
            return Err(RepoError::RoleMissing(role.to_owned()));
        }
        let held = next.image.stored().delegated;
        if let Some(role) = files.delegated.keys().find(|role| !held.contains_key(*role)) {
            return Err(RepoError::NotDelegated(role.clone()));
        }
        next.served = next.image.stored();
        next.due_ms = due_ms(&next)?;
        Ok((next, files))
    }

    /// Writes what others lead to first, the timestamp last.
    pub(super) fn write_image(&self, next: State, files: &RepoFiles) -> Result<(), RepoError> {
        let folder = self.image_folder();
        let last = next.last;
        if let Some(bytes) = &files.targets {
            disk::write_atomic(&folder.join(format!("{}.targets.json", last.targets)), bytes.as_slice())?;
        }
        for (role, bytes) in &files.delegated {
            let version = next.roles.get(role).copied().unwrap_or(last.retrained);
            disk::write_atomic(&folder.join(format!("{version}.{role}.json")), bytes.as_slice())?;
        }
        if let Some(bytes) = &files.snapshot {
            disk::write_atomic(&folder.join(format!("{}.snapshot.json", last.snapshot)), bytes.as_slice())?;
        }
        disk::write_atomic(&folder.join("timestamp.json"), files.timestamp.as_slice())?;
        // What was signed offline stays: it is the record of what was approved.
        disk::prune(&folder, "snapshot", last.snapshot);
        disk::prune(&folder, RETRAINED, last.retrained);
        self.set(next);
        Ok(())
    }
}

/// Reads a file that was signed offline and is to follow on version `last` of its role.
pub(super) fn rises(role: &str, bytes: &[u8], last: u64) -> Result<Signed<Targets>, RepoError> {
    let failed = RepoError::trust("publish what was signed offline");
    let file = Signed::<Targets>::parse(role, bytes).map_err(&failed)?;
    let (got, floor) = (file.head().version, last + 1);
    if got < floor {
        return Err(failed(TrustError::Rollback { role: role.to_owned(), got, floor }));
    }
    Ok(file)
}

/// Expiries of what the controller signs, Unix milliseconds; `None` where nothing is trusted.
struct Lives {
    timestamp: Option<u64>,
    snapshot: Option<u64>,
    retrained: Option<u64>,
}

impl Lives {
    fn of(state: &State) -> Result<Self, RepoError> {
        let stored = &state.served;
        let here = Path::new("repo/image");
        let timestamp =
            stored.timestamp.as_ref().map(|bytes| parse::<Timestamp>(here, bytes.as_slice())).transpose()?;
        let snapshot =
            stored.snapshot.as_ref().map(|bytes| parse::<Snapshot>(here, bytes.as_slice())).transpose()?;
        let retrained =
            stored.delegated.get(RETRAINED).map(|bytes| targets_head(here, bytes.as_slice())).transpose()?;
        Ok(Self {
            timestamp: timestamp.map(|file| file.head().expires_ms),
            snapshot: snapshot.map(|file| file.head().expires_ms),
            retrained: retrained.map(|(_, expires_ms)| expires_ms),
        })
    }
}

/// When the first of them has half of its life behind it; at once if one is missing.
pub(super) fn due_ms(state: &State) -> Result<u64, RepoError> {
    let lives = Lives::of(state)?;
    let due = |expires: Option<u64>, life| expires.map_or(0, |expires_ms| due_of(expires_ms, life));
    let timestamp = due(lives.timestamp, TIMESTAMP_LIFE_MS);
    let snapshot = due(lives.snapshot, SNAPSHOT_LIFE_MS);
    Ok(timestamp.min(snapshot).min(due(lives.retrained, ONLINE_TARGETS_LIFE_MS)))
}

/// What the retrained role lists.
pub(super) fn retrained_listed(state: &State) -> Result<Vec<Addition>, RepoError> {
    let Some(bytes) = state.served.delegated.get(RETRAINED) else { return Ok(vec![]) };
    let here = Path::new("repo/image/retrained");
    let damaged = || RepoError::Damaged { path: here.to_owned() };
    let file = parse::<Targets>(here, bytes.as_slice())?;
    let entry = |(name, target): (&String, &dunlin_trust::metadata::TargetFile)| {
        let sha256 = target.hashes.get("sha256").and_then(|hex| hex.parse().ok()).ok_or_else(damaged)?;
        Ok(Addition { name: name.clone(), length: target.length, sha256, custom: target.custom.clone() })
    };
    file.unverified().targets.iter().map(entry).collect()
}
