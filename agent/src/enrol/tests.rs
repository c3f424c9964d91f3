use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use dunlin_protocol::{Arch, Budgets};
use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const ROOT_A: &str = "{\"image\": \"root\"}";
const ROOT_B: &str = "{\"director\": \"root\"}";
const SECRET: &str = "0123456789abcdef0123";

/// A certificate authority with a server that signs whatever request it gets.
struct Controller {
    address: SocketAddr,
    ca_der: Vec<u8>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn authority() -> (CertificateParams, KeyPair) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "test authority");
    (params, key)
}

impl Controller {
    /// `stray_key`: answer with a certificate for another key than the one requested.
    async fn start(stray_key: bool) -> Self {
        Self::start_after(stray_key, &[]).await
    }

    /// The same after these answers to the first requests; an empty one closes the connection.
    async fn start_after(stray_key: bool, first: &'static [&'static str]) -> Self {
        let mut first = first.iter();
        let (params, key) = authority();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&server_key, &issuer)
            .unwrap();
        let chain = vec![server.der().clone(), ca.der().clone()];
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(server_key.serialize_der().into()))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, ca_pem, ca_der) = (TlsAcceptor::from(Arc::new(tls)), ca.pem(), ca.der().to_vec());
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let request = read_request(&mut stream).await;
                if let Some(answer) = first.next() {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    stream.shutdown().await.ok();
                    continue;
                }
                let (status, body) = if request.secret == SECRET {
                    let device: DeviceId =
                        request.device.clone().unwrap_or_else(|| "pole-1".parse().unwrap());
                    let certificate_pem = if stray_key {
                        let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
                        CertificateParams::default().signed_by(&other, &issuer).unwrap().pem()
                    } else {
                        let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
                        csr.signed_by(&issuer).unwrap().pem()
                    };
                    let answer = EnrolResponse {
                        device,
                        certificate_pem,
                        ca_pem: ca_pem.clone(),
                        mqtt_host: "127.0.0.1".into(),
                        mqtt_port: 8883,
                        image_root: ROOT_A.into(),
                        director_root: ROOT_B.into(),
                        valid: None,
                    };
                    ("200 OK", serde_json::to_string(&answer).unwrap())
                } else {
                    ("403 Forbidden", "{\"error\": \"the claim was used\"}".to_owned())
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                stream.shutdown().await.ok();
            }
        });
        Self { address, ca_der, serving }
    }

    fn token(&self) -> ClaimToken {
        ClaimToken {
            url: format!("https://{}", self.address),
            ca: sha256(&self.ca_der),
            image_root: sha256(ROOT_A.as_bytes()),
            director_root: sha256(ROOT_B.as_bytes()),
            secret: SECRET.into(),
        }
    }
}

async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> EnrolRequest {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let n = stream.read(&mut chunk).await.unwrap();
        assert!(n > 0, "the request was cut");
        bytes.extend_from_slice(&chunk[..n]);
        let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        if let Ok(request) = serde_json::from_slice(&bytes[head + 4..]) {
            return request;
        }
    }
}

fn wish(force: bool) -> Wish {
    let budgets = Budgets { model_bytes_max: 1, model_ram_bytes_max: 1, latency_us_max: 1 };
    let profile = DeviceProfile {
        class: "generic".parse().unwrap(),
        arch: Arch::X86_64,
        cores: 1,
        ram_bytes: 1,
        budgets,
        ops: Default::default(),
        agent: "0".into(),
    };
    let device = Some("pole-17".parse().unwrap());
    Wish { device, serial: None, profile, wait: Duration::ZERO, force }
}

