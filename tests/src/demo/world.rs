//! The fleet and everything that is asked of it.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use dunlin_monitor::rate::Rate;
use dunlin_tests::agent::Agent;
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{NEW, Pools};
use dunlin_tests::traffic::{Camera, Scene};
use sqlx::SqlitePool;
use tokio::task::JoinSet;

use crate::report::{Report, Series};

/// Hardware classes; device `i` is of class `i % 3`.
pub(crate) const CLASSES: [&str; 3] = ["beaglebone-black", "raspberry-pi-zero-2w", "raspberry-pi-4"];
/// The group that is never retrained: the last two devices of each class.
pub(crate) const HELD: usize = 6;
/// Images a second that each camera sees.
pub(crate) const RATE: f64 = 10.0;

/// Windows are shortened so that a day fits into minutes; no threshold, alpha or minimum is touched.
pub(crate) const CONTROLLER_CONFIG: &str = "\
[planner]
tick_ms = 1000

[training]
tick_ms = 1000

[evidence]
window_ms = 6000
lateness_ms = 3000
";
/// The same on the devices.
pub(crate) const AGENT_CONFIG: &str = "\
[telemetry]
window_s = 3
report_s = 3

[update]
check_s = 20
retry_min_s = 1
retry_max_s = 5
";

/// Everything there is.
pub(crate) struct World {
    pub(crate) out: PathBuf,
    pub(crate) controller: Controller,
    pub(crate) agents: Vec<Agent>,
    pub(crate) scene: Arc<Scene>,
    pub(crate) pools: Pools,
    pub(crate) traffic: JoinSet<()>,
    pub(crate) marks: Vec<(f64, &'static str)>,
    /// Releases that any device may run without a rollout.
    pub(crate) pool: BTreeSet<String>,
    database: Option<SqlitePool>,
}

impl World {
    /// Folders and devices; nothing runs yet.
    pub(crate) fn new(devices: usize, out: &Path) -> Result<Self> {
        if out.join("world").exists() {
            std::fs::remove_dir_all(out.join("world"))
                .with_context(|| format!("removing {}", out.display()))?;
        }
        std::fs::create_dir_all(out.join("world"))?;
        let out = out.canonicalize()?;
        let folder = out.join("world");
        let agents = (0..devices)
            .map(|i| Agent::new(&folder, &format!("camera-{i:02}"), CLASSES[i % 3], AGENT_CONFIG))
            .collect::<Result<Vec<_>>>()?;
        let cameras = agents
            .iter()
            .enumerate()
            .map(|(i, agent)| Camera {
                id: agent.id.clone(),
                class: agent.class.clone(),
                held: i + HELD >= devices,
                api: Mutex::new(agent.api),
            })
            .collect();
        Ok(Self {
            controller: Controller::new(&folder),
            scene: Scene::new(cameras, NEW),
            pools: Pools::new(17),
            traffic: JoinSet::new(),
            marks: Vec::new(),
            pool: BTreeSet::new(),
            database: None,
            agents,
            out,
        })
    }

    /// The controller's database, read-only.
    pub(crate) async fn database(&mut self) -> Result<SqlitePool> {
        if self.database.is_none() {
            self.database = Some(self.controller.database().await?);
        }
        self.database.clone().context("the database was opened")
    }

    /// Starts agent `index` and tells the application where it listens.
    pub(crate) async fn start_agent(&mut self, index: usize) -> Result<()> {
        self.agents[index].start().await?;
        *self.scene.cameras[index].api.lock().expect("no holder panics") = self.agents[index].api;
        Ok(())
    }

    /// Marks this moment in the chart.
    pub(crate) fn mark(&mut self, text: &'static str) {
        self.marks.push((self.scene.now(), text));
    }

    /// The chart of accuracy over time, managed and held devices apart.
    pub(crate) fn chart(&self, report: &mut Report) {
        const STEP_S: f64 = 4.0;
        let mut sums: BTreeMap<(bool, u32), Rate> = BTreeMap::new();
        for seen in self.scene.seen() {
            let bucket = (seen.at / STEP_S) as u32;
            let sum =
                sums.entry((self.scene.cameras[seen.camera].held, bucket)).or_insert(Rate { hits: 0, n: 0 });
            sum.n += 1;
            sum.hits += u64::from(seen.right);
        }
        let series =
            [(false, "managed devices"), (true, "devices that are not retrained")].map(|(held, name)| {
                Series {
                    name: name.into(),
                    points: sums
                        .iter()
                        .filter(|((of, _), _)| *of == held)
                        .filter_map(|((_, bucket), rate)| {
                            Some(((f64::from(*bucket) + 0.5) * STEP_S, rate.value()?))
                        })
                        .collect(),
                }
            });
        if series.iter().any(|line| !line.points.is_empty()) {
            report.chart(
                "Share of right answers on the stream, as the applications saw it",
                &series,
                &self.marks,
            );
        }
    }
}
