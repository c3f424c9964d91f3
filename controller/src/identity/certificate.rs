//! Reading certificates.
use std::path::Path;

use data_encoding::HEXLOWER;
use dunlin_protocol::DeviceId;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityError;

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

/// Whom a certificate names, and by which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// Its subject's common name.
    pub device: DeviceId,
    /// The public key, SubjectPublicKeyInfo in DER.
    pub spki: Vec<u8>,
}

impl Presented {
    /// What a certificate says, if its subject is a device.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let mut names = parsed.subject().iter_common_name();
        let device = names.next()?.as_str().ok()?.parse().ok()?;
        let spki = parsed.public_key().raw.to_vec();
        names.next().is_none().then_some(Self { device, spki })
    }
}

/// Serial number (lower-case hex) and end (Unix milliseconds) of a certificate in PEM.
pub(crate) fn serial_and_end(pem: &str) -> Option<(String, u64)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let until_s = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some((HEXLOWER.encode(&parsed.tbs_certificate.serial.to_bytes_be()), until_s.saturating_mul(1000)))
}
