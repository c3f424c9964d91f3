//! Batch tokens: serial lists, the queue of those that wait, and what strangers may do at the door.
use std::time::Duration;

use rcgen::PublicKeyData;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{Device, World, world, world_with};

impl World {
    /// A batch's secret.
    async fn batch(&self, body: Value) -> String {
        let (status, made) = self.post("/v1/batches", body).await;
        assert_eq!(status, 200, "{made}");
        let token: dunlin_protocol::ClaimToken = made["token"].as_str().unwrap().parse().unwrap();
        token.secret
    }

    /// Asks to enrol, with the header that says when to come again.
    async fn knock(&self, key: &rcgen::KeyPair, secret: &str, more: Value) -> (u16, Value) {
        let mut request = Device::request(key, secret);
        for (name, value) in more.as_object().unwrap() {
            request[name] = value.clone();
        }
        self.ask(&self.https(None), "/v1/enrol", Some(request)).await
    }

    async fn decide(&self, id: &Value, verb: &str, body: Value) -> (u16, Value) {
        self.post(&format!("/v1/admissions/{}/{verb}", id.as_str().unwrap()), body).await
    }

    async fn audited(&self, what: &str) -> Vec<Value> {
        let (_, log) = self.get("/v1/audit").await;
        log.as_array().unwrap().iter().filter(|row| row["what"] == what).cloned().collect()
    }
}

