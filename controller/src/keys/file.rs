//! Key files: one Ed25519 private key each, PKCS#8 (RFC 8410) in PEM (RFC 7468), readable by its owner alone;
//! encrypted where a person keeps it.
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dunlin_trust::Ed25519Signer;
use pkcs8::SecretDocument;
use pkcs8::der::pem::LineEnding;

use super::KeyError;
use super::passphrase::{self, Passphrase, SEALED_LABEL};

/// PEM label of a key that is not encrypted.
const PLAIN_LABEL: &str = "PRIVATE KEY";
/// Largest key file that is read; one of the longest keys there are is some kilobytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Offline keys in a folder, and what opens those that are encrypted.
#[derive(Debug, Clone, Copy)]
pub struct Keyring<'a> {
    folder: &'a Path,
    passphrase: Option<&'a Passphrase>,
}

impl<'a> Keyring<'a> {
    /// The keys in a folder, each plain or under this passphrase.
    pub fn new(folder: &'a Path, passphrase: Option<&'a Passphrase>) -> Self {
        Self { folder, passphrase }
    }

    /// Every key whose file name begins with `prefix`, by name.
    ///
    /// # Errors
    /// There is none, or one does not open.
    pub fn signers(&self, prefix: &str) -> Result<Vec<Ed25519Signer>, KeyError> {
        files(self.folder, prefix)?.iter().map(|path| load(path, self.passphrase)).collect()
    }
}

impl<'a> From<&'a Path> for Keyring<'a> {
    fn from(folder: &'a Path) -> Self {
        Self { folder, passphrase: None }
    }
}

impl<'a> From<&'a PathBuf> for Keyring<'a> {
    fn from(folder: &'a PathBuf) -> Self {
        Self { folder, passphrase: None }
    }
}

/// Makes a new key and its file, encrypted if a passphrase is given; refuses to replace one.
///
/// # Errors
/// The file exists or can not be written, the passphrase is too short, or the system gives no randomness.
pub fn write_new(path: &Path, passphrase: Option<&Passphrase>) -> Result<Ed25519Signer, KeyError> {
    let der = Ed25519Signer::generate_pkcs8().map_err(KeyError::trust("make a key"))?;
    let signer = Ed25519Signer::from_pkcs8(&der).map_err(KeyError::trust("make a key"))?;
    write(path, &der, passphrase)?;
    Ok(signer)
}

fn write(path: &Path, der: &[u8], passphrase: Option<&Passphrase>) -> Result<(), KeyError> {
    let pem = match passphrase {
        Some(passphrase) => passphrase::seal(der, passphrase)?,
        None => SecretDocument::try_from(der)
            .and_then(|document| document.to_pem(PLAIN_LABEL, LineEnding::LF))
            .map_err(|_| KeyError::Seal)?,
    };
    let failed = || KeyError::file("write", path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed())?;
    file.write_all(pem.as_bytes()).map_err(failed())?;
    file.sync_all().map_err(failed())
}

/// Reads a key file.
///
/// # Errors
/// The file can not be read, others can read it, it holds something else, or it is encrypted under another passphrase
/// than the one given.
pub fn load(path: &Path, passphrase: Option<&Passphrase>) -> Result<Ed25519Signer, KeyError> {
    let der = read(path, passphrase)?;
    Ed25519Signer::from_pkcs8(der.as_bytes())
        .map_err(|source| KeyError::NoKey { path: path.to_owned(), source: Some(source) })
}

/// Puts a key under another passphrase, or under its first one.
///
/// # Errors
/// As in [`load`] and [`write_new`].
pub fn reseal(path: &Path, old: Option<&Passphrase>, new: &Passphrase) -> Result<(), KeyError> {
    let der = read(path, old)?;
    let aside = path.with_extension("pem.new");
    write(&aside, der.as_bytes(), Some(new))?;
    fs::rename(&aside, path).map_err(KeyError::file("replace", path))
}

/// Whether a key file needs a passphrase.
///
/// # Errors
/// It can not be read.
pub fn is_sealed(path: &Path) -> Result<bool, KeyError> {
    let text = fs::read(path).map_err(KeyError::file("read", path))?;
    Ok(marks_sealed(&text))
}

/// Whether a folder holds a key for `prefix` that needs a passphrase.
///
/// # Errors
/// The folder or a key file can not be read.
pub fn any_sealed(folder: &Path, prefix: &str) -> Result<bool, KeyError> {
    Ok(files(folder, prefix)?
        .iter()
        .map(|path| is_sealed(path))
        .collect::<Result<Vec<_>, _>>()?
        .contains(&true))
}

/// Whether some bytes hold an encrypted private key.
pub(super) fn marks_sealed(bytes: &[u8]) -> bool {
    let mark = format!("-----BEGIN {SEALED_LABEL}-----");
    bytes.windows(mark.len()).any(|window| window == mark.as_bytes())
}

fn read(path: &Path, passphrase: Option<&Passphrase>) -> Result<SecretDocument, KeyError> {
    let meta = fs::metadata(path).map_err(KeyError::file("read", path))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let none = || KeyError::NoKey { path: path.to_owned(), source: None };
    if meta.len() > FILE_BYTES_MAX {
        return Err(none());
    }
    let text = fs::read_to_string(path).map_err(KeyError::file("read", path))?;
    if marks_sealed(text.as_bytes()) {
        let passphrase = passphrase.ok_or_else(|| KeyError::Sealed { path: path.to_owned() })?;
        return passphrase::open(path, &text, passphrase);
    }
    let (label, der) = SecretDocument::from_pem(&text).map_err(|_| none())?;
    if label == PLAIN_LABEL { Ok(der) } else { Err(none()) }
}

/// Every key file in a folder whose name begins with `prefix`, by name.
fn files(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>, KeyError> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(KeyError::file("list", folder))? {
        let path = entry.map_err(KeyError::file("list", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(prefix) && name.ends_with(".pem") {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(KeyError::NoneFound { folder: folder.to_owned(), prefix: prefix.to_owned() });
    }
    Ok(paths)
}
