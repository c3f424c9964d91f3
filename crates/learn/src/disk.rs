use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use dunlin_protocol::Digest;
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::LearnError;

fn fail<'a>(attempted: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> LearnError + 'a {
    move |source| LearnError::File { attempted, path: path.to_owned(), source }
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest(digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 is 32 bytes"))
}

pub(crate) fn read(path: &Path, max: u64) -> Result<Vec<u8>, LearnError> {
    let length = fs::metadata(path).map_err(fail("read", path))?.len();
    if length > max {
        let error = std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("{length} bytes, at most {max} are read"),
        );
        return Err(fail("read", path)(error));
    }
    fs::read(path).map_err(fail("read", path))
}

/// Job, schema and trial files are small; a schema of 1024 features stays under this.
const JSON_BYTES_MAX: u64 = 4 << 20;

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LearnError> {
    let bytes = read(path, JSON_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|source| LearnError::Json { path: path.to_owned(), source })
}

/// Whole or not at all: a cut leaves the old file or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), LearnError> {
    let part = path.with_extension("part");
    let mut file = File::create(&part).map_err(fail("create", &part))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail("write", &part))?;
    fs::rename(&part, path).map_err(fail("put in place", path))
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), LearnError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| LearnError::Json { path: path.to_owned(), source })?;
    write(path, &bytes)
}

pub(crate) fn make_dir(path: &Path) -> Result<(), LearnError> {
    fs::create_dir_all(path).map_err(fail("create the folder", path))
}

pub(crate) fn append_line(path: &Path, line: &str) -> Result<(), LearnError> {
    let mut file = File::options().create(true).append(true).open(path).map_err(fail("open", path))?;
    file.write_all(format!("{line}\n").as_bytes()).map_err(fail("append to", path))
}

pub(crate) fn remove(path: &Path) -> Result<(), LearnError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fail("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
