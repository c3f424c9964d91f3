//! The single steps of the client workflow (specification §5.3–5.6).
use std::sync::Arc;

use dunlin_protocol::{IntoTree, Now};

use super::{
    Delegated, RETRAINED, RepoKind, TARGETS, Trusted, TrustedRepo, not_below, not_expired, root_authority,
};
use crate::document::{Authority, Document, Signed, Verified};
use crate::metadata::{Kind, MetaFile, RoleKeys, Root, RootRoles, Snapshot, Targets, Timestamp};
use crate::{TrustError, task_of};

impl TrustedRepo {
    /// Step §5.3: the next root, signed by the threshold of the present one and by its own.
    ///
    /// # Errors
    /// It is not the direct successor, or lacks signatures.
    pub fn step_root(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let at = self.root.head.version;
        let next = Signed::<Root>::parse("root", bytes)?;
        next.signed_by(Authority {
            name: "the root before it",
            ..root_authority(&self.root.body, |roles| &roles.root)
        })?;
        next.signed_by(Authority {
            name: "itself",
            ..root_authority(next.unverified(), |roles| &roles.root)
        })?;
        if Some(next.head().version) != at.checked_add(1) {
            return Err(TrustError::RootChain { at, what: "the next file is not the next version" });
        }
        let own = next.unverified().clone();
        let next = Arc::new(next.verify(root_authority(&own, |roles| &roles.root))?);
        // A client that walks the chain again has seen this rotation take effect; its floors are of later keys.
        if next.head.version > self.floors.root {
            self.recover_from_fast_forward(&next.body);
        }
        self.root = next;
        let stored = self.stored();
        self.load(&stored);
        self.floors.root = self.floors.root.max(self.root.head.version);
        Ok(())
    }

    /// §5.3.11: an attacker with a stolen timestamp or snapshot key may have driven versions so high that no
    /// honest file can follow. Taking the key away takes what it signed away, floors included. The floor of
    /// the targets roles stands on the snapshot, so it goes with the snapshot's key.
    fn recover_from_fast_forward(&mut self, next: &Root) {
        let old = &self.root.body;
        let revoked = |pick: fn(&RootRoles) -> &RoleKeys| {
            let material = |root: &Root, id: &String| root.keys.get(id).map(|key| key.material().clone());
            let kept: Vec<_> = pick(&next.roles).keyids.iter().filter_map(|id| material(next, id)).collect();
            pick(&old.roles).keyids.iter().filter_map(|id| material(old, id)).any(|key| !kept.contains(&key))
        };
        let (timestamp, snapshot) = (revoked(|roles| &roles.timestamp), revoked(|roles| &roles.snapshot));
        if timestamp || snapshot {
            self.timestamp = None;
            self.snapshot = None;
            self.floors.timestamp = 0;
            self.floors.snapshot = 0;
        }
        if snapshot {
            self.targets = None;
            self.delegated.clear();
            self.floors.targets = 0;
            self.floors.retrained = 0;
            self.role_floors.clear();
        }
    }

    /// §5.3.10, after the last root: it must not be expired, nor below the floor.
    ///
    /// # Errors
    /// It is, or the time is unknown.
    pub fn check_root(&self, now: Now) -> Result<(), TrustError> {
        if self.root.head.version < self.floors.root {
            let (got, floor) = (self.root.head.version, self.floors.root);
            return Err(TrustError::Rollback { role: "root".to_owned(), got, floor });
        }
        not_expired("root", &self.root, now)
    }

    /// Step §5.4: the timestamp. One with the version already held is discarded, and the held one judged.
    ///
    /// # Errors
    /// Signatures, version, what it names, or expiry.
    pub fn step_timestamp(&mut self, bytes: &[u8], now: Now) -> Result<(), TrustError> {
        self.check_root(now)?;
        let role = "timestamp";
        let next = Signed::<Timestamp>::parse(role, bytes)?;
        let next = next.verify(root_authority(&self.root.body, |roles| &roles.timestamp))?;
        not_below(role, next.head.version, self.floors.timestamp)?;
        if let Some(held) = &self.timestamp {
            not_below(role, next.head.version, held.head.version)?;
            if next.head.version == held.head.version {
                return not_expired(role, held, now);
            }
            not_below("snapshot", next.body.snapshot().version, held.body.snapshot().version)?;
        }
        not_below("snapshot", next.body.snapshot().version, self.floors.snapshot)?;
        not_expired(role, &next, now)?;
        self.floors.timestamp = next.head.version;
        self.timestamp = Some(Arc::new(next));
        Ok(())
    }

