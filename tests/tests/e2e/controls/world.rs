//! A fleet in which each device but the first runs without one defence.
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::DeviceId;
use dunlin_protocol::weaken::Defence;
use dunlin_tests::attacker::Attacker;
use dunlin_tests::claims::{self, Claim};
use dunlin_tests::operator::{definition, unhurried};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use sqlx::SqlitePool;

pub(crate) const LIMIT: Duration = Duration::from_secs(180);
/// How long something is waited for that must not come. Its counterpart beside it has come by then.
pub(crate) const IN_VAIN: Duration = Duration::from_secs(4);
pub(crate) const CLASS: &str = "raspberry-pi-4";

/// The devices by what they do without.
pub(crate) const WHOLE: usize = 0;
pub(crate) const NO_DIGEST: usize = 1;
pub(crate) const NO_VERSIONS: usize = 2;
pub(crate) const NO_ADDRESSEE: usize = 3;
pub(crate) const NO_ACKNOWLEDGEMENT: usize = 4;
pub(crate) const NO_RESUME: usize = 5;
/// Has every defence, and is left with forged metadata.
pub(crate) const FROZEN_OUT: usize = 6;
/// Has every defence, and is in the group that the task holds.
pub(crate) const HELD: usize = 7;
pub(crate) const N: usize = 8;

/// Two are without `Strikes`, so that one of them is outside any canary of one device.
pub(crate) const WITHOUT: [&[Defence]; N] = [
    &[],
    &[Defence::Digest],
    &[Defence::MetadataVersion, Defence::Generation],
    &[Defence::AssignedDevice, Defence::Approval, Defence::MessageDevice, Defence::MessageNumber],
    &[Defence::Acknowledgement, Defence::Strikes],
    &[Defence::Resume, Defence::Strikes],
    &[],
    &[],
];

/// Merged windows of this length are judged for drift, so that a few seconds show it; no threshold is touched.
pub(crate) const EVIDENCE: &str = "\n[evidence]\nwindow_ms = 4000\nlateness_ms = 1000\n";

/// A claim that must not hold; tells and returns why it does not.
pub(crate) fn fails(claim: Claim) -> String {
    match claim {
        Ok(evidence) => panic!("the claim holds without its defence: {evidence}"),
        Err(why) => {
            eprintln!("          does not hold: {why:#}");
            format!("{why:#}")
        }
    }
}

/// The rules of the task, with two short waves in which every device may fail, and a retraining of one family, by a
/// schedule if one is given and else by drift.
pub(crate) fn rules(pool: &BTreeSet<String>, cron: Option<&str>) -> toml::Table {
    let mut rules: toml::Table = toml::from_str(&unhurried(&definition(pool, cron))).unwrap();
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
    retraining.insert("age_ms_max".into(), 0.into());
    rules
}

/// Puts rules of the task in force.
pub(crate) async fn apply(small: &Small, folder: &Path, rules: &toml::Table) {
    let file = folder.join("task.toml");
    std::fs::write(&file, toml::to_string(rules).unwrap()).unwrap();
    small.controller.json(&["task", "apply", &file.display().to_string()]).await.unwrap();
}

/// Starts the controller anew without these defences.
pub(crate) async fn controller_without(small: &mut Small, off: &[Defence]) {
    small.controller.stop().await.unwrap();
    small.controller.weaken(off);
    small.controller.start().await.unwrap();
}

/// Waits until a run has ended well; returns its cause and its facts.
pub(crate) async fn succeeded(database: &SqlitePool, run: &str) -> (String, String) {
    wait_for("the run to end", LIMIT, async || {
        let row: (String, String, String) =
            sqlx::query_as("SELECT state, cause, facts FROM runs WHERE id = ?")
                .bind(run)
                .fetch_one(database)
                .await?;
        anyhow::ensure!(row.0 != "failed", "the run failed: {row:?}");
        Ok((row.0 == "succeeded").then_some((row.1, row.2)))
    })
    .await
    .unwrap()
}

/// The rollout of what a run made.
pub(crate) async fn rollout_of(database: &SqlitePool, run: &str) -> String {
    sqlx::query_scalar("SELECT id FROM rollouts WHERE run = ?").bind(run).fetch_one(database).await.unwrap()
}

pub(crate) struct World {
    pub(crate) small: Small,
    pub(crate) database: SqlitePool,
    pub(crate) attacker: Attacker,
    pub(crate) first: String,
}

impl World {
    pub(crate) fn id(&self, index: usize) -> DeviceId {
        self.small.agents[index].id.parse().unwrap()
    }

    pub(crate) async fn refused(&self, index: usize, reason: &str, since: i64, limit: Duration) -> Claim {
        claims::refused(&self.database, &self.small.agents[index].id, reason, since, limit).await
    }

    /// Starts the controller anew without these defences.
    pub(crate) async fn controller_without(&mut self, off: &[Defence]) {
        controller_without(&mut self.small, off).await;
    }

    /// The task with a retraining of few rows, by a schedule if one is given and else on demand alone.
    pub(crate) async fn task(&self, folder: &Path, cron: Option<&str>) {
        apply(&self.small, folder, &self.rules(cron)).await;
    }

    /// The task on demand alone, with rollouts in which devices watch a release for at least so long.
    pub(crate) async fn watched_for(&self, folder: &Path, probation: Duration) {
        let mut rules = self.rules(None);
        let ms = i64::try_from(probation.as_millis()).unwrap();
        rules["rollout"]["probation"].as_table_mut().unwrap().insert("ms_min".into(), ms.into());
        apply(&self.small, folder, &rules).await;
    }

    fn rules(&self, cron: Option<&str>) -> toml::Table {
        let mut rules = rules(&self.pool(), cron);
        let retraining = rules["retraining"].as_table_mut().unwrap();
        retraining.insert("rows_max".into(), 380.into());
        retraining["triggers"].as_table_mut().unwrap().remove("drift_ppm_min");
        rules
    }

    pub(crate) fn pool(&self) -> BTreeSet<String> {
        [self.first.clone()].into()
    }

    pub(crate) async fn roll_out(&self, release: &str) -> String {
        self.small.approve(release).await.unwrap();
        self.small.roll_out(release).await.unwrap()
    }

    /// Number of the newest window.
    pub(crate) async fn heard(&self) -> i64 {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM windows")
            .fetch_one(&self.database)
            .await
            .unwrap()
    }

    /// Waits for a window of each of these devices that came in after this one.
    pub(crate) async fn hear(&self, devices: &[usize], after: i64) {
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

    /// Waits until each of these devices has closed three more windows, the first of which it has sent by then: it is sent
    /// beside the closing of the next.
    pub(crate) async fn close(&self, devices: &[usize]) {
        let closed = |device: usize| -> u64 {
            let file = self.small.agents[device].folder.join("state/spool/counters.json");
            let books: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            books["boots"].as_array().unwrap().iter().filter_map(|boot| boot["windows"].as_u64()).sum()
        };
        let before: Vec<u64> = devices.iter().map(|device| closed(*device)).collect();
        wait_for("further windows", LIMIT, async || {
            let done = devices.iter().zip(&before).all(|(device, before)| closed(*device) >= before + 3);
            Ok(done.then_some(()))
        })
        .await
        .unwrap();
    }
}
