//! Enrolment: from a claim token to an identity.
//!
//! The only trust there is at this moment is the claim token: the server must show a chain to the authority
//! whose digest the token pins, and what it answers must match the token's pins too. There is no trust on first
//! use. The device's key is made once and kept until enrolment succeeded, so a try that was cut off can be
//! repeated with the same claim.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dunlin_protocol::{
    ClaimToken, DeviceId, DeviceProfile, Digest, EnrolRequest, EnrolResponse, EnrolWaiting,
};
use dunlin_trust::{EcdsaP256Signer, TrustError, sha256};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::exchange::{ExchangeError, post_json};
use crate::identity::{self, Enrolment, Identity, IdentityError};
use crate::update::chain;

/// Largest answer, bytes: two root files of TUF and two certificates, with room for many keys.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Longest time for the whole exchange; a person waits for it.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Shortest and longest pause while an operator decides, whatever the controller says.
const ASK_AGAIN_MIN: Duration = Duration::from_secs(1);
/// See [`ASK_AGAIN_MIN`].
const ASK_AGAIN_MAX: Duration = Duration::from_secs(300);

/// Why enrolment failed; nothing was changed then, but for the key that waits for the next try.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// There is an identity already.
    #[error("this device is already enrolled as {device} at {url}; --force replaces that identity")]
    AlreadyEnrolled {
        /// As whom.
        device: DeviceId,
        /// Where.
        url: String,
    },
    /// The server could not be reached, or its certificate is not of the pinned authority.
    #[error(
        "could not reach {url}; if the address is right, the server does not show the authority that the claim token pins"
    )]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server said no.
    #[error("{url} refused the claim ({status}): {answer}")]
    Refused {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it said, cut.
        answer: String,
        /// The wait it asked for, milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// An operator has not decided yet.
    #[error(
        "{url} waits for an operator to approve this device ({id}, key {key_id}); the same command asks again"
    )]
    Waiting {
        /// The address.
        url: String,
        /// What the operator knows it by.
        id: String,
        /// Digest of the device's public key, for people to compare.
        key_id: String,
    },
    /// The answer is not what the protocol says.
    #[error("{url} gave an answer that is no enrolment: {problem}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// What the server sent is not what the token pins.
    #[error("the {what} that {url} sent does not match the claim token; do not trust this server")]
    Pin {
        /// The address.
        url: String,
        /// Which file.
        what: &'static str,
    },
    /// The certificate request could not be made.
    #[error("could not make the certificate request")]
    Request(#[from] rcgen::Error),
    /// The key could not be made.
    #[error("could not make the device's key")]
    Key(#[from] TrustError),
    /// TLS could not be set up.
    #[error("could not set up TLS")]
    Tls(#[from] rustls::Error),
    /// The HTTP client could not be set up.
    #[error("could not set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// A file could not be written.
    #[error("could not keep the identity")]
    Identity(#[from] IdentityError),
}

impl EnrolError {
    /// Whether it may be over when the same is asked again.
    fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::AlreadyEnrolled { .. }
            | Self::Waiting { .. }
            | Self::Answer { .. }
            | Self::Pin { .. }
            | Self::Request(_)
            | Self::Key(_)
            | Self::Tls(_)
            | Self::Client(_)
            | Self::Identity(_) => false,
        }
    }

    fn retry_after_ms(&self) -> Option<u64> {
        if let Self::Refused { retry_after_ms, .. } = self { *retry_after_ms } else { None }
    }
}

/// Accepts only chains to the one authority whose certificate has the pinned digest; the server sends that
/// certificate as part of its chain.
#[derive(Debug)]
struct PinnedAuthority {
    pin: Digest,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|certificate| sha256(certificate.as_ref()) == self.pin);
        let authority =
            authority.ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let verifier = crate::tls::verifier(authority.clone().into_owned(), self.provider.clone())?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What to enrol as.
#[derive(Debug)]
pub struct Wish {
    /// The id to ask for; the claim may fix another.
    pub device: Option<DeviceId>,
    /// Serial number of its board, if known.
    pub serial: Option<String>,
    /// What the device is.
    pub profile: DeviceProfile,
    /// How long to wait for an operator's approval.
    pub wait: Duration,
    /// Replace an identity that is there.
    pub force: bool,
}

/// Enrols with `token` and puts the identity into `dir`. The folder appears whole or not at all.
pub async fn enrol(dir: &Path, token: &ClaimToken, wish: Wish) -> Result<Identity, EnrolError> {
    if !wish.force
        && let Ok(identity) = Identity::load(dir)
    {
        let enrolment = identity.enrolment;
        return Err(EnrolError::AlreadyEnrolled { device: enrolment.device, url: enrolment.url });
    }
    let pending = with_suffix(dir, "pending");
    let key = pending_key(&pending)?;
    let request = EnrolRequest {
        secret: token.secret.clone(),
        csr_pem: request_pem(&key, wish.device.as_ref())?,
        device: wish.device,
        serial: wish.serial,
        profile: wish.profile,
    };
    let answer = answer(token, &request, wish.wait).await?;
    keep(&pending, token, &answer)?;
    let identity = Identity::load(&pending).map_err(|error| match error {
        IdentityError::Tls(_) => EnrolError::Answer {
            url: token.url.clone(),
            problem: "its certificate is not for this device's key".to_owned(),
        },
        other @ (IdentityError::NotEnrolled(_)
        | IdentityError::File { .. }
        | IdentityError::Damaged { .. }
        | IdentityError::Key(_)) => other.into(),
    })?;
    put_in_place(&pending, dir)?;
    Ok(identity)
}

fn with_suffix(dir: &Path, suffix: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    dir.with_file_name(format!("{name}.{suffix}"))
}

/// The key of the last try, from whichever copy is whole, or a new one.
fn pending_key(pending: &Path) -> Result<Vec<u8>, EnrolError> {
    identity::private_dir(pending)?;
    let key = identity::kept_key(pending).map_or_else(EcdsaP256Signer::generate_pkcs8, Ok)?;
    // Also one that was kept: a try that was cut may have left it there once.
    identity::write_twice(pending, identity::KEY_FILE, &key)?;
    Ok(key)
}

/// A certificate request signed by `key` (PKCS#8, DER).
pub(crate) fn request_pem(key: &[u8], device: Option<&DeviceId>) -> Result<String, rcgen::Error> {
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(
        &PrivatePkcs8KeyDer::from(key.to_vec()),
        &PKCS_ECDSA_P256_SHA256,
    )?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, device.map_or("dunlin-device", DeviceId::as_str));
    params.serialize_request(&pair)?.pem()
}

