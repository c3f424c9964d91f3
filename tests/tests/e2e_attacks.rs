//! Attacks from the attacker's real position on running agents, and the reason codes they report.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::time::Duration;

use dunlin_protocol::{DeviceId, Down, Topic};
use dunlin_tests::agent::Application;
use dunlin_tests::attacker::Attacker;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use sqlx::{Row, SqlitePool};

const LIMIT: Duration = Duration::from_secs(90);

async fn reported(database: &SqlitePool, device: &DeviceId, reason: &str) {
    wait_for(&format!("{device} to report {reason}"), LIMIT, async || {
        let row = sqlx::query("SELECT (SELECT count(*) FROM indicators WHERE device = ?1 AND reason = ?2) + (SELECT count(*) FROM outcomes WHERE device = ?1 AND reason = ?2)")
            .bind(device.as_str())
            .bind(reason)
            .fetch_one(database)
            .await?;
        Ok((row.get::<i64, _>(0) > 0).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_attacker_with_online_keys_sends_is_refused_by_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &["raspberry-pi-4", "raspberry-pi-4"]).await.unwrap();
    world.enrol().await.unwrap();
    let (victim, other): (DeviceId, DeviceId) = ("pole-0".parse().unwrap(), "pole-1".parse().unwrap());
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    // What is replayed later: the victim's director files before it had any model.
    let old = wait_for("the victim's first director files", LIMIT, async || {
        Ok(attacker.director_files(&victim).ok())
    })
    .await;
    let release = world.first_model(folder.path()).await.unwrap();
    world.ask().unwrap();
    world.committed(&release, LIMIT).await.unwrap();
    let old = old.unwrap_or_else(|_| attacker.director_files(&victim).unwrap());
    let database = world.controller.database().await.unwrap();

    let forged = attacker.forge(&victim, |assignment| assignment.device = other.clone()).unwrap();
    attacker.push(&victim, forged).await.unwrap();
    reported(&database, &victim, "wrong_device").await;

    attacker.push(&victim, old).await.unwrap();
    reported(&database, &victim, "metadata_rollback").await;

    let unapproved = attacker
        .forge(&victim, |assignment| {
            assignment.generation += 1;
            assignment.tasks[0].lineup.champion = "meter-evil@1".parse().unwrap();
        })
        .unwrap();
    attacker.push(&victim, unapproved).await.unwrap();
    reported(&database, &victim, "not_approved").await;

    // One message, delivered twice: the counter refuses the second.
    let sealed = attacker.seal_desired(&victim, attacker.director_files(&victim).unwrap()).unwrap();
    let topic = Topic::down(&victim, Down::Desired);
    attacker.publish(&topic, sealed.clone()).await.unwrap();
    attacker.publish(&topic, sealed.clone()).await.unwrap();
    reported(&database, &victim, "envelope_replayed").await;
    // The same message to another device, and bytes that are nothing.
    attacker.publish(&Topic::down(&other, Down::Desired), sealed).await.unwrap();
    reported(&database, &other, "envelope_wrong_device").await;
    attacker.publish(&Topic::down(&other, Down::Cmd), b"\xff\x00 not cbor".to_vec()).await.unwrap();
    reported(&database, &other, "envelope_malformed").await;

    let application = Application::new(TASK).unwrap();
    for agent in &world.agents {
        let answer = application.infer(agent.api, "after", &[0.0; PIXELS]).await.unwrap();
        assert_eq!(answer.version, release, "an attack moved a model");
    }
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}
