//! The key ceremony: offline keys and the first files of both repositories.
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use dunlin_protocol::{Digest, TargetsCustom};
use dunlin_trust::write::{self, DelegationSpec, RoleSpec, RootSpec};
use dunlin_trust::{Ed25519Signer, RETRAINED, Signer, pin};
use serde_json::{Value, json};

use super::roots::make_keys;
use super::{KeyError, OnlineKeys, OnlineRole, Passphrase, ROOT_LIFE_MS, TARGETS_LIFE_MS};

/// Keys of one role at most; more people than that sign nothing together.
pub(super) const KEYS_MAX: u32 = 16;
/// Names that the controller's own key may list.
const RETRAINED_PATHS: &str = "auto.*";

/// File name prefix of the image root's keys.
pub(super) const IMAGE_ROOT: &str = "image-root";
/// File name prefix of the director root's keys.
pub(super) const DIRECTOR_ROOT: &str = "director-root";
/// File name prefix of the image targets' keys.
pub(super) const IMAGE_TARGETS: &str = "image-targets";

/// How many keys each offline role has, and how many of them sign.
#[derive(Debug, Clone, Copy)]
pub struct CeremonyOptions {
    /// Keys that must sign the image targets.
    pub threshold: u32,
    /// Keys that must sign a root.
    pub root_threshold: u32,
    /// Keys that are made.
    pub n: u32,
    /// The present, Unix milliseconds; what the files' lives count from.
    pub now_ms: u64,
}

/// What devices pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceremony {
    /// SHA-256 of the image repository's first root.
    pub image_root: Digest,
    /// SHA-256 of the director repository's first root.
    pub director_root: Digest,
}

/// Makes `OUT/private/*.pem`, the keys of both roots and of the image targets, and `OUT/public`, the first
/// signed files, for [`crate::repo::Repos::import`]. The keys are not encrypted: for media that are, and for tests.
///
/// # Errors
/// The threshold makes no sense, or a file exists or can not be written.
pub fn ceremony(out: &Path, online: &OnlineKeys, options: CeremonyOptions) -> Result<Ceremony, KeyError> {
    hold(out, online, options, None)
}

/// The same with every key under a passphrase; each holder gives his own with [`super::reseal`].
///
/// # Errors
/// As in [`ceremony`], or the passphrase is too short.
pub fn sealed_ceremony(
    out: &Path,
    online: &OnlineKeys,
    options: CeremonyOptions,
    passphrase: &Passphrase,
) -> Result<Ceremony, KeyError> {
    passphrase.check()?;
    hold(out, online, options, Some(passphrase))
}

fn hold(
    out: &Path,
    online: &OnlineKeys,
    options: CeremonyOptions,
    passphrase: Option<&Passphrase>,
) -> Result<Ceremony, KeyError> {
    let CeremonyOptions { threshold, root_threshold, n, now_ms } = options;
    let makes_no_sense = |threshold: &u32| *threshold == 0 || *threshold > n || n > KEYS_MAX;
    if let Some(threshold) = [threshold, root_threshold].into_iter().find(makes_no_sense) {
        return Err(KeyError::Threshold { threshold, n, max: KEYS_MAX });
    }
    let private = out.join("private");
    if fs::read_dir(&private).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(KeyError::file("make", private)(std::io::ErrorKind::AlreadyExists.into()));
    }
    let make = |prefix| make_keys(&private, prefix, n, passphrase);
    let (image_root, director_root, image_targets) =
        (make(IMAGE_ROOT)?, make(DIRECTOR_ROOT)?, make(IMAGE_TARGETS)?);

    let offline = |signers: &[Ed25519Signer], threshold| RoleSpec {
        keys: signers.iter().map(|s| s.key().clone()).collect(),
        threshold,
    };
    let image = RootSpec {
        root: offline(&image_root, root_threshold),
        timestamp: one(online, OnlineRole::ImageTimestamp),
        snapshot: one(online, OnlineRole::ImageSnapshot),
        targets: offline(&image_targets, threshold),
    };
    let director = RootSpec {
        root: offline(&director_root, root_threshold),
        timestamp: one(online, OnlineRole::DirectorTimestamp),
        snapshot: one(online, OnlineRole::DirectorSnapshot),
        targets: one(online, OnlineRole::DirectorTargets),
    };
    let delegation = DelegationSpec {
        name: RETRAINED.to_owned(),
        role: one(online, OnlineRole::Retrained),
        paths: vec![RETRAINED_PATHS.to_owned()],
        terminating: true,
    };
    let failed = KeyError::trust("sign the first files");
    let root = |spec| write::root(1, now_ms.saturating_add(ROOT_LIFE_MS), spec);
    let floors = json!(TargetsCustom::default());
    let targets =
        write::targets(1, now_ms.saturating_add(TARGETS_LIFE_MS), &BTreeMap::new(), &[delegation], floors)
            .map_err(&failed)?;
    let image_bytes = sign(&root(&image).map_err(&failed)?, &refs(&image_root))?;
    let director_bytes = sign(&root(&director).map_err(&failed)?, &refs(&director_root))?;

    let public = out.join("public");
    put(&public.join("image"), "1.root.json", &image_bytes)?;
    put(&public.join("image"), "1.targets.json", &sign(&targets, &refs(&image_targets))?)?;
    put(&public.join("director"), "1.root.json", &director_bytes)?;
    Ok(Ceremony { image_root: pin(&image_bytes), director_root: pin(&director_bytes) })
}

fn one(online: &OnlineKeys, role: OnlineRole) -> RoleSpec {
    RoleSpec { keys: vec![online.of(role).clone()], threshold: 1 }
}

pub(super) fn sign(value: &Value, signers: &[&dyn Signer]) -> Result<Vec<u8>, KeyError> {
    write::sign(value, signers).map_err(KeyError::trust("sign a file"))
}

pub(super) fn refs(signers: &[Ed25519Signer]) -> Vec<&dyn Signer> {
    signers.iter().map(|signer| signer as &dyn Signer).collect()
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), KeyError> {
    fs::create_dir_all(folder).map_err(KeyError::file("make", folder))?;
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(KeyError::file("write", &path))
}

/// A folder that only its owner can enter.
pub(super) fn private_folder(folder: &Path) -> Result<(), KeyError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(KeyError::file("make", folder))
}
