//! Who this device is and whom it trusts: its key and certificate, the pinned authority, the pinned roots.
//!
//! All of it lies in one folder that enrolment puts in place with one rename. Every file is there twice, as nobody but a
//! person at the device can bring one back. The second copy is written first and bears a checksum that binds it to its
//! name: one that is whole is never older than the file, and is taken before it. Where only the file is left, it proves
//! by itself what it is as far as it can: the certificate by the key, authority and roots by their pins. The key is used
//! through [`Signer`] alone, so that a chip can hold it; only TLS takes it as a file as well.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use dunlin_protocol::{DeviceId, Digest, Validity};
use dunlin_trust::{EcdsaP256Signer, Signer, TrustError, sha256};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use serde::{Deserialize, Serialize};

use crate::update::chain;

/// Form of `enrolment.json`.
const FORMAT: u32 = 1;
/// The device's key, PKCS#8, DER.
pub const KEY_FILE: &str = "device.key";
/// Its certificate, PEM.
pub const CERTIFICATE_FILE: &str = "device.pem";
/// The authority, PEM.
pub const CA_FILE: &str = "ca.pem";
/// The image repository's pinned root.
pub const IMAGE_ROOT_FILE: &str = "image-root.json";
/// The director repository's pinned root.
pub const DIRECTOR_ROOT_FILE: &str = "director-root.json";
/// Everything else.
pub const ENROLMENT_FILE: &str = "enrolment.json";
/// All of them.
pub const FILES: [&str; 6] =
    [KEY_FILE, CERTIFICATE_FILE, CA_FILE, IMAGE_ROOT_FILE, DIRECTOR_ROOT_FILE, ENROLMENT_FILE];

/// Name of a file's second copy.
pub fn copy_of(name: &str) -> String {
    format!("{name}.copy")
}

/// What the second copy of a file holds: a checksum that binds it to the file's name, and the file.
pub(crate) fn sealed(name: &str, bytes: &[u8]) -> Vec<u8> {
    [&checksum(name, bytes).0[..], bytes].concat()
}

/// The file within its second copy, if that is whole.
fn unsealed<'a>(name: &str, copy: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, bytes) = copy.split_first_chunk::<32>()?;
    (checksum(name, bytes).0 == *sum).then_some(bytes)
}

fn checksum(name: &str, bytes: &[u8]) -> Digest {
    sha256(&[name.as_bytes(), b"\n", bytes].concat())
}

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The folder is not there.
    #[error("this device is not enrolled ({0} is absent); run `dunlin-agent enrol TOKEN`")]
    NotEnrolled(PathBuf),
    /// A file can not be read or written.
    #[error("could not access {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Neither copy of a file is what it should be.
    #[error("{path} is damaged ({problem}), and so is its copy; enrol again with --force")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The key can not be used.
    #[error("could not use the device's key")]
    Key(#[from] TrustError),
    /// The TLS library refuses key or certificates.
    #[error("could not set up TLS with the device's certificate")]
    Tls(#[from] rustls::Error),
}

/// What enrolment wrote down beside keys and certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Form of this record.
    pub format: u32,
    /// The device's id.
    pub device: DeviceId,
    /// Base URL of the controller's API.
    pub url: String,
    /// Host of the broker; also the name its certificate must bear.
    pub mqtt_host: String,
    /// Port of the broker.
    pub mqtt_port: u16,
    /// Pin of the authority (DER).
    pub ca: Digest,
    /// Pin of the image repository's root.
    pub image_root: Digest,
    /// Pin of the director repository's root.
    pub director_root: Digest,
    /// When the certificate is valid, if the controller told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Validity>,
}

impl Enrolment {
    /// The record as its file holds it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("an enrolment holds only text and numbers")
    }

    /// The record in an identity's folder, if the device is enrolled.
    ///
    /// # Errors
    /// There is one, and neither copy of it is usable.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, IdentityError> {
        if Self::is_absent(dir) {
            return Ok(None);
        }
        Copies::of(dir).take(ENROLMENT_FILE, |bytes| Self::decode(dir, bytes)).map(Some)
    }

    /// Whether there is neither copy of the record. What can not be looked for is not absent.
    fn is_absent(dir: &Path) -> bool {
        let absent = |name: &str| matches!(dir.join(name).try_exists(), Ok(false));
        absent(ENROLMENT_FILE) && absent(&copy_of(ENROLMENT_FILE))
    }

    /// Reads what [`Self::encode`] made; the folder is named where something is wrong with it.
    fn decode(dir: &Path, bytes: &[u8]) -> Result<Self, IdentityError> {
        let enrolment: Self = serde_json::from_slice(bytes)
            .map_err(|error| damaged(dir, ENROLMENT_FILE, &error.to_string()))?;
        if enrolment.format != FORMAT {
            let problem = format!("its form is {}, this agent reads {FORMAT}", enrolment.format);
            return Err(damaged(dir, ENROLMENT_FILE, &problem));
        }
        Ok(enrolment)
    }

    /// A record of the present form.
    pub fn new(
        device: DeviceId,
        url: String,
        (mqtt_host, mqtt_port): (String, u16),
        pins: [Digest; 3],
    ) -> Self {
        let [ca, image_root, director_root] = pins;
        let valid = None;
        Self { format: FORMAT, device, url, mqtt_host, mqtt_port, ca, image_root, director_root, valid }
    }
}

