//! Inputs that move away from what a model was made on.
use std::fs;

use dunlin_controller::clock;
use dunlin_learn::data::Table;
use dunlin_monitor::window::{Accumulator, Observation};
use dunlin_protocol::{DeviceId, Now, ReferenceProfile, ReleaseId, ResourceUse, cbor};
use serde_json::Value;

use super::world::{Manner, World, rows, schema};

/// A task that is never retrained: drift is looked for all the same.
const TASK: &str = "task = \"meter\"\nlabels = [\"a\", \"b\", \"c\"]\npool = [\"meter.base@1\"]\n";

/// Drift is judged on windows of a second, so that the test need not wait for quarters of an hour.
const EVIDENCE: &str = "[evidence]\nwindow_ms = 1000\nlateness_ms = 0\nvotes = 2\nvotes_of = 4\n";

impl World {
    /// A window of requests at `end_ms` whose inputs are those of the reference, all moved by `shift`.
    async fn inputs(&mut self, device: &DeviceId, end_ms: u64, shift: f32) {
        let release: ReleaseId = "meter.base@1".parse().unwrap();
        let blob = self.store.release(&release).await.unwrap().unwrap().bundle.profile.unwrap();
        let bytes = self.registry.blobs().get(&blob.digest).await.unwrap().unwrap();
        let profile: ReferenceProfile = cbor::decode(&bytes, bytes.len()).unwrap();
        let table = Table::parse(rows(400, 1.0).0.as_bytes(), &schema()).unwrap();
        let start = Now { mono_ms: 0, wall_ms: None };
        let about = Some((&profile, blob.digest));
        let task = "meter".parse().unwrap();
        let mut open = Accumulator::new(task, Some(release.clone()), 1, 3, false, about, start);
        for i in 0..table.rows() {
            let features: Vec<f32> = table.row(i).iter().map(|x| x + shift).collect();
            open.observe(&Observation {
                latency_us: 777,
                failed: false,
                class: Some(0),
                confidence: 0.9,
                features: &features,
            });
        }
        let window = open.close(Now { mono_ms: 500, wall_ms: Some(end_ms) }, ResourceUse::default());
        self.seq += 1;
        sqlx::query("INSERT INTO windows (boot_no, seq, device, task, release, generation, start_ms, end_ms, wall, received_ms, probation, n, errors, labelled, correct, body)
                     VALUES (1, ?, ?, 'meter', ?, 1, ?, ?, 1, ?, 0, ?, 0, 0, 0, ?)")
            .bind(self.seq).bind(device.as_str()).bind(release.to_string())
            .bind(end_ms as i64 - 500).bind(end_ms as i64).bind(end_ms as i64).bind(window.n as i64).bind(cbor::encode(&window))
            .execute(self.store.writer()).await.unwrap();
    }

    /// Lets every device answer inputs moved by `shift(device)` until `done`.
    async fn answer(&mut self, shift: impl Fn(usize) -> f32, what: &str, done: impl Fn(&Self) -> bool) {
        let start = std::time::Instant::now();
        while !done(self) {
            let state = self.json(&["drift"]);
            assert!(start.elapsed() < super::world::PATIENCE, "{what} did not come: {state}\n{}", self.log());
            for i in 0..6 {
                let device = format!("cam-{i}").parse().unwrap();
                self.inputs(&device, clock::wall_ms(), shift(i)).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    }

    fn alerts(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let alerts = self.json(&["alert", "list"]);
        let alerts = alerts.as_array().unwrap().iter();
        alerts.map(|alert| (text(&alert["kind"]), text(&alert["detail"]))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_told_though_nothing_is_retrained_and_latency_reaches_the_choice() {
    let mut world = World::new().await;
    world.kill();
    let config = world.data.join("controller.toml");
    let text = fs::read_to_string(&config).unwrap();
    let start = text.find("[evidence]").unwrap_or(text.len());
    fs::write(&config, format!("{}\n{EVIDENCE}", &text[..start])).unwrap();
    world.start();
    let file = world.data.join("task.toml");
    fs::write(&file, TASK).unwrap();
    world.json(&["task", "apply", file.to_str().unwrap()]);
    world.until(Manner::Better, "installation", |world| world.state_of_all("meter.base@1")).await;
    assert_eq!(world.cli(&["drift", "--task", "nothing"]).status.code(), Some(3));

    // One of six is a sensor.
    let is_suspect = |(kind, detail): &(String, String)| kind == "sensor_suspect" && detail.contains("100 %");
    world
        .answer(
            |i| if i == 0 { 9.0 } else { 0.0 },
            "the suspect",
            |world| world.alerts().iter().any(is_suspect),
        )
        .await;

    // All of them are the world, with the features named.
    let is_drift = |(kind, detail): &(String, String)| kind == "drift" && detail.contains("the fleet");
    // Three of six are enough for an alert; here all have been judged.
    let seen = std::cell::RefCell::new(Value::Null);
    world
        .answer(
            |_| 9.0,
            "the drift",
            |world| {
                *seen.borrow_mut() = world.json(&["drift", "--task", "meter"]);
                world.alerts().iter().any(is_drift) && seen.borrow()["releases"][0]["judged"] == 6
            },
        )
        .await;
    let state = seen.into_inner();
    let release = &state["releases"][0];
    assert_eq!((&release["release"], &release["scope"]["scope"]), (&"meter.base@1".into(), &"fleet".into()));
    assert_eq!((&release["judged"], &release["share_ppm"]), (&6.into(), &1_000_000.into()), "{state}");
    let feature = &release["findings"][0]["report"]["features"][0];
    assert!(feature["ks"]["value"].as_f64().unwrap() > 0.5 && feature["ks"]["p"].as_f64().unwrap() < 1e-6);
    assert_eq!(state["alerts"][0]["subject"], "task:meter release:meter.base@1");

    // What was measured in service is what the choice stands on.
    let explained = |world: &World| world.json(&["device", "explain", "cam-1"])[0]["selection"].clone();
    world
        .answer(|_| 0.0, "the measured latency", |world| explained(world).to_string().contains("\"device\""))
        .await;
    let selection = explained(&world);
    let rows = selection["rows"].as_array().unwrap();
    let base = rows.iter().find(|row| row["release"] == "meter.base@1").unwrap();
    let latency = base["verdict"]["eligible"]["latency_us"].as_u64().unwrap();
    assert!((760..=800).contains(&latency), "{latency}");

    // And it is over when the inputs are again what they were.
    world.answer(|_| 0.0, "the end", |world| world.alerts().is_empty()).await;
}