    /// The version of the snapshot to fetch, if the one held is not the one the timestamp names.
    pub fn snapshot_wanted(&self) -> Option<u64> {
        let named = self.timestamp.as_ref()?.body.snapshot().version;
        (self.snapshot.as_ref().map(|held| held.head.version) != Some(named)).then_some(named)
    }

    /// Step §5.5: the snapshot.
    ///
    /// # Errors
    /// It is not the one the timestamp names, lacks signatures, names older files than before, or is expired.
    pub fn step_snapshot(&mut self, bytes: &[u8], now: Now) -> Result<(), TrustError> {
        let role = "snapshot";
        let timestamp =
            self.timestamp.as_ref().ok_or_else(|| TrustError::Missing { role: "timestamp".to_owned() })?;
        not_expired("timestamp", timestamp, now)?;
        let next: Verified<Document<Snapshot>> = named_file(
            role,
            bytes,
            timestamp.body.snapshot(),
            root_authority(&self.root.body, |roles| &roles.snapshot),
        )?;
        let held = self.snapshot.as_ref().map(|held| &held.body.meta);
        for (name, old) in held.into_iter().flatten() {
            let got = next.body.meta.get(name).map_or(0, |meta| meta.version);
            not_below(name.strip_suffix(".json").unwrap_or(name), got, old.version)?;
        }
        let version = |name: &str| next.body.meta.get(name).map_or(0, |meta| meta.version);
        not_below(TARGETS, version("targets.json"), self.floors.targets)?;
        not_below(RETRAINED, version("retrained.json"), self.floors.retrained)?;
        for (role, floor) in &self.role_floors {
            not_below(role, version(&format!("{role}.json")), *floor)?;
        }
        not_expired(role, &next, now)?;
        self.floors.snapshot = next.head.version;
        self.snapshot = Some(Arc::new(next));
        Ok(())
    }

    /// That the snapshot held is the one the timestamp names and is not expired; what stands for
    /// [`TrustedRepo::step_snapshot`] when nothing has to be fetched.
    ///
    /// # Errors
    /// It is not.
    pub fn check_snapshot(&self, now: Now) -> Result<(), TrustError> {
        not_expired("snapshot", self.current_snapshot()?, now)
    }

    /// The snapshot that the timestamp names.
    fn current_snapshot(&self) -> Result<&Trusted<Snapshot>, TrustError> {
        let named = self.timestamp.as_ref().map(|timestamp| timestamp.body.snapshot().version);
        let held = self.snapshot.as_ref().filter(|held| Some(held.head.version) == named);
        held.ok_or_else(|| TrustError::Missing { role: "snapshot".to_owned() })
    }

    /// What the current snapshot says about a targets role.
    pub(crate) fn snapshot_meta(&self, role: &str) -> Option<&MetaFile> {
        self.current_snapshot().ok()?.body.meta.get(&format!("{role}.json"))
    }

    /// The version of the top-level targets to fetch, if the one held is not the one the snapshot names.
    pub fn targets_wanted(&self) -> Option<u64> {
        let named = self.snapshot_meta(TARGETS)?.version;
        (self.targets.as_ref().map(|held| held.head.version) != Some(named)).then_some(named)
    }

    /// Step §5.6: the top-level targets.
    ///
    /// # Errors
    /// It is not the one the snapshot names, lacks signatures, is expired, or delegates where it must not.
    pub fn step_targets(&mut self, bytes: &[u8], now: Now) -> Result<(), TrustError> {
        self.check_snapshot(now)?;
        let meta =
            self.snapshot_meta(TARGETS).ok_or_else(|| TrustError::Missing { role: TARGETS.to_owned() })?;
        let next: Verified<Document<Targets>> =
            named_file(TARGETS, bytes, meta, root_authority(&self.root.body, |roles| &roles.targets))?;
        self.may_delegate(TARGETS, &next.body)?;
        not_expired(TARGETS, &next, now)?;
        self.floors.targets = next.head.version;
        self.targets = Some(Arc::new(next));
        self.forget_delegator(TARGETS);
        Ok(())
    }

    /// The same of the top-level targets.
    ///
    /// # Errors
    /// As in [`TrustedRepo::check_snapshot`].
    pub fn check_targets(&self, now: Now) -> Result<(), TrustError> {
        let held = self.current_targets().ok_or_else(|| TrustError::Missing { role: TARGETS.to_owned() })?;
        not_expired(TARGETS, held, now)
    }

