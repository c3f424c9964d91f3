//! `dunlin-cuts`: every cut there is, of both kinds.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use dunlin_tests::cuts::{Cuts, Kind};

/// Cuts that come before the one that is tried everywhere: none, one in the middle of the download, one about when the new
/// release begins to serve.
const BEFORE: [Option<u64>; 3] = [None, Some(100), Some(200)];

#[derive(Parser)]
#[command(about = "Cuts an agent's update at every system call that changes its state")]
struct Options {
    /// Devices that are cut beside one another.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
    lanes: u8,
    /// Cut at every so manieth call.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    let mut cuts = Cuts::prepare(folder.path(), options.lanes.into()).await?;
    let (mut all, mut resumed, mut bad) = (0, 0, 0);
    for (kind, what) in [(Kind::Kill, "process killed"), (Kind::Power, "power cut")] {
        for before in BEFORE {
            let begin = Instant::now();
            let tally = cuts.sweep(kind, before, options.step, u64::MAX).await?;
            let after = before.map_or(String::new(), |before| format!(" after a cut at call {before}"));
            println!(
                "{what}{after}: {} cuts up to call {}, {} downloads taken up, {} with a bad outcome, {:.1} min",
                tally.cuts,
                tally.last,
                tally.resumed,
                tally.bad.len(),
                begin.elapsed().as_secs_f64() / 60.0
            );
            all += tally.cuts;
            resumed += tally.resumed;
            bad += tally.bad.len();
        }
    }
    println!("{all} cuts in all, {bad} with a bad outcome");
    println!("{}", cuts.not_blamed().await?);
    cuts.end().await?;
    if bad > 0 {
        bail!("{bad} cuts ended badly");
    }
    if resumed == 0 {
        bail!("no download was taken up where it was cut");
    }
    Ok(())
}
