//! Soak: many requests while line-ups are swapped every second. This program is the driver, and under its hidden verb
//! the server.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use dunlin_tests::swaps::{self, LATE_FACTOR, NEAR_MS, Progress};

/// How much slower the slowest hundredth of requests may be near a swap.
const NEAR_FACTOR_MAX: f64 = 2.0;
/// Pause between two lines of progress.
const TELL: Duration = Duration::from_secs(15);
/// Bytes of a mebibyte.
const MIB: f64 = 1048576.0;

/// Asks a server whose line-up is swapped every second.
#[derive(Debug, Parser)]
struct Options {
    /// Requests in all
    #[arg(long, default_value_t = 10_000_000)]
    requests: u64,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve and swap until standard input ends
    #[command(hide = true)]
    Serve {
        /// Milliseconds between two swaps
        every_ms: u64,
    },
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(Verb::Serve { every_ms }) = options.verb {
        swaps::serve(Duration::from_millis(every_ms))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut last = Instant::now();
    let done = swaps::drive(options.requests, |Progress { left, swaps, rss }| {
        if last.elapsed() >= TELL {
            last = Instant::now();
            println!("{left} requests left, {swaps} swaps, {:.1} MiB", rss as f64 / MIB);
        }
    })?;
    let rate = done.requests as f64 / done.took.as_secs_f64();
    println!(
        "{} requests in {:.0} s, {rate:.0} a second, {} swaps",
        done.requests,
        done.took.as_secs_f64(),
        done.swaps
    );
    println!("wrong: {}", done.wrong);
    if let Some(first) = &done.first_wrong {
        println!("the first: {first}");
    }
    let (middle, end) = (done.rss_middle as f64 / MIB, done.rss_end as f64 / MIB);
    println!("memory of the server: {middle:.1} MiB in the middle of the run, {end:.1} MiB at its end");
    let factor = done.near_p99_ms / done.far_p99_ms;
    let undisturbed = factor <= NEAR_FACTOR_MAX;
    let met = if undisturbed { "met" } else { "MISSED" };
    println!(
        "p99 within {NEAR_MS} ms of a swap {:.2} ms, elsewhere {:.2} ms: {factor:.2} ×, at most {NEAR_FACTOR_MAX} ×: {met}",
        done.near_p99_ms, done.far_p99_ms
    );
    println!(
        "beyond {LATE_FACTOR} × the p99 of elsewhere: {:.3} % of the requests near a swap, {:.3} % elsewhere",
        done.near_late * 100.0,
        done.far_late * 100.0
    );
    Ok(if done.wrong == 0 && done.is_flat() && undisturbed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
