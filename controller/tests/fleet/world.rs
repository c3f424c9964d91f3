//! A controller with its fleet.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dunlin_controller::audit::Audit;
use dunlin_controller::clock;
use dunlin_controller::identity::{Identity, Issued};
use dunlin_controller::init::{self, Options};
use dunlin_controller::keys::{self, CeremonyOptions, Request};
use dunlin_controller::registry::{Push, Registry, anchor_set};
use dunlin_controller::repo::Repos;
use dunlin_controller::store::{Claim, NewDevice, Store};
use dunlin_learn::data::Table;
use dunlin_learn::job::{Feature, Schema};
use dunlin_learn::rng::Rng;
use dunlin_learn::{Config, fit};
use dunlin_protocol::{
    Arch, Assignment, Blob, Budgets, DeviceId, DeviceProfile, Digest, PairCounts, ReleaseId, RetrainedBounds,
    TaskPolicy, TaskType, Window, cbor,
};
use serde_json::Value;

use crate::document::DOCUMENT;

/// No step of these tests takes near as long; a hang must not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn schema() -> Schema {
    let feature = |i| Feature { name: format!("f{i}"), unit: String::new(), min: None, max: None };
    Schema {
        features: (0..4).map(feature).collect(),
        label: "y".into(),
        labels: vec!["a".into(), "b".into(), "c".into()],
        time: None,
    }
}

/// Three overlapping clouds; `sign` -1 is a world in which every sensor is mounted the other way round.
pub(crate) fn rows(count: usize, sign: f64) -> (String, Vec<(Vec<f32>, u32)>) {
    let mut rng = Rng::new(7, "clouds");
    let (mut text, mut list) = ("f0,f1,f2,f3,y\n".to_owned(), Vec::new());
    for i in 0..count {
        let class = i % 3;
        let x: Vec<f32> = (0..4)
            .map(|f| {
                (sign
                    * (if f == class { 2.0 } else { 0.0 }
                        + (0..4).map(|_| rng.unit() - 0.5).sum::<f64>() * 1.5)) as f32
            })
            .collect();
        text += &format!("{},{},{},{},{}\n", x[0], x[1], x[2], x[3], ["a", "b", "c"][class]);
        list.push((x, class as u32));
    }
    (text, list)
}

/// How devices take to a candidate.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    Better,
    Failing,
}

