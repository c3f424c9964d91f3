//! A device that can reach nobody judges for itself, and goes back for itself or for whoever stands in front of it.
use std::path::Path;
use std::time::Duration;

use dunlin_tests::agent::Application;
use dunlin_tests::digits::{Image, PIXELS};
use dunlin_tests::operator::{TASK, definition, unhurried};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;

const LIMIT: Duration = Duration::from_secs(90);

/// Trains, pushes and approves a model of these images, and begins to roll it out; the release, and the rollout.
async fn roll_out(world: &Small, folder: &Path, name: &str, images: &[Image]) -> [String; 2] {
    let release = world.model(folder, name, images, 2).await.unwrap();
    world.approve(&release).await.unwrap();
    let rollout = world.roll_out(&release).await.unwrap();
    [release, rollout]
}

/// Waits until the device answers by `release`.
async fn answers(world: &Small, release: &str) {
    let application = Application::new(TASK).unwrap();
    wait_for(&format!("the device to answer by {release}"), LIMIT, async || {
        let answer = application.infer(world.agents[0].api, "asked", &[0.0; PIXELS]).await?;
        Ok((answer.version == release).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_controller_a_device_leaves_what_fails_its_probation_and_goes_back_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mut world, first) = Small::serving(folder, &["raspberry-pi-4"], LIMIT).await.unwrap();

    // Told by hand, with two releases that were committed.
    let [second, rollout] = roll_out(&world, folder, "meter-second", &world.others()).await;
    world.committed(&second, LIMIT).await.unwrap();
    world.controller.kill().await.unwrap();
    world.agents[0].run(&["rollback", TASK]).await.unwrap();
    answers(&world, &first).await;
    world.controller.start().await.unwrap();
    // It may have ended by itself.
    world.controller.try_run(&["rollout", "abort", &rollout]).await.unwrap();

    // By itself: its own answers proved right, and no others do. The gate would see that too, so it dies first.
    let rules = unhurried(&definition(&[first.clone()].into(), None));
    let strict = rules.replace("disagree_ppm_max = 1000000", "disagree_ppm_max = 300000");
    let file = folder.join("strict.toml");
    std::fs::write(&file, strict).unwrap();
    world.controller.json(&["task", "apply", &file.display().to_string()]).await.unwrap();
    let [wrong, _] = roll_out(&world, folder, "meter-wrong", &world.mislabelled()).await;
    answers(&world, &wrong).await;
    world.controller.kill().await.unwrap();
    answers(&world, &first).await;
    world.controller.start().await.unwrap();
    let database = world.controller.database().await.unwrap();
    let told = wait_for("the device to say why", LIMIT, async || {
        let query = "SELECT phase FROM outcomes WHERE release = ? AND reason = 'guard_disagreement'";
        Ok(sqlx::query_scalar::<_, String>(query).bind(&wrong).fetch_optional(&database).await?)
    });
    assert_eq!(told.await.unwrap(), "rolled_back");
    world.stop().await.unwrap();
}
