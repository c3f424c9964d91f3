//! Files that are no models, or do harm: properly signed ones that reach a device, and one that is handed in.
use std::time::Duration;

use dunlin_protocol::{Blob, Bundle, ReleaseId};
use dunlin_tests::agent::Application;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use dunlin_tests::{hostile, proc};
use dunlin_trust::sha256;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Row, SqlitePool};

const LIMIT: Duration = Duration::from_secs(90);
/// How much the agent's memory may grow while it refuses such files, bytes. It carries on with all its work meanwhile;
/// the least that one of the files asks for is twelve times as much.
const GROWTH_BYTES_MAX: u64 = 32 << 20;
const GARBAGE: &[u8] = b"\x08\x07 no model at all";

/// Puts a release `name` of `onnx` past the intake, as somebody who writes to the data folder might: the manifest of
/// `like` with another model file.
async fn slip_in(world: &Small, like: &str, name: &str, onnx: &[u8]) -> String {
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
    let release: ReleaseId = format!("{name}@1").parse().unwrap();
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
    sqlx::query("INSERT INTO models (name, task, created_ms) VALUES (?, ?, 1)")
        .bind(name)
        .bind(TASK)
        .execute(&database)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO releases (model, version, task, family, manifest, sha256, onnx, created_by, created_ms)
         VALUES (?, 1, ?, 'imported', ?, ?, ?, 'mallory', 1)",
    )
    .bind(name)
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
async fn signed_releases_of_hostile_files_are_refused_by_the_device_which_answers_all_the_while() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, first) = Small::serving(folder.path(), &["raspberry-pi-4"], LIMIT).await.unwrap();
    let database = world.controller.database().await.unwrap();
    let application = Application::new(TASK).unwrap();
    let agent = world.agents[0].pid().unwrap();
    let before = proc::memory(agent).unwrap().rss;
    proc::forget_peak(agent).unwrap();
    // Where a file's harm shows is the runtime's affair, so that a reason may be one of several. None is a crash of the agent.
    let files: [(&str, Vec<u8>, &[&str]); 3] = [
        ("meter-garbage", GARBAGE.to_vec(), &["model_malformed"]),
        ("meter-tree", hostile::class_out_of_range(), &["model_malformed", "model_unsupported"]),
        (
            "meter-giant",
            hostile::computed_giant(),
            &["model_malformed", "model_unsupported", "model_failed", "proof_crashed"],
        ),
    ];
    for (name, onnx, reasons) in files {
        let broken = slip_in(&world, &first, name, &onnx).await;
        world.approve(&broken).await.unwrap();
        let rollout = world.roll_out(&broken).await.unwrap();
        let (phase, reason): (String, String) =
            wait_for(&format!("the device to refuse {broken}"), LIMIT, async || {
                let answer = application.infer(world.agents[0].api, "still", &[0.0; PIXELS]).await?;
                assert_eq!(answer.version, first, "while it has {broken}");
                let query = "SELECT phase, reason FROM outcomes WHERE device = 'pole-0' AND release = ?
                     AND phase IN ('failed', 'rejected')";
                let row = sqlx::query(query).bind(&broken).fetch_optional(&database).await?;
                Ok(row.map(|row| (row.get(0), row.get(1))))
            })
            .await
            .unwrap();
        assert!(reasons.contains(&reason.as_str()), "{broken}: {phase} for {reason}");
        // It may have ended by itself.
        world.controller.try_run(&["rollout", "abort", &rollout]).await.unwrap();
    }
    let answer = application.infer(world.agents[0].api, "still", &[0.0; PIXELS]).await.unwrap();
    assert_eq!(answer.version, first);
    assert_eq!(world.agents[0].pid(), Some(agent), "it is the process that began");
    let peak = proc::peak(agent).unwrap();
    assert!(
        peak <= before + GROWTH_BYTES_MAX,
        "{} MiB in memory before, {} MiB at most",
        before >> 20,
        peak >> 20
    );
    // What it reports to run is what it ran before.
    world.committed(&first, LIMIT).await.unwrap();

    // Handed in at the front door, the same file gets no further than a child process.
    let file = folder.path().join("garbage.onnx");
    std::fs::write(&file, GARBAGE).unwrap();
    let file = file.display().to_string();
    let pushed =
        world.controller.try_run(&["model", "push", &file, "--task", TASK, "--name", "meter-pushed"]).await;
    let pushed = pushed.unwrap();
    assert_eq!(pushed.code, 4, "{}{}", pushed.stdout, pushed.stderr);
    assert!(pushed.stderr.contains("model_malformed"), "{}", pushed.stderr);
    let checked = world.controller.try_run(&["model", "check", &file]).await.unwrap();
    assert_eq!(checked.code, 4, "{}{}", checked.stdout, checked.stderr);
    assert!(checked.stdout.contains("model_malformed"), "{}", checked.stdout);
    world.stop().await.unwrap();
}
