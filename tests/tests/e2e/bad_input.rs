//! What breaks in the field, on running programs: nonsense on the wire, a damaged row, a full disk, a wrong clock, a backup
//! that comes back.
//! Each gives a reason or a clear error, nothing is lost, and every device goes on answering.
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::{DeviceId, Down, Kind, PAYLOAD_BYTES_MAX, SCHEMA, Topic, Up};
use dunlin_tests::agent::{Agent, Application};
use dunlin_tests::attacker::Attacker;
use dunlin_tests::breakage::{clock, copy, faketime, fill, in_own_namespace, small_disk};
use dunlin_tests::claims;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::mirror::{Answer, Mirror, checks};
use dunlin_tests::operator::{TASK, definition, push, train, unhurried};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use dunlin_tests::thief::Thief;
use serde_json::Value;
use sqlx::{Row, SqlitePool};

const LIMIT: Duration = Duration::from_secs(90);
/// A packet far over any limit, and over what sockets hold.
const FLOOD_BYTES: u32 = 200 << 20;
/// The pause before another try has grown by now.
const RETRY_LIMIT: Duration = Duration::from_secs(400);

/// A world whose devices run their first model, with applications that ask.
async fn serving(folder: &Path, classes: &[&str]) -> (Small, String) {
    let mut world = Small::new(folder, classes).await.unwrap();
    let release = world.first_model(folder).await.unwrap();
    world.enrol().await.unwrap();
    world.ask().unwrap();
    world.committed(&release, LIMIT).await.unwrap();
    (world, release)
}

/// Further approved releases of these lines.
async fn more<const N: usize>(world: &Small, folder: &Path, lines: [&str; N]) -> [String; N] {
    let job = folder.join("more");
    let result = train(&world.controller, &job, &world.others(), &["logistic"], 2).await.unwrap();
    let mut pushed = Vec::new();
    for line in lines {
        let candidate = &result["candidates"][0];
        pushed.push(push(&world.controller, &job, "logistic", line, candidate).await.unwrap());
    }
    world.controller.json(&["model", "approve", "--keys", &world.offline_keys()]).await.unwrap();
    pushed.try_into().unwrap()
}

/// Lets devices run this release alone, without a rollout.
async fn allow(world: &Small, folder: &Path, release: &str) {
    let file = folder.join("task.toml");
    std::fs::write(&file, unhurried(&definition(&[release.to_owned()].into(), None))).unwrap();
    world.controller.json(&["task", "apply", &file.display().to_string()]).await.unwrap();
}

async fn answers(agent: &Agent, release: &str) {
    let answer = Application::new(TASK).unwrap().infer(agent.api, "still", &[0.0; PIXELS]).await.unwrap();
    assert_eq!(answer.version, release);
}

async fn count(database: &SqlitePool, query: &'static str, arguments: &[&str]) -> i64 {
    let mut query = sqlx::query(query);
    for argument in arguments {
        query = query.bind(*argument);
    }
    query.fetch_one(database).await.unwrap().get(0)
}

async fn windows(database: &SqlitePool, device: &str) -> i64 {
    count(database, "SELECT count(*) FROM windows WHERE device = ?", &[device]).await
}

/// Waits until more windows of `device` are stored than now.
async fn goes_on(database: &SqlitePool, device: &str) {
    let before = windows(database, device).await;
    wait_for(&format!("new windows of {device}"), LIMIT, async || {
        Ok((windows(database, device).await > before).then_some(()))
    })
    .await
    .unwrap();
}

async fn refused(database: &SqlitePool, device: &str, reason: &str) {
    wait_for(&format!("{reason} to be counted for {device}"), LIMIT, async || {
        let query = "SELECT count(*) FROM refused WHERE device = ? AND reason = ?";
        Ok((count(database, query, &[device, reason]).await > 0).then_some(()))
    })
    .await
    .unwrap();
}

async fn indicated(database: &SqlitePool, device: &str, reason: &str) {
    wait_for(&format!("{device} to report {reason}"), LIMIT, async || {
        let query = "SELECT count(*) FROM indicators WHERE device = ? AND reason = ?";
        Ok((count(database, query, &[device, reason]).await > 0).then_some(()))
    })
    .await
    .unwrap();
}

