//! The command line. Verbs talk to the HTTP API with a token, so that they work from any machine; only
//! `init`, `serve`, `key`, `doctor`, `openapi`, `roles`, `audit verify` and the workers need none.
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

pub mod admission;
pub mod agent;
pub mod alert;
pub mod audit;
pub mod batch;
mod client;
pub mod device;
pub mod doctor;
pub mod drift;
pub mod export;
pub mod group;
pub mod key;
pub mod model;
mod output;
pub mod roles;
pub mod rollout;
pub mod run;
pub mod setup;
mod signing;
pub mod task;
pub mod token;
pub mod worker;

pub use client::{ApiClient, ApiFailure};
pub use output::Output;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Ok,
    /// 1: something failed.
    Error,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: what was named does not exist.
    NotFound,
    /// 4: the controller refused, or does not know the caller.
    Refused,
    /// 10: the roll-out was stopped by its gate or an operator.
    Stopped,
    /// 11: the time given to wait was over.
    TimedOut,
}

impl Exit {
    /// The number a shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Error => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::Stopped => 10,
            Self::TimedOut => 11,
        }
    }

    /// What an error that ended a verb stands for.
    pub fn of(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<ApiFailure>().map(|failure| failure.status) {
            Some(404) => Self::NotFound,
            Some(400) => Self::Usage,
            Some(401 | 403 | 409 | 412 | 422 | 428) => Self::Refused,
            Some(_) | None => Self::Error,
        }
    }
}

/// What the help of the program says of [`Exit`].
const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 what was named does not exist, 4 refused or not allowed, \
     10 rollout stopped (rollout watch), 11 the time to wait was over (rollout watch, device rollback and retarget).";

/// Fleet control for machine-learning models on small devices.
#[derive(Debug, Parser)]
#[command(name = "dunlin", version, about, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    access: Access,
    /// Print JSON instead of text: the body that the API documents for the verb's route (`dunlin roles`, `dunlin openapi`);
    /// verbs that work on files print a summary.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

/// Where the controller is and who asks.
#[derive(Debug, Clone, Args)]
pub struct Access {
    /// Base URL of the controller.
    #[arg(long, global = true, env = "DUNLIN_SERVER", default_value = "https://127.0.0.1:8443")]
    server: String,
    /// Operator token.
    #[arg(long, global = true, env = "DUNLIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The controller's certificate authority, PEM file (`ca.pem` of the data folder).
    #[arg(long, global = true, env = "DUNLIN_CA")]
    ca: Option<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a data folder: online keys, certificate authority, configuration.
    Init(setup::Init),
    /// Run the controller.
    Serve(setup::Serve),
    /// Keys and offline signatures.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Devices.
    #[command(subcommand)]
    Device(device::DeviceCommandLine),
    /// Groups of devices.
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Models and their releases.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Programs of the agent itself, and which devices run which.
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Tasks and their policies.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Roll-outs.
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Retraining runs.
    #[command(subcommand)]
    Run(run::RunCommand),
    /// What the controller noticed.
    #[command(subcommand)]
    Alert(alert::AlertCommand),
    /// Where inputs moved away from what the models were made on.
    Drift(drift::DriftCommand),
    /// Put what devices need on a medium, for those without a network.
    Export(export::Export),
    /// Operator tokens.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The audit log.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Examine a data folder and say what is wrong with it.
    Doctor(doctor::Doctor),
    /// Print the OpenAPI document of this build.
    Openapi,
    /// Print which role each verb needs.
    Roles,
    /// Run one training job folder.
    #[command(hide = true)]
    TrainWorker(worker::TrainWorker),
}

impl Cli {
    /// Runs the verb and reports how it went.
    pub fn execute(self) -> ExitCode {
        let out = Output::new(self.json);
        let exit = match self.verb.run(&self.access, &out) {
            Ok(exit) => exit,
            Err(error) => {
                out.error(&error);
                Exit::of(&error)
            }
        };
        ExitCode::from(exit.code())
    }
}

impl Verb {
    fn run(self, access: &Access, out: &Output) -> Result<Exit> {
        let verb = match self {
            Self::Init(init) => return init.run(out),
            Self::Serve(serve) => return serve.run(out.is_json()),
            Self::Key(key) => return key.run(out),
            Self::Doctor(doctor) => return doctor.run(out),
            Self::Openapi => {
                out.text(&crate::api::document().to_pretty_json()?)?;
                return Ok(Exit::Ok);
            }
            Self::Roles => {
                out.text(&roles::page())?;
                return Ok(Exit::Ok);
            }
            Self::TrainWorker(worker) => return worker.run(),
            Self::Audit(audit::AuditCommand::Verify(verify)) => return verify.run(out),
            online @ (Self::Device(_)
            | Self::Group(_)
            | Self::Model(_)
            | Self::Agent(_)
            | Self::Task(_)
            | Self::Rollout(_)
            | Self::Run(_)
            | Self::Alert(_)
            | Self::Drift(_)
            | Self::Export(_)
            | Self::Token(_)
            | Self::Audit(_)) => online,
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(verb.online(access, out))
    }

    async fn online(self, access: &Access, out: &Output) -> Result<Exit> {
        let client = ApiClient::new(&access.server, access.token.as_deref(), access.ca.as_deref())?;
        match self {
            Self::Device(verb) => verb.run(&client, out).await,
            Self::Group(verb) => verb.run(&client, out).await,
            Self::Model(verb) => verb.run(&client, out).await,
            Self::Agent(verb) => verb.run(&client, out).await,
            Self::Task(verb) => verb.run(&client, out).await,
            Self::Rollout(verb) => verb.run(&client, out).await,
            Self::Run(verb) => verb.run(&client, out).await,
            Self::Alert(verb) => verb.run(&client, out).await,
            Self::Drift(verb) => verb.run(&client, out).await,
            Self::Export(verb) => verb.run(&client, out).await,
            Self::Token(verb) => verb.run(&client, out).await,
            Self::Audit(verb) => verb.run(&client, out).await,
            Self::Init(_)
            | Self::Serve(_)
            | Self::Key(_)
            | Self::Doctor(_)
            | Self::Openapi
            | Self::Roles
            | Self::TrainWorker(_) => {
                unreachable!("verbs on files have run before a client is made")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_exit_code() {
        let all = [
            Exit::Ok,
            Exit::Error,
            Exit::Usage,
            Exit::NotFound,
            Exit::Refused,
            Exit::Stopped,
            Exit::TimedOut,
        ];
        let said: Vec<u8> = EXIT_CODES
            .split([':', ','])
            .filter_map(|part| part.split_whitespace().next()?.parse().ok())
            .collect();
        assert_eq!(said, all.map(Exit::code));
    }
}
