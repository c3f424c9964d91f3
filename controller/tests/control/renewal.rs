//! Certificates that end: renewed before, after, and not by others.
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::world::{Device, LIMIT, World, world, world_with};

/// Certificates of this test live so long.
const LIFE: Duration = Duration::from_secs(8);

async fn renew(world: &World, with: Option<&Device>, device: &str, key: &rcgen::KeyPair) -> (u16, Value) {
    let body = json!({ "device": device, "csr_pem": Device::csr(key) });
    world.ask(&world.https(with), "/v1/renew", Some(body)).await
}

fn renewed(device: &Device, answer: &Value) -> Device {
    Device::of(device.id.as_str(), &device.key, answer["certificate_pem"].as_str().unwrap())
}

fn check(device: &Device) -> String {
    format!("/v1/check?d={}&i=1.0.0.0.0&o=1.0.0.0", device.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_certificate_is_given_again_and_nobody_else_gets_it() {
    let world = world().await;
    let (a, b) = (world.enrolled("a").await, world.enrolled("b").await);
    let (status, answer) = renew(&world, Some(&a), "a", &a.key).await;
    assert_eq!((status, answer["certificate_pem"].as_str()), (200, Some(a.certificate.as_str())), "{answer}");
    for (with, device, key, expected, why) in [
        (Some(&b), "a", &a.key, 403, "another device's certificate"),
        (Some(&a), "a", &b.key, 403, "another key"),
        (Some(&a), "b", &a.key, 403, "in another's name"),
        (None, "a", &a.key, 409, "no certificate while there is a valid one"),
        (None, "a", &b.key, 403, "neither certificate nor key"),
        (None, "stranger", &a.key, 403, "a device that never enrolled"),
    ] {
        assert_eq!(renew(&world, with, device, key).await.0, expected, "{why}");
    }
    world.set_state("a", "retired").await;
    assert_eq!(renew(&world, Some(&a), "a", &a.key).await.0, 403, "a retired device");
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_late_in_its_life_and_after_its_end_by_its_key_alone() {
    let world = world_with(&format!("[identity]\ndevice_valid_s = {}\n", LIFE.as_secs())).await;
    let first = world.enrolled("a").await;
    assert_eq!(world.ask(&world.https(Some(&first)), &check(&first), None).await.0, 200);
    // Late in its life, with some seconds to spare for what follows.
    tokio::time::sleep(LIFE * 5 / 8).await;
    let (status, answer) = renew(&world, Some(&first), "a", &first.key).await;
    assert_eq!(status, 200, "{answer}");
    let second = renewed(&first, &answer);
    assert_ne!(second.certificate, first.certificate);

    tokio::time::sleep(LIFE + LIFE / 4).await;
    assert_eq!(
        world.ask(&world.https(Some(&second)), &check(&second), None).await.0,
        0,
        "TLS takes no lapsed one"
    );
    let stranger = Device::key();
    assert_eq!(renew(&world, None, "a", &stranger).await.0, 403, "a lapsed device's name is no way in");
    world.refuse_rows(true).await;
    assert_eq!(renew(&world, None, "a", &second.key).await.0, 500, "no certificate without its row");
    world.refuse_rows(false).await;
    let known = world.controller.state.store.certificates(&second.id, 9).await.unwrap();
    assert_eq!(known.len(), 2, "{known:?}");
    let (status, answer) = renew(&world, None, "a", &second.key).await;
    assert_eq!(status, 200, "{answer}");
    let third = renewed(&second, &answer);
    assert_eq!(world.ask(&world.https(Some(&third)), &check(&third), None).await.0, 200);

    let (_, log) = world.get("/v1/audit").await;
    let log = log.as_array().unwrap();
    let renewals: Vec<_> = log.iter().filter(|row| row["what"] == "device.renew").collect();
    assert_eq!(renewals.len(), 2);
    assert!(renewals[1]["after"].as_str().unwrap().contains("\"lapsed\":true"), "{}", renewals[1]);

    tokio::time::sleep(LIFE + LIFE / 4).await;
    world.set_state("a", "revoked").await;
    assert_eq!(renew(&world, None, "a", &third.key).await.0, 403, "a revoked device");
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_too_long_needs_a_new_claim_and_the_old_key_is_out() {
    let world = world_with("[identity]\ndevice_valid_s = 6\nlapsed_s = 0\n").await;
    let old = world.enrolled("a").await;
    tokio::time::sleep(Duration::from_millis(6500)).await;
    let (status, answer) = renew(&world, None, "a", &old.key).await;
    assert_eq!(status, 409);
    assert!(answer["hint"].as_str().unwrap().contains("claim"), "{answer}");
    let new = world.enrolled("a").await;
    assert_eq!(world.ask(&world.https(Some(&new)), &check(&new), None).await.0, 200);
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_former_key_opens_nothing() {
    let world = world().await;
    let old = world.enrolled("a").await;
    let kept = world.https(Some(&old));
    assert_eq!(world.ask(&kept, &check(&old), None).await.0, 200);
    let (_client, mut session) = world.connect("a", &old.signer).await.unwrap();
    let new = world.enrolled("a").await;
    let ended = async { while session.poll().await.is_ok() {} };
    timeout(LIMIT, ended).await.expect("the session of the former key ends");
    assert_eq!(world.ask(&kept, &check(&old), None).await.0, 403, "on a connection that was open");
    assert_eq!(renew(&world, Some(&old), "a", &old.key).await.0, 403);
    assert!(world.connect("a", &old.signer).await.is_err(), "nor does the key at the broker");
    assert_eq!(world.ask(&world.https(Some(&new)), &check(&new), None).await.0, 200);
    world.controller.stop().await;
}
