//! The demonstration: a fleet of real agents, a real controller with its broker and database, real images, and
//! every claim checked. `cargo xtask demo` runs it.
#![allow(clippy::print_stdout, reason = "it tells its story on standard output")]

mod ageing;
mod attacks;
mod bad_model;
mod charts;
mod cuts;
mod desk;
mod gate;
mod machine;
mod plot;
mod report;
mod setup;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use report::Report;
use world::World;

/// The whole demonstration must end in this time, whatever happens.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// What it takes at most where nothing else runs, on two processors.
const PROMISED: Duration = Duration::from_secs(5 * 60);

#[derive(Parser)]
#[command(about = "A fleet's day, from enrolment to rollback")]
struct Options {
    /// Number of devices, at least 12, spread over three hardware classes; fewer if memory forces it
    #[arg(long, default_value_t = machine::DEVICES)]
    devices: usize,
    /// Folder for the report and for every program's logs and state; what a former demonstration left is replaced
    #[arg(long, default_value = "out/demo")]
    out: PathBuf,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a second TLS provider"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let interrupted = async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
        };
        tokio::select! {
            done = tokio::time::timeout(LIMIT, play(&options)) => done.context("the demonstration took too long")?,
            () = interrupted => {
                println!("\ninterrupted; everything that was started is being stopped");
                Ok(ExitCode::from(130))
            }
        }
    })
}

async fn play(options: &Options) -> Result<ExitCode> {
    let mut report = Report::new();
    let (devices, fewer) = machine::devices(options.devices)?;
    if let Some(fewer) = fewer {
        report.say(&fewer);
    }
    let mut world = World::new(devices, &options.out)?;
    let played = acts(&mut world, &mut report).await;
    if let Err(error) = &played {
        report.claim("the story was told to its end", false, format!("{error:#}"));
    }
    let plots = charts::add(&mut world, &mut report).await;
    report.check("every plot over time is in the report", plots);
    if let Some(late) = late(report.now()) {
        report.say(&late);
    }
    report.times();
    let rows: Vec<Vec<String>> = report
        .claims
        .iter()
        .map(|claim| {
            vec![if claim.held { "✔" } else { "✘" }.to_owned(), claim.text.clone(), claim.evidence.clone()]
        })
        .collect();
    report.table("Summary", &["", "claim", "evidence"], &rows);
    let page = options.out.join("report.html");
    report.write(&page)?;
    println!("    report: {}", page.display());
    let all = report.all_held();
    println!(
        "    {} in {:.1} minutes with {devices} devices",
        if all { "every claim was checked and held" } else { "not every claim held" },
        report.now() / 60.0
    );
    if let Some(late) = late(report.now()) {
        println!("    {late}");
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What there is to say if it took longer than promised.
fn late(seconds: f64) -> Option<String> {
    let promised = PROMISED.as_secs_f64();
    (seconds > promised).then(|| {
        format!(
            "it took {:.1} minutes; {:.0} are promised on two processors that nothing else uses",
            seconds / 60.0,
            promised / 60.0
        )
    })
}

async fn acts(world: &mut World, report: &mut Report) -> Result<()> {
    setup::play(world, report).await.context("act 1: the fleet enrols")?;
    ageing::play(world, report).await.context("act 2: the cameras age")?;
    let made = desk::made(world).await?;
    bad_model::play(world, report, &made).await.context("act 3: a bad model")?;
    attacks::play(world, report, &made).await.context("act 4: attacks")?;
    cuts::play(world, report, &made).await.context("act 5: power cuts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_it_took_long_is_said() {
        assert_eq!(late(PROMISED.as_secs_f64()), None);
        assert!(late(360.0).unwrap().starts_with("it took 6.0 minutes; 5 are promised"));
    }
}
