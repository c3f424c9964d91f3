//! Key files: one Ed25519 private key each, PKCS#8 (RFC 8410) in PEM (RFC 7468), readable by its owner alone.
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use dunlin_trust::Ed25519Signer;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::KeyError;

/// Characters of base64 on one line of PEM.
const PEM_LINE: usize = 64;

/// Makes a new key and its file; refuses to replace one.
///
/// # Errors
/// The file exists or can not be written, or the system gives no randomness.
pub fn write_new(path: &Path) -> Result<Ed25519Signer, KeyError> {
    let der = Ed25519Signer::generate_pkcs8().map_err(KeyError::trust("make a key"))?;
    let signer = Ed25519Signer::from_pkcs8(&der).map_err(KeyError::trust("make a key"))?;
    let base64 = BASE64.encode(&der);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in base64.as_bytes().chunks(PEM_LINE) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    let failed = || KeyError::file("write", path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed())?;
    file.write_all(pem.as_bytes()).map_err(failed())?;
    file.sync_all().map_err(failed())?;
    Ok(signer)
}

/// Reads a key file.
///
/// # Errors
/// The file can not be read, others can read it, or it holds something else.
pub fn load(path: &Path) -> Result<Ed25519Signer, KeyError> {
    let mode = fs::metadata(path).map_err(KeyError::file("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let bytes = fs::read(path).map_err(KeyError::file("read", path))?;
    let none = |source| KeyError::NoKey { path: path.to_owned(), source };
    let der = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|_| none(None))?;
    Ed25519Signer::from_pkcs8(der.secret_pkcs8_der()).map_err(|source| none(Some(source)))
}

/// Every key in a folder whose file name begins with `prefix`, by name.
pub(super) fn load_all(folder: &Path, prefix: &'static str) -> Result<Vec<Ed25519Signer>, KeyError> {
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
        return Err(KeyError::NoneFound { folder: folder.to_owned(), prefix });
    }
    paths.iter().map(|path| load(path)).collect()
}