#[tokio::test]
async fn the_right_authority_enrols_once_and_force_enrols_again() {
    let controller = Controller::start(false).await;
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let identity = enrol(&dir, &controller.token(), wish(false)).await.unwrap();
    assert_eq!(identity.device().as_str(), "pole-17");
    let loaded = Identity::load(&dir).unwrap();
    assert_eq!(loaded.enrolment, identity.enrolment);
    assert_eq!(loaded.image_root, ROOT_A.as_bytes());
    loaded.tls().unwrap();
    let mode = std::fs::metadata(dir.join(identity::KEY_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let again = enrol(&dir, &controller.token(), wish(false)).await;
    assert!(matches!(again, Err(EnrolError::AlreadyEnrolled { .. })), "{again:?}");
    let forced = enrol(&dir, &controller.token(), wish(true)).await.unwrap();
    assert_ne!(forced.signer.key_id(), identity.signer.key_id(), "a new identity has a new key");
}

#[tokio::test]
async fn an_authority_other_than_the_pinned_one_is_refused_before_anything_is_said() {
    let (controller, other) = (Controller::start(false).await, Controller::start(false).await);
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let token = ClaimToken { ca: sha256(&other.ca_der), ..controller.token() };
    let refused = enrol(&dir, &token, wish(false)).await;
    assert!(matches!(refused, Err(EnrolError::Unreachable { .. })), "{refused:?}");
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_root_that_does_not_match_its_pin_is_refused() {
    let controller = Controller::start(false).await;
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let wrong = sha256(b"another root");
    for (token, named) in [
        (ClaimToken { image_root: wrong, ..controller.token() }, "image root"),
        (ClaimToken { director_root: wrong, ..controller.token() }, "director root"),
    ] {
        match enrol(&dir, &token, wish(false)).await {
            Err(EnrolError::Pin { what, .. }) => assert_eq!(what, named),
            other => panic!("{other:?}"),
        }
        assert!(!dir.exists());
    }
}

#[tokio::test]
async fn a_refusal_keeps_the_key_for_the_next_try() {
    let controller = Controller::start(false).await;
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let spent = ClaimToken { secret: "x".repeat(20), ..controller.token() };
    match enrol(&dir, &spent, wish(false)).await {
        Err(EnrolError::Refused { status: 403, answer, .. }) => assert!(answer.contains("used")),
        other => panic!("{other:?}"),
    }
    let kept = std::fs::read(state.path().join("identity.pending").join(identity::KEY_FILE)).unwrap();
    enrol(&dir, &controller.token(), wish(false)).await.unwrap();
    assert_eq!(std::fs::read(dir.join(identity::KEY_FILE)).unwrap(), kept);
}

#[tokio::test]
async fn a_certificate_for_another_key_is_refused() {
    let controller = Controller::start(true).await;
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let refused = enrol(&dir, &controller.token(), wish(false)).await;
    assert!(matches!(refused, Err(EnrolError::Answer { .. })), "{refused:?}");
    assert!(!dir.exists());
}

const WAITING: &str = concat!(
    "HTTP/1.1 202 Accepted\r\ncontent-length: 41\r\nconnection: close\r\n\r\n",
    r#"{"id":"w1","key_id":"k1","ask_again_s":1}"#
);
const BUSY: &str =
    "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn who_waits_for_an_operator_waits_for_the_server_too() {
    let waiting = |seconds| Wish { wait: Duration::from_secs(seconds), ..wish(false) };
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let controller = Controller::start_after(false, &[WAITING, BUSY, "", WAITING]).await;
    enrol(&dir, &controller.token(), waiting(60)).await.unwrap();

    // Before anybody waits, an error is an error; and the wait has its end.
    let dir = state.path().join("another");
    let busy = Controller::start_after(false, &[BUSY]).await;
    let refused = enrol(&dir, &busy.token(), waiting(60)).await;
    assert!(matches!(refused, Err(EnrolError::Refused { status: 429, .. })), "{refused:?}");
    let long = Controller::start_after(false, &[WAITING, BUSY, BUSY, BUSY, BUSY]).await;
    let waited = enrol(&dir, &long.token(), waiting(2)).await;
    assert!(matches!(waited, Err(EnrolError::Waiting { .. })), "{waited:?}");
}

#[tokio::test]
async fn an_identity_that_was_tampered_with_is_not_used() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    assert!(matches!(Identity::load(&dir), Err(IdentityError::NotEnrolled(_))));
    let controller = Controller::start(false).await;
    enrol(&dir, &controller.token(), wish(false)).await.unwrap();
    let other = EcdsaP256Signer::generate_pkcs8().unwrap();
    for (name, bytes) in [
        (identity::CA_FILE, authority().0.self_signed(&authority().1).unwrap().pem().into_bytes()),
        (identity::IMAGE_ROOT_FILE, ROOT_B.as_bytes().to_vec()),
        (identity::DIRECTOR_ROOT_FILE, ROOT_A.as_bytes().to_vec()),
        (identity::CERTIFICATE_FILE, b"no certificate".to_vec()),
        (identity::ENROLMENT_FILE, b"{}".to_vec()),
        (identity::KEY_FILE, other),
    ] {
        let whole = std::fs::read(dir.join(name)).unwrap();
        identity::write_twice(&dir, name, &bytes).unwrap();
        let refused = Identity::load(&dir);
        assert!(
            matches!(&refused, Err(IdentityError::Damaged { .. } | IdentityError::Tls(_))),
            "{name}: {refused:?}"
        );
        identity::write_twice(&dir, name, &whole).unwrap();
    }
    Identity::load(&dir).unwrap();
}

/// The files of a folder, by name.
fn files(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_file_of_the_identity_that_is_emptied_halved_lost_or_swapped_is_written_anew_from_its_copy() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let controller = Controller::start(false).await;
    enrol(&dir, &controller.token(), wish(false)).await.unwrap();
    let whole = files(&dir);
    assert_eq!(whole.len(), 2 * identity::FILES.len());
    let recovers = |damaged: &[&String], what: &str| {
        let (identity, told) = Identity::take_up(&dir).unwrap_or_else(|error| panic!("{what}: {error}"));
        let told: std::collections::BTreeSet<&String> = told.iter().collect();
        assert_eq!(told, damaged.iter().copied().collect(), "{what}");
        assert_eq!(files(&dir), whole, "{what}");
        identity.tls().unwrap();
    };
    recovers(&[], "as enrolled");
    for (name, bytes) in &whole {
        for bent in [Some(vec![]), Some(bytes[..bytes.len() / 2].to_vec()), None] {
            match &bent {
                Some(bytes) => std::fs::write(dir.join(name), bytes).unwrap(),
                None => std::fs::remove_file(dir.join(name)).unwrap(),
            }
            let told = bent.is_some() || identity::FILES.contains(&name.as_str());
            let what = format!("{name} bent to {:?} bytes", bent.map(|bytes| bytes.len()));
            recovers(&if told { vec![name] } else { vec![] }, &what);
        }
        for (other, content) in &whole {
            std::fs::write(dir.join(name), content).unwrap();
            std::fs::write(dir.join(other), bytes).unwrap();
            let damaged = if bytes == content { vec![] } else { vec![name, other] };
            recovers(&damaged, &format!("{name} and {other} swapped"));
        }
    }

    // What an agent left that kept each once is no damage, wherever the first start after it was cut; without either copy
    // there is no identity.
    for written in 0..=identity::FILES.len() {
        for name in &identity::FILES[written..] {
            std::fs::remove_file(dir.join(identity::copy_of(name))).unwrap();
        }
        recovers(&[], &format!("kept once, but for {written}"));
    }
    for name in identity::FILES {
        for file in [name.to_owned(), identity::copy_of(name)] {
            std::fs::write(dir.join(file), b"").unwrap();
        }
        let lost = Identity::take_up(&dir);
        assert!(
            matches!(lost, Err(IdentityError::Damaged { .. } | IdentityError::Key(_))),
            "{name}: {lost:?}"
        );
        identity::write_twice(&dir, name, &whole[name]).unwrap();
    }
}

/// Bits that a card loses need not make a file unreadable: a bent certificate may parse, a bent record say another address.
#[tokio::test]
async fn a_bit_that_flips_anywhere_in_the_identity_is_flipped_back() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let controller = Controller::start(false).await;
    let enrolled = enrol(&dir, &controller.token(), wish(false)).await.unwrap();
    let whole = files(&dir);
    for (name, bytes) in &whole {
        // The step is prime to the eight bits, which are flipped in turns.
        for at in (0..bytes.len()).step_by(7) {
            let mut bent = bytes.clone();
            bent[at] ^= 1 << (at % 8);
            std::fs::write(dir.join(name), bent).unwrap();
            let (identity, told) =
                Identity::take_up(&dir).unwrap_or_else(|error| panic!("{name} at {at}: {error}"));
            assert_eq!(told, [name.as_str()], "{name} at {at}");
            assert_eq!(identity.enrolment, enrolled.enrolment, "{name} at {at}");
            assert_eq!(identity.signer.key_id(), enrolled.signer.key_id(), "{name} at {at}");
            assert_eq!(files(&dir), whole, "{name} at {at}");
        }
    }
}