/// The certificate that connections made from now on show; a renewal replaces it under all of them.
#[derive(Debug)]
struct Present(RwLock<Arc<CertifiedKey>>);

impl ResolvesClientCert for Present {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key_pkcs8: &[u8]) -> Result<CertifiedKey, rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.to_vec()));
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
}

/// The identity of an enrolled device. Everything in it was compared with the pins of the claim token.
#[derive(Clone)]
pub struct Identity {
    /// Where and as whom it enrolled.
    pub enrolment: Enrolment,
    /// The key that signs envelopes and challenges.
    pub signer: Arc<dyn Signer + Send + Sync>,
    /// The pinned root of the image repository, as its file reads.
    pub image_root: Vec<u8>,
    /// The pinned root of the director repository, as its file reads.
    pub director_root: Vec<u8>,
    ca: CertificateDer<'static>,
    present: Arc<Present>,
    key_pkcs8: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} of {})", self.enrolment.device, self.enrolment.url)
    }
}

/// A file or second copy that is to be written anew from the other one.
struct Mend {
    file: String,
    bytes: Vec<u8>,
    /// Whether it is told. A second copy that is absent is not: agents that kept each file once left none, and the first
    /// start after them may have been cut when it had written some.
    told: bool,
}

/// The files in a folder with their second copies.
struct Copies<'a> {
    dir: &'a Path,
    mends: Vec<Mend>,
}

impl<'a> Copies<'a> {
    fn of(dir: &'a Path) -> Self {
        Self { dir, mends: Vec::new() }
    }

    /// What `judge` makes of a file: of a second copy that is whole, in its place or the file's, before the file itself.
    fn take<T>(
        &mut self,
        name: &str,
        judge: impl Fn(&[u8]) -> Result<T, IdentityError>,
    ) -> Result<T, IdentityError> {
        let copy = copy_of(name);
        let (file, second) = (read(self.dir, name), read(self.dir, &copy));
        let whole = [&second, &file].into_iter().flatten().find_map(|bytes| unsealed(name, bytes));
        let whole = whole.and_then(|bytes| Some((judge(bytes).ok()?, bytes.to_vec())));
        let (taken, bytes, file) = match whole {
            Some((taken, bytes)) => (taken, bytes, file.ok()),
            None => {
                let bytes = file?;
                (judge(&bytes)?, bytes.clone(), Some(bytes))
            }
        };
        let as_copy = sealed(name, &bytes);
        let absent = match &second {
            Err(IdentityError::File { source, .. }) => source.kind() == ErrorKind::NotFound,
            Ok(_) | Err(_) => false,
        };
        if file.as_ref() != Some(&bytes) {
            self.mends.push(Mend { file: name.to_owned(), bytes, told: true });
        }
        if !second.is_ok_and(|found| found == as_copy) {
            self.mends.push(Mend { file: copy, bytes: as_copy, told: !absent });
        }
        Ok(taken)
    }
}

/// Judges the device's key.
fn key_of(bytes: &[u8]) -> Result<(Vec<u8>, Arc<EcdsaP256Signer>), IdentityError> {
    let signer = EcdsaP256Signer::from_pkcs8(bytes)?;
    Ok((bytes.to_vec(), Arc::new(signer)))
}

/// The key in a folder in which nothing else may be yet.
pub(crate) fn kept_key(dir: &Path) -> Option<Vec<u8>> {
    Copies::of(dir).take(KEY_FILE, key_of).ok().map(|(key, _)| key)
}

fn damaged(dir: &Path, name: &str, problem: &str) -> IdentityError {
    IdentityError::Damaged { path: dir.join(name), problem: problem.to_owned() }
}

