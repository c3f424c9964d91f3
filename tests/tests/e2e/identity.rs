//! The life of an identity, with real processes: a device waits, is approved, renews its certificate by itself, and
//! comes back after its certificate has ended.
use std::time::Duration;

use dunlin_tests::breakage::{clock, faketime};
use dunlin_tests::operator::definition;
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use serde_json::Value;
use sqlx::{Row, SqlitePool};

const LIMIT: Duration = Duration::from_secs(90);
/// Life of the certificates.
const LIFE: Duration = Duration::from_secs(12);

async fn certificates(database: &SqlitePool, lapsed: bool) -> i64 {
    let row = sqlx::query("SELECT count(*) FROM audit WHERE what = 'device.renew' AND after LIKE ?")
        .bind(format!("%\"lapsed\":{lapsed}%"))
        .fetch_one(database)
        .await
        .unwrap();
    row.get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_approved_renews_by_itself_and_comes_back_with_a_lapsed_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let mut controller = dunlin_tests::controller::Controller::new(folder.path());
    let config = format!("[identity]\ndevice_valid_s = {}\n\n{CONTROLLER_CONFIG}", LIFE.as_secs());
    controller.init(&config).await.unwrap();
    controller.start().await.unwrap();
    let mut world = Small::with(folder.path(), &["raspberry-pi-4"], controller, AGENT_CONFIG).unwrap();

    let claim = world.controller.json(&["device", "claim", "--approve", "--group", "north"]).await.unwrap();
    let token = claim["token"].as_str().unwrap().to_owned();
    let agent = &world.agents[0];
    let refused =
        agent.run(&["enrol", &token, "--device", "pole-0", "--wait", "0"]).await.unwrap_err().to_string();
    let waiting = world.controller.json(&["device", "pending"]).await.unwrap();
    let (id, key) = (waiting[0]["id"].as_str().unwrap(), waiting[0]["key_id"].as_str().unwrap());
    assert!(refused.contains(id) && refused.contains(key), "both sides show the same key: {refused}");
    world.controller.json(&["device", "approve", id]).await.unwrap();
    let enrolled = agent.run(&["enrol", &token, "--device", "pole-0", "--json"]).await.unwrap();
    let enrolled: Value = serde_json::from_str(&enrolled).unwrap();
    assert_eq!((&enrolled["device"], &enrolled["key"]), (&"pole-0".into(), &key.into()));

    let database = world.controller.database().await.unwrap();
    let file = world.agents[0].folder.join("state/identity/device.pem");
    let first = std::fs::read(&file).unwrap();
    world.agents[0].start().await.unwrap();
    wait_for("two renewals", LIMIT, async || Ok((certificates(&database, false).await >= 2).then_some(())))
        .await
        .unwrap();
    assert_ne!(std::fs::read(&file).unwrap(), first);

    world.agents[0].stop().await.unwrap();
    let lapsed = certificates(&database, true).await;
    tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
    world.agents[0].start().await.unwrap();
    wait_for("a renewal after the end", LIMIT, async || {
        Ok((certificates(&database, true).await > lapsed).then_some(()))
    })
    .await
    .unwrap();
    // What the device fetches by its certificate is open to it again, and it is heard in the session that the broker
    // kept for it meanwhile.
    let release = world.first_model(folder.path()).await.unwrap();
    world.ask().unwrap();
    world.committed(&release, LIMIT).await.unwrap();
    world.stop().await.unwrap();
}

/// Thirteen months in a drawer: its certificate and every file that it holds have ended, and the offline holders have renewed
/// roots and targets twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_off_for_a_year_comes_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, _) = Small::serving(folder.path(), &["raspberry-pi-4"], LIMIT).await.unwrap();
    let second = world.model(folder.path(), "meter-second", &world.others(), 2).await.unwrap();
    world.stop().await.unwrap();

    for day in ["+200d", "+400d"] {
        world.controller.live_at(day).unwrap();
        world.controller.renew(&folder.path().join(day)).await.unwrap();
    }
    for repo in ["image", "director"] {
        assert!(world.controller.data.join(format!("repo/{repo}/3.root.json")).is_file(), "{repo}");
    }
    world.controller.start().await.unwrap();
    world.approve(&second).await.unwrap();
    let task = folder.path().join("task.toml");
    std::fs::write(&task, definition(&[second.clone()].into(), None)).unwrap();
    world.controller.json(&["task", "apply", &task.display().to_string()]).await.unwrap();

    let database = world.controller.database().await.unwrap();
    assert_eq!(certificates(&database, true).await, 0);
    let library = faketime().unwrap();
    world.agents[0].start_with(&clock(&library, "+400d")).await.unwrap();
    world.ask().unwrap();
    world.committed(&second, LIMIT).await.unwrap();
    assert_eq!(certificates(&database, true).await, 1, "its certificate had ended");
    world.stop().await.unwrap();
}