pub(crate) struct World {
    _folder: tempfile::TempDir,
    pub(crate) data: PathBuf,
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) token: String,
    pub(crate) serve: Option<Child>,
    pub(crate) seq: i64,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::bound(0).await
    }

    /// Retrained models must get this share of the anchor set right, parts per million.
    pub(crate) async fn bound(anchor_score_ppm_min: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let any = Some("127.0.0.1:0".parse().unwrap());
        let token =
            init::init(&data, &Options { names: vec![], listen: any, mqtt_listen: any }).await.unwrap();
        let config = fs::read_to_string(data.join("controller.toml"))
            .unwrap()
            .replace("tick_ms = 10000", "tick_ms = 200");
        fs::write(data.join("controller.toml"), config).unwrap();
        let online = keys::OnlineKeys::read(&data.join("keys/online.json")).unwrap();
        let safe = folder.path().join("safe");
        let now_ms = clock::wall_ms();
        keys::ceremony(&safe, &online, CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms })
            .unwrap();
        let repos = Arc::new(Repos::open(&data).unwrap());
        repos.import(&safe.join("public"), now_ms).unwrap();
        let store = Store::open(&data.join("dunlin.db")).await.unwrap();
        let audit = Audit::open(store.clone(), &data, &Identity::open(&data).unwrap()).unwrap();
        let registry = Registry::open(&data, store.clone(), Arc::clone(&repos), audit).unwrap();
        let registry = registry.with_prover(PathBuf::from(env!("CARGO_BIN_EXE_dunlin")));
        let table = Table::parse(rows(400, 1.0).0.as_bytes(), &schema()).unwrap();
        for (model, l2) in
            [("meter.base", 1e-3), ("meter.next", 1e-2), ("meter.bad", 1e-1), ("meter.slow", 1.0)]
        {
            let push = Push {
                task: "meter".parse().unwrap(),
                task_type: TaskType::Classification,
                model: model.parse().unwrap(),
                onnx: fit(&Config::Logistic { l2 }, &table, 1).unwrap().onnx(),
                samples: (0..table.rows()).map(|i| table.row(i).to_vec()).collect(),
                golden: None,
                features: vec![],
                labels: schema().labels,
                metrics: BTreeMap::from([("accuracy_ppm".to_owned(), 900_000), ("n".to_owned(), 400)]),
                licence: "MIT".into(),
                classes: Default::default(),
            };
            registry.push(push, ("ann", "ann")).await.unwrap();
        }
        let anchor = cbor::encode(&anchor_set(&table));
        let anchor: Blob = registry.blobs().put(anchor).await.unwrap();
        registry
            .policy(serde_json::to_vec(&policy(anchor, anchor_score_ppm_min)).unwrap(), ("ann", "ann"))
            .await
            .unwrap();
        let add = registry.pending().await.unwrap();
        let request = Request { add, ..Request::default() };
        let signed =
            keys::sign_targets(&registry.current_targets().unwrap(), &request, &safe.join("private"), now_ms)
                .unwrap();
        registry.approve(signed, "ann").await.unwrap();
        let mut world = Self { _folder: folder, data, store, registry, token, serve: None, seq: 0 };
        for i in 0..6 {
            world.enrol(i).await;
        }
        world.start();
        world
    }

    pub(crate) async fn enrol(&self, i: usize) {
        let id: DeviceId = format!("cam-{i}").parse().unwrap();
        let hash = Digest([i as u8; 32]);
        let claim = Claim {
            id: format!("c{i}"),
            device: None,
            groups: if i == 5 { BTreeSet::from(["control".parse().unwrap()]) } else { BTreeSet::new() },
            created_by: "test".into(),
            created_ms: 0,
            expires_ms: u64::MAX / 4,
            used_ms: None,
            used_by: None,
        };
        let profile = DeviceProfile {
            class: ["rpi-4", "nuc"][i % 2].parse().unwrap(),
            arch: Arch::X86_64,
            cores: 2,
            ram_bytes: 1 << 30,
            budgets: Budgets {
                model_bytes_max: 1 << 24,
                model_ram_bytes_max: 1 << 28,
                latency_us_max: 1_000_000,
            },
            ops: ops(),
            agent: "0.1.0".into(),
        };
        let mut tx = self.store.begin().await.unwrap();
        Store::claim_add(&mut tx, &claim, &hash).await.unwrap();
        let issued = Issued {
            pem: String::new(),
            spki: vec![i as u8; 4],
            serial: id.to_string(),
            from_ms: 0,
            until_ms: u64::MAX >> 1,
        };
        let new = NewDevice { issued: &issued, profile: &profile };
        Store::enrol(&mut tx, &claim, &id, &new, clock::wall_ms()).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) fn start(&mut self) {
        let address = self.data.join("run/api.addr");
        drop(fs::remove_file(&address));
        let log = fs::File::create(self.data.join("serve.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        command.arg("serve").arg("--data").arg(&self.data).stdout(Stdio::null()).stderr(log);
        self.serve = Some(command.spawn().unwrap());
        let start = Instant::now();
        while !fs::read_to_string(&address).is_ok_and(|text| !text.trim().is_empty()) {
            assert!(start.elapsed() < PATIENCE, "{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.data.join("serve.log")).unwrap_or_default()
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.serve.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        let address = fs::read_to_string(self.data.join("run/api.addr")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_dunlin"))
            .args(args)
            .arg("--json")
            .env("DUNLIN_SERVER", format!("https://{}", address.trim()))
            .env("DUNLIN_TOKEN", &self.token)
            .env("DUNLIN_CA", self.data.join("ca.pem"))
            .output()
            .unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.cli(args);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        let printed = serde_json::from_slice(&output.stdout).unwrap();
        DOCUMENT.assert_printed(args, &printed);
        printed
    }

    pub(crate) async fn assignments(&self) -> BTreeMap<DeviceId, Assignment> {
        self.store
            .assignments()
            .await
            .unwrap()
            .into_iter()
            .filter(|(_, row)| row.published)
            .map(|(id, row)| (id, row.assignment))
            .collect()
    }

    pub(crate) fn champion(assignment: &Assignment) -> Option<&ReleaseId> {
        assignment.tasks.first().map(|task| &task.lineup.champion)
    }

    /// Each device does what its assignment says; a candidate other than `base` shows the given manner.
    pub(crate) async fn play(&mut self, manner: Manner) {
        for (device, assignment) in self.assignments().await {
            let Some(champion) = Self::champion(&assignment).cloned() else { continue };
            let installed = self.store.installed(&device).await.unwrap().remove(&"meter".parse().unwrap());
            let before = installed.and_then(|installed| installed.release);
            if before.as_ref() == Some(&champion) {
                continue;
            }
            let is_candidate = before.is_some();
            let failing = is_candidate && manner == Manner::Failing && champion.to_string() != "meter.base@1";
            let (phase, reason) = if failing { ("rolled_back", "guard_errors") } else { ("committed", "ok") };
            let now = clock::wall_ms() as i64;
            sqlx::query("INSERT INTO outcomes (device, generation, task, release, correlation, phase, reason, detail, received_ms) VALUES (?, ?, 'meter', ?, '', ?, ?, '', ?)")
                .bind(device.as_str()).bind(assignment.generation as i64).bind(champion.to_string()).bind(phase).bind(reason).bind(now)
                .execute(self.store.writer()).await.unwrap();
            if failing {
                continue;
            }
            if let Some(other) = before {
                self.window(&device, &champion, other).await;
            }
            sqlx::query("INSERT INTO installed (device, task, release, phase, generation, updated_ms) VALUES (?1, 'meter', ?2, 'committed', ?3, ?4)
                         ON CONFLICT (device, task) DO UPDATE SET release = ?2, generation = ?3")
                .bind(device.as_str()).bind(champion.to_string()).bind(assignment.generation as i64).bind(now)
                .execute(self.store.writer()).await.unwrap();
        }
    }

    pub(crate) async fn window(&mut self, device: &DeviceId, release: &ReleaseId, other: ReleaseId) {
        self.seq += 1;
        let now = clock::wall_ms();
        let pair = PairCounts {
            other,
            n: 100,
            disagree: 42,
            both_right: 56,
            only_this: 40,
            only_other: 2,
            both_wrong: 2,
        };
        let mut window: Window = serde_json::from_value(serde_json::json!({
            "task": "meter", "start_ms": now - 1000, "end_ms": now, "wall": true, "n": 100,
        }))
        .unwrap();
        window.release = Some(release.clone());
        window.probation = true;
        window.pair = Some(pair);
        sqlx::query("INSERT INTO windows (boot_no, seq, device, task, release, generation, start_ms, end_ms, wall, received_ms, probation, n, errors, labelled, correct, body)
                     VALUES (1, ?, ?, 'meter', ?, 1, ?, ?, 1, ?, 1, 100, 0, 100, 96, ?)")
            .bind(self.seq).bind(device.as_str()).bind(release.to_string())
            .bind(now as i64 - 1000).bind(now as i64).bind(now as i64).bind(cbor::encode(&window))
            .execute(self.store.writer()).await.unwrap();
    }

    /// Plays until `done`.
    pub(crate) async fn until(&mut self, manner: Manner, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "{what} did not come: {}\n{}",
                self.json(&["rollout", "list"]),
                self.log()
            );
            self.play(manner).await;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    pub(crate) fn state(&self, rollout: &str) -> String {
        self.json(&["rollout", "status", rollout])["plan"]["state"]["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn create(&self, release: &str) -> String {
        let made = self.json(&["rollout", "create", "--task", "meter", release, "--cause", "test"]);
        made["plan"]["rollout"].as_str().unwrap().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.serve.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

pub(crate) fn ops() -> BTreeSet<String> {
    dunlin_engine::supported_ops()
}

pub(crate) fn policy(anchor: Blob, anchor_score_ppm_min: u32) -> TaskPolicy {
    TaskPolicy {
        format: 1,
        task: "meter".parse().unwrap(),
        task_type: TaskType::Classification,
        metric: "accuracy".into(),
        baseline_class: 0,
        baseline_rules: vec![],
        labels: schema().labels,
        retrained: Some(RetrainedBounds {
            inputs: vec![],
            outputs: vec![],
            ops: ops(),
            bundle_bytes_max: 1 << 24,
            ram_bytes_max: 1 << 28,
            latency_us_max: 1_000_000,
            anchor,
            anchor_score_ppm_min,
        }),
        samples: None,
    }
}

impl World {
    /// Stores labelled samples under the opposite rule of what the first models learnt.
    pub(crate) async fn opposite_samples(&self) {
        for (i, (x, label)) in rows(400, -1.0).1.into_iter().enumerate() {
            let x: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
            sqlx::query("INSERT INTO samples (task, device, request, release, x, predicted, label, kind, inclusion_ppm, at_ms, received_ms) VALUES ('meter', 'cam-0', ?, 'meter.base@1', ?, 0, ?, 'random', 1000000, ?, ?)")
                .bind(format!("q{i}")).bind(x).bind(i64::from(label)).bind(i as i64).bind(clock::wall_ms() as i64)
                .execute(self.store.writer()).await.unwrap();
        }
    }

    /// Starts a run and waits for its end; what is shown of it.
    pub(crate) async fn finished_run(&mut self) -> serde_json::Value {
        let run = self.json(&["run", "start", "meter"])["id"].as_str().unwrap().to_owned();
        self.until(Manner::Better, "the end of a run", |world| {
            let shown = world.json(&["run", "show", &run]);
            !["queued", "running", "waiting"].contains(&shown["run"]["state"].as_str().unwrap())
        })
        .await;
        self.json(&["run", "show", &run])
    }

    /// Devices with a published assignment.
    pub(crate) fn published(&self) -> usize {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async { self.assignments().await.len() })
        })
    }

    /// Whether every device is told to run this release, and does.
    pub(crate) fn state_of_all(&self, release: &str) -> bool {
        let store = self.store.clone();
        let wanted: ReleaseId = release.parse().unwrap();
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let assigned = store.assignments().await.unwrap();
                let installed = store.installed_all().await.unwrap();
                assigned.len() == 6
                    && assigned
                        .values()
                        .all(|row| row.published && Self::champion(&row.assignment) == Some(&wanted))
                    && installed.len() == 6
                    && installed
                        .values()
                        .all(|tasks| tasks.values().all(|one| one.release.as_ref() == Some(&wanted)))
            })
        })
    }
}
