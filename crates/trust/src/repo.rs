use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{Bytes, IntoTree, Now, RepoFiles, RepoVersions};
use serde_json::Value;

use crate::document::{Authority, Document, Signed, Verified};
use crate::key::sha256;
use crate::metadata::{Kind, RoleKeys, Root, RootRoles, Snapshot, Targets, Timestamp};
use crate::{CountedBy, Key, StoredFiles, TrustError, task_of};

mod workflow;

/// Roots that are followed in one update. A root lasts a year, so even a device from a drawer needs few.
pub const ROOTS_MAX: usize = 256;
/// Delegated roles that are visited for one target, and held at all.
pub const DELEGATIONS_MAX: usize = 32;
/// The delegated role whose key lives on the controller.
pub const RETRAINED: &str = "retrained";
/// Name of the top-level targets role.
pub(crate) const TARGETS: &str = "targets";

/// Which of the two repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoKind {
    /// What exists and is approved.
    Image,
    /// What one device shall run; may not delegate.
    Director,
}

type Trusted<T> = Arc<Verified<Document<T>>>;

/// The verified state of one TUF repository, and the client workflow of the specification (§5) over it,
/// without any input or output: the caller fetches, this decides.
///
/// [`TrustedRepo::update`] runs the whole workflow and changes nothing if any step fails. The single steps are
/// public for clients that fetch file by file; each checks all that stands before it.
#[derive(Debug, Clone)]
pub struct TrustedRepo {
    kind: RepoKind,
    root: Trusted<Root>,
    timestamp: Option<Trusted<Timestamp>>,
    snapshot: Option<Trusted<Snapshot>>,
    pub(crate) targets: Option<Trusted<Targets>>,
    pub(crate) delegated: BTreeMap<String, Delegated>,
    floors: RepoVersions,
    /// Of the roles of single tasks.
    pub(crate) role_floors: BTreeMap<String, u64>,
    judged_ms: u64,
}

/// A delegated role, and by which delegating roles' keys it was verified.
#[derive(Debug, Clone)]
pub(crate) struct Delegated {
    pub(crate) document: Trusted<Targets>,
    pub(crate) trusted_by: BTreeSet<String>,
}

impl TrustedRepo {
    /// Begins with a root that the caller compared with its pin (see [`crate::pin`]).
    ///
    /// # Errors
    /// The file is no root, or not signed by its own threshold.
    pub fn pinned(kind: RepoKind, root: &[u8]) -> Result<Self, TrustError> {
        let root = Signed::<Root>::parse("root", root)?;
        root.signed_by(Authority {
            name: "itself",
            ..root_authority(root.unverified(), |roles| &roles.root)
        })?;
        let own = root.unverified().clone();
        let root = Arc::new(root.verify(root_authority(&own, |roles| &roles.root))?);
        let floors = RepoVersions { root: root.head.version, ..RepoVersions::default() };
        Ok(Self {
            kind,
            root,
            timestamp: None,
            snapshot: None,
            targets: None,
            delegated: BTreeMap::new(),
            floors,
            role_floors: BTreeMap::new(),
            judged_ms: 0,
        })
    }

    /// Takes up stored files. Files that do not parse, do not verify or lie below the floors are dropped, and
    /// fetched again by the next update. A root below its floor is kept, but then an update has to lead back
    /// to the floor before anything is trusted.
    ///
    /// # Errors
    /// The root is damaged; the caller falls back to the root it pinned.
    pub fn restore(kind: RepoKind, stored: &StoredFiles, floors: &RepoVersions) -> Result<Self, TrustError> {
        let mut repo = Self::pinned(kind, stored.root.as_slice())?;
        let root_is_current = repo.root.head.version >= floors.root;
        repo.floors = RepoVersions { root: floors.root.max(repo.root.head.version), ..*floors };
        if root_is_current {
            repo.load(stored);
        }
        Ok(repo)
    }

    /// Loads what verifies under the present root and is not below the floors.
    fn load(&mut self, stored: &StoredFiles) {
        let floors = self.floors;
        let root = Arc::clone(&self.root);
        let whole = |bytes: &Option<Bytes>| bytes.clone().unwrap_or_default();
        self.timestamp =
            reload("timestamp", &whole(&stored.timestamp), &root, |r| &r.timestamp, floors.timestamp);
        self.snapshot = reload("snapshot", &whole(&stored.snapshot), &root, |r| &r.snapshot, floors.snapshot);
        self.targets = reload(TARGETS, &whole(&stored.targets), &root, |r| &r.targets, floors.targets)
            .filter(|targets: &Trusted<Targets>| self.may_delegate(TARGETS, &targets.body).is_ok());
        self.delegated.clear();
        self.raise_floors();
        for (delegator, role) in self.edges() {
            let alone = self.role_floors.get(&role).copied().unwrap_or(0);
            let floor = if role == RETRAINED { floors.retrained } else { alone };
            if let Some(bytes) = stored.delegated.get(&role)
                && let Ok(document) = self.verify_delegated(&delegator, &role, bytes.as_slice())
                && document.head.version >= floor
            {
                self.adopt_delegated(&delegator, &role, document);
            }
        }
    }

