//! A small world for end-to-end tests: one controller, a few agents, their applications.
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::Row;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::controller::Controller;
use crate::digits::{Image, NEW, Pools, views};
use crate::operator::{self, TASK, push, train};
use crate::process::wait_for;
use crate::traffic::{self, Camera, Scene};

/// Short windows, nothing else.
pub const CONTROLLER_CONFIG: &str = "[planner]\ntick_ms = 500\n\n[training]\ntick_ms = 500\n";
/// The same on the devices.
pub const AGENT_CONFIG: &str =
    "[telemetry]\nwindow_s = 1\nreport_s = 1\n\n[update]\ncheck_s = 5\nretry_min_s = 1\nretry_max_s = 2\n";

/// Images a second that each camera sees.
const RATE: f64 = 20.0;

/// A controller and its devices.
#[derive(Debug)]
pub struct Small {
    /// The controller.
    pub controller: Controller,
    /// The devices.
    pub agents: Vec<Agent>,
    /// Images.
    pub pools: Pools,
    /// Those of the devices that are never retrained, told apart where accuracy is measured.
    pub held: Vec<usize>,
    /// What the applications see, once they run.
    pub scene: Option<Arc<Scene>>,
    traffic: JoinSet<()>,
}

impl Small {
    /// A running controller with imported roots, and devices of the given classes that have not enrolled.
    pub async fn new(folder: &Path, classes: &[&str]) -> Result<Self> {
        let mut controller = Controller::new(folder);
        controller.init(CONTROLLER_CONFIG).await?;
        controller.start().await?;
        Self::with(folder, classes, controller, AGENT_CONFIG)
    }

    /// The same around a controller that runs already.
    pub fn with(folder: &Path, classes: &[&str], controller: Controller, config: &str) -> Result<Self> {
        // A second test of the same process finds the provider installed.
        drop(rustls::crypto::ring::default_provider().install_default());
        let agents = classes
            .iter()
            .enumerate()
            .map(|(i, class)| Agent::new(folder, &format!("pole-{i}"), class, config))
            .collect::<Result<_>>()?;
        let (held, traffic) = (Vec::new(), JoinSet::new());
        Ok(Self { controller, agents, pools: Pools::new(17), held, scene: None, traffic })
    }

    /// The same with a first model, to which every device has committed while applications ask; and its release.
    pub async fn serving(folder: &Path, classes: &[&str], limit: Duration) -> Result<(Self, String)> {
        let mut small = Self::new(folder, classes).await?;
        let release = small.first_model(folder).await?;
        small.enrol().await?;
        small.ask()?;
        small.committed(&release, limit).await?;
        Ok((small, release))
    }

    /// Enrols and starts every device.
    pub async fn enrol(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            let claim = self.controller.json(&["device", "claim", "--device", &agent.id]).await?;
            agent.enrol(claim["token"].as_str().context("a claim token")?).await?;
            agent.start().await?;
        }
        Ok(())
    }

    /// Trains, pushes and signs one model, puts the policy in force, and makes the task with it as its pool.
    pub async fn first_model(&self, folder: &Path) -> Result<String> {
        let images = views(&self.pools.training, NEW, 1, 1);
        let release = self.model(folder, "meter-first", &images, 1).await?;
        operator::policy(&self.controller, folder, &images[..100]).await?;
        self.controller.json(&["model", "approve", "--keys", &self.offline_keys()]).await?;
        let task = folder.join("task.toml");
        std::fs::write(&task, operator::unhurried(&operator::definition(&[release.clone()].into(), None)))?;
        self.controller.json(&["task", "apply", &task.display().to_string()]).await?;
        Ok(release)
    }

    /// Trains one model of these images and pushes it under this name.
    pub async fn model(&self, folder: &Path, name: &str, images: &[Image], seed: u64) -> Result<String> {
        let job = folder.join(name);
        let result = train(&self.controller, &job, images, &["logistic"], seed).await?;
        push(&self.controller, &job, "logistic", name, &result["candidates"][0]).await
    }

    /// Folder of the offline keys.
    pub fn offline_keys(&self) -> String {
        self.controller.keys.join("private").display().to_string()
    }

    /// Signs a pushed release with the offline keys.
    pub async fn approve(&self, release: &str) -> Result<()> {
        let args = ["model", "approve", release, "--keys", &self.offline_keys()];
        self.controller.json(&args).await.map(drop)
    }

    /// Applications on every device begin to ask and to label.
    pub fn ask(&mut self) -> Result<()> {
        let cameras = self.agents.iter().enumerate().map(|(index, agent)| Camera {
            id: agent.id.clone(),
            class: agent.class.clone(),
            held: self.held.contains(&index),
            api: Mutex::new(agent.api),
        });
        let scene = Scene::new(cameras.collect(), NEW);
        self.traffic = traffic::stream(&scene, &Arc::new(self.pools.stream.clone()), TASK, RATE)?;
        self.scene = Some(scene);
        Ok(())
    }

    /// Starts agent `index` and tells the application where it listens.
    pub async fn start(&mut self, index: usize) -> Result<()> {
        self.agents[index].start().await?;
        if let Some(scene) = &self.scene {
            *scene.cameras[index].api.lock().expect("no holder panics") = self.agents[index].api;
        }
        Ok(())
    }

    /// Applications fall silent.
    pub fn hush(&mut self) {
        self.traffic.abort_all();
    }

    /// Rolls an approved release out; of a single device, that is the canary. The rollout.
    pub async fn roll_out(&self, release: &str) -> Result<String> {
        let created = self.controller.json(&["rollout", "create", "--task", TASK, release]).await?;
        Ok(created["plan"]["rollout"].as_str().context("a rollout's id")?.to_owned())
    }

    /// Ends all of it in order: applications, devices, the controller.
    pub async fn stop(&mut self) -> Result<()> {
        self.hush();
        for agent in &mut self.agents {
            agent.stop().await?;
        }
        self.controller.stop().await
    }

    /// Waits until every device has committed to `release`.
    pub async fn committed(&self, release: &str, limit: Duration) -> Result<()> {
        let database = self.controller.database().await?;
        let n = i64::try_from(self.agents.len())?;
        wait_for(&format!("every device to commit to {release}"), limit, async || {
            let row = sqlx::query("SELECT count(*) FROM installed WHERE phase = 'committed' AND release = ?")
                .bind(release)
                .fetch_one(&database)
                .await?;
            Ok((row.get::<i64, _>(0) == n).then_some(()))
        })
        .await
    }

    /// Training images as the cameras see them, other ones than those of the first model: a model of them is another and as good,
    /// so that no gate stops it.
    pub fn others(&self) -> Vec<Image> {
        views(&self.pools.training, NEW, 1, 5)
    }

    /// Training images with every label five off: a model of them is properly made and always wrong.
    pub fn mislabelled(&self) -> Vec<Image> {
        let mut images = views(&self.pools.training, NEW, 1, 9);
        for image in &mut images {
            image.digit = (image.digit + 5) % 10;
        }
        images
    }
}
