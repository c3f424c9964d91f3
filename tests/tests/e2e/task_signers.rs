//! A task with signers of its own, from the delegation to devices with and without a network, and what a mirror gains by
//! withholding their file.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::{Assignment, DeviceId, TaskId};
use dunlin_tests::agent::{Agent, Application};
use dunlin_tests::attacker::Attacker;
use dunlin_tests::claims;
use dunlin_tests::digits::{NEW, PIXELS, views};
use dunlin_tests::mirror::{Answer, Mirror, checks};
use dunlin_tests::operator::{TASK, definition, policy_signed, push, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use dunlin_trust::{sha256, task_role};

const LIMIT: Duration = Duration::from_secs(90);

async fn answers(agent: &Agent, release: &str) {
    let application = Application::new(TASK).unwrap();
    wait_for(&format!("{release} to answer on {}", agent.id), LIMIT, async || {
        let answer = application.infer(agent.api, "signed", &[0.0; PIXELS]).await.ok();
        Ok(answer.filter(|answer| answer.version == release).map(drop))
    })
    .await
    .unwrap();
}

/// Waits until the controller assigns a release to a device, which does not hear of it.
async fn assigned(attacker: &Attacker, device: &DeviceId, release: &str) {
    wait_for(&format!("{release} to be assigned to {device}"), LIMIT, async || {
        let champion = |assignment: Assignment| Some(assignment.tasks.first()?.lineup.champion.to_string());
        let champion = attacker.assignment(device).ok().and_then(champion);
        Ok(champion.filter(|champion| champion == release).map(drop))
    })
    .await
    .unwrap();
}

async fn apply(world: &Small, folder: &Path, pool: &[&str]) {
    let file = folder.join("task.toml");
    let pool = pool.iter().map(|release| (*release).to_owned()).collect();
    std::fs::write(&file, definition(&pool, None)).unwrap();
    world.controller.json(&["task", "apply", &file.display().to_string()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_approves_and_withdraws_for_its_own_task_with_and_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut world = Small::new(folder, &["raspberry-pi-4"; 2]).await.unwrap();
    world.enrol().await.unwrap();
    world.agents[1].stop().await.unwrap();
    let (online, offline): (DeviceId, DeviceId) = ("pole-0".parse().unwrap(), "pole-1".parse().unwrap());
    let images = views(&world.pools.training, NEW, 1, 1);
    let job = folder.join("job");
    let result = train(&world.controller, &job, &images, &["logistic"], 1).await.unwrap();
    let mut pushed = Vec::new();
    for name in ["meter-first", "meter-second"] {
        let candidate = &result["candidates"][0];
        pushed.push(push(&world.controller, &job, "logistic", name, candidate).await.unwrap());
    }
    let [first, second] = [&pushed[0], &pushed[1]];

    // The owner hands the task over, and from then on its signers do all that he did.
    world.controller.stop().await.unwrap();
    let team = folder.join("team");
    world.controller.delegate(folder, TASK, &["meter-first", "meter-second"], &team).await.unwrap();
    world.controller.start().await.unwrap();
    let team = team.display().to_string();
    let signing = ["--task", TASK, "--keys", &team];
    policy_signed(&world.controller, folder, &images[..100], &signing).await.unwrap();
    world.controller.json(&[&["model", "approve"][..], &signing].concat()).await.unwrap();
    apply(&world, folder, &[first]).await;
    world.ask().unwrap();
    let database = world.controller.database().await.unwrap();
    wait_for("the device to commit", LIMIT, async || {
        let query = "SELECT release FROM installed WHERE device = ? AND phase = 'committed'";
        let row: Option<Option<String>> =
            sqlx::query_scalar(query).bind(online.as_str()).fetch_optional(&database).await?;
        Ok(row.flatten().filter(|release| release == first).map(drop))
    })
    .await
    .unwrap();

    // They withdraw what runs, and a medium with the release that is left is made.
    world.agents[0].stop().await.unwrap();
    apply(&world, folder, &[first, second]).await;
    world.controller.json(&[&["model", "withdraw", first][..], &signing].concat()).await.unwrap();
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    assigned(&attacker, &online, second).await;
    assigned(&attacker, &offline, second).await;
    let medium = folder.join("medium");
    let path = medium.display().to_string();
    world.controller.run(&["export", offline.as_str(), "--out", &path]).await.unwrap();
    let digest = |file: &str| sha256(&std::fs::read(folder.join(file)).unwrap()).to_string();
    for file in ["policy.json", "anchor.cbor"] {
        assert!(medium.join("blobs").join(digest(file)).is_file(), "{file} is not on the medium");
    }
    world.controller.stop().await.unwrap();

    // A mirror keeps their file from the device: it does not learn of the withdrawal, takes nothing instead, and tells.
    let since = claims::last_indicator(&database).await.unwrap();
    let mut files = attacker.check(attacker.director_files(&online).unwrap()).unwrap();
    let role = task_role(&TASK.parse::<TaskId>().unwrap());
    assert!(files.image.delegated.remove(&role).is_some(), "no file of {role}");
    let withheld = checks(BTreeMap::from([(online.as_str(), Answer::Check(Box::new(files)))]));
    let mirror = Mirror::open(&world.controller.data, world.controller.api, withheld).await.unwrap();
    world.start(0).await.unwrap();
    wait_for("the device to miss the file", LIMIT, async || {
        Ok(world.agents[0].log()?.contains("reason=metadata_mismatch").then_some(()))
    })
    .await
    .unwrap();
    answers(&world.agents[0], first).await;
    mirror.close().await.unwrap();

    // Without a network, with all that belongs to the task.
    world.start(1).await.unwrap();
    world.agents[1].run(&["install", &path]).await.unwrap();
    answers(&world.agents[1], second).await;
    let held = world.agents[1].folder.join("state/slots/blobs").join(digest("policy.json"));
    assert!(held.is_file(), "the device has no policy");

    world.controller.start().await.unwrap();
    claims::refused(&database, online.as_str(), "metadata_mismatch", since, LIMIT).await.unwrap();
    answers(&world.agents[0], second).await;
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}
