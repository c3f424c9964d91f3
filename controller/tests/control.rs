//! The controller on loopback, as a device and an operator see it: set-up, enrolment over TLS, the embedded
//! broker's identity and topic rules, and a window's way to its acknowledgement.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests; packets of a foreign crate")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_controller::broker::link::{self, ChallengeAnswer, Proof};
use dunlin_controller::keys::{self, CeremonyOptions, OnlineKeys};
use dunlin_controller::repo::Repos;
use dunlin_controller::serve::Controller;
use dunlin_controller::{clock, init};
use dunlin_protocol::{
    AckBody, BootId, Bytes, ClaimToken, DeviceId, Down, Envelope, Header, Kind, SCHEMA, Topic, Up, Window,
    cbor,
};
use dunlin_trust::{EcdsaP256Signer, Signer, envelope};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::AuthProperties;
use rumqttc::{
    AsyncClient, AuthAction, AuthContext, AuthError, Authenticator, Event, EventLoop, Incoming, MqttOptions,
    PublishOptions,
};
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Bound of every wait; a loaded machine needs a fraction of it.
const LIMIT: Duration = Duration::from_secs(20);

struct World {
    _dir: tempfile::TempDir,
    data: PathBuf,
    token: String,
    controller: Controller,
}

async fn prepared() -> (tempfile::TempDir, PathBuf, String) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let any = "127.0.0.1:0".parse().ok();
    let token =
        init::init(&data, &init::Options { names: Vec::new(), listen: any, mqtt_listen: any }).await.unwrap();
    (dir, data, token)
}

fn hold_ceremony(dir: &Path, data: &Path) {
    let online = OnlineKeys::read(&data.join("keys/online.json")).unwrap();
    keys::ceremony(
        &dir.join("offline"),
        &online,
        CeremonyOptions { threshold: 1, n: 1, now_ms: clock::wall_ms() },
    )
    .unwrap();
    Repos::open(data).unwrap().import(&dir.join("offline/public"), clock::wall_ms()).unwrap();
}

async fn world() -> World {
    let (dir, data, token) = prepared().await;
    hold_ceremony(dir.path(), &data);
    let mut controller = Controller::start(&data).await.unwrap();
    assert!(controller.connected(LIMIT).await, "the controller hears its own broker");
    World { _dir: dir, data, token, controller }
}

impl World {
    async fn call(&self, method: reqwest::Method, token: &str, path: &str, body: Value) -> (u16, Value) {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(self.data.join("ca.pem")).unwrap()).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([ca]).timeout(LIMIT).build().unwrap();
        let request =
            http.request(method, format!("https://{}{path}", self.controller.api)).bearer_auth(token);
        let response =
            request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call(reqwest::Method::POST, &self.token, path, body).await
    }

    async fn claim(&self, device: &str) -> ClaimToken {
        let (status, made) = self.post("/v1/claims", json!({ "device": device })).await;
        assert_eq!(status, 200, "{made}");
        made["token"].as_str().unwrap().parse().unwrap()
    }

    async fn enrol(&self, device: &str) -> Arc<EcdsaP256Signer> {
        let claim = self.claim(device).await;
        let (signer, request) = enrolment(&claim.secret);
        let (status, answer) = self.post("/v1/enrol", request).await;
        assert_eq!(status, 200, "{answer}");
        signer
    }

    fn options(&self, client: &str, proof: Proof) -> MqttOptions {
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

    async fn connect(
        &self,
        client: &str,
        signer: &Arc<EcdsaP256Signer>,
    ) -> Result<(AsyncClient, EventLoop), String> {
        let signer: Arc<dyn Signer + Send + Sync> = signer.clone();
        connect(self.options(client, Proof::Challenge(ChallengeAnswer::new(client, "127.0.0.1", signer))))
            .await
    }
}

fn enrolment(secret: &str) -> (Arc<EcdsaP256Signer>, Value) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let signer = EcdsaP256Signer::from_pkcs8(&key.serialize_der()).unwrap();
    let budgets = json!({ "model_bytes_max": 1, "model_ram_bytes_max": 1, "latency_us_max": 1 });
    let profile =
        json!({ "class": "pi4", "arch": "aarch64", "cores": 4, "ram_bytes": 1, "budgets": budgets });
    (Arc::new(signer), json!({ "secret": secret, "csr_pem": csr, "profile": profile }))
}

