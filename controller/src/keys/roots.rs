//! The next root of a repository: renewed, with other online keys, or with other holders of the offline ones.
use std::path::Path;

use dunlin_trust::metadata::Root;
use dunlin_trust::{Ed25519Signer, Key, RepoKind, Signed, Signer, TrustError, TrustedRepo, write};
use serde_json::{Value, json};

use super::ceremony::{DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, KEYS_MAX, private_folder, refs, sign};
use super::{KeyError, Keyring, OnlineKeys, OnlineRole, Passphrase, ROOT_LIFE_MS, file};

/// A role whose keys are kept offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfflineRole {
    /// The root of the image repository.
    ImageRoot,
    /// The top-level targets of the image repository.
    ImageTargets,
    /// The root of the director repositories.
    DirectorRoot,
}

impl OfflineRole {
    /// The repository whose root names the role's keys.
    pub fn repo(self) -> RepoKind {
        match self {
            Self::ImageRoot | Self::ImageTargets => RepoKind::Image,
            Self::DirectorRoot => RepoKind::Director,
        }
    }

    /// What the role's key files begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::ImageRoot => IMAGE_ROOT,
            Self::ImageTargets => IMAGE_TARGETS,
            Self::DirectorRoot => DIRECTOR_ROOT,
        }
    }

    /// Its name within the root.
    fn within(self) -> &'static str {
        match self {
            Self::ImageRoot | Self::DirectorRoot => "root",
            Self::ImageTargets => "targets",
        }
    }
}

/// What becomes of the keys of an offline role.
#[derive(Debug, Clone, Default)]
pub struct RoleChange {
    /// Keys that are named from now on.
    pub add: Vec<Key>,
    /// Ids of keys that are not named any more.
    pub drop: Vec<String>,
    /// How many must sign from now on; as many as before if it is not said.
    pub threshold: Option<u32>,
}

/// Makes `n` keys for a role in a folder, `{prefix}-{number}.pem` with the first free numbers.
///
/// # Errors
/// A file exists or can not be written, or the passphrase is too short.
pub fn make_keys(
    folder: &Path,
    prefix: &str,
    n: u32,
    passphrase: Option<&Passphrase>,
) -> Result<Vec<Ed25519Signer>, KeyError> {
    private_folder(folder)?;
    let free = |from: u32| (from..).find(|i| !folder.join(format!("{prefix}-{i}.pem")).exists());
    let (mut made, mut number) = (Vec::new(), 0);
    for _ in 0..n {
        number = free(number + 1).unwrap_or(u32::MAX);
        made.push(file::write_new(&folder.join(format!("{prefix}-{number}.pem")), passphrase)?);
    }
    Ok(made)
}

/// Ids of the keys that a root names for a role.
///
/// # Errors
/// The file is no root.
pub fn role_key_ids(role: OfflineRole, root: &[u8]) -> Result<Vec<String>, KeyError> {
    let root = Signed::<Root>::parse("root", root).map_err(KeyError::trust("read the root file"))?;
    let roles = &root.unverified().roles;
    let named = match role {
        OfflineRole::ImageRoot | OfflineRole::DirectorRoot => &roles.root,
        OfflineRole::ImageTargets => &roles.targets,
    };
    Ok(named.keyids.clone())
}

/// The next root with the keys of one offline role changed: rotation, another threshold, or revocation. A device
/// accepts it when the threshold of the root before and its own have signed; [`lacks`] tells what is missing, and
/// [`super::cosign`] adds to it. After a change of the targets' keys the targets have to be signed by the new ones
/// and published together with the root.
///
/// # Errors
/// The file is no root, the change does not fit it, or signing failed.
pub fn change_role(
    role: OfflineRole,
    current: &[u8],
    change: &RoleChange,
    signers: &[&dyn Signer],
    now_ms: u64,
) -> Result<Vec<u8>, KeyError> {
    let mut next = next_root(current, now_ms)?;
    change_keys(&mut next["roles"][role.within()], change)?;
    for key in &change.add {
        next["keys"][key.id()] = key.declared().clone();
    }
    drop_unused_root_keys(&mut next);
    sign(&next, signers)
}

