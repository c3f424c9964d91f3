//! An agent in a folder of its own, and an application beside it that asks it questions.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dunlin_protocol::weaken::{Defence, VARIABLE};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::claims::Cut;
use crate::process::{AGENT_EMULATED, Process, names, program, wait_for};

/// How long an agent may take to open its API.
const START_LIMIT: Duration = Duration::from_secs(60);
/// What a model may cost behind an emulator, bytes: what it translates is several times larger than a small board's budget.
const EMULATED_MODEL_BYTES_MAX: i64 = 256 << 20;

/// A device: its folder, its agent's process and the address of its inference API.
#[derive(Debug)]
pub struct Agent {
    /// Device id.
    pub id: String,
    /// Hardware class.
    pub class: String,
    /// Folder of configuration, state and log.
    pub folder: PathBuf,
    /// Address of the inference API.
    pub api: SocketAddr,
    /// The defences that are switched off, if the weak program runs.
    weak: Option<String>,
    process: Option<Process>,
}

/// What an application got for one question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The class with the highest score.
    pub class: u32,
    /// The release that answered, or `baseline`.
    pub version: String,
}

/// A copy of a board file in `folder`, with room for what an emulator takes.
fn roomy(board: &Path, folder: &Path) -> Result<PathBuf> {
    let mut text: toml::Table = std::fs::read_to_string(board)?.parse()?;
    let budgets = text.get_mut("device").and_then(|device| device.get_mut("budgets"));
    let budgets = budgets.and_then(toml::Value::as_table_mut).context("a board has budgets")?;
    budgets.insert("model_ram_bytes_max".into(), EMULATED_MODEL_BYTES_MAX.into());
    let copy = folder.join("board.toml");
    std::fs::write(&copy, toml::to_string(&text)?)?;
    Ok(copy)
}

impl Agent {
    /// Writes the configuration of a device of hardware class `class`, whose board file is used as it is, but for the memory
    /// of models behind an emulator.
    pub fn new(folder: &Path, id: &str, class: &str, config: &str) -> Result<Self> {
        let folder = folder.join(id);
        std::fs::create_dir_all(&folder)?;
        let mut board =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../firmware-targets/boards/{class}.toml"));
        if std::env::var_os(AGENT_EMULATED).is_some() {
            board = roomy(&board, &folder)?;
        }
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\nboard = {:?}\n\n[api]\nlisten = \"127.0.0.1:0\"\n\n{config}",
            folder.join("state"),
            folder.join("run"),
            board.canonicalize().with_context(|| format!("no board file for {class}"))?,
        );
        std::fs::write(folder.join("agent.toml"), text)?;
        let api = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self { id: id.into(), class: class.into(), folder, api, weak: None, process: None })
    }

    /// From its next start on, the program whose defences can be switched off runs, without these.
    pub fn weaken(&mut self, off: &[Defence]) {
        self.weak = Some(names(off));
    }

    fn config(&self) -> String {
        self.folder.join("agent.toml").display().to_string()
    }

    /// Runs a verb of the agent's command line.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        let name = if self.weak.is_some() { "dunlin-agent-weak" } else { "dunlin-agent" };
        let mut command = Command::new(program(name)?);
        command.arg("--config").arg(self.config()).args(args).envs([dunlin_engine::tie()]).kill_on_drop(true);
        command.envs(self.weak.iter().map(|off| (VARIABLE, off)));
        let output = tokio::time::timeout(START_LIMIT, command.output())
            .await
            .context("the agent's verb did not end")??;
        if !output.status.success() {
            bail!("`dunlin-agent {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Enrols with a claim token.
    pub async fn enrol(&self, claim: &str) -> Result<()> {
        self.run(&["enrol", claim, "--device", &self.id]).await.map(drop)
    }

    /// Starts the agent and waits for its API.
    pub async fn start(&mut self) -> Result<()> {
        self.start_with(&[]).await
    }

    /// The same with more in its environment.
    pub async fn start_with(&mut self, env: &[(&str, &str)]) -> Result<()> {
        self.launch(env)?;
        let (path, id) = (self.address_file(), &self.id);
        let process = self.process.as_mut().context("it was launched")?;
        self.api = wait_for("the agent's API", START_LIMIT, async || {
            process.alive()?;
            Ok(address(&path))
        })
        .await
        .with_context(|| format!("device {id}"))?;
        Ok(())
    }

    /// Starts the agent and waits for nothing: it may not live to open its API.
    pub fn launch(&mut self, env: &[(&str, &str)]) -> Result<()> {
        let path = self.address_file();
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        let (args, log) = (["--config", &self.config(), "run"], self.folder.join("agent.log"));
        self.process = Some(match &self.weak {
            Some(off) => {
                Process::start_with("dunlin-agent-weak", args, &log, &[env, &[(VARIABLE, off)]].concat())?
            }
            None => Process::start_with("dunlin-agent", args, &log, env)?,
        });
        Ok(())
    }

    fn address_file(&self) -> PathBuf {
        self.folder.join("run/api.addr")
    }

    /// Where the launched agent's API listens, once it does.
    pub fn listens(&self) -> Option<SocketAddr> {
        address(&self.address_file())
    }

    /// How the launched agent ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.as_mut().map_or(Ok(None), Process::ended)
    }

    /// SIGSTOP: it hears nothing and keeps its connections.
    pub fn freeze(&self) -> Result<()> {
        self.process.as_ref().context("it runs")?.freeze()
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process.as_ref().context("it runs")?.thaw()
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// What the agent wrote to its log so far.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.folder.join("agent.log"))?).into_owned())
    }

    /// SIGTERM and a clean end. One that is just becoming another program is told when that one listens.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        wait_for("the agent to listen to SIGTERM", START_LIMIT, async || {
            Ok((process.ended()?.is_some() || process.listens_to_term()).then_some(()))
        })
        .await?;
        process.stop(Duration::from_secs(30)).await
    }

    /// The download it is in the middle of, if more than this many bytes of it are on the disk.
    pub fn downloading(&self, bytes_min: u64) -> Option<Cut> {
        let entries = std::fs::read_dir(self.folder.join("state/slots/blobs")).ok()?;
        entries.flatten().find_map(|entry| {
            let digest = entry.file_name().to_str()?.strip_suffix(".part")?.to_owned();
            let bytes = entry.metadata().ok()?.len();
            let log = std::fs::metadata(self.folder.join("agent.log")).ok()?.len();
            (bytes > bytes_min).then_some(Cut { digest, bytes, log: usize::try_from(log).ok()? })
        })
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }
}