fn check(device: &str) -> String {
    format!("/v1/check?d={device}&i=1.0.0.0.0&o=1.0.0.0")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_needs_approval_waits_until_an_operator_decides() {
    let world = world().await;
    let secret = world.batch(json!({ "waiting_max": 2, "groups": ["north"] })).await;
    let (honest, rogue, third) = (Device::key(), Device::key(), Device::key());
    let (status, waits) = world.knock(&honest, &secret, json!({ "device": "pole-1" })).await;
    assert_eq!(status, 202, "{waits}");
    assert!(world.connect("pole-1", &Device::of("pole-1", &honest, "").signer).await.is_err());
    let (status, again) = world.knock(&honest, &secret, json!({ "device": "pole-1" })).await;
    assert_eq!((status, &again["id"]), (202, &waits["id"]), "the same key is one device");
    let (_, rival) = world.knock(&rogue, &secret, json!({ "device": "pole-1" })).await;
    let (status, full) = world.knock(&third, &secret, json!({ "device": "pole-3" })).await;
    assert_eq!(status, 409, "no more wait than the token allows: {full}");

    let (_, pending) = world.get("/v1/admissions").await;
    assert_eq!(pending.as_array().unwrap().len(), 2);
    let shown = pending.as_array().unwrap().iter().find(|row| row["id"] == waits["id"]).unwrap();
    assert_eq!((&shown["key_id"], &shown["state"]), (&waits["key_id"], &json!("waiting")));

    assert_eq!(world.decide(&waits["id"], "approve", json!({})).await.0, 200);
    assert_eq!(world.decide(&waits["id"], "reject", Value::Null).await.0, 409, "decided is decided");
    assert_eq!(world.decide(&rival["id"], "approve", json!({})).await.0, 409, "the id is taken");
    assert_eq!(world.decide(&rival["id"], "reject", Value::Null).await.0, 200);
    assert_eq!(world.knock(&rogue, &secret, json!({ "device": "pole-1" })).await.0, 403);

    let (status, answer) = world.knock(&honest, &secret, json!({ "device": "pole-1" })).await;
    assert_eq!(status, 200, "{answer}");
    let device = Device::of("pole-1", &honest, answer["certificate_pem"].as_str().unwrap());
    assert_eq!(world.ask(&world.https(Some(&device)), &check("pole-1"), None).await.0, 200);
    assert!(world.connect("pole-1", &device.signer).await.is_ok());
    let (_, repeated) = world.knock(&honest, &secret, json!({ "device": "pole-1" })).await;
    assert_eq!(repeated["certificate_pem"], answer["certificate_pem"], "a lost answer is given again");
    let (_, row) = world.get("/v1/devices/pole-1").await;
    assert_eq!(row["device"]["groups"], json!(["north"]));
    assert_eq!(world.get("/v1/admissions").await.1, json!([]));
    for (what, rows) in [("device.wait", 2), ("device.approve", 1), ("device.reject", 1), ("device.enrol", 1)]
    {
        assert_eq!(world.audited(what).await.len(), rows, "{what}");
    }
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_serial_is_admitted_once_under_its_id_and_takes_nobodys_place() {
    let world = world().await;
    world.enrolled("old").await;
    let keyed = Device::key();
    let key_id = dunlin_controller::store::key_id(&keyed.subject_public_key_info());
    let list = json!([
        { "serial": "s1", "device": "pole-1", "groups": ["roof"] },
        { "serial": "s2", "device": "pole-2", "key_id": key_id },
    ]);
    let taken = json!({ "list": [{ "serial": "s9", "device": "old" }] });
    assert_eq!(world.post("/v1/batches", taken).await.0, 409, "a list names no device that is there");
    let secret = world.batch(json!({ "list": list })).await;

    let (first, second) = (Device::key(), Device::key());
    let serial = |serial: &str| json!({ "serial": serial, "device": "whatever" });
    let (status, answer) = world.knock(&first, &secret, serial("s1")).await;
    assert_eq!((status, &answer["device"]), (200, &json!("pole-1")), "{answer}");
    assert_eq!(world.knock(&second, &secret, serial("s1")).await.0, 409, "a serial is admitted once");
    assert_eq!(world.knock(&second, &secret, serial("s2")).await.0, 409, "the list knows another key");
    assert_eq!(world.knock(&keyed, &secret, serial("s2")).await.0, 200);
    assert_eq!(world.knock(&second, &secret, serial("s3")).await.0, 409, "nobody else may wait here");
    assert_eq!(world.knock(&second, &secret, serial("a b")).await.0, 400);
    let (_, batches) = world.get("/v1/batches").await;
    let path = format!("/v1/batches/{}", batches[0]["id"].as_str().unwrap());
    assert_eq!(world.call(Method::DELETE, &world.token, &path, Value::Null).await.0, 200);
    assert_eq!(world.knock(&Device::key(), &secret, serial("s1")).await.0, 409, "an ended token");
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_down_by_address_and_says_when_to_come_again() {
    let world = world_with("[limits]\nwrong_per_minute = 10\n").await;
    let device = world.enrolled("a").await;
    let http = world.https(None);
    let guess = |n: usize| {
        let url = format!("https://{}/v1/devices", world.controller.api);
        http.get(url).bearer_auth(format!("guess-{n}")).send()
    };
    let mut refused = None;
    for n in 0..60 {
        let response = guess(n).await.unwrap();
        if response.status() == 429 {
            refused = Some(response);
            break;
        }
        assert_eq!(response.status(), 401);
    }
    let refused = refused.expect("sixty guesses in a row are too many");
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=6).contains(&wait), "{wait}");
    assert_eq!(world.get("/v1/devices").await.0, 429, "what comes after is not even looked at");
    assert_eq!(world.knock(&Device::key(), "no such claim at all", json!({})).await.0, 429);
    assert_eq!(world.ask(&world.https(Some(&device)), &check("a"), None).await.0, 200, "devices go on");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(world.get("/v1/devices").await.0, 200);
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolment_is_limited_by_address_and_bodies_by_length() {
    let world = world_with("[limits]\nenrol_per_minute = 5\n").await;
    let secret = world.batch(json!({ "waiting_max": 1 })).await;
    let key = Device::key();
    let mut answers = Vec::new();
    for _ in 0..7 {
        answers.push(world.knock(&key, &secret, json!({ "device": "a" })).await.0);
    }
    assert_eq!(answers[..5], [202; 5]);
    assert_eq!(answers[6], 429);

    let long = json!({ "device": "a", "serial": "x".repeat(100_000) });
    let (status, refusal) = world.knock(&key, &secret, long).await;
    assert_eq!(status, 413);
    assert!(refusal["error"].as_str().unwrap().contains("65536"), "{refusal}");
    let (status, refusal) = world.post("/v1/claims", json!("x".repeat((2 << 20) + 100))).await;
    assert_eq!(status, 413);
    assert!(refusal["error"].as_str().unwrap().contains("2097152"), "{refusal}");
    let (status, refusal) = world.post("/v1/claims", json!({ "device": 7 })).await;
    assert_eq!(status, 422);
    assert!(refusal["error"].as_str().unwrap().contains("device"), "{refusal}");
    world.controller.stop().await;
}