/// Changes keys and threshold of a role, wherever it is named.
pub(super) fn change_keys(entry: &mut Value, change: &RoleChange) -> Result<(), KeyError> {
    let mut ids: Vec<String> = serde_json::from_value(entry["keyids"].take())
        .map_err(|_| KeyError::Request("the file names no keys for this role".to_owned()))?;
    for id in &change.drop {
        let at = ids.iter().position(|known| known == id);
        let at =
            at.ok_or_else(|| KeyError::Request(format!("the file does not name key {id} for this role")))?;
        ids.remove(at);
    }
    for key in &change.add {
        if ids.contains(&key.id()) {
            return Err(KeyError::Request(format!("the file names key {} already", key.id())));
        }
        ids.push(key.id());
    }
    let before = entry["threshold"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    let (threshold, n) = (change.threshold.unwrap_or(before), u32::try_from(ids.len()).unwrap_or(u32::MAX));
    if threshold == 0 || threshold > n || n > KEYS_MAX {
        return Err(KeyError::Threshold { threshold, n, max: KEYS_MAX });
    }
    entry["keyids"] = json!(ids);
    entry["threshold"] = threshold.into();
    Ok(())
}

/// What keeps clients from following from one root to the next; `None` if they do.
///
/// # Errors
/// `current` is no root that its own keys signed.
pub fn lacks(kind: RepoKind, current: &[u8], next: &[u8]) -> Result<Option<TrustError>, KeyError> {
    let mut repo = TrustedRepo::pinned(kind, current).map_err(KeyError::trust("read the root file"))?;
    Ok(repo.step_root(next).err())
}

/// The next root of a repository: the same offline keys, a new expiry, and other online keys if they are given
/// (after a break-in, or when the controller moves). Signed by every root key in `keys`.
///
/// The key of the `retrained` role is named by the image targets, not by a root; it is not changed here.
///
/// # Errors
/// The file is no root, no key is there, or signing failed.
pub fn renew_root<'a>(
    kind: RepoKind,
    current: &[u8],
    online: Option<&OnlineKeys>,
    keys: impl Into<Keyring<'a>>,
    now_ms: u64,
) -> Result<Vec<u8>, KeyError> {
    let role = match kind {
        RepoKind::Image => OfflineRole::ImageRoot,
        RepoKind::Director => OfflineRole::DirectorRoot,
    };
    let signers = keys.into().signers(role.prefix())?;
    renew_root_with(kind, current, online, &refs(&signers), now_ms)
}

/// The same with keys wherever they live.
///
/// # Errors
/// The file is no root, or signing failed.
pub fn renew_root_with(
    kind: RepoKind,
    current: &[u8],
    online: Option<&OnlineKeys>,
    signers: &[&dyn Signer],
    now_ms: u64,
) -> Result<Vec<u8>, KeyError> {
    let mut next = next_root(current, now_ms)?;
    let online_roles: &[(&str, OnlineRole)] = match kind {
        RepoKind::Image => {
            &[("timestamp", OnlineRole::ImageTimestamp), ("snapshot", OnlineRole::ImageSnapshot)]
        }
        RepoKind::Director => &[
            ("timestamp", OnlineRole::DirectorTimestamp),
            ("snapshot", OnlineRole::DirectorSnapshot),
            ("targets", OnlineRole::DirectorTargets),
        ],
    };
    for (name, key) in
        online.iter().flat_map(|online| online_roles.iter().map(|(name, which)| (*name, online.of(*which))))
    {
        let id = key.id();
        next["keys"][&id] = key.declared().clone();
        next["roles"][name] = json!({ "keyids": [id], "threshold": 1 });
    }
    drop_unused_root_keys(&mut next);
    sign(&next, signers)
}

/// The next version of a root, with a whole life before it.
fn next_root(current: &[u8], now_ms: u64) -> Result<Value, KeyError> {
    let failed = KeyError::trust("read the root file");
    let version = Signed::<Root>::parse("root", current).map_err(&failed)?.head().version;
    let signed = write::signed_value(current).map_err(&failed)?;
    write::renew(&signed, version + 1, now_ms.saturating_add(ROOT_LIFE_MS)).map_err(&failed)
}

fn drop_unused_root_keys(root: &mut Value) {
    let roles = root["roles"].clone();
    drop_unused_keys(&mut root["keys"], roles.as_object().into_iter().flat_map(|roles| roles.values()));
}

/// Keys that no role names any more only make the file longer.
pub(super) fn drop_unused_keys<'a>(keys: &mut Value, roles: impl Iterator<Item = &'a Value>) {
    let named: Vec<Value> =
        roles.flat_map(|role| role["keyids"].as_array().cloned().unwrap_or_default()).collect();
    if let Some(keys) = keys.as_object_mut() {
        keys.retain(|id, _| named.iter().any(|named| named == id));
    }
}
