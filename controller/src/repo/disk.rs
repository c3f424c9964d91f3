//! Files that are whole or not there, also after a power cut.
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::RepoError;

/// Writes a file by the side, syncs it, and gives it its name; then syncs the folder.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), RepoError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let attempt = || -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(folder)?;
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        File::open(folder)?.sync_all()
    };
    // What is left of a file that found no room would only take more of it.
    attempt().inspect_err(|_| drop(fs::remove_file(&aside))).map_err(|source| RepoError::File {
        attempted: "write",
        path: path.to_owned(),
        source,
    })
}

/// Releases of an online-signed file that are kept: more than any client that is in the middle of fetching needs,
/// few enough that a fleet's folder does not grow with its age.
const KEPT: u64 = 16;

/// Removes the release of a role's file that is no longer kept once `version` is published.
pub(super) fn prune(folder: &Path, role: &str, version: u64) {
    let old = version.checked_sub(KEPT).filter(|old| *old > 0);
    // One that can not be removed costs a few hundred bytes, which is no reason to stop publishing.
    old.into_iter().for_each(|old| drop(fs::remove_file(folder.join(format!("{old}.{role}.json")))));
}

/// Reads a file; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, RepoError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RepoError::File { attempted: "read", path: path.to_owned(), source }),
    }
}

/// Reads a file that must be there.
pub(super) fn need(path: &Path) -> Result<Vec<u8>, RepoError> {
    read(path)?.ok_or_else(|| RepoError::Damaged { path: path.to_owned() })
}