    /// The top-level targets that the current snapshot names.
    pub(crate) fn current_targets(&self) -> Option<&Trusted<Targets>> {
        let named = self.snapshot_meta(TARGETS)?.version;
        self.targets.as_ref().filter(|held| held.head.version == named)
    }

    /// Refuses delegations by roles whose keys are online: the director's, and [`RETRAINED`]. Whoever steals such a key
    /// could otherwise name a role of their own, which would count as the owner's. A task's role could so name one that
    /// counts as another task's.
    pub(super) fn may_delegate(&self, role: &str, targets: &Targets) -> Result<(), TrustError> {
        let confined = match self.kind {
            RepoKind::Image => role == RETRAINED || task_of(role).is_some(),
            RepoKind::Director => true,
        };
        if confined && targets.delegations.is_some() {
            return Err(TrustError::malformed(
                role,
                "a role that is signed online, or for one task, must not delegate",
            ));
        }
        Ok(())
    }

    /// Step §5.6.7: a delegated role, by the keys that this delegating role names for it.
    ///
    /// # Errors
    /// The role is not delegated to, or as in [`TrustedRepo::step_targets`].
    pub fn step_delegated(
        &mut self,
        delegator: &str,
        role: &str,
        bytes: &[u8],
        now: Now,
    ) -> Result<(), TrustError> {
        self.check_targets(now)?;
        let meta = self.snapshot_meta(role).ok_or_else(|| TrustError::Missing { role: role.to_owned() })?;
        meta.matches(bytes).map_err(|what| TrustError::Mismatch { role: role.to_owned(), what })?;
        let named = meta.version;
        let next = self.verify_delegated(delegator, role, bytes)?;
        if next.head.version != named {
            return Err(TrustError::Mismatch { role: role.to_owned(), what: "its version differs" });
        }
        not_expired(role, &next, now)?;
        self.adopt_delegated(delegator, role, next);
        Ok(())
    }

    pub(super) fn verify_delegated(
        &self,
        delegator: &str,
        role: &str,
        bytes: &[u8],
    ) -> Result<Verified<Document<Targets>>, TrustError> {
        let missing = || TrustError::Missing { role: delegator.to_owned() };
        let delegations =
            self.targets_role(delegator).and_then(|doc| doc.body.delegations.as_ref()).ok_or_else(missing)?;
        let delegation =
            delegations.roles.iter().find(|candidate| candidate.name == role).ok_or_else(missing)?;
        let keys = delegation.role_keys();
        let authority = Authority { name: delegator, keys: &delegations.keys, role: &keys };
        let document = Signed::<Targets>::parse(role, bytes)?.verify(authority)?;
        self.may_delegate(role, &document.body)?;
        Ok(document)
    }

    pub(super) fn adopt_delegated(
        &mut self,
        delegator: &str,
        role: &str,
        document: Verified<Document<Targets>>,
    ) {
        if role == RETRAINED {
            self.floors.retrained = document.head.version;
        } else if task_of(role).is_some() {
            self.role_floors.insert(role.to_owned(), document.head.version);
        }
        let held = self.delegated.get_mut(role).filter(|held| held.document.bytes == document.bytes);
        if let Some(held) = held {
            held.trusted_by.insert(delegator.to_owned());
        } else {
            let trusted_by = std::iter::once(delegator.to_owned()).into_tree();
            self.delegated.insert(role.to_owned(), Delegated { document: Arc::new(document), trusted_by });
            self.forget_delegator(role);
        }
    }

    /// A role was replaced: what it had vouched for has to be verified by its new delegations.
    fn forget_delegator(&mut self, delegator: &str) {
        for delegated in self.delegated.values_mut() {
            delegated.trusted_by.remove(delegator);
        }
    }
}

/// A file that another one names: length and digest first (§5.5.2), then signatures, then the version.
fn named_file<T: Kind>(
    role: &str,
    bytes: &[u8],
    meta: &MetaFile,
    authority: Authority<'_>,
) -> Result<Verified<Document<T>>, TrustError> {
    let mismatch = |what| TrustError::Mismatch { role: role.to_owned(), what };
    meta.matches(bytes).map_err(mismatch)?;
    let document = Signed::<T>::parse(role, bytes)?.verify(authority)?;
    if document.head.version == meta.version { Ok(document) } else { Err(mismatch("its version differs")) }
}
