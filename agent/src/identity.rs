//! Who this device is and whom it trusts: its key and certificate, the pinned authority, the pinned roots.
//!
//! All of it lies in one folder that enrolment puts in place with one rename. Every file is there twice, as nobody but a
//! person at the device can bring one back; each proves by itself whether it is what it should be: the certificate by the
//! key, authority and roots by their pins. The key is used through [`Signer`] alone, so that a chip can hold it; only TLS
//! takes it as a file as well.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use dunlin_protocol::{DeviceId, Digest, Validity};
use dunlin_trust::{EcdsaP256Signer, Signer, TrustError};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
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

    /// The record in an identity's folder, from the first copy that reads.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let copies = [ENROLMENT_FILE.to_owned(), copy_of(ENROLMENT_FILE)];
        copies.iter().find_map(|file| Self::decode(&std::fs::read(dir.join(file)).ok()?).ok())
    }

    /// Reads what [`Self::encode`] made, or says what is wrong with it.
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let enrolment: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if enrolment.format != FORMAT {
            return Err(format!("its form is {}, this agent reads {FORMAT}", enrolment.format));
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

/// A copy that is to be written anew from the other one.
struct Mend {
    file: String,
    bytes: Vec<u8>,
    /// Whether it is lost or damaged, and not only older: a write may have been cut between the two.
    damaged: bool,
}

/// The copies of the files in a folder.
struct Copies<'a> {
    dir: &'a Path,
    mends: Vec<Mend>,
}

impl Copies<'_> {
    /// What `judge` makes of the first copy of a file that it does not refuse.
    fn take<T>(
        &mut self,
        name: &str,
        judge: impl Fn(&[u8]) -> Result<T, IdentityError>,
    ) -> Result<T, IdentityError> {
        let look = |file: &str| read(self.dir, file).and_then(|bytes| Ok((judge(&bytes)?, bytes)));
        let copy = copy_of(name);
        match (look(name), look(&copy)) {
            (Ok((taken, bytes)), Ok((_, other))) if bytes == other => Ok(taken),
            (Ok((taken, bytes)), other) => {
                self.mends.push(Mend { file: copy, bytes, damaged: other.is_err() });
                Ok(taken)
            }
            (Err(_), Ok((taken, bytes))) => {
                self.mends.push(Mend { file: name.to_owned(), bytes, damaged: true });
                Ok(taken)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }
}

impl Identity {
    /// Reads the identity from its folder and holds it against its pins once more.
    ///
    /// # Errors
    /// The device is not enrolled, or neither copy of a file is usable.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        Self::look(dir).map(|(identity, _)| identity)
    }

    /// The same for the agent that lives by it: a copy that is lost or damaged is written anew from the other one. Says
    /// which were.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn take_up(dir: &Path) -> Result<(Self, Vec<String>), IdentityError> {
        // Agents that kept each file once left no copy to miss.
        let kept_once = FILES.iter().all(|name| !dir.join(copy_of(name)).exists());
        let (identity, mends) = Self::look(dir)?;
        let mut damaged = Vec::new();
        for mend in mends {
            if let Err(error) = write_private(dir, &mend.file, &mend.bytes) {
                tracing::warn!(error = %chain(&error), "a file of the identity is there once only");
            }
            if mend.damaged && !kept_once {
                damaged.push(mend.file);
            }
        }
        Ok((identity, damaged))
    }

    fn look(dir: &Path) -> Result<(Self, Vec<Mend>), IdentityError> {
        if !dir.join(ENROLMENT_FILE).exists() && !dir.join(copy_of(ENROLMENT_FILE)).exists() {
            return Err(IdentityError::NotEnrolled(dir.to_path_buf()));
        }
        let damaged = |name: &str, problem: &str| IdentityError::Damaged {
            path: dir.join(name),
            problem: problem.to_owned(),
        };
        let pinned = |name: &str, bytes: &[u8], pin: Digest| {
            if dunlin_trust::sha256(bytes) == pin {
                Ok(())
            } else {
                Err(damaged(name, "it does not match the pin of the enrolment"))
            }
        };
        let mut copies = Copies { dir, mends: Vec::new() };
        let enrolment = copies.take(ENROLMENT_FILE, |bytes| {
            Enrolment::decode(bytes).map_err(|problem| damaged(ENROLMENT_FILE, &problem))
        })?;
        let (key_pkcs8, signer) = copies.take(KEY_FILE, |bytes| {
            let signer = EcdsaP256Signer::from_pkcs8(bytes)?;
            Ok((bytes.to_vec(), Arc::new(signer)))
        })?;
        let shown = copies.take(CERTIFICATE_FILE, |bytes| {
            let chain = certificates(bytes).ok_or_else(|| damaged(CERTIFICATE_FILE, "no certificate"))?;
            Ok(certified(chain, &key_pkcs8)?)
        })?;
        let ca = copies.take(CA_FILE, |bytes| {
            let ca = certificates(bytes).and_then(|all| all.into_iter().next());
            let ca = ca.ok_or_else(|| damaged(CA_FILE, "no certificate"))?;
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
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_details(provider, Arc::new(crate::clock::CertificateTime))
            .with_safe_default_protocol_versions()?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
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

/// Writes both copies of a file of the identity, one after the other.
pub(crate) fn write_twice(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    write_private(dir, &copy_of(name), bytes)?;
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