/// Asks until there is an answer, or the time to wait for an operator is over.
async fn answer(
    token: &ClaimToken,
    request: &EnrolRequest,
    wait: Duration,
) -> Result<EnrolResponse, EnrolError> {
    let asked = Instant::now();
    let mut known: Option<EnrolWaiting> = None;
    loop {
        let mut asked_ms = None;
        let waiting = match (post(token, request).await, known.take()) {
            (Ok(Reply::Enrolled(answer)), _) => return Ok(*answer),
            (Ok(Reply::Waiting(waiting)), _) => waiting,
            // Who waits for a person through the night waits for a network or a busy server too.
            (Err(error), Some(waiting)) if error.passes() => {
                tracing::info!(error = %chain(&error), "asking again for an operator's approval");
                asked_ms = error.retry_after_ms();
                waiting
            }
            (Err(error), _) => return Err(error),
        };
        tracing::info!(id = %waiting.id, key = %waiting.key_id, "this device waits for an operator's approval");
        let pause = asked_ms.map_or(Duration::from_secs(waiting.ask_again_s), Duration::from_millis);
        let pause = pause.clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX);
        if asked.elapsed() + pause > wait {
            let EnrolWaiting { id, key_id, .. } = waiting;
            return Err(EnrolError::Waiting { url: token.url.clone(), id, key_id });
        }
        known = Some(waiting);
        tokio::time::sleep(pause).await;
    }
}

