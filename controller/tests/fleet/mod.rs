//! The controller's loop over a fleet, with the real program: assignments, rollouts, retraining, and a
//! controller that is killed in between. Devices are played by writing into the database what their reports
//! would have led to.

use std::fs;

use serde_json::Value;

mod drift;
mod world;

use world::{Manner, World};

pub(crate) const TASK: &str = r#"
task = "meter"
labels = ["a", "b", "c"]
pool = ["meter.base@1"]
held = ["control"]
[rollout]
silence_ms_max = 3600000
waves = [
  { share_ppm = 10000, soak_ms = 0, requests_min = 10, labels_min = 20, alpha_ppm = 10000 },
  { share_ppm = 1000000, soak_ms = 0, requests_min = 10, labels_min = 20, alpha_ppm = 20000 },
]
[retraining]
rows_min = 100
trials = 2
families = ["logistic"]
triggers = { cooldown_ms = 0 }
gain = { rows_min = 20 }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_are_promoted_stopped_and_resumed_after_a_kill() {
    let mut world = World::new().await;
    let file = world.data.join("task.toml");
    fs::write(&file, TASK).unwrap();
    world.json(&["task", "apply", file.to_str().unwrap()]);
    world
        .until(Manner::Better, "the first assignments", |world| {
            let text = world.cli(&["device", "explain", "cam-4"]);
            text.status.success() && String::from_utf8_lossy(&text.stdout).contains("meter.base@1")
        })
        .await;
    world.until(Manner::Better, "installation", |world| world.state_of_all("meter.base@1")).await;

    // Nobody plays, so the time to watch is over.
    let slow = world.create("meter.slow@1");
    assert_eq!(world.cli(&["rollout", "watch", &slow, "--timeout", "1s"]).status.code(), Some(11));
    assert_eq!(world.cli(&["rollout", "abort", &slow]).status.code(), Some(0));
    assert_eq!(world.cli(&["rollout", "watch", &slow, "--timeout", "1s"]).status.code(), Some(10));
    assert_eq!(world.cli(&["rollout", "abort", &slow]).status.code(), Some(4), "it ended");
    assert_eq!(world.cli(&["rollout", "status", "r-none"]).status.code(), Some(3));
    world.until(Manner::Better, "the return", |world| world.state_of_all("meter.base@1")).await;

    // A failing one stops in the canary, and only the canary was ever told to run it.
    let bad = world.create("meter.bad@1");
    world.until(Manner::Failing, "the stop", |world| world.state(&bad) == "stopped").await;
    assert_eq!(world.cli(&["rollout", "watch", &bad, "--timeout", "1s"]).status.code(), Some(10));
    let ordered = world.store.orders(&bad).await.unwrap();
    assert!((1..=2).contains(&ordered.len()), "{ordered:?}");
    world.until(Manner::Better, "the return", |world| world.state_of_all("meter.base@1")).await;
    let (device, order) = ordered.first_key_value().unwrap();
    let known_bad = |world: &World| {
        world.json(&["device", "explain", device.as_str()])[0]["selection"].to_string().contains("known_bad")
    };
    world.until(Manner::Better, "the explanation", known_bad).await;
    world.json(&[
        "device",
        "retarget",
        device.as_str(),
        "--release",
        &order.release.to_string(),
        "--timeout",
        "0",
    ]);
    world.until(Manner::Better, "forgiveness", |world| !known_bad(world)).await;

    // A better one is promoted although the controller is killed on the way; the held device keeps its release.
    let next = world.create("meter.next@1");
    world
        .until(Manner::Better, "the canary", |world| {
            world.json(&["rollout", "status", &next])["plan"]["members"].as_object().unwrap().len() >= 2
        })
        .await;
    world.kill();
    world.start();
    world.until(Manner::Better, "the promotion", |world| world.state(&next) == "promoted").await;
    assert_eq!(world.cli(&["rollout", "watch", &next, "--timeout", "1s"]).status.code(), Some(0));
    let assigned = world.assignments().await;
    for (device, assignment) in &assigned {
        let champion = World::champion(assignment).unwrap().to_string();
        assert_eq!(
            champion,
            if device.as_str() == "cam-5" { "meter.base@1" } else { "meter.next@1" },
            "{device}"
        );
    }
    let plans = world.store.plans(&next).await.unwrap();
    assert_eq!(world.json(&["rollout", "plans", &next]), serde_json::to_value(&plans).unwrap());
    assert_eq!(world.cli(&["rollout", "plans", "r-none"]).status.code(), Some(3));
    assert_eq!(world.json(&["device", "refused"]), serde_json::json!([]));
    assert!(
        plans.windows(2).all(|pair| pair[1].parent == Some(pair[0].generation)),
        "an unbroken line of plans"
    );
    let explained = world.json(&["device", "explain", "cam-5"]);
    assert!(explained[0]["held"].as_bool().unwrap(), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_learns_passes_its_gate_rolls_out_and_repeats_to_the_byte() {
    let mut world = World::new().await;
    let file = world.data.join("task.toml");
    fs::write(&file, TASK).unwrap();
    world.json(&["task", "apply", file.to_str().unwrap()]);
    world.until(Manner::Better, "installation", |world| world.state_of_all("meter.base@1")).await;

    let refused = world.cli(&["run", "start", "nothing"]);
    assert_eq!(refused.status.code(), Some(3));
    // Without samples the run fails for good, and says why.
    let empty = world.json(&["run", "start", "meter"])["id"].as_str().unwrap().to_owned();
    world
        .until(Manner::Better, "the failure", |world| {
            world.json(&["run", "show", &empty])["run"]["state"] == "failed"
        })
        .await;
    assert!(world.json(&["run", "show", &empty]).to_string().contains("too few"));

    world.opposite_samples().await;
    let run = world.json(&["run", "start", "meter"])["id"].as_str().unwrap().to_owned();
    // Wherever the controller is killed, the run goes on from its journal.
    world.kill();
    world.start();
    world
        .until(Manner::Better, "the run", |world| {
            // Read once: between two reads a waiting run starts.
            let state = world.json(&["run", "show", &run])["run"]["state"].clone();
            state != "running" && state != "waiting"
        })
        .await;
    let shown = world.json(&["run", "show", &run]);
    assert_eq!(shown["run"]["state"], "succeeded", "{shown}");
    let rollout = shown["run"]["facts"]["rollout"].as_str().unwrap().to_owned();
    world.until(Manner::Better, "the promotion", |world| world.state(&rollout) == "promoted").await;
    let release = shown["run"]["facts"]["releases"][0].as_str().unwrap();
    assert!(release.starts_with("auto.meter."), "{release}");

    let repeat = world.json(&["run", "repeat", &run])["id"].as_str().unwrap().to_owned();
    world
        .until(Manner::Better, "the repetition", |world| {
            world.json(&["run", "show", &repeat])["run"]["state"] == "no_gain"
        })
        .await;
    assert_eq!(world.json(&["run", "show", &repeat])["run"]["facts"]["identical"], true);
}

/// What devices would refuse by the owner's anchor set is not sent to them, whatever it gained.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_misses_the_signed_anchor_score_is_not_released() {
    let mut world = World::bound(500_000).await;
    let file = world.data.join("task.toml");
    fs::write(&file, TASK).unwrap();
    world.json(&["task", "apply", file.to_str().unwrap()]);
    world.until(Manner::Better, "installation", |world| world.state_of_all("meter.base@1")).await;
    world.opposite_samples().await;
    let shown = world.finished_run().await;
    assert_eq!(shown["run"]["state"], "no_gain", "{shown}");
    let anchor = &shown["run"]["facts"]["anchors"][0];
    assert!(anchor["right_ppm"].as_u64() < anchor["least_ppm"].as_u64(), "{anchor}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_starts_a_run_by_itself() {
    let mut world = World::new().await;
    let file = world.data.join("task.toml");
    fs::write(&file, TASK.replace("cooldown_ms = 0", "cooldown_ms = 3600000, cron = \"* * * * * *\""))
        .unwrap();
    world.json(&["task", "apply", file.to_str().unwrap()]);
    world
        .until(Manner::Better, "the run", |world| world.json(&["run", "list"])[0]["state"] == "failed")
        .await;
    let runs = world.json(&["run", "list"]);
    assert_eq!((runs.as_array().unwrap().len(), &runs[0]["cause"]["cause"]), (1, &Value::from("cron")));
    world
        .until(Manner::Better, "the cool-down", |world| {
            world.json(&["task", "show", "meter"])["triggers"]["verdict"].to_string().contains("cool_down")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_devices_trouble_is_not_the_fleets() {
    let mut world = World::new().await;
    // The published files of one are damaged.
    let folder = world.data.join("repo/director/cam-1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("timestamp.json"), "{").unwrap();
    let file = world.data.join("task.toml");
    fs::write(&file, TASK).unwrap();
    world.json(&["task", "apply", file.to_str().unwrap()]);
    let alerted = |world: &World| world.json(&["alert", "list"]).to_string().contains("assignment_failed");
    world.until(Manner::Better, "the alert", alerted).await;
    world.until(Manner::Better, "the others", |world| world.published() == 5).await;

    fs::remove_dir_all(&folder).unwrap();
    world.until(Manner::Better, "all", |world| world.published() == 6).await;
    world.until(Manner::Better, "the end of the alert", |world| !alerted(world)).await;
}
