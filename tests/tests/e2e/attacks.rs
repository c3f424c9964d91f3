//! Attacks from the attacker's real position on running agents, and the reason codes that they indicate in a report that
//! came after the attack began.
mod scene;

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::{Check, DeviceId, Down, RepoFiles, Topic};
use dunlin_tests::agent::Agent;
use dunlin_tests::attacker::Attacker;
use dunlin_tests::claims;
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{NEW, views};
use dunlin_tests::mirror::{Answer, Mirror, checks};
use dunlin_tests::operator::{definition, push, push_file, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use dunlin_tests::wide::annotate;
use scene::Scene;
use sqlx::SqlitePool;

const LIMIT: Duration = Duration::from_secs(90);

/// Mounts an attack, and waits for what its victim tells of it as an indicator of a later report.
async fn tells(
    database: &SqlitePool,
    victim: &DeviceId,
    reason: &str,
    attack: impl Future<Output = anyhow::Result<()>>,
) {
    let since = claims::last_indicator(database).await.unwrap();
    attack.await.unwrap();
    told(database, victim, reason, since).await;
}

async fn told(database: &SqlitePool, victim: &DeviceId, reason: &str, since: i64) {
    claims::refused(database, victim.as_str(), reason, since, LIMIT).await.unwrap();
}

/// Waits until an agent's log says something.
async fn logged(agent: &Agent, text: &str) {
    wait_for(&format!("{} to log {text}", agent.id), LIMIT, async || {
        Ok(agent.log()?.contains(text).then_some(()))
    })
    .await
    .unwrap();
}

/// The director files that a device is served now.
async fn director(attacker: &Attacker, device: &DeviceId) -> RepoFiles {
    let files = wait_for("director files", LIMIT, async || Ok(attacker.director_files(device).ok()));
    files.await.unwrap()
}

/// Waits until the controller assigns a release to a device.
async fn assigned(attacker: &Attacker, device: &DeviceId, release: &str) {
    let manifest = format!("{}.json", release.replace('@', "."));
    wait_for("an assignment", LIMIT, async || {
        let Ok(files) = attacker.director_files(device) else { return Ok(None) };
        let targets = files.targets.unwrap_or_default();
        Ok(String::from_utf8_lossy(targets.as_slice()).contains(&manifest).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_attacker_with_online_keys_sends_is_refused_by_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    // Two of three people sign.
    let mut controller = Controller::new(folder.path());
    controller.init_signed_by(CONTROLLER_CONFIG, 3, 2).await.unwrap();
    controller.start().await.unwrap();
    let mut world = Small::with(folder.path(), &["raspberry-pi-4"; 2], controller, AGENT_CONFIG).unwrap();
    world.enrol().await.unwrap();
    let (victim, other): (DeviceId, DeviceId) = ("pole-0".parse().unwrap(), "pole-1".parse().unwrap());
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    // What is replayed later: the victim's director files before it had any model.
    let old = wait_for("the victim's first director files", LIMIT, async || {
        Ok(attacker.director_files(&victim).ok())
    })
    .await
    .unwrap();
    let release = world.first_model(folder.path()).await.unwrap();
    world.ask().unwrap();
    world.committed(&release, LIMIT).await.unwrap();
    let database = world.controller.database().await.unwrap();
    let before = claims::serving(&database).await.unwrap();
    let attacks = Scene {
        folder: folder.path(),
        world: &world,
        attacker: &attacker,
        database: &database,
        victim: &victim,
        assigned: attacker.assignment(&victim).unwrap().tasks,
    };

    // Before anything is forged for it, so that nothing of its own can look like a step back.
    tells(&database, &victim, "metadata_rollback", attacker.push(&victim, old)).await;
    attacks.replayed(&other).await;
    attacks.forged().await;
    let base = scene::bundle(&world.controller, &release).await;
    attacks.too_few_signatures(&base).await;
    attacks.retrained(&base).await;
    attacks.misfits(&base).await;
    attacks.closed(&base).await;
    scene::torn(&mut world.agents[1], &database, &other).await;

    let devices: Vec<_> = world.agents.iter().collect();
    claims::no_model_moved(&devices, &before, &database, &[]).await.unwrap();
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}

/// Somebody took the server's key and its files, and answers devices in the controller's place. Another has the place alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mirror_with_the_servers_key_tries_is_refused_by_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &["raspberry-pi-4"; 7]).await.unwrap();
    world.enrol().await.unwrap();
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    let ids: Vec<DeviceId> = world.agents.iter().map(|agent| agent.id.parse().unwrap()).collect();
    let [endless, slow, mixed, hollow, longer, bent] = [0, 1, 2, 3, 4, 5].map(|i: usize| ids[i].as_str());
    let before = director(&attacker, &ids[2]).await;
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    let release = world.first_model(folder.path()).await.unwrap();
    for id in &ids {
        assigned(&attacker, id, &release).await;
    }
    world.controller.stop().await.unwrap();

    // New timestamp and snapshot, old targets: each is signed, together they are not.
    let old_targets = RepoFiles { targets: before.targets, ..attacker.director_files(&ids[2]).unwrap() };
    let genuine = |id| {
        let files = attacker.check(attacker.director_files(id).unwrap()).unwrap();
        Answer::Check(Box::new(files))
    };
    let model = attacker.model_of(&ids[3]).unwrap();
    let answers = |of_blob: Answer| {
        let mut answers = checks(BTreeMap::from([
            (endless, Answer::Endless),
            (slow, Answer::Drip),
            (mixed, Answer::Check(Box::new(attacker.check(old_targets.clone()).unwrap()))),
            (hollow, genuine(&ids[3])),
            (longer, genuine(&ids[4])),
            (bent, genuine(&ids[5])),
        ]));
        answers.push((format!("/v1/blobs/{model}"), of_blob));
        answers
    };
    let database = world.controller.database().await.unwrap();
    let since = claims::last_indicator(&database).await.unwrap();
    let address = world.controller.api;
    let mirror = Mirror::open(&world.controller.data, address, answers(Answer::Missing)).await.unwrap();
    for index in [0, 1, 2] {
        world.agents[index].start().await.unwrap();
    }
    let held_up = [(0, "metadata_too_large"), (1, "slow_retrieval"), (2, "metadata_mismatch")];
    for (index, reason) in held_up {
        logged(&world.agents[index], &format!("reason={reason}")).await;
    }
    // Manifests come, and one of the files that they name does not; what is refused often enough is given up, so these two
    // do not wait for the slow one.
    world.agents[3].start().await.unwrap();
    logged(&world.agents[3], "reason=file_missing").await;
    mirror.close().await.unwrap();
    let mirror = Mirror::open(&world.controller.data, address, answers(Answer::Endless)).await.unwrap();
    world.agents[4].start().await.unwrap();
    logged(&world.agents[4], "reason=length_mismatch").await;
    mirror.close().await.unwrap();
    // The file is as long as it was signed to be, and one bit of it is another.
    attacker.tamper(&model.to_string()).unwrap();
    let mirror = Mirror::open(&world.controller.data, address, answers(Answer::Genuine)).await.unwrap();
    world.agents[5].start().await.unwrap();
    logged(&world.agents[5], "reason=digest_mismatch").await;
    mirror.close().await.unwrap();
    attacker.tamper(&model.to_string()).unwrap();
    // Without the key nobody is asked anything, at the API or at the broker; each is told once, however long it lasts.
    let [api, broker] = ["impostor-api", "impostor-broker"].map(|name| folder.path().join(name));
    let api = Mirror::impostor(&api, address).await.unwrap();
    let broker = Mirror::impostor(&broker, world.controller.mqtt).await.unwrap();
    world.agents[6].start().await.unwrap();
    for text in ["does not prove to be the controller", "somebody answers in the broker's place"] {
        logged(&world.agents[6], text).await;
    }
    // Long enough for further tries.
    tokio::time::sleep(Duration::from_secs(3)).await;
    api.close().await.unwrap();
    broker.close().await.unwrap();

    // It delayed them, and that shows.
    world.controller.start().await.unwrap();
    let given_up = [(3, "file_missing"), (4, "length_mismatch"), (5, "digest_mismatch")];
    for (index, reason) in held_up.into_iter().chain(given_up) {
        told(&database, &ids[index], reason, since).await;
    }
    told(&database, &ids[6], "server_untrusted", since).await;
    world.ask().unwrap();
    // After a minute or more between two tries of who had the most failures.
    world.committed(&release, 3 * LIMIT).await.unwrap();
    let query = "SELECT sum(count) FROM indicators WHERE device = ? AND reason = 'server_untrusted'";
    let times: i64 = sqlx::query_scalar(query).bind(ids[6].as_str()).fetch_one(&database).await.unwrap();
    assert_eq!(times, 2, "once of the API and once of the broker");
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}

/// Freezing, driving versions and numbers as high as they go, assigning what is withdrawn and what is not for the hardware:
/// all of it signed. New online keys, named by the offline ones, take all of it away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stolen_online_keys_sign_ahead_is_taken_away_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let classes = ["raspberry-pi-4", "raspberry-pi-4", "beaglebone-black"];
    let mut world = Small::new(folder.path(), &classes).await.unwrap();
    world.enrol().await.unwrap();
    let ids: Vec<DeviceId> = world.agents.iter().map(|agent| agent.id.parse().unwrap()).collect();
    let [frozen, hasty, small] = [0, 1, 2].map(|i: usize| &ids[i]);
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    let first = world.first_model(folder.path()).await.unwrap();
    world.ask().unwrap();
    world.committed(&first, LIMIT).await.unwrap();
    let database = world.controller.database().await.unwrap();

    // Approved, for hardware with more room.
    let images = views(&world.pools.training, NEW, 1, 1);
    let job = folder.path().join("second");
    let result = train(&world.controller, &job, &images, &["logistic"], 2).await.unwrap();
    let model =
        job.join("candidates").join(result["candidates"][0]["id"].as_str().unwrap()).join("model.onnx");
    let file = job.join("large.onnx");
    std::fs::write(&file, annotate(&std::fs::read(model).unwrap(), 64 << 10).unwrap()).unwrap();
    let candidate = &result["candidates"][0];
    let large = push_file(&world.controller, &job, &file, "meter-large", candidate).await.unwrap();
    let second = push(&world.controller, &job, "logistic", "meter-second", candidate).await.unwrap();
    let keys = world.offline_keys();
    world.controller.json(&["model", "approve", "--keys", &keys]).await.unwrap();
    let misfit = attacker.forge(small, |assignment| {
        assignment.generation += 1;
        assignment.tasks[0].lineup.champion = large.parse().unwrap();
    });
    tells(&database, small, "size_exceeded", attacker.push(small, misfit.unwrap())).await;

    // As far ahead as numbers go.
    let ahead = Attacker::new(&world.controller.data, world.controller.mqtt).at_the_end();
    let far = Check {
        image: ahead.forge_image(None, None).unwrap(),
        director: ahead.forge(hasty, |assignment| assignment.generation = u64::MAX >> 1).unwrap(),
    };
    let topic = Topic::down(hasty, Down::Desired);
    let driven_up = claims::last_indicator(&database).await.unwrap();
    attacker.publish(&topic, attacker.seal_check(hasty, far, u64::MAX).unwrap()).await.unwrap();
    // It hears no acknowledgement any more, so what it has to say waits in its spool.
    for reason in ["metadata_rollback", "envelope_replayed"] {
        logged(&world.agents[1], &format!("reason={reason}")).await;
    }

    // A timestamp that ends at once, and the controller's own files kept away.
    let ends = time::OffsetDateTime::now_utc() + Duration::from_secs(30);
    let files = attacker.forge_timestamp(frozen, ends).unwrap();
    attacker.push(frozen, files.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    tells(&database, frozen, "metadata_expired", attacker.push(frozen, files)).await;

    // Signers withdraw; who holds the online keys assigns it all the same.
    let withdrawn = attacker.forge(small, |assignment| assignment.generation += 2).unwrap();
    world.controller.json(&["model", "withdraw", &first, "--keys", &keys]).await.unwrap();
    tells(&database, small, "below_release_floor", attacker.push(small, withdrawn)).await;

    // Everything is kept away from a device whose files have expired.
    let cut_off = claims::last_indicator(&database).await.unwrap();
    world.controller.stop().await.unwrap();
    logged(&world.agents[0], "no check is answered").await;
    let stolen = world.controller.new_online_keys(folder.path()).await.unwrap();
    world.controller.start().await.unwrap();
    told(&database, frozen, "metadata_expired", cut_off).await;
    let task = folder.path().join("task.toml");
    let pool = [second.clone()].into();
    std::fs::write(&task, definition(&pool, None)).unwrap();
    world.controller.json(&["task", "apply", &task.display().to_string()]).await.unwrap();
    world.committed(&second, LIMIT).await.unwrap();
    // The acknowledgements of the controller are heard again.
    let acked = || -> u64 {
        let file = world.agents[1].folder.join("state/spool/counters.json");
        let books: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        books["boots"].as_array().unwrap().iter().filter_map(|boot| boot["acked"].as_u64()).sum()
    };
    for reason in ["metadata_rollback", "envelope_replayed"] {
        told(&database, hasty, reason, driven_up).await;
    }
    let before = acked();
    wait_for("records to be acknowledged", LIMIT, async || Ok((acked() > before).then_some(())))
        .await
        .unwrap();

    // What was stolen signs nothing any more that anybody takes, whoever carries it.
    let thief = Attacker::new(&world.controller.data, world.controller.mqtt).with_keys(&stolen);
    let forged = thief.forge(frozen, |assignment| assignment.generation += 1).unwrap();
    tells(&database, frozen, "envelope_signature", thief.push(frozen, forged.clone())).await;
    let medium = folder.path().join("medium");
    thief.medium(&medium, frozen, &thief.check(forged).unwrap(), &[], &[]).unwrap();
    tells(&database, frozen, "signature_threshold", async {
        // The command may fail or not: what counts is what the agent tells.
        drop(world.agents[0].run(&["install", &medium.display().to_string()]).await);
        Ok(())
    })
    .await;
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}