/// What the controller said.
enum Reply {
    Enrolled(Box<EnrolResponse>),
    Waiting(EnrolWaiting),
}

async fn post(token: &ClaimToken, request: &EnrolRequest) -> Result<Reply, EnrolError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedAuthority { pin: token.ca, provider: provider.clone() });
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        .build()
        .map_err(EnrolError::Client)?;
    let url = format!("{}/v1/enrol", token.url.trim_end_matches('/'));
    let body = serde_json::to_vec(request).expect("a request holds only text and numbers");
    let answer = match post_json(&client, &url, body, ANSWER_BYTES_MAX).await {
        Ok(answer) => answer,
        Err(ExchangeError::Link(source)) => return Err(EnrolError::Unreachable { url, source }),
        Err(ExchangeError::TooLong) => {
            let problem = format!("it is longer than {ANSWER_BYTES_MAX} bytes");
            return Err(EnrolError::Answer { url, problem });
        }
    };
    let problem = |e: serde_json::Error| EnrolError::Answer { url: url.clone(), problem: e.to_string() };
    match answer.status {
        200 => {
            serde_json::from_slice(&answer.body).map(|all| Reply::Enrolled(Box::new(all))).map_err(problem)
        }
        202 => serde_json::from_slice(&answer.body).map(Reply::Waiting).map_err(problem),
        status => {
            let retry_after_ms = answer.retry_after_ms;
            Err(EnrolError::Refused { status, answer: answer.text(), url, retry_after_ms })
        }
    }
}

/// Compares the answer with the pins and writes it beside the key.
fn keep(pending: &Path, token: &ClaimToken, answer: &EnrolResponse) -> Result<(), EnrolError> {
    let problem = |problem: &str| EnrolError::Answer { url: token.url.clone(), problem: problem.to_owned() };
    let ca = identity::certificates(answer.ca_pem.as_bytes())
        .ok_or_else(|| problem("its authority is no certificate"))?;
    identity::certificates(answer.certificate_pem.as_bytes())
        .ok_or_else(|| problem("its certificate is none"))?;
    let pins = [
        ("certificate authority", sha256(ca[0].as_ref()), token.ca),
        ("image root", sha256(answer.image_root.as_bytes()), token.image_root),
        ("director root", sha256(answer.director_root.as_bytes()), token.director_root),
    ];
    if let Some((what, _, _)) = pins.into_iter().find(|(_, got, pin)| got != pin) {
        return Err(EnrolError::Pin { url: token.url.clone(), what });
    }
    let broker = (answer.mqtt_host.clone(), answer.mqtt_port);
    let pins = [token.ca, token.image_root, token.director_root];
    let mut enrolment = Enrolment::new(answer.device.clone(), token.url.clone(), broker, pins);
    enrolment.valid = answer.valid;
    identity::write_twice(pending, identity::CERTIFICATE_FILE, answer.certificate_pem.as_bytes())?;
    identity::write_twice(pending, identity::CA_FILE, answer.ca_pem.as_bytes())?;
    identity::write_twice(pending, identity::IMAGE_ROOT_FILE, answer.image_root.as_bytes())?;
    identity::write_twice(pending, identity::DIRECTOR_ROOT_FILE, answer.director_root.as_bytes())?;
    identity::write_twice(pending, identity::ENROLMENT_FILE, &enrolment.encode())?;
    Ok(())
}

/// Renames the whole folder into place; an identity that was there is kept once, under another name.
fn put_in_place(pending: &Path, dir: &Path) -> Result<(), EnrolError> {
    let place = || {
        if dir.exists() {
            let old = with_suffix(dir, "old");
            if old.exists() {
                std::fs::remove_dir_all(&old)?;
            }
            std::fs::rename(dir, &old)?;
        }
        std::fs::rename(pending, dir)?;
        identity::sync_dir(dir.parent().unwrap_or(Path::new("/")))
    };
    place().map_err(|source| IdentityError::File { path: dir.to_path_buf(), source }.into())
}

#[cfg(test)]
mod tests;
