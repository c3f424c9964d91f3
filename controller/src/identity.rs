//! Who this controller is: its certificate authority, its server certificate, and the key its own MQTT
//! client answers the broker with.
//!
//! None of these keys can approve a model: they name devices and encrypt links.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use data_encoding::HEXLOWER;
use dunlin_protocol::{DeviceId, Digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, RevokedCertParams, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use crate::store::CertificateRow;

mod certificate;

pub(crate) use certificate::serial_and_end;
pub use certificate::{Presented, certificates, chain};

/// Client id, user name and common name of the controller's own MQTT client; no device may have it.
pub const CONTROLLER: &str = "controller";
/// Life of the authority. Its digest is in every device, so it outlives them.
const CA_DAYS: i64 = 30 * 365;
/// Life of the certificates of this controller itself.
const LEAF_DAYS: i64 = 10 * 365;
/// Random bytes of a device certificate's serial number: RFC 5280 §4.1.2.2 allows 20, CAs use 16.
const SERIAL_BYTES: usize = 16;
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

/// A device's certificate that was just issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, PEM.
    pub pem: String,
    /// The public key it is for, SubjectPublicKeyInfo in DER.
    pub spki: Vec<u8>,
    /// Its serial number, lower-case hex.
    pub serial: String,
    /// When it was issued, Unix milliseconds. The certificate itself begins a little earlier.
    pub from_ms: u64,
    /// When it ends, Unix milliseconds.
    pub until_ms: u64,
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
    /// ignored.
    pub fn issue_device(
        &self,
        device: &DeviceId,
        csr_pem: &str,
        valid_s: u64,
        now_ms: u64,
    ) -> Result<Issued, IdentityError> {
        let request = request(csr_pem)?;
        let mut serial = [0; SERIAL_BYTES];
        SystemRandom::new().fill(&mut serial).expect("the system gives randomness");
        // The number is positive (RFC 5280) and is written without leading zeros.
        serial[0] = serial[0] & 0x7f | 0x40;
        let now = at(now_ms);
        let valid = Duration::seconds(i64::try_from(valid_s).unwrap_or(i64::MAX).min(LEAF_DAYS * 86_400));
        let mut params = params(device.as_str(), LEAF_DAYS);
        params.not_before = now - SKEW;
        params.not_after = now + valid;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let issued = certificate(
            "signing a device's certificate",
            params.signed_by(&request.public_key, &self.issuer),
        )?;
        Ok(Issued {
            pem: issued.pem(),
            spki: request.public_key.subject_public_key_info(),
            serial: HEXLOWER.encode(&serial),
            from_ms: now_ms,
            until_ms: now_ms.saturating_add(u64::try_from(valid.whole_milliseconds()).unwrap_or(u64::MAX)),
        })
    }

    /// The list of these certificates (RFC 5280 §5) in PEM, for brokers that check it.
    pub fn revocation_list(&self, refused: &[CertificateRow], now_ms: u64) -> Result<String, IdentityError> {
        let entry = |row: &CertificateRow| {
            let serial = HEXLOWER.decode(row.serial.as_bytes()).ok()?;
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: at(row.revoked_ms.unwrap_or(now_ms)),
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: at(now_ms) - SKEW,
            // A list that is out of date would shut the whole fleet out; a newer one replaces it long before.
            next_update: at(now_ms) + Duration::days(CA_DAYS),
            crl_number: SerialNumber::from(now_ms),
            issuing_distribution_point: None,
            revoked_certs: refused.iter().filter_map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = certificate("signing the revocation list", list.signed_by(&self.issuer))?;
        certificate("writing the revocation list", signed.pem())
    }

    /// The public key (SubjectPublicKeyInfo, DER) that signed a certificate request.
    pub fn request_key(&self, csr_pem: &str) -> Result<Vec<u8>, IdentityError> {
        Ok(request(csr_pem)?.public_key.subject_public_key_info())
    }
}

/// Reads a certificate request and checks that its own key signed it.
fn request(csr_pem: &str) -> Result<CertificateSigningRequestParams, IdentityError> {
    if csr_pem.len() > CSR_BYTES_MAX {
        return Err(IdentityError::Request("is too long"));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem);
    let request = request
        .map_err(|_| IdentityError::Request("is not a PKCS#10 request in PEM signed by its own key"))?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(IdentityError::Request("is not for an ECDSA P-256 key"));
    }
    Ok(request)
}

/// A time as certificates name it.
fn at(unix_ms: u64) -> OffsetDateTime {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
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
        let now_ms = crate::clock::wall_ms();
        let issued = identity.issue_device(&device, &csr(&key), 3600, now_ms).unwrap();
        assert_eq!(issued.spki, key.subject_public_key_info());
        assert_eq!(identity.request_key(&csr(&key)).unwrap(), issued.spki);
        let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        assert_eq!(Presented::of(&der), Some(Presented { device, spki: issued.spki }));
        let (serial, until_ms) = serial_and_end(&issued.pem).unwrap();
        assert_eq!((serial, until_ms / 1000), (issued.serial, issued.until_ms / 1000));
        assert_eq!(issued.until_ms, now_ms + 3_600_000);
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
        assert!(matches!(identity.issue_device(&device, &csr(&ed), 1, 1), Err(IdentityError::Request(_))));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut der =
            CertificateParams::new(vec!["a".into()]).unwrap().serialize_request(&key).unwrap().der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        let body = data_encoding::BASE64.encode(&der);
        let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(matches!(identity.issue_device(&device, &pem, 1, 1), Err(IdentityError::Request(_))));
    }
}
