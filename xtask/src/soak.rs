//! `cargo xtask soak`: requests without a pause while line-ups are swapped.
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, root, run as execute, target_dir};

#[derive(Args)]
pub(crate) struct Options {
    /// Requests in all
    #[arg(long, default_value_t = 10_000_000)]
    requests: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    execute(&mut cargo(&["build", "--locked", "--release", "-p", "dunlin-tests", "--bin", "dunlin-soak"]))?;
    let mut soak = Command::new(target_dir().join("release/dunlin-soak"));
    execute(soak.current_dir(root()).args(["--requests", &options.requests.to_string()]))
}
