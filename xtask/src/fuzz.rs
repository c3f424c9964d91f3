//! `cargo xtask fuzz`: builds the fuzz targets and runs them.
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, root, run as execute, target_dir};

/// Seconds for each target in the tests, after its corpus was replayed.
const TEST_SECONDS: u64 = 10;

#[derive(Args)]
pub(crate) struct Options {
    /// metadata, director, cbor, topic, manifest, range; all without any
    targets: Vec<String>,
    /// Minutes for each
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The same seed bends the same inputs alike
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let seconds = (options.minutes * 60).to_string();
    // With debug assertions and overflow checks: they find more than speed does.
    execute(&mut cargo(&["build", "--locked", "--workspace", "--bin", "dunlin-fuzz"]))?;
    fuzz(&options.targets, &["--seconds", &seconds, "--seed", &options.seed.to_string()])
}

/// A short run of every target, with the program that the tests have built.
pub(crate) fn test() -> Result<()> {
    fuzz(&[], &["--seconds", &TEST_SECONDS.to_string()])
}

fn fuzz(targets: &[String], args: &[&str]) -> Result<()> {
    let mut program = Command::new(target_dir().join("debug/dunlin-fuzz"));
    execute(program.current_dir(root()).args(targets).args(args))
}