    /// The whole client workflow (§5.3–5.6) with files that were fetched beforehand. All or nothing: on an
    /// error the repository is as it was.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn update(&mut self, files: &RepoFiles, now: Now) -> Result<(), TrustError> {
        let mut next = self.clone();
        next.apply(files, now)?;
        *self = next;
        Ok(())
    }

    fn apply(&mut self, files: &RepoFiles, now: Now) -> Result<(), TrustError> {
        let missing = |role: &str| TrustError::Missing { role: role.to_owned() };
        if files.roots.len() > ROOTS_MAX {
            return Err(TrustError::RootChain { at: self.root.head.version, what: "it is too long" });
        }
        for bytes in &files.roots {
            // Files may have been put together for a client that held an older root.
            let known =
                Signed::<Root>::parse("root", bytes.as_slice())?.head().version <= self.root.head.version;
            if !known {
                self.step_root(bytes.as_slice())?;
            }
        }
        self.step_timestamp(files.timestamp.as_slice(), now)?;
        match self.snapshot_wanted() {
            Some(_) => {
                let bytes = files.snapshot.as_ref().ok_or_else(|| missing("snapshot"))?;
                self.step_snapshot(bytes.as_slice(), now)?;
            }
            None => self.check_snapshot(now)?,
        }
        match self.targets_wanted() {
            Some(_) => {
                let bytes = files.targets.as_ref().ok_or_else(|| missing(TARGETS))?;
                self.step_targets(bytes.as_slice(), now)?;
            }
            None => self.check_targets(now)?,
        }
        self.apply_delegated(files, now)?;
        self.judged_ms = wall(now)?;
        Ok(())
    }

    /// Every delegated role that the snapshot lists, each verified by each role that delegates to it. A client is given
    /// the roles of its own tasks alone, and a team that lets its file expire holds up no other: what such a role covers
    /// is not found while it is not held.
    fn apply_delegated(&mut self, files: &RepoFiles, now: Now) -> Result<(), TrustError> {
        let (mut open, mut done) = (self.edges(), BTreeSet::new());
        while let Some((delegator, role)) = open.pop() {
            if !done.insert((delegator.clone(), role.clone())) {
                continue;
            }
            if done.len() > DELEGATIONS_MAX {
                return Err(TrustError::malformed(&delegator, "the repository delegates too much"));
            }
            let Some(meta) = self.snapshot_meta(&role).cloned() else { continue };
            let held = self.delegated.get(&role).filter(|held| held.document.head.version == meta.version);
            let stepped = match held {
                Some(held) if held.trusted_by.contains(&delegator) => not_expired(&role, &held.document, now),
                Some(held) => {
                    let bytes = held.document.bytes.clone();
                    self.step_delegated(&delegator, &role, &bytes, now)
                }
                None => match files.delegated.get(&role) {
                    Some(bytes) => self.step_delegated(&delegator, &role, bytes.as_slice(), now),
                    None => Err(TrustError::Missing { role: role.clone() }),
                },
            };
            match stepped {
                Err(TrustError::Missing { .. } | TrustError::Expired { .. }) if task_of(&role).is_some() => {
                    self.delegated.remove(&role);
                    done.remove(&(delegator, role));
                }
                stepped => {
                    stepped?;
                    open.extend(self.edges_of(&role));
                }
            }
        }
        self.delegated.retain(|name, _| done.iter().any(|(_, role)| role == name));
        Ok(())
    }

    /// A targets role by name, top-level or delegated.
    fn targets_role(&self, role: &str) -> Option<&Trusted<Targets>> {
        if role == TARGETS {
            self.targets.as_ref()
        } else {
            self.delegated.get(role).map(|held| &held.document)
        }
    }

    /// Delegations of the top-level targets.
    fn edges(&self) -> Vec<(String, String)> {
        self.edges_of(TARGETS)
    }

    fn edges_of(&self, delegator: &str) -> Vec<(String, String)> {
        let delegations = self.targets_role(delegator).and_then(|doc| doc.body.delegations.as_ref());
        let roles = delegations.into_iter().flat_map(|delegations| &delegations.roles);
        roles.map(|role| (delegator.to_owned(), role.name.clone())).collect()
    }

    fn raise_floors(&mut self) {
        let floors = &mut self.floors;
        let version = |head: Option<&crate::metadata::Head>| head.map_or(0, |head| head.version);
        floors.timestamp = floors.timestamp.max(version(self.timestamp.as_ref().map(|held| &held.head)));
        floors.snapshot = floors.snapshot.max(version(self.snapshot.as_ref().map(|held| &held.head)));
        floors.targets = floors.targets.max(version(self.targets.as_ref().map(|held| &held.head)));
    }

    /// Versions of the files that are held, zero where none is: what to ask the composite check with.
    pub fn versions(&self) -> RepoVersions {
        RepoVersions {
            root: self.root.head.version,
            timestamp: self.timestamp.as_ref().map_or(0, |held| held.head.version),
            snapshot: self.snapshot.as_ref().map_or(0, |held| held.head.version),
            targets: self.targets.as_ref().map_or(0, |held| held.head.version),
            retrained: self.delegated.get(RETRAINED).map_or(0, |held| held.document.head.version),
        }
    }

    /// The least versions that are accepted from now on; to be kept in the floors record.
    pub fn floors(&self) -> RepoVersions {
        self.floors
    }

    /// Wall time of the last successful update, Unix milliseconds; zero if there was none since the start.
    pub fn judged_ms(&self) -> u64 {
        self.judged_ms
    }

    /// When the first of the held files ends to be believed, Unix milliseconds.
    pub fn expires_ms(&self) -> u64 {
        let mut least = self.root.head.expires_ms;
        least = self.timestamp.as_ref().map_or(least, |held| least.min(held.head.expires_ms));
        least = self.snapshot.as_ref().map_or(least, |held| least.min(held.head.expires_ms));
        least = self.targets.as_ref().map_or(least, |held| least.min(held.head.expires_ms));
        self.delegated.values().fold(least, |least, held| least.min(held.document.head.expires_ms))
    }

    /// The files to keep, byte for byte as they were received.
    pub fn stored(&self) -> StoredFiles {
        fn bytes<T>(held: &Option<Trusted<T>>) -> Option<Bytes> {
            held.as_ref().map(|held| Bytes(held.bytes.clone()))
        }
        let delegated = self.delegated.iter();
        StoredFiles {
            root: Bytes(self.root.bytes.clone()),
            timestamp: bytes(&self.timestamp),
            snapshot: bytes(&self.snapshot),
            targets: bytes(&self.targets),
            delegated: delegated
                .map(|(name, held)| (name.clone(), Bytes(held.document.bytes.clone())))
                .into_tree(),
        }
    }

    /// What the trusted root says.
    pub fn root(&self) -> &Root {
        &self.root.body
    }

    /// What the top-level targets say about the whole; `None` while none is trusted.
    pub fn targets_custom(&self) -> Option<&Value> {
        self.current_targets().map(|targets| &targets.body.custom)
    }

    /// The keys of the targets role, as those that count; `before` if they are the same.
    pub fn targets_keys(&self, before: Option<CountedBy>) -> CountedBy {
        self.counted_by(|roles| &roles.targets, before)
    }

    /// The same of the timestamp role.
    pub fn timestamp_keys(&self, before: Option<CountedBy>) -> CountedBy {
        self.counted_by(|roles| &roles.timestamp, before)
    }

    fn counted_by(&self, pick: fn(&RootRoles) -> &RoleKeys, before: Option<CountedBy>) -> CountedBy {
        let ids: BTreeSet<&str> = pick(&self.root.body.roles).keyids.iter().map(String::as_str).into_tree();
        let keys = sha256(ids.into_iter().collect::<Vec<_>>().join("\n").as_bytes());
        let same = before.filter(|before| before.keys == keys);
        same.unwrap_or(CountedBy { root: self.root.head.version, keys })
    }

    /// A key of the timestamp role.
    pub(crate) fn timestamp_key(&self, id: &str) -> Option<&Key> {
        let root = &self.root.body;
        root.roles.timestamp.keyids.iter().find(|named| *named == id).and_then(|id| root.keys.get(id))
    }
}

