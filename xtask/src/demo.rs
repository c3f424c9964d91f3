//! `cargo xtask demo`: builds the programs, then becomes the demonstration in the tests package.
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use clap::Args;

use crate::command::{cargo, run as execute, target_dir};

#[derive(Args)]
pub(crate) struct Options {
    /// Number of agents, at least 12; fewer if memory forces it
    #[arg(long, default_value_t = 24)]
    devices: usize,
    /// Folder for the report and every program's logs and state
    #[arg(long, default_value = "out/demo")]
    out: std::path::PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    println!("building the controller, the agent and the demonstration");
    // All programs of the workspace: the demonstration starts them from the same folder.
    execute(&mut cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    let program = target_dir().join("debug/dunlin-demo");
    // In place of this process, so that every signal and the exit code are the demonstration's own.
    let error = std::process::Command::new(&program)
        .current_dir(crate::command::root())
        .arg("--devices")
        .arg(options.devices.to_string())
        .arg("--out")
        .arg(&options.out)
        .exec();
    Err(error).with_context(|| format!("could not start {}", program.display()))
}
