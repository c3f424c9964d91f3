//! The controller on loopback, as a device and an operator see it: set-up, enrolment over TLS, the embedded
//! broker's identity and topic rules, and a window's way to its acknowledgement.

mod admission;
mod mosquitto;
mod reach;
mod renewal;
mod roles;
mod world;

use std::sync::{Arc, Mutex};

use dunlin_controller::broker::link::{ChallengeAnswer, Proof};
use dunlin_controller::serve::Controller;
use dunlin_protocol::{AckBody, DeviceId, Down, Envelope, Kind, Topic, Up, cbor};
use dunlin_trust::Signer;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::AuthProperties;
use rumqttc::{AuthAction, AuthContext, AuthError, Authenticator, Incoming, PublishOptions};
use serde_json::{Value, json};
use tokio::time::timeout;
use world::{LIMIT, connect, enrolment, hold_ceremony, next, prepared, publish, subscribe, window, world};

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
    let (status, again) = world.post("/v1/enrol", request).await;
    assert_eq!(
        (status, &again["certificate_pem"]),
        (200, &answer["certificate_pem"]),
        "a lost answer, given again"
    );
    assert_eq!(world.post("/v1/enrol", enrolment(&claim.secret).1).await.0, 409, "another key");
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
async fn metadata_files_are_of_the_form_that_the_document_gives() {
    let world = world().await;
    world.enrol("a").await;
    for path in
        ["image/timestamp.json", "image/1.root.json", "director/a/timestamp.json", "approvals/current"]
    {
        let (status, file) = world.get(&format!("/v1/{path}")).await;
        assert!(status == 200 && file["signed"].is_object(), "{path}: {status} {file}");
    }
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
    let (_, metrics) = world.get("/metrics").await;
    for line in ["dunlin_ingest_records_total{kind=\"window\"} 1\n", "dunlin_devices 2\n"] {
        assert!(metrics.as_str().unwrap().contains(line), "{line:?} in {metrics}");
    }

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