/// The keys a root names for one of its roles.
fn root_authority(root: &Root, pick: fn(&RootRoles) -> &RoleKeys) -> Authority<'_> {
    Authority { name: "the root", keys: &root.keys, role: pick(&root.roles) }
}

/// A stored file, if it is whole, signed by the present root's keys and not below the floor.
fn reload<T: Kind>(
    role: &str,
    bytes: &Bytes,
    root: &Verified<Document<Root>>,
    pick: fn(&RootRoles) -> &RoleKeys,
    floor: u64,
) -> Option<Trusted<T>> {
    let document =
        Signed::<T>::parse(role, bytes.as_slice()).ok()?.verify(root_authority(&root.body, pick)).ok()?;
    (document.head.version >= floor).then(|| Arc::new(document))
}

fn wall(now: Now) -> Result<u64, TrustError> {
    now.wall_ms.ok_or(TrustError::ClockUnknown)
}

fn not_expired<T>(role: &str, document: &Document<T>, now: Now) -> Result<(), TrustError> {
    let (now_ms, expires_ms) = (wall(now)?, document.head.expires_ms);
    if now_ms < expires_ms {
        return Ok(());
    }
    Err(TrustError::Expired { role: role.to_owned(), expires_ms, now_ms })
}

fn not_below(role: &str, got: u64, floor: u64) -> Result<(), TrustError> {
    if got >= floor || weaken::off(Defence::MetadataVersion) {
        Ok(())
    } else {
        Err(TrustError::Rollback { role: role.to_owned(), got, floor })
    }
}
