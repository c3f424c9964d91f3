//! The fleet and everything that is asked of it.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use dunlin_tests::agent::Agent;
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{NEW, Pools};
use dunlin_tests::traffic::{Camera, Scene};
use futures_util::future::try_join_all;
use sqlx::SqlitePool;
use tokio::task::JoinSet;

use crate::charts::Drifts;
use crate::desk::Desk;

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

/// Devices that start at the same time, so that a small machine is not swamped.
pub(crate) const START_AT_ONCE: usize = 6;

/// Starts an agent and tells the application beside it where it listens.
pub(crate) async fn start(agent: &mut Agent, camera: &Camera) -> Result<()> {
    agent.start().await?;
    *camera.api.lock().expect("no holder panics") = agent.api;
    Ok(())
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) out: PathBuf,
    pub(crate) controller: Controller,
    pub(crate) agents: Vec<Agent>,
    pub(crate) scene: Arc<Scene>,
    pub(crate) pools: Pools,
    pub(crate) traffic: JoinSet<()>,
    /// What the controller says of drift, as it is watched.
    pub(crate) drifts: Drifts,
    /// What the operator makes meanwhile.
    pub(crate) desk: Option<Desk>,
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
            drifts: Drifts::default(),
            desk: None,
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
        start(&mut self.agents[index], &self.scene.cameras[index]).await
    }

    /// Tells every agent to end, and waits until all have.
    pub(crate) async fn stop_agents(&mut self) -> Result<()> {
        try_join_all(self.agents.iter_mut().map(Agent::stop)).await.map(drop)
    }

    /// Starts every agent.
    pub(crate) async fn start_agents(&mut self) -> Result<()> {
        for (agents, cameras) in
            self.agents.chunks_mut(START_AT_ONCE).zip(self.scene.cameras.chunks(START_AT_ONCE))
        {
            try_join_all(agents.iter_mut().zip(cameras).map(|(agent, camera)| start(agent, camera))).await?;
        }
        Ok(())
    }

    /// Marks this moment in the chart.
    pub(crate) fn mark(&mut self, text: &'static str) {
        self.marks.push((self.scene.now(), text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_are_lengths_of_time_and_no_threshold() {
        for text in [CONTROLLER_CONFIG, AGENT_CONFIG] {
            let config: toml::Table = toml::from_str(text).unwrap();
            let keys = config.values().filter_map(toml::Value::as_table).flat_map(toml::Table::keys);
            let other: Vec<_> = keys.filter(|key| !key.ends_with("_ms") && !key.ends_with("_s")).collect();
            assert!(other.is_empty(), "{other:?}");
        }
    }
}
