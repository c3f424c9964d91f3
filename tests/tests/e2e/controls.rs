//! Negative controls: with the defence behind it switched off, a claim of the demonstration does not hold.
//!
//! Two worlds, with the same claims called as in the demonstration. In the first, which is attacked as the demonstration
//! attacks its own, each device but the first runs without one defence, and the controller is started anew without one
//! where the controller is what defends. In the second, small one the cameras age. Where it costs nothing, the same
//! claim is shown to hold in the same world for who has the defence.
mod ageing;
mod attacks;
mod models;
mod telemetry;
mod world;

use std::time::Instant;

use ageing::Fleet;
use dunlin_protocol::DeviceId;
use dunlin_tests::attacker::Attacker;
use dunlin_tests::claims;
use dunlin_tests::controller::Controller;
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use world::{CLASS, EVIDENCE, HELD, LIMIT, N, NO_VERSIONS, WHOLE, WITHOUT, World, fails};

/// Tells when a part of a world begins.
fn telling(world: &'static str) -> impl Fn(&str) {
    let began = Instant::now();
    move |what: &str| eprintln!("{:6.1} s  {world}: {what}", began.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_defence_a_claim_does_not_hold() {
    let told = telling("attacked");
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut controller = Controller::new(folder);
    controller.init(&format!("{CONTROLLER_CONFIG}{EVIDENCE}")).await.unwrap();
    controller.start().await.unwrap();
    let config = AGENT_CONFIG.replace("check_s = 5", "check_s = 3600");
    let mut small = Small::with(folder, &[CLASS; N], controller, &config).unwrap();
    for (agent, without) in small.agents.iter_mut().zip(WITHOUT).filter(|(_, without)| !without.is_empty()) {
        agent.weaken(without);
    }
    small.enrol().await.unwrap();
    small.controller.json(&["group", "create", "held"]).await.unwrap();
    small.controller.json(&["device", "group", &small.agents[HELD].id, "held"]).await.unwrap();
    let database = small.controller.database().await.unwrap();
    fails(claims::every_device_serves(&database, N).await);
    let attacker = Attacker::new(&small.controller.data, small.controller.mqtt);
    let old = [WHOLE, NO_VERSIONS].map(|i| (i, small.agents[i].id.parse::<DeviceId>().unwrap()));
    let mut stolen = Vec::new();
    for (index, device) in old {
        let files =
            wait_for("the first director files", LIMIT, async || Ok(attacker.director_files(&device).ok()));
        stolen.push((index, files.await.unwrap()));
    }
    let first = small.first_model(folder).await.unwrap();
    small.ask().unwrap();
    small.committed(&first, LIMIT).await.unwrap();
    claims::every_device_serves(&database, N).await.unwrap();
    claims::own_key_and_signed_model(&small.controller, &database, N).await.unwrap();

    let mut world = World { small, database, attacker, first };
    told("attacks");
    world.attacks(&stolen).await;
    told("tampering");
    world.tampering(folder).await;
    told("losses");
    world.losses().await;
    told("copies");
    world.copies().await;
    told("learning");
    world.learning(folder).await;
    told("bad model");
    world.bad_model(folder).await;
    told("by itself");
    world.by_itself(folder).await;
    told("audit");
    world.audit().await;
    told("end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_defence_a_claim_of_ageing_does_not_hold() {
    let told = telling("ageing");
    let folder = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::new(folder.path()).await;
    told("the first models");
    fleet.chosen().await;
    told("aged cameras");
    fleet.aged().await;
    told("end");
}
