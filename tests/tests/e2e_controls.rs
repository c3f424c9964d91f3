//! Negative controls: with the defence behind it switched off, a claim of the demonstration does not hold.
//!
//! One world, attacked as the demonstration attacks its own, with the same claims called. Each device but the first runs
//! without one defence, and the controller is started anew without one where the controller is what defends. Where it
//! costs nothing, the same claim is shown to hold in the same world for who has the defence.
#![cfg(feature = "weaken")]
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::weaken::Defence;
use dunlin_protocol::{DeviceId, Down, RepoFiles, Topic};
use dunlin_tests::agent::Application;
use dunlin_tests::attacker::Attacker;
use dunlin_tests::claims::{self, Claim};
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{AGED, NEW, views};
use dunlin_tests::operator::{TASK, definition, push, push_file, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use dunlin_tests::wide::annotate;
use sqlx::SqlitePool;

const LIMIT: Duration = Duration::from_secs(90);
/// How long something is waited for that must not come. Its counterpart beside it has come by then.
const IN_VAIN: Duration = Duration::from_secs(4);
/// Length of a model whose download can be cut, and what of it must have come.
const LONG_BYTES: usize = 24 << 20;
const CUT_BYTES: u64 = 1 << 20;
const CLASS: &str = "raspberry-pi-4";

/// The devices by what they do without.
const WHOLE: usize = 0;
const NO_DIGEST: usize = 1;
const NO_VERSIONS: usize = 2;
const NO_ADDRESSEE: usize = 3;
const NO_ACKNOWLEDGEMENT: usize = 4;
const NO_RESUME: usize = 5;
/// Has every defence, and is left with forged metadata.
const FROZEN_OUT: usize = 6;
/// Has every defence, and is in the group that the task holds.
const HELD: usize = 7;
const N: usize = 8;

const WITHOUT: [&[Defence]; N] = [
    &[],
    &[Defence::Digest],
    &[Defence::MetadataVersion, Defence::Generation],
    &[Defence::AssignedDevice, Defence::Approval, Defence::MessageDevice, Defence::MessageNumber],
    &[Defence::Acknowledgement],
    &[Defence::Resume],
    &[],
    &[],
];

/// What the controller does without while it learns and rolls out by itself.
const UNBOUND: [Defence; 6] =
    [Defence::Gain, Defence::Gate, Defence::Holding, Defence::Exclusion, Defence::Drift, Defence::Schedule];
/// Merged windows of this length are judged for drift, so that a few seconds show it; no threshold is touched.
const EVIDENCE: &str = "\n[evidence]\nwindow_ms = 4000\nlateness_ms = 1000\n";

/// A claim that must not hold; tells and returns why it does not.
fn fails(claim: Claim) -> String {
    match claim {
        Ok(evidence) => panic!("the claim holds without its defence: {evidence}"),
        Err(why) => {
            eprintln!("          does not hold: {why:#}");
            format!("{why:#}")
        }
    }
}

struct World {
    small: Small,
    database: SqlitePool,
    attacker: Attacker,
    first: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_defence_a_claim_does_not_hold() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut controller = Controller::new(folder);
    controller.init(&format!("{CONTROLLER_CONFIG}{EVIDENCE}")).await.unwrap();
    controller.start().await.unwrap();
    let config = AGENT_CONFIG.replace("check_s = 5", "check_s = 3600");
    let mut small = Small::with(folder, &[CLASS; N], controller, &config).unwrap();
    for (agent, without) in small.agents.iter_mut().zip(WITHOUT).filter(|(_, without)| !without.is_empty()) {
        agent.weaken(without);
    }
    small.enrol().await.unwrap();
    small.controller.json(&["group", "create", "held"]).await.unwrap();
    small.controller.json(&["device", "group", &small.agents[HELD].id, "held"]).await.unwrap();
    let database = small.controller.database().await.unwrap();
    fails(claims::every_device_serves(&database, N).await);
    fails(claims::own_key_and_signed_model(&small.controller, &database, N).await);
    let attacker = Attacker::new(&small.controller.data, small.controller.mqtt);
    let old = [WHOLE, NO_VERSIONS].map(|i| (i, small.agents[i].id.parse::<DeviceId>().unwrap()));
    let mut stolen = Vec::new();
    for (index, device) in old {
        let files =
            wait_for("the first director files", LIMIT, async || Ok(attacker.director_files(&device).ok()));
        stolen.push((index, files.await.unwrap()));
    }
    let first = small.first_model(folder).await.unwrap();
    small.ask().unwrap();
    small.committed(&first, LIMIT).await.unwrap();
    claims::every_device_serves(&database, N).await.unwrap();
    claims::own_key_and_signed_model(&small.controller, &database, N).await.unwrap();
    // A pool with a release that no decision has a row for.
    let pool = [first.clone()].into();
    claims::explained(&small.controller, &small.agents[WHOLE].id, &pool).await.unwrap();
    let wider = [first.clone(), "meter-unknown@1".to_owned()].into();
    fails(claims::explained(&small.controller, &small.agents[WHOLE].id, &wider).await);
    let by_class = BTreeMap::from([(CLASS, BTreeMap::from([(first.clone(), N)]))]);
    fails(claims::choice_differs(&by_class));

    let mut world = World { small, database, attacker, first };
    let began = std::time::Instant::now();
    let told = |what: &str| eprintln!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    told("attacks");
    world.attacks(&stolen).await;
    told("tampering");
    world.tampering(folder).await;
    told("copies");
    world.copies().await;
    told("losses");
    world.losses().await;
    told("learning");
    world.learning(folder).await;
    told("bad model");
    world.bad_model(folder).await;
    told("by itself");
    world.by_itself(folder).await;
    told("audit");
    world.audit().await;
    told("end");
}

impl World {
    fn id(&self, index: usize) -> DeviceId {
        self.small.agents[index].id.parse().unwrap()
    }

    async fn refused(&self, index: usize, reason: &str, since: i64, limit: Duration) -> Claim {
        claims::refused(&self.database, &self.small.agents[index].id, reason, since, limit).await
    }

    /// Starts the controller anew without these defences.
    async fn controller_without(&mut self, off: &[Defence]) {
        self.small.controller.stop().await.unwrap();
        self.small.controller.weaken(off);
        self.small.controller.start().await.unwrap();
    }

    /// The task with two short waves in which every device may fail, and a retraining of few rows, by a schedule if one is
    /// given and else on demand alone.
    async fn task(&self, folder: &Path, cron: Option<&str>) {
        let mut rules: toml::Table = toml::from_str(&definition(&self.pool(), cron)).unwrap();
        let wave = |share: u32| {
            toml::toml! { soak_ms = 1000
            requests_min = 20
            labels_min = 20
            alpha_ppm = 10000 }
            .into_iter()
            .chain([("share_ppm".to_owned(), toml::Value::from(share))])
            .collect::<toml::Table>()
        };
        let rollout = rules["rollout"].as_table_mut().unwrap();
        rollout.insert("waves".into(), vec![wave(10_000), wave(1_000_000)].into());
        rollout.insert("failures_ppm_max".into(), 1_000_000.into());
        rollout["probation"].as_table_mut().unwrap().insert("ms_min".into(), 5_000.into());
        let retraining = rules["retraining"].as_table_mut().unwrap();
        retraining.insert("families".into(), vec!["logistic"].into());
        retraining.insert("trials".into(), 1.into());
        retraining.insert("rows_min".into(), 300.into());
        retraining.insert("rows_max".into(), 380.into());
        retraining.insert("age_ms_max".into(), 0.into());
        retraining["triggers"].as_table_mut().unwrap().remove("drift_ppm_min");
        let file = folder.join("task.toml");
        std::fs::write(&file, toml::to_string(&rules).unwrap()).unwrap();
        self.small.controller.json(&["task", "apply", &file.display().to_string()]).await.unwrap();
    }

    fn pool(&self) -> BTreeSet<String> {
        [self.first.clone()].into()
    }

    async fn roll_out(&self, release: &str) -> String {
        let controller = &self.small.controller;
        controller.json(&["model", "approve", release, "--keys", &self.small.offline_keys()]).await.unwrap();
        let created = controller.json(&["rollout", "create", "--task", TASK, release]).await.unwrap();
        created["plan"]["rollout"].as_str().unwrap().to_owned()
    }

    /// Number of the newest window.
    async fn heard(&self) -> i64 {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM windows")
            .fetch_one(&self.database)
            .await
            .unwrap()
    }

    /// Waits for a window of each of these devices that came in after this one.
    async fn hear(&self, devices: &[usize], after: i64) {
        for device in devices {
            wait_for("windows of a device", LIMIT, async || {
                let n: i64 = sqlx::query_scalar("SELECT count(*) FROM windows WHERE device = ? AND id > ?")
                    .bind(&self.small.agents[*device].id)
                    .bind(after)
                    .fetch_one(&self.database)
                    .await?;
                Ok((n > 0).then_some(()))
            })
            .await
            .unwrap();
        }
    }

    /// Waits until each of these devices has closed two more windows, the first of which it has sent by then.
    async fn close(&self, devices: &[usize]) {
        let closed = |device: usize| -> u64 {
            let file = self.small.agents[device].folder.join("state/spool/counters.json");
            let books: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            books["boots"].as_array().unwrap().iter().filter_map(|boot| boot["windows"].as_u64()).sum()
        };
        let before: Vec<u64> = devices.iter().map(|device| closed(*device)).collect();
        wait_for("further windows", LIMIT, async || {
            let done = devices.iter().zip(&before).all(|(device, before)| closed(*device) >= before + 2);
            Ok(done.then_some(()))
        })
        .await
        .unwrap();
    }

    /// Over the broker, with the controller's stolen identity and online keys. All is sent before anything is waited for:
    /// who takes the controller's session over delays what devices report.
    async fn attacks(&mut self, stolen: &[(usize, RepoFiles)]) {
        let before = claims::serving(&self.database).await.unwrap();
        let attacker = &self.attacker;
        let sealed = |device: &DeviceId| {
            attacker.seal_desired(device, attacker.director_files(device).unwrap()).unwrap()
        };
        let (whole, weak) = (self.id(WHOLE), self.id(NO_ADDRESSEE));
        let since = claims::last_indicator(&self.database).await.unwrap();
        // One message twice, and one to somebody else.
        for device in [&whole, &weak] {
            let (topic, message) = (Topic::down(device, Down::Desired), sealed(device));
            attacker.publish(&topic, message.clone()).await.unwrap();
            attacker.publish(&topic, message).await.unwrap();
        }
        for (to, of) in [(&whole, &weak), (&weak, &whole)] {
            attacker.publish(&Topic::down(to, Down::Desired), sealed(of)).await.unwrap();
        }
        // Director documents from before there was a model.
        for (index, files) in stolen {
            attacker.push(&self.id(*index), files.clone()).await.unwrap();
        }
        // What another device shall run, and what nobody approved. The forged versions are far ahead, so who sees them takes
        // nothing genuine afterwards.
        for device in [self.id(FROZEN_OUT), self.id(NO_ADDRESSEE)] {
            let foreign = attacker.forge(&device, |assignment| assignment.device = whole.clone());
            attacker.push(&device, foreign.unwrap()).await.unwrap();
            let unapproved = attacker.forge(&device, |assignment| {
                assignment.generation += 10;
                assignment.tasks[0].lineup.champion = "meter-evil@1".parse().unwrap();
            });
            attacker.push(&device, unapproved.unwrap()).await.unwrap();
        }

        let attacks = [
            ("envelope_replayed", WHOLE, NO_ADDRESSEE),
            ("envelope_wrong_device", WHOLE, NO_ADDRESSEE),
            ("metadata_rollback", WHOLE, NO_VERSIONS),
            ("wrong_device", FROZEN_OUT, NO_ADDRESSEE),
            ("not_approved", FROZEN_OUT, NO_ADDRESSEE),
        ];
        for (reason, whole, _) in attacks {
            self.refused(whole, reason, since, LIMIT).await.unwrap();
        }
        tokio::time::sleep(IN_VAIN).await;
        for (reason, _, without) in attacks {
            fails(self.refused(without, reason, since, Duration::ZERO).await);
        }
        // Nobody sent bytes that are no message.
        fails(self.refused(WHOLE, "envelope_malformed", since, Duration::ZERO).await);
        let agents = &self.small.agents;
        claims::no_model_moved(&[&agents[WHOLE]], &before).await.unwrap();
        fails(claims::no_model_moved(&[&agents[NO_VERSIONS]], &before).await);
        for index in [FROZEN_OUT, NO_ADDRESSEE] {
            self.small.agents[index].stop().await.unwrap();
            self.small.controller.json(&["device", "revoke", &self.small.agents[index].id]).await.unwrap();
        }
    }

    /// One bit of a model is flipped after it was signed, in text that nothing reads, so that nothing but the digest can
    /// tell. Downloads of it are cut. The controller knows no waves and brings nobody back.
    async fn tampering(&mut self, folder: &Path) {
        self.task(folder, None).await;
        self.controller_without(&[Defence::Waves, Defence::Return]).await;
        let before = claims::serving(&self.database).await.unwrap();
        let job = folder.join("tampered");
        let images = views(&self.small.pools.training, NEW, 1, 1);
        let result = train(&self.small.controller, &job, &images, &["logistic"], 1).await.unwrap();
        let candidate = &result["candidates"][0];
        let model = job.join("candidates").join(candidate["id"].as_str().unwrap()).join("model.onnx");
        let long = annotate(&std::fs::read(model).unwrap(), LONG_BYTES).unwrap();
        let file = job.join("long.onnx");
        std::fs::write(&file, &long).unwrap();
        let release =
            push_file(&self.small.controller, &job, &file, "meter-tampered", candidate).await.unwrap();
        self.attacker.tamper(&dunlin_trust::sha256(&long).to_string()).unwrap();
        let since = claims::last_indicator(&self.database).await.unwrap();
        let rollout = self.roll_out(&release).await;

        let mut cuts = BTreeMap::new();
        wait_for("downloads to cut", LIMIT, async || {
            // A download lasts a fraction of a second here, so this looks many times before it pauses.
            for _ in 0..2000 {
                for index in [WHOLE, NO_RESUME] {
                    let agent = &mut self.small.agents[index];
                    if cuts.contains_key(&index) || agent.downloading(CUT_BYTES).is_none() {
                        continue;
                    }
                    agent.kill().await?;
                    // It may have been through before the blow; then it tries once more.
                    match agent.downloading(CUT_BYTES) {
                        Some(cut) => drop(cuts.insert(index, cut)),
                        None => self.small.start(index).await?,
                    }
                }
                if cuts.len() == 2 {
                    return Ok(Some(()));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(None)
        })
        .await
        .unwrap();
        for index in [WHOLE, NO_RESUME] {
            self.small.start(index).await.unwrap();
        }
        claims::resumed(&self.small.agents[WHOLE], &cuts[&WHOLE], LIMIT).await.unwrap();
        fails(claims::resumed(&self.small.agents[NO_RESUME], &cuts[&NO_RESUME], LIMIT).await);

        let (database, controller) = (&self.database, &self.small.controller);
        let (whole, weak) = (self.id(NO_VERSIONS), self.id(NO_DIGEST));
        claims::tampering_refused(database, &release, &[whole.as_str()], since, LIMIT).await.unwrap();
        wait_for("the tampered model to answer", LIMIT, async || {
            Ok(claims::never_answered(database, &release, &[weak.as_str()]).await.is_err().then_some(()))
        })
        .await
        .unwrap();
        fails(claims::tampering_refused(database, &release, &[weak.as_str()], since, IN_VAIN).await);
        claims::never_answered(database, &release, &[whole.as_str()]).await.unwrap();
        let releases = [release.clone()];
        fails(claims::committed(database, whole.as_str(), &releases, Duration::ZERO).await);
        claims::committed(database, weak.as_str(), &releases, LIMIT).await.unwrap();
        fails(claims::in_waves(controller, &rollout, 1, 2).await);
        fails(claims::only_the_canary_ran(controller, database, &rollout, &release, 1).await);
        claims::kept_out(database, &self.pool()).await.unwrap();

        controller.json(&["rollout", "abort", &rollout]).await.unwrap();
        fails(claims::promoted(database, &rollout).await);
        fails(claims::returned(database, &release, &before, IN_VAIN).await);
        self.controller_without(&[]).await;
        claims::returned(&self.database, &release, &before, LIMIT).await.unwrap();
    }

    /// A device that did not hear that its records are stored sends them again.
    async fn copies(&mut self) {
        self.controller_without(&[Defence::Once]).await;
        self.hear(&[WHOLE], self.heard().await).await;
        self.small.controller.freeze().unwrap();
        let heard = self.heard().await;
        self.close(&[WHOLE]).await;
        self.small.agents[WHOLE].freeze().unwrap();
        self.small.controller.thaw().unwrap();
        self.small.hush();
        // What the device sent is stored before it dies, and it does not hear so.
        self.hear(&[WHOLE], heard).await;
        self.small.agents[WHOLE].kill().await.unwrap();
        self.controller_without(&[Defence::Once]).await;
        self.small.start(WHOLE).await.unwrap();
        let agent = &self.small.agents[WHOLE];
        // Until the device sends again, what is stored agrees with what it closed.
        let why = wait_for("a window to be stored twice", LIMIT, async || {
            let why = claims::accounted_for(&[agent], &self.database, Duration::ZERO).await.err();
            Ok(why.map(|why| format!("{why:#}")).filter(|why| why.contains("differing: []")))
        })
        .await
        .unwrap();
        assert!(!why.contains(" 0 twice"), "{why}");
    }

    /// What was sent dies with the connection, and with the devices that sent it.
    async fn losses(&mut self) {
        self.controller_without(&[]).await;
        self.small.ask().unwrap();
        let both = [NO_VERSIONS, NO_ACKNOWLEDGEMENT];
        self.hear(&both, self.heard().await).await;
        self.small.controller.freeze().unwrap();
        self.close(&both).await;
        for index in both {
            self.small.agents[index].kill().await.unwrap();
        }
        self.small.controller.kill().await.unwrap();
        self.small.hush();
        self.small.controller.start().await.unwrap();
        for index in both {
            self.small.start(index).await.unwrap();
        }
        let [acknowledged, not] = both.map(|index| &self.small.agents[index]);
        claims::accounted_for(&[acknowledged], &self.database, LIMIT).await.unwrap();
        let why = fails(claims::accounted_for(&[not], &self.database, IN_VAIN).await);
        assert!(why.contains(" 0 twice"), "{why}");
        self.small.ask().unwrap();
    }

    /// A run that an operator asked for, on cameras that did not age, of too few rows to show anything.
    async fn learning(&mut self, folder: &Path) {
        self.controller_without(&UNBOUND).await;
        self.task(folder, None).await;
        // Somebody labels at once what some devices are asked, so that no digit is rare.
        let application = Application::new(TASK).unwrap();
        let labelled = [WHOLE, NO_DIGEST, NO_RESUME, HELD];
        for (number, image) in views(&self.small.pools.stream, NEW, 2, 5).iter().enumerate() {
            let agent = &self.small.agents[labelled[number % labelled.len()]];
            let id = format!("labelled-{number}");
            application.infer(agent.api, &id, &image.pixels).await.unwrap();
            application.feedback(agent.api, &id, image.digit).await.unwrap();
        }
        wait_for("labelled samples of each", LIMIT, async || {
            let devices = sqlx::query("SELECT device FROM samples JOIN devices ON devices.id = device WHERE label IS NOT NULL AND state = 'active' AND request LIKE 'labelled-%' GROUP BY device HAVING count(*) >= 75")
                .fetch_all(&self.database)
                .await?;
            Ok((devices.len() == labelled.len()).then_some(()))
        })
        .await
        .unwrap();
        let run = self.small.controller.json(&["run", "start", TASK]).await.unwrap();
        let run = run["id"].as_str().unwrap().to_owned();
        let (cause, facts) = wait_for("the run to end", LIMIT, async || {
            let row: (String, String, String) =
                sqlx::query_as("SELECT state, cause, facts FROM runs WHERE id = ?")
                    .bind(&run)
                    .fetch_one(&self.database)
                    .await?;
            anyhow::ensure!(row.0 != "failed", "the run failed: {row:?}");
            Ok((row.0 == "succeeded").then_some((row.1, row.2)))
        })
        .await
        .unwrap();
        let why = fails(claims::gained(&facts));
        assert!(why.starts_with("1 released; "), "{why}");
        fails(claims::started_by_itself(&run, &cause));
        fails(claims::learnt_from_devices(&self.small.controller, &self.database, &run).await);
        let rollout: String = sqlx::query_scalar("SELECT id FROM rollouts WHERE run = ?")
            .bind(&run)
            .fetch_one(&self.database)
            .await
            .unwrap();
        claims::confined(&self.small.controller, &rollout).await.unwrap();
        // Whatever follows is seen by aged cameras.
        claims::no_drift_seen(&self.database).await.unwrap();
        let scene = self.small.scene.as_ref().unwrap();
        *scene.ageing.lock().unwrap() = AGED;
    }

    /// A model that is always wrong, properly signed, before a gate that does not look. The controller ends in the middle
    /// of its rollout, and the next one leaves that alone until it has its defence.
    async fn bad_model(&mut self, folder: &Path) {
        let job = folder.join("bad");
        let images = self.small.mislabelled();
        let result = train(&self.small.controller, &job, &images, &["logistic"], 3).await.unwrap();
        let bad = push(&self.small.controller, &job, "logistic", "meter-bad", &result["candidates"][0])
            .await
            .unwrap();
        let rollout = self.roll_out(&bad).await;
        let canary = wait_for("a canary", LIMIT, async || {
            let canary = claims::canary(&self.database, &rollout).await?;
            Ok(Some(canary).filter(|canary| !canary.devices.is_empty()))
        })
        .await
        .unwrap();
        self.controller_without(&[&UNBOUND[..], &[Defence::Takeover]].concat()).await;
        let first = canary.devices.first().unwrap();
        claims::committed(&self.database, first, std::slice::from_ref(&bad), LIMIT).await.unwrap();
        tokio::time::sleep(IN_VAIN).await;
        fails(claims::promoted(&self.database, &rollout).await);
        fails(claims::taken_up(&self.database, &rollout, &canary).await);
        self.controller_without(&UNBOUND).await;
        let (database, controller) = (&self.database, &self.small.controller);
        wait_for("the rollout to end", LIMIT, async || {
            let state: String = sqlx::query_scalar("SELECT state FROM rollouts WHERE id = ?")
                .bind(&rollout)
                .fetch_one(database)
                .await?;
            Ok((state == "promoted" || state == "stopped").then_some(()))
        })
        .await
        .unwrap();
        fails(claims::stopped(database, &rollout).await);
        fails(claims::told_to_pipelines(controller, &rollout).await);
        claims::in_waves(controller, &rollout, 1, 2).await.unwrap();
        claims::taken_up(database, &rollout, &canary).await.unwrap();
        fails(claims::only_the_canary_ran(controller, database, &rollout, &bad, 1).await);
        fails(claims::kept_out(database, &self.pool()).await);
        fails(claims::confined(controller, &rollout).await);
        let (device, releases) = (self.id(NO_DIGEST), [bad]);
        claims::not_blamed(database, device.as_str(), &releases).await.unwrap();
        // It may still be on its way back to a controller that was started anew.
        let rollback = ["device", "rollback", device.as_str(), "--task", TASK, "--timeout", "90"];
        controller.json(&rollback).await.unwrap();
        wait_for("the device to go back", LIMIT, async || {
            Ok(claims::not_blamed(database, device.as_str(), &releases).await.is_err().then_some(()))
        })
        .await
        .unwrap();
    }

    /// A schedule that is due at every second and cameras that have aged: neither is acted on until the controller has its
    /// defences, which then act on the very same.
    async fn by_itself(&mut self, folder: &Path) {
        self.task(folder, Some("* * * * * *")).await;
        tokio::time::sleep(IN_VAIN).await;
        fails(claims::schedule_fired(&self.database, Duration::ZERO).await);
        fails(claims::drift_seen(&self.database).await);
        self.controller_without(&[]).await;
        claims::schedule_fired(&self.database, LIMIT).await.unwrap();
        wait_for("an alert", LIMIT, async || Ok(claims::drift_seen(&self.database).await.ok()))
            .await
            .unwrap();
        fails(claims::no_drift_seen(&self.database).await);
    }

    /// Somebody with the database changes what happened.
    async fn audit(&mut self) {
        claims::audit_whole(&self.small.controller).await.unwrap();
        self.small.hush();
        for agent in &mut self.small.agents {
            agent.stop().await.unwrap();
        }
        self.small.controller.stop().await.unwrap();
        let options =
            sqlx::sqlite::SqliteConnectOptions::new().filename(self.small.controller.data.join("dunlin.db"));
        let database = SqlitePool::connect_with(options).await.unwrap();
        for change in ["DROP TRIGGER audit_no_update", "UPDATE audit SET who = 'nobody' WHERE no = 2"] {
            sqlx::query(change).execute(&database).await.unwrap();
        }
        fails(claims::audit_whole(&self.small.controller).await);
    }
}
