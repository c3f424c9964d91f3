//! Who this controller is: its certificate authority, its server certificate, and the key its own MQTT
//! client answers the broker with.
//!
//! None of these keys can approve a model: they name devices and encrypt links.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dunlin_protocol::{DeviceId, Digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

/// Client id, user name and common name of the controller's own MQTT client; no device may have it.
pub const CONTROLLER: &str = "controller";
/// Life of the authority. Its digest is in every device, so it outlives them.
const CA_DAYS: i64 = 30 * 365;
/// Life of the server's and the devices' certificates. A device is shut out by revocation, not by waiting.
const LEAF_DAYS: i64 = 10 * 365;
/// Clocks of devices that just woke may be behind by this much.
const SKEW: Duration = Duration::days(1);
/// A request for a certificate is below 1 KiB.
const CSR_BYTES_MAX: usize = 8 * 1024;

/// Why certificates or keys of this controller can not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can not be read or written.
    #[error("could not access {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate can not be made or read.
    #[error("certificate authority: {attempted}")]
    Certificate {
        /// What was attempted.
        attempted: &'static str,
        /// Why it failed.
        #[source]
        source: rcgen::Error,
    },
    /// A PEM file holds something else.
    #[error("{path} is not a PEM file of a {what}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A key is not of the kind we use.
    #[error("key in {path}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: dunlin_trust::TrustError,
    },
    /// A certificate request is not acceptable.
    #[error("the certificate request {0}")]
    Request(&'static str),
}

/// Where devices reach this controller; known once the listeners are bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// Base URL of the API.
    pub api_url: String,
    /// Host of the broker: the TLS server name that devices dial, and part of what they sign.
    pub mqtt_host: String,
    /// Port of the broker.
    pub mqtt_port: u16,
}

/// Files of the identity within a data folder.
#[derive(Debug, Clone)]
pub struct Files {
    /// The authority's certificate, PEM; public.
    pub ca: PathBuf,
    /// The authority's key, PEM.
    pub ca_key: PathBuf,
    /// The server's certificate followed by the authority's, PEM.
    pub server: PathBuf,
    /// The server's key, PEM.
    pub server_key: PathBuf,
    /// Certificate of the controller's MQTT client, for external brokers, PEM.
    pub controller: PathBuf,
    /// Its key, PEM.
    pub controller_key: PathBuf,
}

impl Files {
    /// The files under `data`.
    pub fn of(data: &Path) -> Self {
        let tls = data.join("tls");
        Self {
            ca: data.join("ca.pem"),
            ca_key: tls.join("ca.key"),
            server: tls.join("server.pem"),
            server_key: tls.join("server.key"),
            controller: tls.join("controller.pem"),
            controller_key: tls.join("controller.key"),
        }
    }
}

/// Certificates and addresses.
#[derive(Debug)]
pub struct Identity {
    files: Files,
    ca_pem: String,
    ca_pin: Digest,
    issuer: Issuer<'static, KeyPair>,
    endpoints: OnceLock<Endpoints>,
}

fn certificate<T>(attempted: &'static str, result: Result<T, rcgen::Error>) -> Result<T, IdentityError> {
    result.map_err(|source| IdentityError::Certificate { attempted, source })
}

fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path).map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

/// Writes a file that only its owner can read.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let written = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(
        |mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        },
    );
    written.map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

fn params(name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - SKEW;
    params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
    params
}

impl Identity {
    /// Makes authority, server certificate and MQTT client key in an empty data folder. `names` are further
    /// host names or addresses that the server certificate is valid for.
    pub fn create(data: &Path, names: &[String]) -> Result<(), IdentityError> {
        let files = Files::of(data);
        let generate = || certificate("making a key", KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256));

        let ca_key = generate()?;
        let mut ca = params("Dunlin fleet authority", CA_DAYS);
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_pem = certificate("signing the authority's certificate", ca.self_signed(&ca_key))?.pem();
        write_private(&files.ca, ca_pem.as_bytes())?;
        write_private(&files.ca_key, ca_key.serialize_pem().as_bytes())?;
        let issuer = Issuer::new(ca, ca_key);

