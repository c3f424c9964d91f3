//! The bench: sizes, memory, speeds and bytes of the released programs, each beside the bar it is held against.
//!
//! It measures and never judges by its exit code: a missed bar is printed as missed. Only a number that could not be
//! taken is a failure.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod awake;
mod digits_model;
mod inference;
mod ingest;
mod machine;
mod memory;
mod mlserver;
mod relay;
mod report;
mod runtimes;
mod size;
mod trust;
mod window;
mod wire;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use dunlin_tests::timing;

use report::{Report, Section};

/// Measures the released programs.
#[derive(Debug, Parser)]
struct Options {
    /// A Python with onnxruntime and numpy
    #[arg(long)]
    python: PathBuf,
    /// A Python with mlserver and onnxruntime
    #[arg(long)]
    mlserver: PathBuf,
    /// Where to write the numbers
    #[arg(long, default_value = "out/bench.json")]
    out: PathBuf,
    /// What was built
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Measure only these: size, memory, inference, trust, trees, networks, ingest, bytes
    #[arg(long)]
    only: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a second TLS provider"))?;
    let machine = machine::Machine::read(&options.commit)?;
    machine.print();
    let mut report = Report { machine, sections: Vec::new() };
    // On the disk that the numbers will be read on, not in a memory-backed /tmp.
    let parent =
        options.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(parent)?;
    let folder = scratch.path().canonicalize()?;

    type Measure<'a> = Box<dyn Fn(&mut Section) -> Result<()> + 'a>;
    let subjects: [(&'static str, Measure<'_>); 8] = [
        ("size", Box::new(size::measure)),
        ("memory", Box::new(|section| memory::measure(section, &folder.join("memory")))),
        (
            "inference",
            Box::new(|section| inference::measure(section, &folder.join("inference"), &options.mlserver)),
        ),
        ("trust", Box::new(trust::measure)),
        ("trees", Box::new(|section| runtimes::trees(section, &folder.join("trees"), &options.python))),
        (
            "networks",
            Box::new(|section| runtimes::networks(section, &folder.join("networks"), &options.python)),
        ),
        ("ingest", Box::new(|section| ingest::measure(section, &folder.join("ingest")))),
        ("bytes", Box::new(|section| wire::measure(section, &folder.join("bytes")))),
    ];
    for name in &options.only {
        anyhow::ensure!(
            subjects.iter().any(|(subject, _)| subject == name),
            "there is nothing called {name:?} to measure"
        );
    }
    for (name, measure) in subjects {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        std::fs::create_dir_all(folder.join(name))?;
        let mut section = Section::new(name);
        let outcome = measure(&mut section);
        section.end(outcome);
        section.print();
        report.sections.push(section);
    }
    report.write(&options.out)?;
    println!("\n{}; all numbers are in {}", report.summary(), options.out.display());
    Ok(if report.sections.iter().any(Section::failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
