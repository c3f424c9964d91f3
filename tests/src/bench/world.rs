//! A controller and devices to measure: the released programs, run as they are run in the field.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::agent::Agent;
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::CLASSES;
use dunlin_tests::operator::write_csv;
use dunlin_tests::process::wait_for;
use sqlx::Row;

use crate::digits_model;
use dunlin_tests::client::{Client, binary_request};

/// The planner looks more often than once in ten seconds, nothing else.
const CONTROLLER_CONFIG: &str = "[planner]\ntick_ms = 500\n";
/// A board with room for every model here; checks come often, so that an assignment is not waited for.
const AGENT_CONFIG: &str = "\
[device.budgets]
model_bytes_max = 1073741824
model_ram_bytes_max = 4294967296
latency_us_max = 5000000

[update]
check_s = 5
retry_min_s = 1
retry_max_s = 2
";
/// How long a device may take from an assignment to its commitment.
const COMMIT_LIMIT: Duration = Duration::from_secs(120);
/// Requests between two looks at whether a device has committed.
const ASK: usize = 20;

/// A running controller.
pub(crate) struct World {
    pub(crate) controller: Controller,
    folder: PathBuf,
}

impl World {
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let mut controller = Controller::new(folder);
        controller.init(CONTROLLER_CONFIG).await?;
        controller.start().await?;
        Ok(Self { controller, folder: folder.into() })
    }

    /// Enrols and starts a device that is alone in a group of its name.
    pub(crate) async fn device(&self, id: &str) -> Result<Agent> {
        self.controller.json(&["group", "create", id]).await?;
        let claim = self.controller.json(&["device", "claim", "--device", id, "--group", id]).await?;
        let mut agent = Agent::new(&self.folder, id, "raspberry-pi-4", AGENT_CONFIG)?;
        agent.enrol(claim["token"].as_str().context("a claim token")?).await?;
        agent.start().await?;
        Ok(agent)
    }

    /// Takes a model of the task `task` in and signs it; returns the release. With `digits` it brings real rows, and
    /// so drift bins.
    pub(crate) async fn publish(&self, task: &str, onnx: &[u8], digits: bool) -> Result<String> {
        let file = self.folder.join(format!("{task}.onnx")).display().to_string();
        std::fs::write(&file, onnx)?;
        let labels = labels().join(",");
        let mut args = vec!["model", "push", &file, "--task", task, "--name", task, "--labels", &labels];
        let rows = self.folder.join("rows.csv");
        let path = rows.display().to_string();
        if digits {
            write_csv(&rows, &digits_model::images())?;
            args.extend(["--samples", &path, "--skip", "digit"]);
        }
        let pushed = self.controller.json(&args).await?;
        let keys = self.controller.keys.join("private").display().to_string();
        self.controller.json(&["model", "approve", "--keys", &keys]).await?;
        Ok(pushed["release"].as_str().with_context(|| format!("push said {pushed}"))?.to_owned())
    }

    /// Gives a task signers of its own, for which the controller is stopped and started again.
    pub(crate) async fn delegate(&mut self, task: &str) -> Result<()> {
        self.controller.stop().await?;
        let image = self.controller.data.join("repo/image");
        let newest = (1..)
            .map(|n: u64| image.join(format!("{n}.targets.json")))
            .take_while(|path| path.exists())
            .last()
            .context("image targets")?
            .display()
            .to_string();
        let path = |name: &str| self.folder.join(name).display().to_string();
        let (team, targets, own) = (path("team"), path("targets.json"), path("own.json"));
        let keys = self.controller.keys.join("private").display().to_string();
        let args = ["key", "delegate", "--task", task, "--current", &newest, "--keys", &keys];
        let more = ["--task-keys", &team, "--new", "1", "--threshold", "1", "--plain", "--out", &targets];
        self.controller.run(&[&args[..], &more, &["--task-out", &own]].concat()).await?;
        let (data, of_task) = (self.controller.data.display().to_string(), format!("{task}={own}"));
        let args = ["key", "publish", "--data", &data, "--targets", &targets, "--task", &of_task];
        self.controller.run(&args).await?;
        self.controller.start().await
    }

    /// Gives `group` the task, with `release` as its only choice.
    pub(crate) async fn assign(&self, task: &str, group: &str, release: &str) -> Result<()> {
        let labels: Vec<String> = labels().iter().map(|label| format!("{label:?}")).collect();
        let text = format!(
            "task = {task:?}\nlabels = [{}]\ngroups = [{group:?}]\npool = [{release:?}]\n\n[probation]\nms_min = 1000\nrequests_min = {ASK}\nerror_ppm_max = 10000\nlatency_percent_max = 300\nrss_bytes_max = 0\ndisagree_ppm_max = 1000000\n",
            labels.join(", ")
        );
        let file = self.folder.join(format!("{task}.toml"));
        std::fs::write(&file, text)?;
        self.controller.json(&["task", "apply", &file.display().to_string()]).await.map(drop)
    }

    /// Asks a device about `row` until it has committed to a release of `task`.
    pub(crate) async fn commit(&self, agent: &Agent, task: &str, shape: &[usize], row: &[f32]) -> Result<()> {
        let database = self.controller.database().await?;
        wait_for(&format!("{} to commit", agent.id), COMMIT_LIMIT, async || {
            // Refused until something is served, which is what this waits for.
            drop(ask(agent.api, task, shape, row));
            let row = sqlx::query("SELECT count(*) FROM installed WHERE device = ? AND task = ? AND phase = 'committed' AND release IS NOT NULL")
                .bind(&agent.id)
                .bind(task)
                .fetch_one(&database)
                .await?;
            Ok((row.get::<i64, _>(0) == 1).then_some(()))
        })
        .await
    }
}

/// Some requests over one connection.
pub(crate) fn ask(api: SocketAddr, task: &str, shape: &[usize], row: &[f32]) -> Result<()> {
    let request = binary_request(task, shape, row);
    let mut client = Client::connect(api)?;
    (0..ASK).try_for_each(|_| client.ask(&request).map(drop))
}

fn labels() -> Vec<String> {
    (0..CLASSES).map(|digit| digit.to_string()).collect()
}
