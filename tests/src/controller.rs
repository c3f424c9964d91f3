//! A controller in a folder of its own, and its operator.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dunlin_protocol::weaken::{Defence, VARIABLE};
use serde_json::Value;
use tokio::process::Command;

use crate::breakage::{clock, faketime};
use crate::port::Port;
use crate::process::{Process, names, program, wait_for};

/// How long a controller may take to be reachable.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long one command of the operator may take.
const VERB_LIMIT: Duration = Duration::from_secs(120);

/// A controller, its folders and the operator's token.
#[derive(Debug)]
pub struct Controller {
    /// The data folder.
    pub data: PathBuf,
    /// The folder that the key ceremony filled; it stands for another machine.
    pub keys: PathBuf,
    /// Address of the API.
    pub api: SocketAddr,
    /// Address of the broker.
    pub mqtt: SocketAddr,
    /// Both stay its own over restarts, so that devices find it again.
    ports: Vec<Port>,
    token: String,
    log: PathBuf,
    /// The defences that are switched off, if the weak program serves.
    weak: Option<String>,
    /// What makes the clock of controller and operator wrong, if it is.
    clock: Vec<(String, String)>,
    process: Option<Process>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Standard output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("not JSON: {:?} {:?}", self.stdout, self.stderr))
    }
}

