//! What breaks beneath a running controller: its disk is full, its clock is wrong. Nothing is lost, nothing is
//! acknowledged that was not stored, and the devices answer on.
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_tests::agent::{Agent, Application};
use dunlin_tests::breakage::{clock, faketime, fill, in_own_namespace, small_disk};
use dunlin_tests::claims;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::operator::{TASK, push, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use sqlx::Row;

const LIMIT: Duration = Duration::from_secs(120);

/// A world whose devices run their first model, with applications that ask.
async fn serving(folder: &Path) -> (Small, String) {
    Small::serving(folder, &["raspberry-pi-4"; 2], LIMIT).await.unwrap()
}

async fn answer(agent: &Agent, release: &str) {
    let answer = Application::new(TASK).unwrap().infer(agent.api, "still", &[0.0; PIXELS]).await.unwrap();
    assert_eq!(answer.version, release);
}

async fn windows(world: &Small) -> i64 {
    let database = world.controller.database().await.unwrap();
    sqlx::query("SELECT count(*) FROM windows").fetch_one(&database).await.unwrap().get(0)
}

async fn end(mut world: Small) {
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}

/// Files below a folder that somebody began to write and did not finish.
fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(unfinished(&path));
        } else if name.ends_with(".tmp") || name.contains('#') {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_full_disk_of_the_controller_acknowledges_nothing_and_loses_nothing() {
    if in_own_namespace(
        "bad_controller::a_full_disk_of_the_controller_acknowledges_nothing_and_loses_nothing",
    )
    .unwrap()
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(full_disk());
    }
}

async fn full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("controller");
    small_disk(&data, 96).unwrap();
    let (mut world, first) = serving(folder.path()).await;
    let job = folder.path().join("second");
    let images = world.others();
    let result = train(&world.controller, &job, &images, &["logistic"], 2).await.unwrap();
    let candidate = &result["candidates"][0];

    let filler = data.join("filler");
    wait_for("the controller to find no room", LIMIT, async || {
        // The log of changes may be folded back meanwhile, and leave some.
        fill(&filler)?;
        Ok(world.controller.log()?.contains("the batch is dropped").then_some(()))
    })
    .await
    .unwrap();
    // Devices go on answering and closing windows that nobody takes.
    let stored = windows(&world).await;
    for agent in &world.agents {
        answer(agent, &first).await;
    }
    let model = job.join("candidates/logistic/model.onnx").display().to_string();
    let args = ["model", "push", &model, "--task", TASK, "--name", "meter-second"];
    let refused = world.controller.try_run(&args).await.unwrap();
    assert_eq!(refused.code, 1, "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("disk is full"), "{}", refused.stderr);

    std::fs::remove_file(&filler).unwrap();
    wait_for(
        "windows to be stored again",
        LIMIT,
        async || Ok((windows(&world).await > stored).then_some(())),
    )
    .await
    .unwrap();
    assert_eq!(unfinished(&data.join("blobs")).len() + unfinished(&data.join("repo")).len(), 0);
    assert_eq!(std::fs::read_dir(data.join("proofs")).unwrap().count(), 0);
    let listed = world.controller.json(&["model", "list", "--name", "meter-second"]).await.unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 0, "{listed}");
    // The same model is taken in now and reaches a device.
    let second = push(&world.controller, &job, "logistic", "meter-second", candidate).await.unwrap();
    assert_eq!(second, "meter-second@1");
    world.approve(&second).await.unwrap();
    world.roll_out(&second).await.unwrap();
    let database = world.controller.database().await.unwrap();
    wait_for("the canary to commit to it", LIMIT, async || {
        let query = "SELECT phase, reason || ' ' || detail FROM outcomes WHERE release = ? \
                     AND phase IN ('committed', 'rolled_back', 'failed', 'rejected')";
        let Some(row) = sqlx::query(query).bind(&second).fetch_optional(&database).await? else {
            return Ok(None);
        };
        let phase: String = row.get(0);
        anyhow::ensure!(phase == "committed", "{phase}: {}", row.get::<String, _>(1));
        Ok(Some(()))
    })
    .await
    .unwrap();
    world.hush();
    claims::accounted_for(&[&world.agents[0], &world.agents[1]], &database, LIMIT).await.unwrap();
    let examined =
        world.controller.try_run(&["doctor", "--data", &data.display().to_string()]).await.unwrap();
    assert_eq!(examined.code, 0, "{}{}", examined.stdout, examined.stderr);
    end(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_of_the_controller_signs_nothing_and_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, first) = serving(folder.path()).await;
    let library = faketime().unwrap();

    // Behind what it signed before: it does not start, and says why.
    world.controller.stop().await.unwrap();
    let stored = windows(&world).await;
    let offset = world.controller.log().unwrap().len();
    assert!(world.controller.start_with(&clock(&library, "-400d")).await.is_err());
    let log = world.controller.log().unwrap()[offset..].to_owned();
    assert!(log.contains("clock") && log.contains("--clock-is-right"), "{log}");

    // Far ahead: old rows are not deleted, whatever the clock calls old, and it says what it sees.
    world.controller.start_with(&clock(&library, "+7300d")).await.unwrap();
    wait_for("an alert about the clock", LIMIT, async || {
        let database = world.controller.database().await?;
        let query = "SELECT count(*) FROM alerts WHERE kind = 'clock_ahead' AND cleared_ms IS NULL";
        Ok((sqlx::query(query).fetch_one(&database).await?.get::<i64, _>(0) > 0).then_some(()))
    })
    .await
    .unwrap();
    for agent in &world.agents {
        answer(agent, &first).await;
    }
    assert!(windows(&world).await >= stored, "nothing is deleted");
    world.controller.stop().await.unwrap();

    // Right again: what it signed or noted in the meantime may stand ahead, so an operator says that this is right.
    world.controller.start_with_args(&["--clock-is-right"]).await.unwrap();
    wait_for("new windows", LIMIT, async || Ok((windows(&world).await > stored).then_some(())))
        .await
        .unwrap();
    world.hush();
    let database = world.controller.database().await.unwrap();
    claims::accounted_for(&[&world.agents[0], &world.agents[1]], &database, LIMIT).await.unwrap();
    end(world).await;
}