async fn end(mut world: Small) {
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_on_the_wire_is_refused_by_reason_in_both_directions() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, release) = serving(folder.path(), &["raspberry-pi-4", "raspberry-pi-4"]).await;
    let database = world.controller.database().await.unwrap();

    // Up: an enrolled device that has gone mad.
    world.agents[0].stop().await.unwrap();
    let mad = Thief::new(&world.agents[0].folder, world.controller.mqtt).unwrap();
    let good = mad.envelope(Kind::Gap, 1, b"\xff\x00 no gap".to_vec()).unwrap();
    let cut = good.encode()[..40].to_vec();
    mad.publish(Up::Telemetry, vec![b"\xff\x00 not cbor".to_vec(), cut, good.encode()]).await.unwrap();
    refused(&database, "pole-0", "envelope_malformed").await;
    mad.publish(Up::Telemetry, vec![vec![0; PAYLOAD_BYTES_MAX + 1]]).await.unwrap();
    refused(&database, "pole-0", "too_large").await;
    // What is over the broker's limit ends the connection before it is read, whatever length it claims, and without a login.
    let over = mad.publish(Up::Telemetry, vec![vec![0; PAYLOAD_BYTES_MAX + (64 << 10)]]).await;
    assert!(over.is_err(), "a packet over the limit was acknowledged");
    let (mad, taken) = tokio::task::spawn_blocking(|| {
        let taken = mad.flood(FLOOD_BYTES);
        (mad, taken)
    })
    .await
    .unwrap();
    assert!(taken.as_ref().is_ok_and(|taken| *taken < u64::from(FLOOD_BYTES)), "{taken:?}");
    let tomorrow = mad.seal(SCHEMA + 1, Kind::Gap, 2, Vec::new()).unwrap();
    mad.publish(Up::Telemetry, vec![tomorrow.encode()]).await.unwrap();
    refused(&database, "pole-0", "schema_unknown").await;
    goes_on(&database, "pole-1").await;
    world.agents[0].start().await.unwrap();
    world.ask().unwrap();
    goes_on(&database, "pole-0").await;

    // Down: a controller that has gone mad. What is over the device's packet limit never reaches it.
    let sane: DeviceId = "pole-1".parse().unwrap();
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    let topic = Topic::down(&sane, Down::Cmd);
    attacker.publish(&topic, b"\xff\x00 not cbor".to_vec()).await.unwrap();
    indicated(&database, "pole-1", "envelope_malformed").await;
    attacker.publish(&topic, attacker.seal_unknown(&sane).unwrap()).await.unwrap();
    indicated(&database, "pole-1", "schema_unknown").await;
    attacker.publish(&topic, vec![0; PAYLOAD_BYTES_MAX + 1]).await.unwrap();
    indicated(&database, "pole-1", "too_large").await;
    attacker.publish(&topic, vec![0; PAYLOAD_BYTES_MAX + 4000]).await.unwrap();
    for agent in &world.agents {
        answers(agent, &release).await;
        goes_on(&database, &agent.id).await;
    }
    end(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_row_costs_one_device_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (world, first) = serving(folder.path(), &["raspberry-pi-4", "raspberry-pi-4"]).await;
    let database = world.controller.database().await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(world.controller.data.join("dunlin.db"))
        .busy_timeout(Duration::from_secs(60));
    let writer = SqlitePool::connect_with(options).await.unwrap();
    let whole: String = sqlx::query_scalar("SELECT profile FROM devices WHERE id = 'pole-0'")
        .fetch_one(&writer)
        .await
        .unwrap();
    sqlx::query("UPDATE devices SET profile = '{' WHERE id = 'pole-0'").execute(&writer).await.unwrap();

    let shown = world.controller.try_run(&["device", "show", "pole-0"]).await.unwrap();
    assert_eq!(shown.code, 1, "{}{}", shown.stdout, shown.stderr);
    assert!(shown.stderr.contains("devices") && shown.stderr.contains("pole-0"), "{}", shown.stderr);
    let listed = world.controller.json(&["device", "list"]).await.unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "the other device is listed: {listed}");
    // What both devices send is stored none the less.
    goes_on(&database, "pole-0").await;
    goes_on(&database, "pole-1").await;
    wait_for("an alert that names the damaged row", LIMIT, async || {
        let alerts = world.controller.json(&["alert", "list"]).await?;
        let mut subjects = alerts.as_array().into_iter().flatten().map(|alert| &alert["subject"]);
        Ok(subjects.any(|subject| subject == "row:devices/pole-0").then_some(()))
    })
    .await
    .unwrap();

    sqlx::query("UPDATE devices SET profile = ? WHERE id = 'pole-0'")
        .bind(whole)
        .execute(&writer)
        .await
        .unwrap();
    assert_eq!(world.controller.json(&["device", "list"]).await.unwrap().as_array().unwrap().len(), 2);

    // The definition of the task: what runs stays as it is, and says so.
    let whole: String = sqlx::query_scalar("SELECT definition FROM tasks").fetch_one(&writer).await.unwrap();
    sqlx::query("UPDATE tasks SET definition = '{'").execute(&writer).await.unwrap();
    let data = world.controller.data.display().to_string();
    let examined = world.controller.try_run(&["doctor", "--data", &data]).await.unwrap();
    assert_eq!(examined.code, 1, "{}{}", examined.stdout, examined.stderr);
    assert!(examined.stdout.contains(&format!("row {TASK} of tasks is damaged")), "{}", examined.stdout);
    for agent in &world.agents {
        answers(agent, &first).await;
        goes_on(&database, &agent.id).await;
    }
    let query = "SELECT count(*) FROM assignments WHERE json_array_length(body, '$.tasks') = 1";
    assert_eq!(count(&database, query, &[]).await, 2, "both devices are told what they were told");
    sqlx::query("UPDATE tasks SET definition = ?").bind(whole).execute(&writer).await.unwrap();
    let examined = world.controller.try_run(&["doctor", "--data", &data]).await.unwrap();
    assert_eq!(examined.code, 0, "{}{}", examined.stdout, examined.stderr);
    writer.close().await;
    end(world).await;
}