/// An operator may have approved the key that is waiting: it is not given up for another one while a copy of it is whole.
#[tokio::test]
async fn a_key_that_waits_for_approval_is_kept_twice_and_outlives_the_loss_of_either_copy() {
    let controller = Controller::start(false).await;
    let spent = ClaimToken { secret: "x".repeat(20), ..controller.token() };
    let copy = identity::copy_of(identity::KEY_FILE);
    for (name, bent) in [
        (identity::KEY_FILE, Some(&b"no key"[..])),
        (identity::KEY_FILE, None),
        (copy.as_str(), Some(&b"no copy"[..])),
        (copy.as_str(), None),
    ] {
        let state = tempfile::tempdir().unwrap();
        let (dir, pending) = (state.path().join("identity"), state.path().join("identity.pending"));
        enrol(&dir, &spent, wish(false)).await.unwrap_err();
        let waiting = files(&pending);
        match bent {
            Some(bytes) => std::fs::write(pending.join(name), bytes).unwrap(),
            None => std::fs::remove_file(pending.join(name)).unwrap(),
        }
        enrol(&dir, &spent, wish(false)).await.unwrap_err();
        assert_eq!(files(&pending), waiting, "{name} {bent:?}");
        enrol(&dir, &controller.token(), wish(false)).await.unwrap();
        assert_eq!(files(&dir)[identity::KEY_FILE], waiting[identity::KEY_FILE], "{name} {bent:?}");
        let (_, told) = Identity::take_up(&dir).unwrap();
        assert!(told.is_empty(), "{name} {bent:?}: {told:?}");
    }
}

#[tokio::test]
async fn a_renewal_is_kept_twice_and_one_that_is_cut_is_gone_on_with() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("identity");
    let controller = Controller::start(false).await;
    enrol(&dir, &controller.token(), wish(false)).await.unwrap();
    let before = files(&dir);
    let pem = String::from_utf8(before[identity::CERTIFICATE_FILE].clone()).unwrap();
    let valid = dunlin_protocol::Validity { from_ms: 1, until_ms: 2 };
    Identity::load(&dir).unwrap().renewed(&dir, &pem, valid).unwrap();
    let after = files(&dir);
    let record = identity::ENROLMENT_FILE;
    assert_ne!(after[record], before[record]);
    assert_eq!(identity::sealed(record, &after[record]), after[&identity::copy_of(record)]);
    // The power went between the two writes.
    std::fs::write(dir.join(record), &before[record]).unwrap();
    let (identity, told) = Identity::take_up(&dir).unwrap();
    assert_eq!((told, identity.enrolment.valid), (vec![record.to_owned()], Some(valid)));
    assert_eq!(files(&dir), after);
}
