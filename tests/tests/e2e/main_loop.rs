//! From enrolment to the database and back, with real processes, the embedded broker and a real database.
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use dunlin_controller::registry::arch_of;
use dunlin_protocol::Arch;
use dunlin_tests::agent::Application;
use dunlin_tests::claims;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::{program, wait_for};
use dunlin_tests::small::Small;
use sqlx::{Row, SqlitePool};

const LIMIT: Duration = Duration::from_secs(90);
/// The header of an executable as far as it names the machine.
const HEADER_BYTES: usize = 20;

/// A board of the machine that the agent is built for, which need not be this one.
fn board() -> &'static str {
    let mut header = [0; HEADER_BYTES];
    File::open(program("dunlin-agent").unwrap()).unwrap().read_exact(&mut header).unwrap();
    match arch_of(&header).expect("an executable of a known machine") {
        Arch::Aarch64 => "raspberry-pi-4",
        Arch::Armv7 => "beaglebone-black",
        Arch::Riscv64 => "visionfive-2",
        Arch::X86_64 => "x86-64-generic",
    }
}

/// Waits until windows of two boots of a device are stored.
async fn second_boot(database: &SqlitePool, device: &str) {
    wait_for("windows of a second boot", LIMIT, async || {
        let query = "SELECT count(DISTINCT boot_no) FROM windows WHERE device = ? AND release IS NOT NULL";
        Ok((sqlx::query(query).bind(device).fetch_one(database).await?.get::<i64, _>(0) == 2).then_some(()))
    })
    .await
    .unwrap();
}

/// Honest devices were cut, killed and started anew; none of it looks like a copy, a lie or a state of an older day.
async fn no_false_alarm(database: &SqlitePool) {
    let query = "SELECT kind || ' ' || subject || ': ' || detail FROM alerts WHERE kind IN ('telemetry_mismatch', 'state_restored', 'cloned_identity')";
    let raised: Vec<String> = sqlx::query_scalar(query).fetch_all(database).await.unwrap();
    assert!(raised.is_empty(), "{raised:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_enrols_serves_reports_and_is_acknowledged_after_the_commit() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, release) =
        Small::serving(folder.path(), &["raspberry-pi-4", "beaglebone-black"], LIMIT).await.unwrap();

    let database = world.controller.database().await.unwrap();
    wait_for("labelled windows of both devices", LIMIT, async || {
        let row = sqlx::query(
            "SELECT count(DISTINCT device), coalesce(sum(labelled), 0) FROM windows WHERE release = ?",
        )
        .bind(&release)
        .fetch_one(&database)
        .await?;
        Ok((row.get::<i64, _>(0) == 2 && row.get::<i64, _>(1) > 50).then_some(()))
    })
    .await
    .unwrap();

    // A clean end and a new start: the broker has kept the session, and the device goes on in it.
    world.hush();
    world.agents[1].stop().await.unwrap();
    world.agents[1].start().await.unwrap();
    world.ask().unwrap();
    second_boot(&database, "pole-1").await;

    // A cut: records that the controller had not acknowledged are sent again, and stored once.
    world.hush();
    world.controller.kill().await.unwrap();
    let application = Application::new(TASK).unwrap();
    for i in 0..20 {
        application.infer(world.agents[0].api, &format!("offline-{i}"), &[0.0; PIXELS]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.agents[0].kill().await.unwrap();
    world.agents[0].start().await.unwrap();
    let answer = application.infer(world.agents[0].api, "after-restart", &[0.0; PIXELS]).await.unwrap();
    assert_eq!(
        format!("{TASK}: {}", answer.version),
        format!("{TASK}: {release}"),
        "serving resumes without the controller"
    );
    world.controller.start().await.unwrap();

    let database = world.controller.database().await.unwrap();
    let killed = &world.agents[0];
    second_boot(&database, "pole-0").await;
    let told = claims::accounted_for(&[killed], &database, LIMIT).await.unwrap();
    assert!(told.contains("closed by 2 boots"), "{told}");
    no_false_alarm(&database).await;
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_takes_a_device_back_and_an_unsigned_release_goes_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, first) = Small::serving(folder.path(), &[board()], LIMIT).await.unwrap();

    let second = world.model(folder.path(), "meter-second", &world.others(), 2).await.unwrap();
    let refused = world.controller.try_run(&["rollout", "create", "--task", TASK, &second]).await.unwrap();
    assert_ne!(refused.code, 0, "a release without offline signatures was rolled out: {}", refused.stdout);
    assert!(refused.stderr.contains("approve"), "the error says what to do: {}", refused.stderr);

    world.approve(&second).await.unwrap();
    world.roll_out(&second).await.unwrap();
    world.committed(&second, LIMIT).await.unwrap();
    world.controller.json(&["device", "rollback", "pole-0", "--task", TASK]).await.unwrap();
    world.committed(&first, LIMIT).await.unwrap();
    no_false_alarm(&world.controller.database().await.unwrap()).await;
    world.agents[0].stop().await.unwrap();
    world.controller.stop().await.unwrap();
}
