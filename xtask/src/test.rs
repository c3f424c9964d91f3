//! `cargo xtask test`: set-up, every check, every test, and the minutes each took.
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::command::{cargo, run as execute};
use crate::{cross, docs, install, tidy};

/// The whole run must stay below this, so that a two-core machine finishes it in time.
const LIMIT: Duration = Duration::from_secs(75 * 60);

/// The Rust target whose static build is part of the tests.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Args)]
pub(crate) struct Options {
    /// Run only the stages whose name contains this
    #[arg(long)]
    only: Option<String>,
}

type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("set-up", || install::debian("mosquitto", "mosquitto")),
    ("tidy", tidy::run),
    ("format", || execute(&mut cargo(&["fmt", "--all", "--check"]))),
    // Always the whole workspace: another selection of packages has other features, and would rebuild what is built.
    ("build", || execute(&mut cargo(&["build", "--locked", "--workspace", "--all-targets"]))),
    ("test", || execute(&mut cargo(&["test", "--locked", "--workspace", "--lib", "--bins", "--examples"]))),
    ("doc-test", || execute(&mut cargo(&["test", "--locked", "--workspace", "--doc"]))),
    // These start whole fleets: one at a time, so that they do not starve one another.
    ("end-to-end", || {
        execute(&mut cargo(&["test", "--locked", "--workspace", "--test", "*", "--", "--test-threads=1"]))
    }),
    ("clippy", || {
        execute(&mut cargo(&[
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]))
    }),
    ("docs", || {
        execute(
            cargo(&["doc", "--locked", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"),
        )?;
        docs::check()
    }),
    ("deny", || {
        let program = install::cargo_deny()?;
        execute(std::process::Command::new(program).current_dir(crate::command::root()).args([
            "--all-features",
            "check",
            "bans",
            "licenses",
            "sources",
        ]))
    }),
    ("static build", || cross::build(STATIC_TARGET, false)),
];

pub(crate) fn run_stages(only: Option<&str>) -> Result<()> {
    let begin = Instant::now();
    let mut table = Vec::new();
    for (name, stage) in STAGES {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = stage();
        let minutes = started.elapsed().as_secs_f64() / 60.0;
        table.push(format!("{minutes:7.1} min  {name}{}", if outcome.is_ok() { "" } else { "  FAILED" }));
        if let Err(error) = outcome {
            println!("\n{}", table.join("\n"));
            return Err(error.context(format!("stage {name:?} failed")));
        }
    }
    let total = begin.elapsed();
    println!("\n{}\n{:7.1} min  in all", table.join("\n"), total.as_secs_f64() / 60.0);
    if table.is_empty() {
        bail!("no stage has {:?} in its name", only.unwrap_or_default());
    }
    if total > LIMIT {
        bail!("the tests took longer than {} minutes; find out which stage grew", LIMIT.as_secs() / 60);
    }
    Ok(())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    run_stages(options.only.as_deref())
}
