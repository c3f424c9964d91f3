//! Private keys under a passphrase: PKCS#8 `EncryptedPrivateKeyInfo` (RFC 5958 §3) by PBES2 (RFC 8018) with scrypt
//! (RFC 7914) and AES-256-CBC.
use std::fmt;
use std::path::Path;

use pkcs8::der::pem::LineEnding;
use pkcs8::der::zeroize::Zeroizing;
use pkcs8::pkcs5::pbes2::Parameters;
use pkcs8::pkcs5::scrypt;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument};
use ring::rand::{SecureRandom, SystemRandom};

use super::KeyError;

/// PEM label of an encrypted key (RFC 7468 §11).
pub(super) const SEALED_LABEL: &str = "ENCRYPTED PRIVATE KEY";
/// Least characters of a passphrase for a new key: shorter ones are guessed even through scrypt.
pub const PASSPHRASE_CHARS_MIN: usize = 12;
/// scrypt's cost, log2 of N: 128 MiB and some tenths of a second for each guess, and for each opening.
const SCRYPT_LOG_N: u8 = 17;
/// scrypt's block size.
const SCRYPT_R: u32 = 8;
/// scrypt's parallelism.
const SCRYPT_P: u32 = 1;

/// What opens an encrypted key file. Wiped from memory when dropped, and never printed.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// A passphrase as a person gave it; the end of its line is not part of it.
    pub fn new(mut text: String) -> Self {
        while text.ends_with(['\n', '\r']) {
            text.pop();
        }
        Self(Zeroizing::new(text))
    }

    /// Whether a new key may be kept under it.
    ///
    /// # Errors
    /// It is shorter than [`PASSPHRASE_CHARS_MIN`] characters.
    pub fn check(&self) -> Result<(), KeyError> {
        if self.0.chars().count() >= PASSPHRASE_CHARS_MIN { Ok(()) } else { Err(KeyError::PassphraseShort) }
    }
}

impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// A private key (PKCS#8, DER) as PEM under a passphrase.
pub(super) fn seal(der: &[u8], passphrase: &Passphrase) -> Result<Zeroizing<String>, KeyError> {
    passphrase.check()?;
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    let random = SystemRandom::new();
    random.fill(&mut salt).and_then(|()| random.fill(&mut iv)).map_err(|_| KeyError::Seal)?;
    let cost = scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P).map_err(|_| KeyError::Seal)?;
    let parameters = Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(|_| KeyError::Seal)?;
    let pem = PrivateKeyInfoRef::try_from(der)
        .map_err(|_| KeyError::Seal)?
        .encrypt_with_params(parameters, passphrase.0.as_bytes())
        .and_then(|document| Ok(document.to_pem(SEALED_LABEL, LineEnding::LF)?));
    pem.map_err(|_| KeyError::Seal)
}

/// The private key (PKCS#8, DER) in an encrypted PEM file.
pub(super) fn open(path: &Path, pem: &str, passphrase: &Passphrase) -> Result<SecretDocument, KeyError> {
    let (_, sealed) = SecretDocument::from_pem(pem)
        .ok()
        .filter(|(label, _)| *label == SEALED_LABEL)
        .ok_or_else(|| KeyError::NoKey { path: path.to_owned(), source: None })?;
    let sealed = EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes())
        .map_err(|_| KeyError::NoKey { path: path.to_owned(), source: None })?;
    sealed.decrypt(passphrase.0.as_bytes()).map_err(|_| KeyError::PassphraseWrong { path: path.to_owned() })
}