/// The broker inside the controller forgets with it; what an operator asked of a device that is away is not forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reaches_a_device_that_no_broker_knows_and_is_carried_out_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &["raspberry-pi-4"]).await.unwrap();
    world.enrol().await.unwrap();
    let device = world.agents[0].id.clone();
    world.agents[0].stop().await.unwrap();
    world.controller.stop().await.unwrap();
    world.controller.start().await.unwrap();
    let given = world
        .controller
        .json(&["device", "rollback", &device, "--task", TASK, "--timeout", "0"])
        .await
        .unwrap();
    let id = given["command"].as_str().unwrap();
    let database = world.controller.database().await.unwrap();
    let pending = async || -> i64 {
        sqlx::query("SELECT count(*) FROM commands WHERE id = ?")
            .bind(id)
            .fetch_one(&database)
            .await
            .unwrap()
            .get(0)
    };
    assert_eq!(pending().await, 1);
    world.start(0).await.unwrap();
    wait_for("the reply", LIMIT, async || {
        let replied =
            sqlx::query("SELECT reason FROM replies WHERE id = ?").bind(id).fetch_optional(&database).await?;
        Ok(replied.map(|row| row.get::<String, _>("reason")))
    })
    .await
    .map(|reason| assert_eq!(reason, "nothing_to_return_to"))
    .unwrap();
    assert_eq!(pending().await, 0);

    // The same once more, as if the controller had not heard the reply.
    world.controller.stop().await.unwrap();
    let writable =
        sqlx::sqlite::SqliteConnectOptions::new().filename(world.controller.data.join("dunlin.db"));
    let writer = sqlx::SqlitePool::connect_with(writable).await.unwrap();
    sqlx::query("INSERT INTO commands VALUES (?, ?, '{\"do\":\"rollback\",\"task\":\"meter\"}', ?)")
        .bind(&device)
        .bind(id)
        .bind(i64::MAX)
        .execute(&writer)
        .await
        .unwrap();
    writer.close().await;
    world.controller.start().await.unwrap();
    wait_for("the command to come again", LIMIT, async || {
        Ok(world.agents[0].log()?.contains("this command was carried out").then_some(()))
    })
    .await
    .unwrap();
    end(world).await;
}
