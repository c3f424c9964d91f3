//! Publishing the image repository.
use std::collections::BTreeMap;
use std::path::Path;

use dunlin_protocol::{Bytes, Now, ReleaseId, RepoFiles, RepoVersions};
use dunlin_trust::metadata::{Snapshot, Targets, Timestamp};
use dunlin_trust::write::{self, TargetSpec};
use dunlin_trust::{RETRAINED, Signed, Signer};
use serde_json::Value;

use super::{
    ONLINE_TARGETS_LIFE_MS, RepoError, Repos, SNAPSHOT_LIFE_MS, State, TIMESTAMP_LIFE_MS, disk, due_of,
    is_due, parse, targets_head,
};
use crate::keys::{Addition, OnlineRole};

impl Repos {
    /// Publishes new top-level targets, signed offline.
    ///
    /// # Errors
    /// A device would refuse the file: too few signatures, an old version, expired, malformed.
    pub fn publish_targets(&self, bytes: &[u8], now_ms: u64) -> Result<RepoVersions, RepoError> {
        let _publishing = self.publishing();
        let state = self.state()?;
        let failed = RepoError::trust("publish the targets file");
        let next = Signed::<Targets>::parse("targets", bytes).map_err(&failed)?;
        if next.head().version <= state.last.targets {
            let (got, floor) = (next.head().version, state.last.targets + 1);
            return Err(failed(dunlin_trust::TrustError::Rollback {
                role: "targets".to_owned(),
                got,
                floor,
            }));
        }
        // The delegation may name another key, so the delegated role is signed anew with it.
        let retrained = self.sign_retrained(state.last.retrained + 1, &retrained_listed(&state)?, now_ms)?;
        self.commit_image(&state, Some(bytes.to_vec()), Some(retrained), now_ms)?;
        Ok(self.state()?.last)
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
        self.commit_image(&state, None, Some(retrained), now_ms)?;
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
            self.commit_image(&state, None, retrained, now_ms)?;
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
    pub(super) fn commit_image(
        &self,
        state: &State,
        targets: Option<Vec<u8>>,
        retrained: Option<Vec<u8>>,
        now_ms: u64,
    ) -> Result<(), RepoError> {
        let (next, files) = self.build_image(state, targets, retrained, now_ms)?;
        self.write_image(next, &files)
    }

    /// The next state and its files, verified but not written.
    pub(super) fn build_image(
        &self,
        state: &State,
        targets: Option<Vec<u8>>,
        retrained: Option<Vec<u8>>,
        now_ms: u64,
    ) -> Result<(State, RepoFiles), RepoError> {
        let failed = RepoError::trust("publish the image repository");
        let folder = self.image_folder();
        let mut last = state.last;
        last.timestamp += 1;
        let snapshot_due = Lives::of(state)?.snapshot.is_none_or(|ms| is_due(ms, SNAPSHOT_LIFE_MS, now_ms));
        let snapshot = if targets.is_some() || retrained.is_some() || snapshot_due {
            last.snapshot += 1;
            if let Some(bytes) = &targets {
                last.targets = targets_head(&folder, bytes)?.0;
            }
            if let Some(bytes) = &retrained {
                last.retrained = targets_head(&folder, bytes)?.0;
            }
            let roles = BTreeMap::from([
                ("targets".to_owned(), last.targets),
                (RETRAINED.to_owned(), last.retrained),
            ]);
            let expires_ms = now_ms.saturating_add(SNAPSHOT_LIFE_MS);
            let value = write::snapshot(last.snapshot, expires_ms, &roles).map_err(&failed)?;
            Some(Bytes(self.sign(OnlineRole::ImageSnapshot, &value)?))
        } else {
            None
        };
        let value = write::timestamp(last.timestamp, now_ms.saturating_add(TIMESTAMP_LIFE_MS), last.snapshot);
        let timestamp = Bytes(self.sign(OnlineRole::ImageTimestamp, &value.map_err(&failed)?)?);
        let delegated = retrained.map(|bytes| (RETRAINED.to_owned(), Bytes(bytes))).into_iter().collect();
        let files = RepoFiles { roots: vec![], timestamp, snapshot, targets: targets.map(Bytes), delegated };
        let mut next = State { last, ..state.clone() };
        next.image.update(&files, Now { mono_ms: 0, wall_ms: Some(now_ms) }).map_err(failed)?;
        next.last.root = next.image.versions().root;
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
        if let Some(bytes) = files.delegated.get(RETRAINED) {
            disk::write_atomic(
                &folder.join(format!("{}.{RETRAINED}.json", last.retrained)),
                bytes.as_slice(),
            )?;
        }
        if let Some(bytes) = &files.snapshot {
            disk::write_atomic(&folder.join(format!("{}.snapshot.json", last.snapshot)), bytes.as_slice())?;
        }
        disk::write_atomic(&folder.join("timestamp.json"), files.timestamp.as_slice())?;
        // Releases of the targets stay: they are the record of what was approved.
        disk::prune(&folder, "snapshot", last.snapshot);
        disk::prune(&folder, RETRAINED, last.retrained);
        self.set(next);
        Ok(())
    }
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