impl Identity {
    /// Reads the identity from its folder and holds it against its pins once more.
    ///
    /// # Errors
    /// The device is not enrolled, or neither copy of a file is usable.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        Self::look(dir).map(|(identity, _)| identity)
    }

    /// The same for the agent that lives by it: what is lost, damaged or older is written anew from the other copy. Says
    /// which files were, but for second copies that were absent.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn take_up(dir: &Path) -> Result<(Self, Vec<String>), IdentityError> {
        let (identity, mends) = Self::look(dir)?;
        let mut told = Vec::new();
        for mend in mends {
            if let Err(error) = write_private(dir, &mend.file, &mend.bytes) {
                tracing::warn!(error = %chain(&error), "a file of the identity is there once only");
            }
            if mend.told {
                told.push(mend.file);
            }
        }
        Ok((identity, told))
    }

    fn look(dir: &Path) -> Result<(Self, Vec<Mend>), IdentityError> {
        if Enrolment::is_absent(dir) {
            return Err(IdentityError::NotEnrolled(dir.to_path_buf()));
        }
        let none = |name: &str| damaged(dir, name, "no certificate");
        let pinned = |name: &str, bytes: &[u8], pin: Digest| {
            if sha256(bytes) == pin {
                Ok(())
            } else {
                Err(damaged(dir, name, "it does not match the pin of the enrolment"))
            }
        };
        let mut copies = Copies::of(dir);
        let enrolment = copies.take(ENROLMENT_FILE, |bytes| Enrolment::decode(dir, bytes))?;
        let (key_pkcs8, signer) = copies.take(KEY_FILE, key_of)?;
        let shown = copies.take(CERTIFICATE_FILE, |bytes| {
            let chain = certificates(bytes).ok_or_else(|| none(CERTIFICATE_FILE))?;
            Ok(certified(chain, &key_pkcs8)?)
        })?;
        let ca = copies.take(CA_FILE, |bytes| {
            let ca = certificates(bytes).and_then(|all| all.into_iter().next());
            let ca = ca.ok_or_else(|| none(CA_FILE))?;
            pinned(CA_FILE, ca.as_ref(), enrolment.ca)?;
            Ok(ca)
        })?;
        let mut root = |name: &str, pin: Digest| {
            copies.take(name, |bytes| {
                pinned(name, bytes, pin)?;
                Ok(bytes.to_vec())
            })
        };
        let image_root = root(IMAGE_ROOT_FILE, enrolment.image_root)?;
        let director_root = root(DIRECTOR_ROOT_FILE, enrolment.director_root)?;
        let present = Arc::new(Present(RwLock::new(Arc::new(shown))));
        let identity = Self { enrolment, signer, image_root, director_root, ca, present, key_pkcs8 };
        Ok((identity, copies.mends))
    }

    /// The device's id.
    pub fn device(&self) -> &DeviceId {
        &self.enrolment.device
    }

    /// TLS that trusts the pinned authority alone and presents the device's certificate, also a renewed one.
    pub fn tls(&self) -> Result<ClientConfig, IdentityError> {
        let mut config = self.tls_nameless()?;
        config.client_auth_cert_resolver = self.present.clone();
        Ok(config)
    }

    /// TLS that trusts the pinned authority alone and presents nothing.
    pub fn tls_nameless(&self) -> Result<ClientConfig, IdentityError> {
        Ok(crate::tls::trusting(self.ca.clone())?)
    }

    /// The key as its file holds it, for certificate requests.
    pub(crate) fn key_pkcs8(&self) -> &[u8] {
        &self.key_pkcs8
    }

    /// Keeps a renewed certificate in `dir`, where this identity lies, and shows it from now on.
    pub(crate) fn renewed(&self, dir: &Path, pem: &str, valid: Validity) -> Result<(), IdentityError> {
        let chain = certificates(pem.as_bytes())
            .ok_or_else(|| rustls::Error::General("the renewal is no certificate".to_owned()))?;
        let next = Arc::new(certified(chain, &self.key_pkcs8)?);
        let enrolment = Enrolment { valid: Some(valid), ..self.enrolment.clone() };
        // Shown at once: a disk that takes nothing for weeks must not let the one before run out.
        *self.present.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        write_twice(dir, CERTIFICATE_FILE, pem.as_bytes())?;
        // Cut off before this, the next start asks again and gets the same certificate.
        write_twice(dir, ENROLMENT_FILE, &enrolment.encode())
    }
}

/// The certificates of a PEM file; `None` if there is none or one does not parse.
pub fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    Some(all).filter(|all| !all.is_empty())
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>, IdentityError> {
    let path = dir.join(name);
    std::fs::read(&path).map_err(|source| IdentityError::File { path, source })
}

/// Makes a folder that only its owner enters.
pub(crate) fn private_dir(dir: &Path) -> Result<(), IdentityError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| IdentityError::File { path: dir.to_path_buf(), source })
}

/// Writes a file of the identity and its second copy, which comes first: a whole one is never older than the file.
pub(crate) fn write_twice(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    write_private(dir, &copy_of(name), &sealed(name, bytes))?;
    write_private(dir, name, bytes)
}

/// Writes a file durably, readable by its owner alone.
fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let scratch = dir.join(format!("{name}.new"));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&scratch, &path)?;
        sync_dir(dir)
    };
    write().map_err(|source| IdentityError::File { path: path.clone(), source })
}

/// Makes renames in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
