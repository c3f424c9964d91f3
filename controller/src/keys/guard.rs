//! The controller does not start beside a key that approves models.
use std::fs;
use std::path::Path;

use data_encoding::HEXLOWER;
use dunlin_trust::metadata::{RoleKeys, Root, Targets};
use dunlin_trust::{Ed25519Signer, Key, Signed, Signer, task_of};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::KeyError;
use super::file::marks_sealed;

/// Files up to this size are looked into. A key file is a few hundred bytes; this leaves room for a bundle of
/// keys, and passes by models and databases.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Depth to which folders are followed, so that a circle of links ends.
const DEPTH_MAX: usize = 12;

/// Refuses a data folder in which a private key of either root, of the image targets, or of a task's signers can be read.
/// Keys are compared with what every stored root and targets file names, whatever their files are called. An encrypted key
/// can not be compared, and the controller has none of its own, so any is refused. A key in another form than PKCS#8 is not
/// recognised.
///
/// # Errors
/// Such a key was found, or the roots can not be read.
pub fn guard(data: &Path) -> Result<(), KeyError> {
    let mut named: Vec<(String, &'static str)> = Vec::new();
    for (repo, with_targets) in [("image", true), ("director", false)] {
        let folder = data.join("repo").join(repo);
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.to_string_lossy();
            if name.ends_with(".targets.json") && with_targets {
                let bytes = fs::read(&path).map_err(KeyError::file("read", &path))?;
                let file = Signed::<Targets>::parse("targets", &bytes)
                    .map_err(KeyError::trust("read stored targets"))?;
                named.extend(task_keys(file.unverified()).map(|key| (key, "a task's signers")));
            }
            if !name.ends_with(".root.json") {
                continue;
            }
            let bytes = fs::read(&path).map_err(KeyError::file("read", &path))?;
            let root =
                Signed::<Root>::parse("root", &bytes).map_err(KeyError::trust("read a stored root"))?;
            let root = root.unverified();
            named.extend(publics(root, &root.roles.root).map(|key| (key, "root")));
            if with_targets {
                named.extend(publics(root, &root.roles.targets).map(|key| (key, "image targets")));
            }
        }
    }
    if named.is_empty() { Ok(()) } else { search(data, &named, 0) }
}

fn publics<'a>(root: &'a Root, role: &'a RoleKeys) -> impl Iterator<Item = String> + 'a {
    role.keyids.iter().filter_map(|id| root.keys.get(id)).filter_map(public)
}

fn task_keys(targets: &Targets) -> impl Iterator<Item = String> + '_ {
    let delegations = targets.delegations.iter();
    delegations.flat_map(|delegations| {
        let roles = delegations.roles.iter().filter(|role| task_of(&role.name).is_some());
        roles.flat_map(|role| &role.keyids).filter_map(|id| delegations.keys.get(id)).filter_map(public)
    })
}

fn public(key: &Key) -> Option<String> {
    key.declared().pointer("/keyval/public")?.as_str().map(str::to_ascii_lowercase)
}

fn search(folder: &Path, named: &[(String, &'static str)], depth: usize) -> Result<(), KeyError> {
    // A folder that can not be read holds no key that can be read.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() && depth < DEPTH_MAX {
            search(&path, named, depth + 1)?;
        } else if meta.is_file() && meta.len() <= FILE_BYTES_MAX {
            let Ok(bytes) = fs::read(&path) else { continue };
            if marks_sealed(&bytes) {
                return Err(KeyError::Guarded { path, role: "unknown, under a passphrase" });
            }
            if let Some(role) = private_keys(&bytes).find_map(|key| role_of(&key, named)) {
                return Err(KeyError::Guarded { path, role });
            }
        }
    }
    Ok(())
}

fn private_keys(bytes: &[u8]) -> impl Iterator<Item = Ed25519Signer> {
    let pem = PrivatePkcs8KeyDer::pem_slice_iter(bytes).filter_map(Result::ok);
    let pem = pem.filter_map(|der| Ed25519Signer::from_pkcs8(der.secret_pkcs8_der()).ok());
    pem.chain(Ed25519Signer::from_pkcs8(bytes).ok())
}

fn role_of(key: &Ed25519Signer, named: &[(String, &'static str)]) -> Option<&'static str> {
    let public = HEXLOWER.encode(key.public());
    named.iter().find(|(named, _)| *named == public).map(|(_, role)| *role)
}
