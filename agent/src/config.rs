//! Layered settings: built-in defaults, the main file, drop-ins in name order, the environment.
//!
//! Two stages: a fragment takes in one file after the other as it reads, later ones winning, and [`Settings`]
//! is the validated outcome, in which no text is left that could still be wrong. The defaults are the
//! commented file that packages install, so there is one place to read them.

mod error;
mod fragment;
mod launching;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_protocol::DeviceProfile;
use serde::Serialize;

pub use error::ConfigError;
use fragment::Fragment;
pub(crate) use launching::Launching;

/// The shipped file: every key with its default and its meaning.
pub const DEFAULTS: &str = include_str!("../../firmware-targets/rootfs/etc/dunlin/agent.toml");
/// What complaints call it.
const DEFAULTS_NAME: &str = "built-in defaults";
/// Where packages install it.
pub const PATH: &str = "/etc/dunlin/agent.toml";
/// The control socket, in the folder of what need not outlive a restart.
const SOCKET: &str = "agent.sock";
/// Largest configuration file, bytes; a hundred times what a thorough one needs.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Most drop-ins; more would be a mistake in somebody's tooling.
const DROP_INS_MAX: usize = 64;

/// How the device proves itself to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MqttAuth {
    /// MQTT 5 enhanced authentication by the device's key.
    Challenge,
    /// Client certificate alone.
    Certificate,
}

/// Link to the broker.
#[derive(Debug, Clone, Serialize)]
pub struct MqttSettings {
    /// How to prove the identity.
    pub auth: MqttAuth,
    /// Keep-alive interval.
    pub keep_alive: Duration,
    /// How long the broker keeps the session.
    pub session_expiry: Duration,
}

/// What is measured when.
#[derive(Debug, Clone, Serialize)]
pub struct TelemetrySettings {
    /// Length of a window.
    pub window: Duration,
    /// Longest time between two reports.
    pub report: Duration,
}

/// The local API.
#[derive(Debug, Clone, Serialize)]
pub struct ApiSettings {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Unix socket with the same API.
    pub socket: Option<PathBuf>,
    /// File mode of that socket: who may write to it may ask.
    pub socket_mode: u32,
    /// Address of the gRPC form; only programs with the feature `grpc` have it.
    pub grpc_listen: Option<SocketAddr>,
    /// File with the token that requests over TCP must bear.
    pub token_file: Option<PathBuf>,
    /// File with the token that may load and unload models over TCP.
    pub admin_token_file: Option<PathBuf>,
    /// Bounds of requests.
    pub limits: crate::api::Limits,
    /// How long one member of a line-up may take.
    pub run_max: Duration,
}

/// Updates.
#[derive(Debug, Clone, Serialize)]
pub struct UpdateSettings {
    /// Interval of checks that nobody asked for.
    pub check: Duration,
    /// Shortest pause after a failure.
    pub retry_min: Duration,
    /// Longest pause after failures.
    pub retry_max: Duration,
    /// While this file exists, nothing new is installed.
    pub inhibit_file: Option<PathBuf>,
}

/// The spool of unacknowledged records.
#[derive(Debug, Clone, Serialize)]
pub struct SpoolSettings {
    /// Bound of the records on disk, bytes.
    pub bytes_max: u64,
}

/// Everything the agent was told, checked.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// What must outlive a restart.
    pub state_dir: PathBuf,
    /// What need not.
    pub run_dir: PathBuf,
    /// What this device is.
    pub device: DeviceProfile,
    /// Link to the broker.
    pub mqtt: MqttSettings,
    /// What is measured when.
    pub telemetry: TelemetrySettings,
    /// The local API.
    pub api: ApiSettings,
    /// Serving.
    pub serving: crate::serve::pack::Settings,
    /// Updates.
    pub update: UpdateSettings,
    /// The spool.
    pub spool: SpoolSettings,
    /// What is odd but harmless, to be shown and logged.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads the layers: defaults, `path` (or [`PATH`], if it is there), its drop-ins, `env`.
    pub fn load(path: Option<&Path>, env: &[(String, String)]) -> Result<Self, ConfigError> {
        let texts = layers(path, env)?;
        let texts: Vec<_> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        Self::from_texts(&texts)
    }

    /// Merges named texts over the defaults; later ones win.
    pub fn from_texts(texts: &[(&str, &str)]) -> Result<Self, ConfigError> {
        let mut merged = Fragment::default();
        merged.read(DEFAULTS_NAME, DEFAULTS)?;
        for (name, text) in texts {
            merged.read(name, text)?;
        }
        merged.validate()
    }

    /// Where identity and pinned roots lie.
    pub fn identity_dir(&self) -> PathBuf {
        self.state_dir.join("identity")
    }

    /// Where the spool lies.
    pub fn spool_dir(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// The address the local API is bound to, written by a running agent.
    pub fn api_addr_file(&self) -> PathBuf {
        self.run_dir.join("api.addr")
    }

    /// The address of its gRPC form, where there is one.
    pub fn grpc_addr_file(&self) -> PathBuf {
        self.run_dir.join("grpc.addr")
    }

    /// The running agent's control socket.
    pub fn socket_file(&self) -> PathBuf {
        self.run_dir.join(SOCKET)
    }

    /// The last number given to a record, while some wait in memory.
    pub fn given_file(&self) -> PathBuf {
        self.run_dir.join("agent.given")
    }

    /// The running agent's process id.
    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join("agent.pid")
    }
}

/// The layers above the defaults: names and texts; later ones win.
fn layers(path: Option<&Path>, env: &[(String, String)]) -> Result<Vec<(String, String)>, ConfigError> {
    let main = path.unwrap_or(Path::new(PATH));
    let mut files = Vec::new();
    if path.is_some() || is_there(main)? {
        files.push(main.to_path_buf());
    }
    files.extend(drop_ins(main)?);
    let mut texts = Vec::new();
    for file in files {
        texts.push((file.display().to_string(), read(&file)?));
    }
    let env_text = fragment::from_env(env);
    if !env_text.is_empty() {
        texts.push(("environment (DUNLIN_*)".to_owned(), env_text));
    }
    Ok(texts)
}

/// Whether there is a file. One that can not be looked for is not absent.
fn is_there(file: &Path) -> Result<bool, ConfigError> {
    file.try_exists().map_err(|e| ConfigError::file(file, "can not be read", &e))
}

/// The drop-ins of `agent.toml` are `agent.d/*.toml` beside it, in the order of their names.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = main.with_extension("d");
    let problem = |e: std::io::Error| ConfigError::file(&dir, "can not be listed", &e);
    let entries = match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(problem)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(problem)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort_unstable();
    if files.len() > DROP_INS_MAX {
        return Err(ConfigError::new(
            &dir.display().to_string(),
            "",
            &format!("holds {} drop-ins", files.len()),
            &format!("keep at most {DROP_INS_MAX}"),
        ));
    }
    Ok(files)
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let length = std::fs::metadata(file).map_err(|e| ConfigError::file(file, "can not be read", &e))?.len();
    if length > FILE_BYTES_MAX {
        return Err(ConfigError::new(
            &file.display().to_string(),
            "",
            &format!("is {length} bytes long"),
            &format!("a configuration file has at most {FILE_BYTES_MAX} bytes; is it the right file?"),
        ));
    }
    std::fs::read_to_string(file).map_err(|e| ConfigError::file(file, "can not be read", &e))
}

#[cfg(test)]
mod tests;