#[test]
fn a_full_disk_stops_no_answer_and_loses_nothing_silently() {
    if in_own_namespace("bad_input::a_full_disk_stops_no_answer_and_loses_nothing_silently").unwrap() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(full_disk());
    }
}

/// Waits until the agent could not keep a record, and says so in its log from `offset` on.
async fn noticed(agent: &Agent, offset: usize) {
    wait_for("the agent to notice the full disk", LIMIT, async || {
        Ok(agent.log()?[offset..].contains("could not keep records").then_some(()))
    })
    .await
    .unwrap();
}

async fn full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("pole-0/state");
    small_disk(&state, 64).unwrap();
    let (mut world, first) = serving(folder.path(), &["raspberry-pi-4"]).await;
    let database = world.controller.database().await.unwrap();

    // Too little room for another model: it is put off and says so, and the first one serves on. It is no rollout, which would
    // not wait for long.
    let filler = state.join("filler");
    let [second] = &more(&world, folder.path(), ["meter-second"]).await;
    std::fs::write(&filler, vec![0x5a; 34 << 20]).unwrap();
    allow(&world, folder.path(), second).await;
    wait_for("the device to report that it has no room", LIMIT, async || {
        let query = "SELECT count(*) FROM outcomes WHERE device = 'pole-0' AND reason = 'no_space'";
        Ok((count(&database, query, &[]).await > 0).then_some(()))
    })
    .await
    .unwrap();
    answers(&world.agents[0], &first).await;

    // No room at all and nobody who takes the records, and a restart in that state.
    world.controller.kill().await.unwrap();
    fill(&filler).unwrap();
    noticed(&world.agents[0], 0).await;
    answers(&world.agents[0], &first).await;
    world.agents[0].kill().await.unwrap();
    fill(&filler).unwrap();
    let before = world.agents[0].log().unwrap().len();
    world.agents[0].start().await.unwrap();
    world.ask().unwrap();
    noticed(&world.agents[0], before).await;
    answers(&world.agents[0], &first).await;

    // Room again: it reports what happened, and installs what had to wait.
    std::fs::remove_file(&filler).unwrap();
    world.controller.start().await.unwrap();
    let database = world.controller.database().await.unwrap();
    indicated(&database, "pole-0", "disk_full").await;
    world.committed(second, RETRY_LIMIT).await.unwrap();
    world.hush();
    claims::accounted_for(&[&world.agents[0]], &database, LIMIT).await.unwrap();
    end(world).await;
}

async fn link(agent: &Agent) -> Value {
    let url = format!("http://{}/dunlin/status", agent.api);
    let status: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    status["link"].clone()
}

