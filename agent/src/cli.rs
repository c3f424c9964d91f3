//! The command line. Every verb takes `--json`; results go to standard output, logs to standard error.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong usage or settings; 3 not found, or not enrolled; 4 refused; 5 the agent
//! is not running.

mod batch;

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dunlin_protocol::{ClaimToken, CmdBody, DeviceId, ReasonCode, TaskId};
use serde_json::{Value, json};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{ConfigError, Launching, Settings};
use crate::enrol::{EnrolError, Wish, enrol};
use crate::identity::{Enrolment, IdentityError};
use crate::local::{self, Local};
use crate::run::{LocalCommand, RunError, run};
use crate::status::AgentStatus;
use crate::update::{SOUND, begin_anew, launch, self_test, start_anew};

pub use crate::update::{ENGINE_CHILD, WATCH};

/// Threads for sockets, timers and answers of less than a millisecond: one that answers while another waits for the
/// disk. Each costs 100 KiB for its stack and heap; longer work has threads of its own, as many as there are cores.
const WORKERS: usize = 2;

/// Runs models on this device and keeps them up to date.
#[derive(Debug, Parser)]
#[command(
    name = "dunlin-agent",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage or settings, 3 not found or not enrolled, 4 refused, 5 not running."
)]
pub struct Cli {
    /// Settings file; its drop-ins lie beside it in a folder of the same name ending in .d.
    #[arg(long, global = true, env = "DUNLIN_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON: results, and logs as well.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent until SIGTERM or SIGINT.
    Run,
    /// Show what the agent does; its files are read while it is not running.
    Status,
    /// Enrol this device with a claim token.
    Enrol {
        /// Output of `dunlin device claim`.
        #[arg(env = "DUNLIN_CLAIM", hide_env_values = true)]
        token: String,
        /// Id to ask for; the claim may fix another.
        #[arg(long)]
        device: Option<DeviceId>,
        /// Serial number to show; the board's own if it has one.
        #[arg(long)]
        serial: Option<String>,
        /// Seconds to wait for an operator's approval, if the token needs one.
        #[arg(long, default_value_t = 3600)]
        wait: u64,
        /// Replace an identity that is there, and begin anew with what the token pins.
        #[arg(long)]
        force: bool,
    },
    /// Check the settings and print the outcome.
    Check,
    /// Test whether this program could be this device's agent: settings, identity, pinned roots, journal, engine. Nothing is
    /// written. A program that comes by an update has to pass this in a child process before it is tried.
    SelfTest,
    /// Take the assignment and models that `dunlin export` put on a medium; the agent must run. What does not pass the same
    /// checks as fetched files is refused.
    Install {
        /// The folder on the medium.
        folder: PathBuf,
    },
    /// Answer every row of a file, with the progress in a file beside the output. The running agent answers; where none
    /// runs, the model that it would serve is loaded.
    Batch(batch::Batch),
    /// Return a task to its previous release.
    Rollback {
        /// The task.
        task: TaskId,
    },
}

/// What a verb ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    NotRunning = 5,
}

/// A verb that did not work out.
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Self { exit, message }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, &error)
    }
}

impl From<EnrolError> for Failure {
    fn from(error: EnrolError) -> Self {
        let exit = match &error {
            EnrolError::AlreadyEnrolled { .. }
            | EnrolError::Refused { .. }
            | EnrolError::Waiting { .. }
            | EnrolError::Pin { .. } => Exit::Refused,
            EnrolError::Unreachable { .. }
            | EnrolError::Answer { .. }
            | EnrolError::Request(_)
            | EnrolError::Key(_)
            | EnrolError::Tls(_)
            | EnrolError::Client(_)
            | EnrolError::Identity(_) => Exit::Failed,
        };
        Self::new(exit, &error)
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let not_enrolled = matches!(error, RunError::Identity(IdentityError::NotEnrolled(_)));
        Self::new(if not_enrolled { Exit::NotFound } else { Exit::Failed }, &error)
    }
}

/// Runs the command line.
pub fn main(cli: Cli) -> ExitCode {
    log_to_stderr(cli.json);
    let json = cli.json;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => Err(Failure::new(Exit::Failed, &error)),
    };
    let exit = match done {
        Ok(exit) => exit,
        Err(failure) => {
            let text = if json { json!({ "error": failure.message }).to_string() } else { failure.message };
            print(&mut std::io::stderr(), &text);
            failure.exit
        }
    };
    ExitCode::from(exit as u8)
}

/// Logs what `DUNLIN_LOG` asks for: a level, or a list of `module=level`.
fn log_to_stderr(json: bool) {
    let asked = std::env::var("DUNLIN_LOG").ok().and_then(|text| text.parse().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(lines.json()).init();
    } else {
        registry.with(lines.with_ansi(false)).init();
    }
}

/// Prints a line; a reader that has gone away is no error.
fn print(out: &mut dyn Write, text: &dyn Display) {
    if writeln!(out, "{text}").is_err() {
        tracing::debug!("nobody reads the output");
    }
}