fn address(path: &Path) -> Option<SocketAddr> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// An application on the device: asks through the Open Inference Protocol, over kept connections.
#[derive(Debug, Clone)]
pub struct Application {
    http: reqwest::Client,
    task: String,
}

impl Application {
    /// An application of `task`.
    pub fn new(task: &str) -> Result<Self> {
        Self::patient(task, Duration::from_secs(10))
    }

    /// The same that waits this long for an answer.
    pub fn patient(task: &str, limit: Duration) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(limit).build()?;
        Ok(Self { http, task: task.into() })
    }

    /// Asks about one row of features.
    pub async fn infer(&self, api: SocketAddr, id: &str, features: &[f32]) -> Result<Answer> {
        let body = json!({
            "id": id,
            "inputs": [{"name": "x", "shape": [1, features.len()], "datatype": "FP32", "data": features}],
        });
        let response =
            self.http.post(format!("http://{api}/v2/models/{}/infer", self.task)).json(&body).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        if !status.is_success() {
            bail!("{status}: {answer}");
        }
        let scores = answer["outputs"]
            .as_array()
            .and_then(|outputs| outputs.last())
            .and_then(|output| output["data"].as_array())
            .context("no scores in the answer")?;
        let scores = scores
            .iter()
            .map(|score| score.as_f64().context("a score is no number"))
            .collect::<Result<Vec<_>>>()?;
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).context("an empty answer")?.0;
        let version = answer["model_version"].as_str().unwrap_or("baseline").to_owned();
        Ok(Answer { class: u32::try_from(best)?, version })
    }

    /// What the device's own status page says of it.
    pub async fn status(&self, api: SocketAddr) -> Result<Value> {
        Ok(self.http.get(format!("http://{api}/dunlin/status")).send().await?.json().await?)
    }

    /// Tells the true class of an earlier question.
    pub async fn feedback(&self, api: SocketAddr, id: &str, label: u32) -> Result<()> {
        let url = format!("http://{api}/v2/models/{}/feedback", self.task);
        let response = self.http.post(url).json(&json!({"id": id, "label": label})).send().await?;
        if !response.status().is_success() {
            bail!("feedback: {} {}", response.status(), response.text().await?);
        }
        Ok(())
    }
}