        let all: Vec<String> = ["127.0.0.1", "::1", "localhost"]
            .into_iter()
            .map(str::to_owned)
            .chain(names.iter().cloned())
            .collect();
        let sans =
            certificate("reading the names of the server", CertificateParams::new(all))?.subject_alt_names;
        let leaf = |name: &str, sans, usage, file: &Path, key_file: &Path| {
            let key = generate()?;
            let mut params = params(name, LEAF_DAYS);
            params.subject_alt_names = sans;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            let pem = certificate("signing a certificate", params.signed_by(&key, &issuer))?.pem();
            write_private(file, format!("{pem}{ca_pem}").as_bytes())?;
            write_private(key_file, key.serialize_pem().as_bytes())
        };
        leaf(
            "Dunlin controller",
            sans,
            ExtendedKeyUsagePurpose::ServerAuth,
            &files.server,
            &files.server_key,
        )?;
        leaf(
            CONTROLLER,
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
            &files.controller,
            &files.controller_key,
        )
    }

    /// Reads what [`Identity::create`] made.
    pub fn open(data: &Path) -> Result<Self, IdentityError> {
        let files = Files::of(data);
        let ca_pem = read(&files.ca)?;
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes());
        let der = der.map_err(|_| IdentityError::Pem { path: files.ca.clone(), what: "certificate" })?;
        let key = certificate("reading the authority's key", KeyPair::from_pem(&read(&files.ca_key)?))?;
        let issuer = certificate("reading the authority's certificate", Issuer::from_ca_cert_der(&der, key))?;
        Ok(Self { ca_pin: dunlin_trust::sha256(&der), files, ca_pem, issuer, endpoints: OnceLock::new() })
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the authority's certificate in DER form, as claim tokens carry it.
    pub fn ca_pin(&self) -> Digest {
        self.ca_pin
    }

    /// Where the files lie.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Says where devices reach this controller; the first call counts.
    pub fn set_endpoints(&self, endpoints: Endpoints) {
        if self.endpoints.set(endpoints).is_err() {
            tracing::debug!("the addresses of this controller are known already");
        }
    }

    /// Where devices reach this controller, once it listens.
    pub fn endpoints(&self) -> Option<&Endpoints> {
        self.endpoints.get()
    }

    /// The server's certificate chain and key.
    pub fn server_chain(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
        chain(&self.files.server, &self.files.server_key)
    }

    /// The signer of the controller's MQTT client.
    pub fn controller_signer(&self) -> Result<dunlin_trust::EcdsaP256Signer, IdentityError> {
        let path = &self.files.controller_key;
        let key = PrivateKeyDer::from_pem_file(path)
            .map_err(|_| IdentityError::Pem { path: path.clone(), what: "private key" })?;
        dunlin_trust::EcdsaP256Signer::from_pkcs8(key.secret_der())
            .map_err(|source| IdentityError::Key { path: path.clone(), source })
    }

    /// Issues a device's certificate: CN and nothing else of the subject, for the key in the request. The
    /// request is signed by that key, which proves that the device holds it; what else it asks for is
    /// ignored. Returns the certificate and the public key (SubjectPublicKeyInfo, DER).
    pub fn issue_device(&self, device: &DeviceId, csr_pem: &str) -> Result<(String, Vec<u8>), IdentityError> {
        if csr_pem.len() > CSR_BYTES_MAX {
            return Err(IdentityError::Request("is too long"));
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem);
        let request = request
            .map_err(|_| IdentityError::Request("is not a PKCS#10 request in PEM signed by its own key"))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(IdentityError::Request("is not for an ECDSA P-256 key"));
        }
        let mut params = params(device.as_str(), LEAF_DAYS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let issued = certificate(
            "signing a device's certificate",
            params.signed_by(&request.public_key, &self.issuer),
        )?;
        Ok((issued.pem(), request.public_key.subject_public_key_info()))
    }
}

/// Reads a certificate chain and its key.
pub fn chain(
    certificates: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|_| IdentityError::Pem { path: key.to_owned(), what: "private key" })?;
    Ok((self::certificates(certificates)?, private))
}

/// Reads the certificates of a PEM file, at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bad = || IdentityError::Pem { path: path.to_owned(), what: "certificate" };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all = all.map_err(|_| bad())?;
    if all.is_empty() { Err(bad()) } else { Ok(all) }
}

/// The device a certificate names: its subject's common name, if that is a device id.
pub fn device_of(certificate: &CertificateDer<'_>) -> Option<DeviceId> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.parse().ok()?;
    names.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr(key: &KeyPair) -> String {
        CertificateParams::new(vec!["evil.example".into()])
            .unwrap()
            .serialize_request(key)
            .unwrap()
            .pem()
            .unwrap()
    }

    fn identity() -> (tempfile::TempDir, Identity) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tls")).unwrap();
        Identity::create(dir.path(), &[]).unwrap();
        let identity = Identity::open(dir.path()).unwrap();
        (dir, identity)
    }

    #[test]
    fn a_device_certificate_names_the_device_and_its_key() {
        let (_dir, identity) = identity();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let device: DeviceId = "pole-17".parse().unwrap();
        let (pem, spki) = identity.issue_device(&device, &csr(&key)).unwrap();
        assert_eq!(spki, key.subject_public_key_info());
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(device_of(&der), Some(device));
        assert!(
            !String::from_utf8_lossy(&der).contains("evil.example"),
            "names the request asks for are not granted"
        );
    }

    #[test]
    fn a_request_signed_by_another_key_or_for_another_kind_is_refused() {
        let (_dir, identity) = identity();
        let device: DeviceId = "d".parse().unwrap();
        let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(identity.issue_device(&device, &csr(&ed)), Err(IdentityError::Request(_))));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut der =
            CertificateParams::new(vec!["a".into()]).unwrap().serialize_request(&key).unwrap().der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        let body = data_encoding::BASE64.encode(&der);
        let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(matches!(identity.issue_device(&device, &pem), Err(IdentityError::Request(_))));
    }
}
