//! A controller in this process, its operator, and devices as far as a test needs them.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_controller::broker::link::{self, ChallengeAnswer, Proof};
use dunlin_controller::keys::{self, CeremonyOptions, OnlineKeys};
use dunlin_controller::repo::Repos;
use dunlin_controller::serve::Controller;
use dunlin_controller::{clock, init};
use dunlin_protocol::{BootId, Bytes, ClaimToken, DeviceId, Header, Kind, SCHEMA, Window, cbor};
use dunlin_trust::{EcdsaP256Signer, Signer, envelope};
use rumqttc::mqttbytes::QoS;
use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, PublishOptions};
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::document::DOCUMENT;

/// Bound of every wait; a loaded machine needs a fraction of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct World {
    _dir: tempfile::TempDir,
    pub(crate) data: PathBuf,
    pub(crate) token: String,
    pub(crate) controller: Controller,
}

pub(crate) async fn prepared() -> (tempfile::TempDir, PathBuf, String) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let any = "127.0.0.1:0".parse().ok();
    let token =
        init::init(&data, &init::Options { names: Vec::new(), listen: any, mqtt_listen: any }).await.unwrap();
    (dir, data, token)
}

pub(crate) fn hold_ceremony(dir: &Path, data: &Path) {
    let online = OnlineKeys::read(&data.join("keys/online.json")).unwrap();
    keys::ceremony(
        &dir.join("offline"),
        &online,
        CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms: clock::wall_ms() },
    )
    .unwrap();
    Repos::open(data).unwrap().import(&dir.join("offline/public"), clock::wall_ms()).unwrap();
}

pub(crate) async fn world() -> World {
    world_with("").await
}

/// A world whose `controller.toml` has these lines before its own.
pub(crate) async fn world_with(config: &str) -> World {
    let (dir, data, token) = prepared().await;
    let path = data.join("controller.toml");
    let listen = "[api]\nlisten = \"127.0.0.1:0\"\n\n[mqtt]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&path, format!("{config}\n{listen}")).unwrap();
    hold_ceremony(dir.path(), &data);
    let mut controller = Controller::start(&data).await.unwrap();
    assert!(controller.connected(LIMIT).await, "the controller hears its own broker");
    World { _dir: dir, data, token, controller }
}

impl World {
    pub(crate) fn of(dir: tempfile::TempDir, data: PathBuf, token: String, controller: Controller) -> Self {
        Self { _dir: dir, data, token, controller }
    }

