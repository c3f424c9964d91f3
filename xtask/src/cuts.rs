//! `cargo xtask cuts`: an agent's update, cut at every system call that changes its state. `cargo xtask test` makes a sample.
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, root, run as execute, target_dir};

#[derive(Args)]
pub(crate) struct Options {
    /// Devices that are cut beside one another
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
    lanes: u8,
    /// Cut at every so manieth call
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    execute(&mut cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    execute(Command::new(target_dir().join("debug/dunlin-cuts")).current_dir(root()).args([
        "--lanes",
        &options.lanes.to_string(),
        "--step",
        &options.step.to_string(),
    ]))
}