/// Starts the agent with such a clock while a server with nothing but the metadata stands in the controller's place, until it
/// logs a reason; it serves this release meanwhile.
async fn mirrored(world: &mut Small, device: &DeviceId, time: &[(&str, &str)], reason: &str, serves: &str) {
    world.controller.stop().await.unwrap();
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    let files = attacker.check(attacker.director_files(device).unwrap()).unwrap();
    let answer = checks([(device.as_str(), Answer::Check(Box::new(files)))].into());
    let mirror = Mirror::open(&world.controller.data, world.controller.api, answer).await.unwrap();
    let agent = &mut world.agents[0];
    let before = agent.log().unwrap().len();
    agent.start_with(time).await.unwrap();
    wait_for(&format!("the agent to log {reason}"), LIMIT, async || {
        Ok(agent.log()?[before..].contains(&format!("reason={reason}")).then_some(()))
    })
    .await
    .unwrap();
    answers(agent, serves).await;
    mirror.close().await.unwrap();
    world.controller.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_stops_no_answer_and_is_forgotten_when_the_time_is_right_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, first) = serving(folder.path(), &["raspberry-pi-4"]).await;
    let database = world.controller.database().await.unwrap();
    let (library, device): (String, DeviceId) = (faketime().unwrap(), "pole-0".parse().unwrap());
    let [second, third] = &more(&world, folder.path(), ["meter-second", "meter-third"]).await;

    // None at the start, which shows a time before there were boards: nothing new is taken, until an acknowledgement of the
    // controller tells the time.
    world.hush();
    world.agents[0].stop().await.unwrap();
    allow(&world, folder.path(), second).await;
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    wait_for("the next assignment", LIMIT, async || {
        let assigned = attacker.assignment(&device).ok();
        let mut tasks = assigned.into_iter().flat_map(|assignment| assignment.tasks);
        Ok(tasks.any(|task| task.lineup.champion.to_string() == *second).then_some(()))
    })
    .await
    .unwrap();
    let none = clock(&library, "@2001-01-01 00:00:00");
    mirrored(&mut world, &device, &none, "clock_unknown", &first).await;
    world.ask().unwrap();
    world.committed(second, LIMIT).await.unwrap();
    indicated(&database, "pole-0", "clock_unknown").await;
    answers(&world.agents[0], second).await;
    goes_on(&database, "pole-0").await;
    world.hush();

    // Behind: what was verified before tells that it can not be so early, and the device takes part.
    world.agents[0].stop().await.unwrap();
    mirrored(&mut world, &device, &clock(&library, "-30d"), "clock_stepped", second).await;
    indicated(&database, "pole-0", "clock_stepped").await;
    world.ask().unwrap();
    goes_on(&database, "pole-0").await;
    world.hush();

    // Ahead: everything looks expired. It says so and serves on.
    world.agents[0].stop().await.unwrap();
    world.agents[0].start_with(&clock(&library, "+7300d")).await.unwrap();
    answers(&world.agents[0], second).await;
    let detail = wait_for("the agent to say why it is offline", LIMIT, async || {
        let link = link(&world.agents[0]).await;
        let detail = link["detail"].as_str().unwrap_or_default().to_owned();
        Ok((link["up"] == false && detail.contains("clock")).then_some(detail))
    })
    .await
    .unwrap();
    assert!(detail.contains("certificate"), "{detail}");
    answers(&world.agents[0], second).await;

    // What a wrong clock showed moved no floor: the device takes part again, new models included.
    world.agents[0].stop().await.unwrap();
    world.agents[0].start().await.unwrap();
    world.ask().unwrap();
    goes_on(&database, "pole-0").await;
    world.roll_out(third).await.unwrap();
    world.committed(third, LIMIT).await.unwrap();
    end(world).await;
}

/// The device itself has nothing left by which it could tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_of_an_earlier_day_raises_an_alert_and_the_device_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, first) = serving(folder.path(), &["raspberry-pi-4"]).await;
    let [second] = &more(&world, folder.path(), ["meter-second"]).await;
    let state = world.agents[0].folder.join("state");
    let earlier = folder.path().join("earlier");
    world.agents[0].stop().await.unwrap();
    copy(&state, &earlier).unwrap();
    world.start(0).await.unwrap();
    allow(&world, folder.path(), second).await;
    world.committed(second, LIMIT).await.unwrap();
    world.agents[0].stop().await.unwrap();
    world.controller.stop().await.unwrap();

    // It reports where it stands before it hears how far it was.
    copy(&earlier, &state).unwrap();
    world.start(0).await.unwrap();
    answers(&world.agents[0], &first).await;
    let application = Application::new(TASK).unwrap();
    wait_for("a report of the older generation", LIMIT, async || {
        let status = application.status(world.agents[0].api).await?;
        let last = status["spool"]["boots"].as_array().and_then(|boots| boots.last());
        Ok(last.and_then(|boot| boot["appended"].as_u64()).filter(|records| *records > 6).map(drop))
    })
    .await
    .unwrap();
    world.controller.start().await.unwrap();
    wait_for("an alert of the restored state", LIMIT, async || {
        let alerts = world.controller.json(&["alert", "list"]).await?;
        let mut alerts = alerts.as_array().into_iter().flatten();
        let raised =
            alerts.any(|alert| alert["kind"] == "state_restored" && alert["subject"] == "device:pole-0");
        Ok(raised.then_some(()))
    })
    .await
    .unwrap();
    wait_for("the device to take the newer release again", LIMIT, async || {
        let answer = application.infer(world.agents[0].api, "again", &[0.0; PIXELS]).await?;
        Ok((answer.version == *second).then_some(()))
    })
    .await
    .unwrap();
    end(world).await;
}
