//! `cargo xtask bench`: builds the released programs, then hands over to the bench in the tests package.
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, git, is_changed, root, run as execute, target_dir};
use crate::{footprint, install};

/// What trees and networks are compared with, and what it needs; exact, so that numbers of two days compare.
const PYTHON: &[&str] = &["onnxruntime==1.31.1", "numpy==2.4.6"];

/// The server that requests are compared with, and the runtime behind it.
const MLSERVER: &[&str] = &["mlserver==1.7.1", "onnxruntime==1.31.1"];

#[derive(Args)]
pub(crate) struct Options {
    /// Measure only this: size, memory, inference, trust, trees, networks, ingest or bytes; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Where to write the numbers
    #[arg(long, default_value = "out/bench.json")]
    out: std::path::PathBuf,
    /// Measure what the agent takes of a small virtual board instead, and write docs/footprint.md
    #[arg(long, conflicts_with_all = ["only", "out"])]
    footprint: bool,
    #[command(flatten)]
    on_board: footprint::OnBoard,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.footprint {
        return footprint::run(&options.on_board);
    }
    println!(
        "building the agent alone, as it is released: with others it would get features that only they need"
    );
    execute(&mut cargo(&["build", "--locked", "--profile", "dist", "-p", "dunlin-agent"]))?;
    println!("building controller and bench");
    let programs =
        ["-p", "dunlin-controller", "-p", "dunlin-tests", "--bin", "dunlin", "--bin", "dunlin-bench"];
    execute(cargo(&["build", "--locked", "--release"]).args(programs))?;
    let python = install::python("bench", PYTHON)?;
    let mlserver = install::python("bench-mlserver", MLSERVER)?;
    let mut bench = Command::new(target_dir().join("release/dunlin-bench"));
    bench.current_dir(root()).env("AGENT_PROGRAM", target_dir().join("dist/dunlin-agent"));
    bench
        .arg("--python")
        .arg(python)
        .arg("--mlserver")
        .arg(mlserver)
        .arg("--out")
        .arg(&options.out)
        .arg("--commit")
        .arg(commit());
    bench.args(options.only.iter().flat_map(|only| ["--only", only]));
    execute(&mut bench)
}

/// The commit that is built, and whether the tree differs from it.
fn commit() -> String {
    let Ok(id) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    format!("{}{}", id.trim(), if is_changed().unwrap_or(true) { " with changes" } else { "" })
}
