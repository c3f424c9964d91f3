//! `cargo xtask versions`: agents of another version with this controller, this version's agents with another controller, and
//! a fleet that crosses from one to the other by its own update.
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, output, root, run as execute, target_dir};
use crate::programs::{end_to_end_tests, programs};

#[derive(Args)]
pub(crate) struct Options {
    /// The other version: a revision of this repository
    revision: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let other = other(&options.revision)?;
    let programs = programs()?;
    let tests = || end_to_end_tests(&programs);
    let (here, there) = (target_dir().join("debug/dunlin-agent"), other.join("dunlin-agent"));
    println!("\n-- its agents, this controller");
    execute(tests()?.arg("main_loop::").env("AGENT_PROGRAM", &there))?;
    println!("\n-- these agents, its controller");
    execute(tests()?.arg("main_loop::").env("CONTROLLER_PROGRAM", other.join("dunlin")))?;
    for (from, to, which) in
        [(&there, &here, "its agents become these"), (&here, &there, "these agents become its")]
    {
        println!("\n-- {which}");
        let mut crossing = tests()?;
        crossing.arg("versions::");
        execute(crossing.env("AGENT_PROGRAM", from).env("NEXT_AGENT_PROGRAM", to))?;
    }
    Ok(())
}

/// Builds the other version in folders of its own, and returns where its programs lie.
fn other(revision: &str) -> Result<PathBuf> {
    let commit = output(Command::new("git").current_dir(root()).args([
        "rev-parse",
        "--verify",
        &format!("{revision}^{{commit}}"),
    ]))?;
    let folder = target_dir().join("versions");
    let (source, built) = (folder.join("source"), folder.join("built"));
    if source.exists() {
        std::fs::remove_dir_all(&source)?;
    }
    std::fs::create_dir_all(&folder)?;
    // Not a work tree, which this repository would go on naming when the folder is gone.
    execute(
        Command::new("git").args(["clone", "--quiet", "--shared", "--no-checkout"]).arg(root()).arg(&source),
    )?;
    execute(Command::new("git").current_dir(&source).args([
        "checkout",
        "--quiet",
        "--detach",
        commit.trim(),
    ]))?;
    let mut build = cargo(&["build", "--locked", "--workspace", "--bins"]);
    execute(build.current_dir(&source).env("CARGO_TARGET_DIR", &built))?;
    Ok(built.join("debug"))
}