    pub(crate) async fn call(
        &self,
        method: reqwest::Method,
        token: &str,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(self.data.join("ca.pem")).unwrap()).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([ca]).timeout(LIMIT).build().unwrap();
        let url = format!("https://{}{path}", self.controller.api);
        let request = http.request(method.clone(), url).bearer_auth(token);
        let response =
            request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let answer = serde_json::from_str(&text).unwrap_or(Value::String(text));
        DOCUMENT.assert_answer(method.as_str(), path, status, &answer);
        (status, answer)
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call(reqwest::Method::POST, &self.token, path, body).await
    }

    pub(crate) async fn claim(&self, device: &str) -> ClaimToken {
        let (status, made) = self.post("/v1/claims", json!({ "device": device })).await;
        assert_eq!(status, 200, "{made}");
        made["token"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) async fn enrol(&self, device: &str) -> Arc<EcdsaP256Signer> {
        self.enrolled(device).await.signer
    }

    /// Enrols a device and keeps what it needs to come back.
    pub(crate) async fn enrolled(&self, device: &str) -> Device {
        let claim = self.claim(device).await;
        let key = Device::key();
        let (status, answer) = self.post("/v1/enrol", Device::request(&key, &claim.secret)).await;
        assert_eq!(status, 200, "{answer}");
        Device::of(device, &key, answer["certificate_pem"].as_str().unwrap())
    }

    /// An HTTPS client; with the certificate of `device`, if one is given.
    pub(crate) fn https(&self, device: Option<&Device>) -> reqwest::Client {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(rustls_pki_types::CertificateDer::from_pem_file(self.data.join("ca.pem")).unwrap())
            .unwrap();
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let tls = match device {
            Some(device) => {
                let chain = rustls_pki_types::CertificateDer::pem_slice_iter(device.certificate.as_bytes());
                let key = rustls_pki_types::PrivatePkcs8KeyDer::from(device.key.serialize_der());
                builder.with_client_auth_cert(chain.map(Result::unwrap).collect(), key.into()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(LIMIT).build().unwrap()
    }

    /// A request of a device; 0 if TLS refuses it.
    pub(crate) async fn ask(&self, http: &reqwest::Client, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("https://{}{path}", self.controller.api);
        let method = if body.is_some() { "POST" } else { "GET" };
        let request = match body {
            Some(body) => http.post(url).header("content-type", "application/json").body(body.to_string()),
            None => http.get(url),
        };
        match request.send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                let answer = serde_json::from_str(&response.text().await.unwrap());
                if let Ok(answer) = &answer {
                    DOCUMENT.assert_answer(method, path, status, answer);
                }
                (status, answer.unwrap_or(Value::Null))
            }
            Err(_) => (0, Value::Null),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.call(reqwest::Method::GET, &self.token, path, Value::Null).await
    }

    /// Lets the database refuse every row of the audit log, or take them again.
    pub(crate) async fn refuse_rows(&self, refuse: bool) {
        let sql = if refuse {
            "CREATE TRIGGER no_rows BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no row'); END"
        } else {
            "DROP TRIGGER no_rows"
        };
        sqlx::query(sql).execute(self.controller.state.store.writer()).await.unwrap();
    }

    pub(crate) async fn set_state(&self, device: &str, state: &str) {
        let path = format!("/v1/devices/{device}/state");
        let (status, answer) =
            self.call(reqwest::Method::PUT, &self.token, &path, json!({ "state": state })).await;
        assert_eq!(status, 200, "{answer}");
    }

    pub(crate) fn options(&self, client: &str, proof: Proof) -> MqttOptions {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(rustls_pki_types::CertificateDer::from_pem_file(self.data.join("ca.pem")).unwrap())
            .unwrap();
        link::options(
            client,
            "127.0.0.1",
            self.controller.mqtt.unwrap().port(),
            link::tls(roots, None).unwrap(),
            proof,
        )
    }

    pub(crate) async fn connect(
        &self,
        client: &str,
        signer: &Arc<EcdsaP256Signer>,
    ) -> Result<(AsyncClient, EventLoop), String> {
        let signer: Arc<dyn Signer + Send + Sync> = signer.clone();
        connect(self.options(client, Proof::Challenge(ChallengeAnswer::new(client, "127.0.0.1", signer))))
            .await
    }
}

/// An enrolled device: its key and its certificate.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) key: rcgen::KeyPair,
    pub(crate) signer: Arc<EcdsaP256Signer>,
    pub(crate) certificate: String,
}

impl Device {
    pub(crate) fn key() -> rcgen::KeyPair {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
    }

    pub(crate) fn csr(key: &rcgen::KeyPair) -> String {
        rcgen::CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    /// What it posts to enrol.
    pub(crate) fn request(key: &rcgen::KeyPair, secret: &str) -> Value {
        let budgets = json!({ "model_bytes_max": 1, "model_ram_bytes_max": 1, "latency_us_max": 1 });
        let profile =
            json!({ "class": "pi4", "arch": "aarch64", "cores": 4, "ram_bytes": 1, "budgets": budgets });
        json!({ "secret": secret, "csr_pem": Self::csr(key), "profile": profile })
    }

    pub(crate) fn of(id: &str, key: &rcgen::KeyPair, certificate: &str) -> Self {
        let der = key.serialize_der();
        let key = rcgen::KeyPair::try_from(der.as_slice()).unwrap();
        let signer = Arc::new(EcdsaP256Signer::from_pkcs8(&der).unwrap());
        Self { id: id.parse().unwrap(), key, signer, certificate: certificate.into() }
    }
}

pub(crate) fn enrolment(secret: &str) -> (Arc<EcdsaP256Signer>, Value) {
    let key = Device::key();
    let signer = EcdsaP256Signer::from_pkcs8(&key.serialize_der()).unwrap();
    (Arc::new(signer), Device::request(&key, secret))
}

pub(crate) async fn connect(options: MqttOptions) -> Result<(AsyncClient, EventLoop), String> {
    let (client, mut events) = link::client(options);
    loop {
        match timeout(LIMIT, events.poll()).await.expect("the broker answers") {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => return Ok((client, events)),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// The next packet from the broker that `wanted` takes.
pub(crate) async fn next<T>(events: &mut EventLoop, wanted: impl Fn(&Incoming) -> Option<T>) -> T {
    loop {
        if let Event::Incoming(packet) =
            timeout(LIMIT, events.poll()).await.expect("the broker answers").unwrap()
            && let Some(found) = wanted(&packet)
        {
            return found;
        }
    }
}

pub(crate) async fn subscribe(client: &AsyncClient, events: &mut EventLoop, filter: &str) -> bool {
    client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
    let answer = next(events, |packet| match packet {
        Incoming::SubAck(ack) => Some(format!("{:?}", ack.return_codes)),
        _ => None,
    });
    answer.await.contains("Success")
}

pub(crate) async fn publish(
    client: &AsyncClient,
    events: &mut EventLoop,
    topic: &str,
    payload: Vec<u8>,
) -> bool {
    client.publish(topic, payload, PublishOptions::new(QoS::AtLeastOnce)).await.unwrap();
    let answer = next(events, |packet| match packet {
        Incoming::PubAck(ack) => Some(format!("{:?}", ack.reason)),
        _ => None,
    });
    !answer.await.contains("NotAuthorized")
}

pub(crate) fn window_body() -> Window {
    serde_json::from_value(json!({ "task": "meter", "start_ms": 1, "end_ms": 2, "wall": true, "n": 3 }))
        .unwrap()
}

/// A sealed message.
fn sealed<T: serde::Serialize>(
    device: &DeviceId,
    signer: &EcdsaP256Signer,
    kind: Kind,
    boot: u8,
    seq: u64,
    body: &T,
) -> Vec<u8> {
    let body = Bytes(cbor::encode(body));
    let header =
        Header { v: SCHEMA, kind, device: device.clone(), boot: BootId([boot; 16]), seq, exp: None, body };
    envelope::seal_up(&header, signer).unwrap().encode()
}

pub(crate) fn record<T: serde::Serialize>(
    device: &Device,
    kind: Kind,
    boot: u8,
    seq: u64,
    body: &T,
) -> Vec<u8> {
    sealed(&device.id, &device.signer, kind, boot, seq, body)
}

pub(crate) fn window(device: &DeviceId, signer: &EcdsaP256Signer) -> Vec<u8> {
    sealed(device, signer, Kind::Window, 7, 1, &window_body())
}
