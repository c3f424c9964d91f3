//! A medium that somebody carried to the device, in the place of the network.
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use dunlin_protocol::{Blob, Check, DeviceId, cbor};

use super::super::store::{Store, StoreError};
use super::{CHECK_BYTES_MAX, FetchError, Fetcher, chain};

/// Bytes of a medium that are read at once.
const MEDIUM_READ_BYTES: usize = 64 * 1024;

impl Fetcher {
    /// Looks for files on a medium from now on, before it asks the controller: `blobs/{sha256}` in this folder.
    pub fn look_on(&self, folder: PathBuf) {
        *self.medium.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
    }

    /// The metadata for a device on a medium, `devices/{id}.cbor`. Whether it may be believed is not judged here.
    ///
    /// # Errors
    /// It is not there, or can not be read as metadata.
    pub fn check_on(folder: &Path, device: &DeviceId) -> Result<Check, FetchError> {
        let path = folder.join("devices").join(format!("{device}.cbor"));
        let answer = |problem: String| FetchError::Answer { url: path.display().to_string(), problem };
        let mut bytes = Vec::new();
        open_on_medium(&path)
            .and_then(|file| file.take(CHECK_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| answer(error.to_string()))?;
        cbor::decode(&bytes, CHECK_BYTES_MAX).map_err(|error| answer(error.to_string()))
    }

    /// Takes a file from the medium, if it is there. One that is not what was signed is as good as none.
    pub(super) fn take_from_medium(&self, store: &Store, blob: &Blob) -> bool {
        let folder = self.medium.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(folder) = folder else { return false };
        let path = folder.join("blobs").join(blob.digest.to_string());
        copy_from_medium(&path, store, blob).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "a file on the medium is not usable");
            false
        })
    }
}

/// Opens what must be a file: anything else on a foreign medium, a pipe before all, could hold its reader up for ever.
fn open_on_medium(path: &Path) -> std::io::Result<File> {
    let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(no_wait).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

/// Copies a blob into the store; false if the medium has no file of its length. What came over the network so far is
/// only given up for one that has, and what is copied of a wrong one is not left for the network to go on from.
fn copy_from_medium(path: &Path, store: &Store, blob: &Blob) -> Result<bool, StoreError> {
    let wrong = |source| StoreError::Io { digest: blob.digest, source };
    let mut file = match open_on_medium(path) {
        Ok(file) if file.metadata().is_ok_and(|meta| meta.len() == blob.length) => file,
        Ok(_) | Err(_) => return Ok(false),
    };
    let mut partial = store.resume(blob)?;
    partial.restart()?;
    let mut buffer = vec![0; MEDIUM_READ_BYTES];
    loop {
        match file.read(&mut buffer).map_err(wrong) {
            Ok(0) if partial.offset() == blob.length => return partial.finish().map(|()| true),
            Ok(0) => {
                partial.discard()?;
                return Ok(false);
            }
            Ok(read) => {
                if let Err(error) = partial.write(&buffer[..read]) {
                    partial.discard()?;
                    return Err(error);
                }
            }
            Err(error) => {
                partial.discard()?;
                return Err(error);
            }
        }
    }
}