impl Cli {
    fn settings(&self) -> Result<Settings, ConfigError> {
        let env: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let settings = Settings::load(self.config.as_deref(), &env);
        if settings.is_err()
            && matches!(self.verb, Verb::Run)
            && let Ok(launching) = Launching::read(self.config.as_deref(), &env)
        {
            // What this program can not read may be meant for a later one, which then takes its place.
            launch(&launching);
        }
        settings
    }

    async fn run(self) -> Result<Exit, Failure> {
        let settings = self.settings()?;
        match &self.verb {
            Verb::Run => {
                launch(&Launching::from(&settings));
                if run(settings).await? {
                    Err(Failure::new(Exit::Failed, &start_anew()))
                } else {
                    Ok(Exit::Done)
                }
            }
            Verb::SelfTest => {
                self_test(&settings).map_err(|message| Failure { exit: Exit::Failed, message })?;
                print(&mut std::io::stdout(), &SOUND);
                Ok(Exit::Done)
            }
            Verb::Check => {
                let value = serde_json::to_value(&settings).unwrap_or_default();
                self.show(&value);
                Ok(Exit::Done)
            }
            Verb::Status => self.status(&settings).await,
            Verb::Batch(batch) => batch.run(&self, settings).await,
            Verb::Enrol { token, device, serial, wait, force } => {
                let token: ClaimToken = token.parse().map_err(|e| Failure::new(Exit::Usage, &e))?;
                let wish = Wish {
                    device: device.clone(),
                    serial: serial.clone().or_else(crate::device::serial),
                    profile: settings.device.clone(),
                    wait: Duration::from_secs(*wait),
                    force: *force,
                };
                std::fs::create_dir_all(&settings.state_dir).map_err(|e| Failure::new(Exit::Failed, &e))?;
                let identity = enrol(&settings.identity_dir(), &token, wish).await?;
                if *force {
                    begin_anew(&settings.state_dir).map_err(|e| Failure::new(Exit::Failed, &e))?;
                }
                let enrolment = &identity.enrolment;
                self.show(&json!({ "device": enrolment.device, "controller": enrolment.url, "key": identity.signer.key_id() }));
                Ok(Exit::Done)
            }
            Verb::Rollback { task } => {
                self.tell(&settings, &LocalCommand::Remote(CmdBody::Rollback { task: task.clone() })).await
            }
            Verb::Install { folder } => {
                // The agent has another working folder.
                let install = std::fs::canonicalize(folder).map_err(|e| Failure::new(Exit::NotFound, &e))?;
                self.tell(&settings, &LocalCommand::Install { install }).await
            }
        }
    }

    async fn status(&self, settings: &Settings) -> Result<Exit, Failure> {
        if let Ok(local) = Local::find(settings)
            && let Ok(asked) = local.ask("GET", "/dunlin/status", "", &[]).await
            && asked.status == 200
            && let Ok(status) = serde_json::from_slice::<Value>(&asked.body)
        {
            self.show(&status);
            return Ok(Exit::Done);
        }
        let enrolment = Enrolment::read(&settings.identity_dir());
        let status = AgentStatus::offline(settings, enrolment.as_ref().ok().cloned().flatten());
        self.show(&serde_json::to_value(&status).unwrap_or_default());
        match enrolment {
            Ok(Some(_)) => Ok(Exit::NotRunning),
            Ok(None) => Ok(Exit::NotFound),
            // An updater of the operating system must not take it for a device that has nothing to serve.
            Err(error) => Err(Failure::new(Exit::Failed, &error)),
        }
    }

    async fn tell(&self, settings: &Settings, command: &LocalCommand) -> Result<Exit, Failure> {
        let answer =
            local::command(settings, command).await.map_err(|e| Failure::new(Exit::NotRunning, &e))?;
        self.show(&answer);
        let reason = answer
            .get("reason")
            .cloned()
            .and_then(|reason| serde_json::from_value::<ReasonCode>(reason).ok());
        Ok(match reason {
            Some(ReasonCode::Ok) => Exit::Done,
            Some(ReasonCode::NothingToReturnTo) => Exit::NotFound,
            Some(_) => Exit::Refused,
            None => Exit::Failed,
        })
    }

    /// Prints a result: JSON as it is, or one `key: value` a line.
    fn show(&self, value: &Value) {
        let mut out = std::io::stdout();
        if self.json {
            print(&mut out, &format_args!("{value:#}"));
        } else {
            let mut lines = Vec::new();
            flatten("", value, &mut lines);
            lines.iter().for_each(|line| print(&mut out, line));
        }
    }
}

/// Dotted keys with their values, in the order of the document.
fn flatten(key: &str, value: &Value, lines: &mut Vec<String>) {
    let under = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(&under(name), value, lines)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(i, item)| flatten(&under(&i.to_string()), item, lines));
        }
        Value::String(text) => lines.push(format!("{key}: {text}")),
        Value::Null => lines.push(format!("{key}: -")),
        Value::Array(_) | Value::Bool(_) | Value::Number(_) => lines.push(format!("{key}: {value}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_result_reads_as_dotted_lines() {
        let mut lines = Vec::new();
        flatten("", &json!({ "a": { "b": 1, "c": "x" }, "d": [1, 2], "e": [{ "f": null }] }), &mut lines);
        assert_eq!(lines, ["a.b: 1", "a.c: x", "d: [1,2]", "e.0.f: -"]);
    }
}
