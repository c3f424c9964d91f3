//! Models of other exporters in this engine, against what ONNX Runtime answers. The cases are folders in the form of
//! ONNX's backend tests, each with a `model.onnx` and `test_data_set_0`; `models.py` makes them, and any other such
//! folder will do.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod case;
mod clock;
mod page;
mod singles;
mod strict;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use case::{Case, Outcome};
use clock::Clock;

#[derive(Parser)]
struct Options {
    /// Folder of cases
    cases: PathBuf,
    /// Measure how long one row takes, here and in ONNX Runtime in this Python, which has onnx too
    #[arg(long)]
    time: Option<PathBuf>,
    /// Write the table here, as Markdown
    #[arg(long)]
    page: Option<PathBuf>,
    /// Fail where ONNX Runtime could not be asked about a model
    #[arg(long)]
    complete: bool,
    /// Least share of the exported models that must run, per cent
    #[arg(long, default_value_t = 0.0)]
    least: f64,
    /// Least share of the rows with a known class that must be answered with it, per cent
    #[arg(long, default_value_t = 0.0)]
    right: f64,
}

fn folders(of: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(of).with_context(|| format!("reading {}", of.display()))?;
    let mut all: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    all.retain(|path| path.is_dir());
    all.sort();
    Ok(all)
}

fn main() -> Result<()> {
    let options = Options::parse();
    // What is published is what users run.
    ensure!(
        options.time.is_none() || options.page.is_none() || !cfg!(debug_assertions),
        "times of a build without optimisations are not for the page; build with --release"
    );
    let mut clock = options.time.as_deref().map(Clock::start).transpose()?;
    // What the engine catches is part of an answer; where it happened is not.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let mut cases = Vec::new();
    let mut singles = Vec::new();
    for folder in folders(&options.cases)? {
        let case = Case::run(&folder, clock.as_mut())?;
        let is_single = !case.meta.single.is_empty();
        if !is_single || matches!(case.outcome, Outcome::Wrong(_)) {
            println!("{}", case.line());
        }
        if is_single { &mut singles } else { &mut cases }.push(case);
    }
    let count = |is: fn(&Outcome) -> bool| cases.iter().filter(|case| is(&case.outcome)).count();
    let equal = count(|o| matches!(o, Outcome::Equal { .. }));
    let refused = count(|o| matches!(o, Outcome::Refused(_)));
    let wrong = count(|o| matches!(o, Outcome::Wrong(_)));
    let exported = equal + refused + wrong;
    println!("{equal} of {exported} equal, {refused} refused, {wrong} wrong");
    if let Some(path) = &options.page {
        std::fs::write(path, page::page(&cases, &options.cases)? + &singles::section(&singles)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    singles::check(&singles)?;
    ensure!(exported > 0 || !singles.is_empty(), "{} holds no cases", options.cases.display());
    ensure!(wrong == 0, "{wrong} models answer otherwise than ONNX Runtime");
    let absent = count(|o| matches!(o, Outcome::Missing(_)));
    ensure!(!options.complete || absent == 0, "ONNX Runtime could not be asked about {absent} models");
    let right: usize = cases.iter().map(|case| case.right.0).sum();
    let known: usize = cases.iter().map(|case| case.right.1).sum();
    if known > 0 {
        let share = right as f64 * 100.0 / known as f64;
        println!("{right} of {known} rows with a known class are right, {share:.1} %");
        ensure!(share >= options.right, "{} % must be", options.right);
    }
    let share = equal as f64 * 100.0 / exported.max(1) as f64;
    ensure!(share >= options.least, "{share:.1} % of the models run; {} % must", options.least);
    Ok(())
}