impl Controller {
    /// A controller that will live in `folder`; nothing is made yet.
    pub fn new(folder: &Path) -> Self {
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data: folder.join("controller"),
            keys: folder.join("offline-keys"),
            api: unknown,
            mqtt: unknown,
            ports: Vec::new(),
            token: String::new(),
            log: folder.join("controller.log"),
            weak: None,
            clock: Vec::new(),
            process: None,
        }
    }

    /// Another seat of its operator, who can work there beside this one; no program belongs to it.
    pub fn seat(&self) -> Self {
        Self {
            data: self.data.clone(),
            keys: self.keys.clone(),
            ports: Vec::new(),
            token: self.token.clone(),
            log: self.log.clone(),
            weak: None,
            clock: self.clock.clone(),
            process: None,
            ..*self
        }
    }

    /// From its next start on, the program whose defences can be switched off serves, without these.
    pub fn weaken(&mut self, off: &[Defence]) {
        self.weak = Some(names(off));
    }

    /// From now on its operator, and from its next start on the controller, has a clock that is wrong in the way faketime calls
    /// `time`.
    pub fn live_at(&mut self, time: &str) -> Result<()> {
        let library = faketime()?;
        self.clock = clock(&library, time).map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Ok(())
    }

    /// `init`, the key ceremony in a folder beside, and the import of its public part. `config` is added to
    /// the configuration, with free ports.
    pub async fn init(&mut self, config: &str) -> Result<()> {
        self.init_signed_by(config, 2, 1).await
    }

    /// The same with so many keys for each offline role, of which `threshold` must sign.
    pub async fn init_signed_by(&mut self, config: &str, keys: u32, threshold: u32) -> Result<()> {
        let data = self.data.display().to_string();
        let init = self.run(&["init", "--data", &data, "--json"]).await?.json()?;
        self.token = init["token"].as_str().context("init printed no token")?.to_owned();
        let [api, mqtt] = [Port::reserve()?, Port::reserve()?];
        (self.api, self.mqtt) = (api.address, mqtt.address);
        self.ports = vec![api, mqtt];
        let settings =
            format!("[api]\nlisten = \"{}\"\n\n[mqtt]\nlisten = \"{}\"\n\n{config}", self.api, self.mqtt);
        std::fs::write(self.data.join("controller.toml"), settings)?;
        let (n, of) = (keys.to_string(), threshold.to_string());
        let keys = self.keys.display().to_string();
        let online = self.data.join("keys/online.json").display().to_string();
        let args = ["key", "ceremony", "--plain", "--online", &online, "--out", &keys];
        self.run(&[&args[..], &["--keys", &n, "--threshold", &of]].concat()).await?;
        let public = self.keys.join("public").display().to_string();
        self.run(&["key", "import", "--data", &data, "--from", &public]).await?;
        Ok(())
    }

    /// Once a year, while the controller is stopped: everything that is signed offline is renewed. `folder` takes the files.
    pub async fn renew(&self, folder: &Path) -> Result<()> {
        let signed = self.sign_offline(folder, &[]).await?;
        self.publish_offline(&signed).await
    }

    /// After a break-in, while the controller is stopped: new online keys, made elsewhere and named by the offline ones. Returns
    /// the folder that holds the old ones as a data folder does.
    pub async fn new_online_keys(&self, folder: &Path) -> Result<PathBuf> {
        let elsewhere = folder.join("new-controller");
        self.run(&["init", "--data", &elsewhere.display().to_string(), "--json"]).await?;
        let online = elsewhere.join("keys/online.json").display().to_string();
        let signed = self.sign_offline(&folder.join("renamed"), &["--online", &online]).await?;
        let stolen = folder.join("stolen");
        std::fs::create_dir(&stolen)?;
        std::fs::rename(self.data.join("keys"), stolen.join("keys"))?;
        std::fs::rename(elsewhere.join("keys"), self.data.join("keys"))?;
        self.publish_offline(&signed).await?;
        Ok(stolen)
    }

    /// The next roots of both repositories and the next image targets, in this order, in a new folder.
    async fn sign_offline(&self, folder: &Path, more: &[&str]) -> Result<[String; 3]> {
        std::fs::create_dir(folder)?;
        let keys = self.keys.join("private").display().to_string();
        let out = |name: &str| folder.join(name).display().to_string();
        let (image_root, director_root, targets) = (out("image-root"), out("director-root"), out("targets"));
        for (repo, next) in [("image", &image_root), ("director", &director_root)] {
            let current = self.newest(repo, "root")?;
            let args = ["key", "renew-root", "--repo", repo, "--current", &current];
            self.run(&[&args[..], &["--keys", &keys, "--out", next], more].concat()).await?;
        }
        let current = self.newest("image", "targets")?;
        let args = ["key", "sign", "--current", &current, "--keys", &keys, "--out", &targets];
        self.run(&[&args[..], more].concat()).await?;
        Ok([image_root, director_root, targets])
    }

    async fn publish_offline(&self, [image_root, director_root, targets]: &[String; 3]) -> Result<()> {
        let data = self.data.display().to_string();
        let args = ["key", "publish", "--data", &data, "--image-root", image_root];
        self.run(&[&args[..], &["--director-root", director_root, "--targets", targets]].concat()).await?;
        Ok(())
    }

    /// While the controller is stopped: gives a task a key of its own, in the folder `team`, for these model lines.
    pub async fn delegate(&self, folder: &Path, task: &str, lines: &[&str], team: &Path) -> Result<()> {
        let out = |name: &str| folder.join(name).display().to_string();
        let (targets, role) = (out("delegating-targets"), out("task-targets"));
        let (keys, team) = (self.keys.join("private").display().to_string(), team.display().to_string());
        let current = self.newest("image", "targets")?;
        let whose = ["key", "delegate", "--task", task, "--current", &current, "--keys", &keys];
        let made = ["--task-keys", &team, "--new", "1", "--plain", "--out", &targets, "--task-out", &role];
        let lines: Vec<&str> = lines.iter().flat_map(|line| ["--line", *line]).collect();
        self.run(&[&whose[..], &made[..], &lines[..]].concat()).await?;
        let (data, role) = (self.data.display().to_string(), format!("{task}={role}"));
        self.run(&["key", "publish", "--data", &data, "--targets", &targets, "--task", &role]).await?;
        Ok(())
    }

    /// The file of a role of a repository that is published now.
    fn newest(&self, repo: &str, role: &str) -> Result<String> {
        let path = |n: u64| self.data.join(format!("repo/{repo}/{n}.{role}.json"));
        let newest = (1..).map(path).take_while(|path| path.exists()).last();
        Ok(newest.with_context(|| format!("no {role} of {repo}"))?.display().to_string())
    }

    /// Starts `serve` and waits until it is reachable.
    pub async fn start(&mut self) -> Result<()> {
        self.launch(&[], &[]).await
    }

    /// The same with further arguments.
    pub async fn start_with_args(&mut self, arguments: &[&str]) -> Result<()> {
        self.launch(arguments, &[]).await
    }

    /// The same with variables in its environment.
    pub async fn start_with(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        self.launch(&[], variables).await
    }

    async fn launch(&mut self, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        let (api, mqtt) = (self.data.join("run/api.addr"), self.data.join("run/mqtt.addr"));
        for stale in [&api, &mqtt] {
            if stale.exists() {
                std::fs::remove_file(stale)?;
            }
        }
        let data = self.data.display().to_string();
        let args = [&["serve", "--data", &data], arguments].concat();
        let clock: Vec<(&str, &str)> =
            self.clock.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let variables = [variables, &clock].concat();
        let mut process = match &self.weak {
            Some(off) => {
                let variables = [&variables[..], &[(VARIABLE, off)]].concat();
                Process::start_with("dunlin-weak", args, &self.log, &variables)?
            }
            None => Process::start_with("dunlin", args, &self.log, &variables)?,
        };
        let config: toml::Table =
            toml::from_str(&std::fs::read_to_string(self.data.join("controller.toml"))?)?;
        let external = config["mqtt"].get("external").is_some();
        wait_for("the controller to listen", START_LIMIT, async || {
            process.alive()?;
            Ok((api.exists() && (external || mqtt.exists())).then_some(()))
        })
        .await?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// SIGSTOP: devices go on sending into connections that nobody reads.
    pub fn freeze(&self) -> Result<()> {
        self.process.as_ref().context("it runs")?.freeze()
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process.as_ref().context("it runs")?.thaw()
    }

    /// SIGTERM and a clean end.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(Duration::from_secs(30)).await,
            None => Ok(()),
        }
    }

    /// Base URL of the API.
    pub fn url(&self) -> String {
        format!("https://{}", self.api)
    }

    /// The operator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The certificate authority's file.
    pub fn ca(&self) -> PathBuf {
        self.data.join("ca.pem")
    }

    /// What it has logged.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// Runs `dunlin` to its end, whatever that is.
    pub async fn try_run(&self, args: &[&str]) -> Result<Ended> {
        let mut command = Command::new(program("dunlin")?);
        command
            .args(args)
            .envs([dunlin_engine::tie()])
            .envs(self.clock.iter().map(|(name, value)| (name, value)))
            .env("DUNLIN_SERVER", self.url())
            .env("DUNLIN_TOKEN", &self.token)
            .env("DUNLIN_CA", self.ca());
        let output = tokio::time::timeout(VERB_LIMIT, command.kill_on_drop(true).output())
            .await
            .with_context(|| format!("`dunlin {}` did not end in {VERB_LIMIT:?}", args.join(" ")))??;
        Ok(Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `dunlin`, which must succeed.
    pub async fn run(&self, args: &[&str]) -> Result<Ended> {
        let ended = self.try_run(args).await?;
        if ended.code != 0 {
            bail!("`dunlin {}` ended with {}: {}{}", args.join(" "), ended.code, ended.stdout, ended.stderr);
        }
        Ok(ended)
    }

    /// Runs `dunlin --json`, which must succeed, and reads what it prints.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        self.run(&[args, &["--json"]].concat()).await?.json()
    }

    /// The database, read-only: accounting looks at what is stored, not at what the controller says.
    pub async fn database(&self) -> Result<sqlx::SqlitePool> {
        let options =
            sqlx::sqlite::SqliteConnectOptions::new().filename(self.data.join("dunlin.db")).read_only(true);
        Ok(sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect_with(options).await?)
    }
}
