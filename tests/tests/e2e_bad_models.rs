//! Files that are no models: one that is properly signed and reaches a device, and one that is handed in.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::time::Duration;

use dunlin_protocol::{Blob, Bundle, ReleaseId};
use dunlin_tests::agent::Application;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use dunlin_trust::sha256;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Row, SqlitePool};

const LIMIT: Duration = Duration::from_secs(90);

/// Puts a release of `onnx` past the intake, as somebody who writes to the data folder might: the manifest of `like`
/// with another model file.
async fn slip_in(world: &Small, like: &str, onnx: &[u8]) -> String {
    let data = &world.controller.data;
    let options =
        SqliteConnectOptions::new().filename(data.join("dunlin.db")).busy_timeout(Duration::from_secs(60));
    let database = SqlitePool::connect_with(options).await.unwrap();
    let model = like.split('@').next().unwrap();
    let manifest: Vec<u8> = sqlx::query_scalar("SELECT manifest FROM releases WHERE model = ?")
        .bind(model)
        .fetch_one(&database)
        .await
        .unwrap();
    let mut bundle: Bundle = serde_json::from_slice(&manifest).unwrap();
    let release: ReleaseId = "meter-broken@1".parse().unwrap();
    bundle.release = release.clone();
    bundle.model = Blob { digest: sha256(onnx), length: onnx.len() as u64 };
    let manifest = serde_json::to_vec(&bundle).unwrap();
    let digest = sha256(&manifest);
    let hex = bundle.model.digest.to_string();
    let folder = data.join("blobs").join(&hex[..2]);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(&hex), onnx).unwrap();
    std::fs::write(data.join("repo/targets").join(format!("{digest}.{}", release.target_name())), &manifest)
        .unwrap();
    sqlx::query("INSERT INTO models (name, task, created_ms) VALUES ('meter-broken', ?, 1)")
        .bind(TASK)
        .execute(&database)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO releases (model, version, task, family, manifest, sha256, onnx, created_by, created_ms)
         VALUES ('meter-broken', 1, ?, 'imported', ?, ?, ?, 'mallory', 1)",
    )
    .bind(TASK)
    .bind(&manifest)
    .bind(digest.to_string())
    .bind(hex)
    .execute(&database)
    .await
    .unwrap();
    database.close().await;
    release.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_release_of_garbage_is_refused_by_the_device_which_keeps_its_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &["raspberry-pi-4"]).await.unwrap();
    let first = world.first_model(folder.path()).await.unwrap();
    world.enrol().await.unwrap();
    world.ask().unwrap();
    world.committed(&first, LIMIT).await.unwrap();
    let broken = slip_in(&world, &first, b"\x08\x07 no model at all").await;
    world.controller.json(&["model", "approve", &broken, "--keys", &world.offline_keys()]).await.unwrap();
    world.roll_out(&broken).await.unwrap();
    let database = world.controller.database().await.unwrap();
    let (phase, release): (String, String) =
        wait_for("the device to say that the file is no model", LIMIT, async || {
            let query =
                "SELECT phase, release FROM outcomes WHERE device = 'pole-0' AND reason = 'model_malformed'";
            let row = sqlx::query(query).fetch_optional(&database).await?;
            Ok(row.map(|row| (row.get(0), row.get(1))))
        })
        .await
        .unwrap();
    assert!(matches!(phase.as_str(), "failed" | "rejected"), "{phase}");
    assert_eq!(release, broken);
    let answer =
        Application::new(TASK).unwrap().infer(world.agents[0].api, "still", &[0.0; PIXELS]).await.unwrap();
    assert_eq!(answer.version, first);
    let installed = "SELECT count(*) FROM installed WHERE phase = 'committed' AND release = ?";
    let serving: i64 = sqlx::query_scalar(installed).bind(&first).fetch_one(&database).await.unwrap();
    assert_eq!(serving, 1, "what it reports to run is what it ran before");

    // Handed in at the front door, the same file gets no further than a child process.
    let file = folder.path().join("garbage.onnx");
    std::fs::write(&file, b"\x08\x07 no model at all").unwrap();
    let file = file.display().to_string();
    let pushed =
        world.controller.try_run(&["model", "push", &file, "--task", TASK, "--name", "meter-garbage"]).await;
    let pushed = pushed.unwrap();
    assert_eq!(pushed.code, 4, "{}{}", pushed.stdout, pushed.stderr);
    assert!(pushed.stderr.contains("model_malformed"), "{}", pushed.stderr);
    let checked = world.controller.try_run(&["model", "check", &file]).await.unwrap();
    assert_eq!(checked.code, 4, "{}{}", checked.stdout, checked.stderr);
    assert!(checked.stdout.contains("model_malformed"), "{}", checked.stdout);
    world.stop().await.unwrap();
}
