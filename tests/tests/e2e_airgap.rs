//! A device without a network: its assignment and models come on a medium, through the same checks.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::time::Duration;

use dunlin_tests::agent::Application;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;

const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_arrives_on_a_medium() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &["raspberry-pi-4"]).await.unwrap();
    world.enrol().await.unwrap();
    world.agents[0].stop().await.unwrap();
    let release = world.first_model(folder.path()).await.unwrap();
    // The planner assigns; the device does not hear of it.
    let device = world.agents[0].id.clone();
    let director = world.controller.data.join("repo/director").join(&device);
    let manifest = format!("{}.json", release.replace('@', "."));
    wait_for("an assignment for the device", LIMIT, async || {
        let files = std::fs::read_dir(&director)?
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
        Ok(files.into_iter().any(|text| text.contains(&manifest)).then_some(()))
    })
    .await
    .unwrap();
    let medium = folder.path().join("medium");
    let out = medium.display().to_string();
    world.controller.run(&["export", &device, "--out", &out]).await.unwrap();
    world.controller.stop().await.unwrap();

    world.agents[0].start().await.unwrap();
    assert!(world.agents[0].run(&["install", "/nowhere"]).await.is_err());
    world.agents[0].run(&["install", &out]).await.unwrap();
    let application = Application::new(TASK).unwrap();
    let api = world.agents[0].api;
    wait_for("the carried release to answer", LIMIT, async || {
        let answer = application.infer(api, "carried", &[0.0; dunlin_tests::digits::PIXELS]).await.ok();
        Ok(answer.filter(|answer| answer.version == release).map(drop))
    })
    .await
    .unwrap();

    // A medium that was bent is refused, and what serves goes on serving.
    let path = medium.join("devices").join(format!("{device}.cbor"));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|window| window == b"\"version\"").unwrap();
    bytes[at + 10] = b'9';
    std::fs::write(&path, bytes).unwrap();
    assert!(world.agents[0].run(&["install", &out]).await.is_err());
    application.infer(api, "still", &[0.0; dunlin_tests::digits::PIXELS]).await.unwrap();
}