async fn connect(options: MqttOptions) -> Result<(AsyncClient, EventLoop), String> {
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
async fn next<T>(events: &mut EventLoop, wanted: impl Fn(&Incoming) -> Option<T>) -> T {
    loop {
        if let Event::Incoming(packet) =
            timeout(LIMIT, events.poll()).await.expect("the broker answers").unwrap()
            && let Some(found) = wanted(&packet)
        {
            return found;
        }
    }
}

async fn subscribe(client: &AsyncClient, events: &mut EventLoop, filter: &str) -> bool {
    client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
    let answer = next(events, |packet| match packet {
        Incoming::SubAck(ack) => Some(format!("{:?}", ack.return_codes)),
        _ => None,
    });
    answer.await.contains("Success")
}

async fn publish(client: &AsyncClient, events: &mut EventLoop, topic: &str, payload: Vec<u8>) -> bool {
    client.publish(topic, payload, PublishOptions::new(QoS::AtLeastOnce)).await.unwrap();
    let answer = next(events, |packet| match packet {
        Incoming::PubAck(ack) => Some(format!("{:?}", ack.reason)),
        _ => None,
    });
    !answer.await.contains("NotAuthorized")
}

fn window(device: &DeviceId, signer: &EcdsaP256Signer) -> Vec<u8> {
    let window: Window =
        serde_json::from_value(json!({ "task": "meter", "start_ms": 1, "end_ms": 2, "wall": true, "n": 3 }))
            .unwrap();
    let header = Header {
        v: SCHEMA,
        kind: Kind::Window,
        device: device.clone(),
        boot: BootId([7; 16]),
        seq: 1,
        exp: None,
        body: Bytes(cbor::encode(&window)),
    };
    envelope::seal_up(&header, signer).unwrap().encode()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_starts_only_with_roots_and_without_offline_keys() {
    let (dir, data, _token) = prepared().await;
    let error = Controller::start(&data).await.unwrap_err().to_string();
    assert!(error.contains("ceremony"), "{error}");
    hold_ceremony(dir.path(), &data);
    let key = std::fs::read_dir(dir.path().join("offline/private")).unwrap().next().unwrap().unwrap().path();
    std::fs::copy(&key, data.join("notes.txt")).unwrap();
    let error = Controller::start(&data).await.unwrap_err().to_string();
    assert!(error.contains("refusing to start"), "{error}");
    std::fs::remove_file(data.join("notes.txt")).unwrap();
    let controller = Controller::start(&data).await.unwrap();
    assert_eq!(std::fs::read_to_string(data.join("run/api.addr")).unwrap(), controller.api.to_string());
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_admits_one_device_once_and_scopes_hold() {
    let world = world().await;
    let claim = world.claim("pole-1").await;
    let (_, request) = enrolment(&claim.secret);
    let (status, answer) = world.post("/v1/enrol", request.clone()).await;
    assert_eq!((status, answer["device"].as_str()), (200, Some("pole-1")), "{answer}");
    assert_eq!(world.post("/v1/enrol", request).await.0, 409);
    assert_eq!(world.post("/v1/enrol", enrolment("no such secret at all").1).await.0, 401);

    let (_, made) = world.post("/v1/tokens", json!({ "name": "watch", "scopes": ["viewer"] })).await;
    let viewer = made["token"].as_str().unwrap();
    assert_eq!(world.call(reqwest::Method::GET, viewer, "/v1/devices", Value::Null).await.0, 200);
    let (status, refusal) = world.call(reqwest::Method::POST, viewer, "/v1/claims", json!({})).await;
    assert_eq!(status, 403);
    assert!(refusal["hint"].as_str().unwrap().contains("--scope operator"), "{refusal}");
    assert_eq!(world.call(reqwest::Method::GET, "nonsense", "/v1/devices", Value::Null).await.0, 401);
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_speaks_for_itself_alone_and_is_heard() {
    let world = world().await;
    let (signer, other) = (world.enrol("a").await, world.enrol("b").await);
    let id: DeviceId = "a".parse().unwrap();

    assert!(world.connect("a", &other).await.is_err(), "a stolen client id with another key");
    assert!(world.connect("controller", &signer).await.is_err(), "the controller's name with a device's key");
    assert!(world.connect("stranger", &signer).await.is_err(), "an id that never enrolled");
    assert!(connect(world.options("a", Proof::Certificate)).await.is_err(), "a CONNECT without the method");

    let (client, mut events) = world.connect("a", &signer).await.unwrap();
    for foreign in ["dunlin/v1/d/b/down/+", "dunlin/v1/d/+/down/+", "dunlin/v1/d/a/up/+", "#"] {
        assert!(!subscribe(&client, &mut events, foreign).await, "{foreign}");
    }
    assert!(subscribe(&client, &mut events, &Topic::down_filter(&id)).await);
    assert!(!publish(&client, &mut events, "dunlin/v1/d/b/up/telemetry", window(&id, &signer)).await);
    assert!(!publish(&client, &mut events, "dunlin/v1/d/a/down/cmd", window(&id, &signer)).await);

    let telemetry = Topic::up(&id, Up::Telemetry).to_string();
    client.publish(telemetry, window(&id, &signer), PublishOptions::new(QoS::AtLeastOnce)).await.unwrap();
    let ack = next(&mut events, |packet| match packet {
        Incoming::Publish(publish) if publish.topic == Topic::down(&id, Down::Ack).to_string() => {
            Some(publish.payload.clone())
        }
        _ => None,
    });
    let header = Envelope::decode(&ack.await).unwrap().header().unwrap();
    let body: AckBody = cbor::decode(&header.body.0, 1024).unwrap();
    assert_eq!((header.kind, body.ranges[0].upto), (Kind::Ack, 1));
    assert_eq!(
        world.controller.state.store.windows_count(Some(&id)).await.unwrap(),
        1,
        "acknowledged means stored"
    );

    let (status, _) = world
        .call(reqwest::Method::PUT, &world.token, "/v1/devices/a/state", json!({ "state": "revoked" }))
        .await;
    assert_eq!(status, 200);
    assert!(world.connect("a", &signer).await.is_err(), "a revoked device");
    let ended = async { while events.poll().await.is_ok() {} };
    timeout(LIMIT, ended).await.expect("the live session of a revoked device ends");
    world.controller.stop().await;
}

/// Sends the answer of an earlier exchange, or records the one it gives.
#[derive(Debug)]
struct Replayer {
    honest: ChallengeAnswer,
    recorded: Arc<Mutex<Option<bytes::Bytes>>>,
}

impl Authenticator for Replayer {
    fn start(&mut self, context: AuthContext<'_>) -> Result<Option<AuthProperties>, AuthError> {
        self.honest.start(context)
    }

    fn continue_auth(
        &mut self,
        context: AuthContext<'_>,
        incoming: Option<AuthProperties>,
    ) -> Result<AuthAction, AuthError> {
        let AuthAction::Send(mut properties) = self.honest.continue_auth(context, incoming)? else {
            return Err(AuthError::from("no answer"));
        };
        let mut recorded = self.recorded.lock().unwrap();
        match recorded.clone() {
            Some(old) => properties.data = Some(old),
            None => recorded.clone_from(&properties.data),
        }
        Ok(AuthAction::Send(properties))
    }

    fn success(
        &mut self,
        _context: AuthContext<'_>,
        _incoming: Option<AuthProperties>,
    ) -> Result<(), AuthError> {
        Ok(())
    }

    fn failure(&mut self, _context: AuthContext<'_>, _error: AuthError) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_challenge_is_good_for_once() {
    let world = world().await;
    let signer = world.enrol("a").await;
    let recorded = Arc::new(Mutex::new(None));
    let attempt = || {
        let signer: Arc<dyn Signer + Send + Sync> = signer.clone();
        let honest = ChallengeAnswer::new("a", "127.0.0.1", signer.clone());
        let mut options =
            world.options("a", Proof::Challenge(ChallengeAnswer::new("a", "127.0.0.1", signer)));
        options.set_authenticator(Arc::new(Mutex::new(Replayer { honest, recorded: Arc::clone(&recorded) })));
        connect(options)
    };
    assert!(attempt().await.is_ok(), "the honest answer");
    assert!(attempt().await.is_err(), "the same answer again");
    world.controller.stop().await;
}
