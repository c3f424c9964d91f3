//! How far a device's own, valid credentials reach: its topics and its artifacts, and nothing after it is shut out.
use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_controller::broker::link::{ChallengeAnswer, Proof};
use dunlin_controller::clock;
use dunlin_controller::store::Store;
use dunlin_protocol::{
    Assignment, Blob, Bundle, DeviceId, Kind, LineUp, Probation, ReleaseId, Status, TaskAssignment, Topic, Up,
};
use dunlin_trust::sha256;
use futures_util::StreamExt;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::LastWill;
use rumqttc::{Incoming, PublishOptions};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::world::{
    Device, LIMIT, World, connect, next, publish, record, subscribe, window, window_body, world,
};

/// Bytes of a blob that no socket buffer holds.
const LARGE: usize = 64 << 20;

async fn refused(world: &World, device: &str) -> Vec<Value> {
    let (status, detail) = world.get(&format!("/v1/devices/{device}")).await;
    assert_eq!(status, 200, "{detail}");
    detail["refused"].as_array().unwrap().clone()
}

/// Connects with a will and is gone without a goodbye.
async fn die_with_will(world: &World, device: &Device, topic: &str) {
    let proof =
        Proof::Challenge(ChallengeAnswer::new(device.id.as_str(), "127.0.0.1", device.signer.clone()));
    let mut options = world.options(device.id.as_str(), proof);
    options.set_last_will(LastWill::new(topic, b"planted".to_vec(), QoS::AtLeastOnce, true, None));
    let (client, events) = connect(options).await.unwrap();
    drop((client, events));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_will_and_no_retained_message_is_planted_at_another_device() {
    let world = world().await;
    let (a, b) = (world.enrolled("a").await, world.enrolled("b").await);
    die_with_will(&world, &a, &Topic::up(&b.id, Up::Status).to_string()).await;
    die_with_will(&world, &a, "dunlin/v1/d/b/down/desired").await;
    die_with_will(&world, &a, "dunlin/v1/all/notice").await;
    // The same on its own topic arrives, so the others had their time to.
    die_with_will(&world, &a, &Topic::up(&a.id, Up::Status).to_string()).await;
    let arrived = async {
        while refused(&world, "a").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LIMIT, arrived).await.expect("a will on the device's own topic is heard");
    assert_eq!(refused(&world, "b").await, Vec::<Value>::new());

    let (client, mut events) = world.connect("a", &a.signer).await.unwrap();
    for topic in ["dunlin/v1/d/b/up/status", "dunlin/v1/d/b/down/desired", "dunlin/v1/d/a/down/desired"] {
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(true);
        client.publish(topic, b"planted".to_vec(), options).await.unwrap();
        let answer = next(&mut events, |packet| match packet {
            Incoming::PubAck(ack) => Some(format!("{:?}", ack.reason)),
            _ => None,
        });
        assert!(answer.await.contains("NotAuthorized"), "{topic}");
    }
    let (client, mut events) = world.connect("b", &b.signer).await.unwrap();
    assert!(subscribe(&client, &mut events, &Topic::down_filter(&b.id)).await);
    assert!(subscribe(&client, &mut events, "dunlin/v1/all/notice").await);
    let (status, _) = world.post("/v1/devices/b/commands", json!({ "do": "check" })).await;
    assert_eq!(status, 200);
    let first = next(&mut events, |packet| match packet {
        Incoming::Publish(publish) => Some(publish.topic.clone()),
        _ => None,
    });
    assert_eq!(first.await, "dunlin/v1/d/b/down/cmd", "nothing lay in wait");
    world.controller.stop().await;
}

fn bundle(release: ReleaseId, model: Blob, golden: Blob) -> Bundle {
    let hard = json!({ "ops": [], "bundle_bytes": 1, "ram_bytes": 1 });
    serde_json::from_value(json!({
        "format": 1, "release": release, "task": "meter", "task_type": "classification", "family": "imported",
        "model": model, "golden": golden, "signature": { "inputs": [], "outputs": [], "features": [] }, "hard": hard,
        "latency_us": 1, "lineage": { "run": "import" },
    }))
    .unwrap()
}

impl World {
    async fn blob(&self, bytes: Vec<u8>) -> Blob {
        self.controller.state.registry.blobs().put(bytes).await.unwrap()
    }

    async fn release(&self, model: &str, blob: Blob) -> ReleaseId {
        let golden = self.blob(format!("golden of {model}").into_bytes()).await;
        let (name, task) = (model.parse().unwrap(), "meter".parse().unwrap());
        let seal = |release| {
            let bundle = bundle(release, blob, golden);
            let manifest = serde_json::to_vec(&bundle).unwrap();
            let digest = sha256(&manifest);
            (bundle, manifest, digest)
        };
        let mut tx = self.controller.state.store.begin().await.unwrap();
        let row = Store::release_add(&mut tx, &name, &task, &blob.digest, "test", 1, seal).await.unwrap();
        tx.commit().await.unwrap();
        row.bundle.release
    }

    /// A task that can not be read stands still: the planner leaves what the test assigns.
    async fn hold_meter(&self) {
        sqlx::query("INSERT INTO tasks (id, definition, owner, created_ms, updated_ms, schedule_ms) VALUES ('meter', '{', 'ann', 1, 1, 1)")
            .execute(self.controller.state.store.writer())
            .await
            .unwrap();
    }

    async fn assign(&self, device: &DeviceId, generation: u64, champion: &ReleaseId) {
        let probation = Probation {
            ms_min: 0,
            requests_min: 0,
            pairs_min: 0,
            error_ppm_max: 0,
            latency_percent_max: 0,
            rss_bytes_max: 0,
            disagree_ppm_max: 0,
        };
        let lineup = LineUp::new(champion.clone(), None);
        let task = TaskAssignment { task: "meter".parse().unwrap(), lineup, probation, deadline_ms: None };
        let assignment = Assignment {
            device: device.clone(),
            class: None,
            generation,
            correlation: String::new(),
            tasks: vec![task],
            program: None,
        };
        let store = &self.controller.state.store;
        store.assignment_put(&assignment, &BTreeMap::new(), clock::wall_ms()).await.unwrap();
    }
}

fn path(blob: &Blob) -> String {
    format!("/v1/blobs/{}", blob.digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_fetches_what_it_is_assigned_and_nothing_else() {
    let world = world().await;
    world.hold_meter().await;
    let (a, b) = (world.enrolled("a").await, world.enrolled("b").await);
    let (own, other) = (world.blob(b"own".to_vec()).await, world.blob(b"other".to_vec()).await);
    let (first, second) = (world.release("first", own).await, world.release("second", other).await);
    world.assign(&a.id, 1, &first).await;
    world.assign(&b.id, 1, &second).await;
    let (as_a, as_b) = (world.https(Some(&a)), world.https(Some(&b)));
    let manifest = |release: &ReleaseId| format!("/v1/targets/{}.{}", "0".repeat(64), release.target_name());
    assert_eq!(world.ask(&as_a, &path(&own), None).await.0, 200);
    assert_eq!(world.ask(&as_b, &path(&other), None).await.0, 200);
    assert_eq!(
        world.ask(&as_a, &manifest(&first), None).await.0,
        404,
        "its own, of a digest that is not there"
    );
    for (foreign, why) in [
        (path(&other), "a blob of another device"),
        (format!("/v1/blobs/{}", "0".repeat(64)), "one that does not exist looks the same"),
        (manifest(&second), "another device's manifest"),
        ("/v1/check?d=b&i=1.0.0.0.0&o=1.0.0.0".into(), "another device's metadata"),
        ("/v1/director/b/timestamp.json".into(), "another device's director files"),
    ] {
        assert_eq!(world.ask(&as_a, &foreign, None).await.0, 403, "{why}");
    }
    assert_eq!(world.get(&path(&other)).await.0, 200, "operators read all");
    assert_eq!(world.ask(&world.https(None), &path(&own), None).await.0, 401, "strangers nothing");
    world.assign(&a.id, 2, &second).await;
    assert_eq!(world.ask(&as_a, &path(&own), None).await.0, 403, "what it was assigned once");
    assert_eq!(world.ask(&as_a, &path(&other), None).await.0, 200);
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_shut_out_gets_no_more_of_what_it_is_fetching() {
    let world = world().await;
    world.hold_meter().await;
    let a = world.enrolled("a").await;
    let large = world.blob(vec![7; LARGE]).await;
    let release = world.release("large", large).await;
    world.assign(&a.id, 1, &release).await;
    let http = world.https(Some(&a));
    let url = format!("https://{}{}", world.controller.api, path(&large));
    let response = http.get(url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.bytes_stream();
    let mut got = body.next().await.unwrap().unwrap().len();
    world.set_state("a", "retired").await;
    while let Some(Ok(chunk)) = body.next().await {
        got += chunk.len();
    }
    assert!(got < LARGE, "the whole blob came");
    assert_eq!(world.ask(&http, &path(&large), None).await.0, 403);
    world.set_state("a", "active").await;
    assert_eq!(world.ask(&world.https(Some(&a)), "/v1/check?d=a&i=1.0.0.0.0&o=1.0.0.0", None).await.0, 200);
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_with_one_key_are_reported_and_raise_an_alert() {
    let world = world().await;
    let a = world.enrolled("a").await;
    let topic = Topic::up(&a.id, Up::Status).to_string();
    // The copy and the original take the session from each other; each connect has a higher epoch.
    for (boot, epoch) in [(1, 1), (2, 2), (1, 3), (2, 4)] {
        let (client, mut events) = world.connect("a", &a.signer).await.unwrap();
        let body = Status { online: true, epoch, agent: "0".into() };
        assert!(publish(&client, &mut events, &topic, record(&a, Kind::Status, boot, epoch, &body)).await);
    }
    let raised = async {
        loop {
            let (_, alerts) = world.get("/v1/alerts?open=true").await;
            let ours = |alert: &&Value| alert["kind"] == "cloned_identity" && alert["subject"] == "device:a";
            if let Some(alert) = alerts.as_array().unwrap().iter().find(ours) {
                return alert.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let alert = timeout(LIMIT, raised).await.expect("the clone is reported");
    assert!(alert["detail"].as_str().unwrap().contains("revoke"), "{alert}");
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_replayed_and_missing_reports_show_at_the_device() {
    let world = world().await;
    let (a, b) = (world.enrolled("a").await, world.enrolled("b").await);
    let (client, mut events) = world.connect("a", &a.signer).await.unwrap();
    let topic = Topic::up(&a.id, Up::Telemetry).to_string();
    let mut forged = window(&a.id, &a.signer);
    *forged.last_mut().unwrap() ^= 1;
    let first = window(&a.id, &a.signer);
    let fifth = record(&a, Kind::Window, 7, 5, &window_body());
    for payload in [
        forged,
        // Signed by another device's key, in this one's name.
        window(&a.id, &b.signer),
        // Another device's genuine message on this one's topic.
        window(&b.id, &b.signer),
        first.clone(),
        first,
        fifth,
    ] {
        assert!(publish(&client, &mut events, &topic, payload).await);
    }
    let shown = async {
        loop {
            let (_, detail) = world.get("/v1/devices/a").await;
            let refused = detail["refused"].as_array().unwrap();
            let count: u64 = refused.iter().map(|row| row["count"].as_u64().unwrap()).sum();
            let boot = &detail["boots"][0];
            if count == 3 && boot["repeated"] == 1 && boot["missing"] == json!([[2, 4]]) {
                return detail;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let detail = timeout(LIMIT, shown).await.expect("three refused, one repeated, three missing");
    assert_eq!(detail["refused"][0]["reason"], "envelope_signature", "{}", detail["refused"]);
    assert_eq!(detail["boots"][0]["windows_stored"], 2);
    assert_eq!(world.controller.state.store.windows_count(Some(&b.id)).await.unwrap(), 0);
    world.controller.stop().await;
}
