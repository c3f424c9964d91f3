//! `cargo xtask board`: a virtual board loses its power in the middle of updates. `cargo xtask test` does a little of it.
mod device;
mod disk;
mod fleet;
mod footprint;
mod http;
mod initramfs;
mod kind;
mod look;
mod parts;
mod power;
mod sweep;
mod vm;
mod writes;

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{copy, stdin, stdout};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use crate::boards::{self, Board};
use crate::{cross, programs};
pub(crate) use fleet::Fleet;
pub(crate) use footprint::Measured;
use kind::Kind;
pub(crate) use look::Window;
use parts::Parts;
pub(crate) use vm::INSTRUCTION_NS;

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fetch the emulator, a kernel and what else a virtual board is made of
    Setup {
        /// Board of `firmware-targets/boards` that is emulated
        #[arg(long, default_value = BOARD)]
        board: String,
    },
    /// Cut the power at random moments of updates
    PowerCut {
        /// Cuts
        #[arg(long, default_value_t = 10)]
        cuts: usize,
        /// The same seed cuts at the same moments
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        run: Run,
    },
    /// Cut one update after each write to the disk
    EveryWrite {
        /// About so many cuts, evenly spread
        #[arg(long, default_value_t = 100)]
        cuts: u64,
        /// Cut after every single write
        #[arg(long, conflicts_with = "cuts")]
        all: bool,
        #[command(flatten)]
        run: Run,
    },
    /// Pass what comes in on to an address and back; the emulator starts it
    #[command(hide = true)]
    Relay {
        /// Where to
        address: SocketAddr,
    },
}

/// The board that is meant where none is named.
const BOARD: &str = "qemu-virt-aarch64";
/// The board of the tests, which build its agent anyway.
const TEST_BOARD: &str = "x86-64-generic";
/// Cuts after writes in the tests, beside those that every sweep makes: some seconds each.
const TEST_WRITES: u64 = 5;

#[derive(Args)]
struct Run {
    /// Board of `firmware-targets/boards` that is emulated
    #[arg(long, default_value = BOARD)]
    board: String,
    /// The control: syncs on the board do nothing, and something must be lost by that
    #[arg(long)]
    without_sync: bool,
    /// An agent for the board, instead of one that is built
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Folder with `dunlin` and `dunlin-agent` of this machine, instead of those that are built
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// What runs on the board and around it.
struct Programs {
    /// The board's agent.
    agent: PathBuf,
    /// Folder of those of this machine.
    here: PathBuf,
    /// The board.
    board: Board,
    /// Its file.
    board_file: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.verb {
        Verb::Setup { board } => Parts::set_up(Kind::of(&boards::named(board)?.device)?).map(drop),
        Verb::PowerCut { cuts, seed, run } => judged(run, "power-cut", |parts, programs, folder| {
            power::cuts(parts, programs, folder, (*cuts, *seed), run.without_sync)
        }),
        Verb::EveryWrite { cuts, all, run } => judged(run, "every-write", |parts, programs, folder| {
            let cuts = if *all { None } else { Some(*cuts) };
            sweep::every_write(parts, programs, folder, cuts, run.without_sync)
        }),
        Verb::Relay { address } => relay(*address),
    }
}

/// One cut of the power, and a few cuts after writes, as part of the tests, which have built the board's agent and the
/// programs of this machine.
pub(crate) fn test(agent: PathBuf, programs: PathBuf) -> Result<()> {
    let run = Run {
        board: TEST_BOARD.to_owned(),
        without_sync: false,
        agent: Some(agent),
        programs: Some(programs),
    };
    judged(&run, "power-cut", |parts, programs, folder| {
        power::cuts(parts, programs, folder, (1, 1), run.without_sync)
    })?;
    judged(&run, "every-write", |parts, programs, folder| {
        sweep::every_write(parts, programs, folder, Some(TEST_WRITES), run.without_sync)
    })
}

/// What an agent takes of the board of that name, by windows of that length. `programs` is a folder as in [`Run`].
pub(crate) fn footprint(
    board: &str,
    agent: PathBuf,
    programs: Option<PathBuf>,
    window: Duration,
) -> Result<Measured> {
    let run = Run { board: board.to_owned(), without_sync: false, agent: Some(agent), programs };
    let (measured, folder) = prepared(&run, "footprint", |parts, programs, folder| {
        footprint::measure(parts, programs, folder, window)
    })?;
    std::fs::remove_dir_all(folder)?;
    Ok(measured)
}

/// What a board had made durable, or said that it had, and a cut took: what missing syncs do, and nothing else here.
#[derive(Debug)]
struct Lost(String);

impl Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

/// Cuts, those after which something was not as it must be, and those of these after which something was [`Lost`].
#[derive(Default)]
struct Outcome {
    cuts: u64,
    bad: u64,
    lost: u64,
}

impl Outcome {
    /// Counts a cut and prints what came of it.
    fn cut(&mut self, cut: &str, came: Result<String>) {
        self.cuts += 1;
        match came {
            Ok(came) => println!("{cut}: {came}"),
            Err(error) => self.bad(cut, &error),
        }
    }

    /// Counts and prints what was not as it must be.
    fn bad(&mut self, what: &str, error: &anyhow::Error) {
        self.bad += 1;
        self.lost += u64::from(error.is::<Lost>());
        println!("{what}: BAD: {error:#}");
    }

    /// An error unless this is how it must come out.
    fn right(&self, without_sync: bool) -> Result<()> {
        let Self { cuts, bad, lost } = self;
        if without_sync {
            ensure!(*lost > 0, "nothing was lost without syncs in {cuts} cuts: this test can not fail");
        } else {
            ensure!(*bad == 0 && *cuts > 0, "{bad} bad outcomes of {cuts} cuts");
        }
        Ok(())
    }
}

/// Makes what is needed and works with it in an empty folder, which is returned too.
fn prepared<T>(
    run: &Run,
    name: &str,
    work: impl FnOnce(&Parts, &Programs, &Path) -> Result<T>,
) -> Result<(T, PathBuf)> {
    let programs = run.programs()?;
    let parts = Parts::set_up(Kind::of(&programs.board.device)?)?;
    let folder = parts.home().join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok((work(&parts, &programs, &folder)?, folder))
}

/// Cuts, and says whether the outcome is the one that is asked for.
fn judged(
    run: &Run,
    name: &str,
    cut: impl FnOnce(&Parts, &Programs, &Path) -> Result<Outcome>,
) -> Result<()> {
    let (outcome, folder) = prepared(run, name, cut)?;
    println!("{} cuts, {} bad outcomes, {} of them losses", outcome.cuts, outcome.bad, outcome.lost);
    outcome
        .right(run.without_sync)
        .with_context(|| format!("{name}; everything is left in {}", folder.display()))?;
    Ok(std::fs::remove_dir_all(&folder)?)
}

impl Run {
    /// Builds what is not given.
    fn programs(&self) -> Result<Programs> {
        let board = boards::named(&self.board)?;
        let here = match &self.programs {
            Some(folder) => std::path::absolute(folder)?,
            None => programs::here()?,
        };
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => cross::emulated_agent(&board.build.triple)?,
        };
        Ok(Programs { agent, here, board, board_file: boards::path(&self.board) })
    }
}

/// A program that is ended when this one ends, however that is.
fn tied(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// One connection of a board to the controller.
fn relay(address: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(address).with_context(|| format!("reaching {address}"))?;
    let mut up = stream.try_clone()?;
    let mut from = File::from(stdin().as_fd().try_clone_to_owned()?);
    std::thread::spawn(move || -> Result<()> {
        copy(&mut from, &mut up)?;
        Ok(up.shutdown(Shutdown::Write)?)
    });
    // Not by way of the standard library's buffer, which waits for the end of a line.
    let mut out = File::from(stdout().as_fd().try_clone_to_owned()?);
    copy(&mut &stream, &mut out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn outcome(came: Result<String>) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.cut("a cut", came);
        outcome
    }

    #[test]
    fn the_control_needs_a_loss_and_takes_no_other_failure_for_one() {
        let lost = || anyhow::Error::new(Lost("a floor is lower".to_owned()));
        assert!(outcome(Err(lost())).right(true).is_ok());
        assert!(outcome(Err(lost().context("looking at the disk"))).right(true).is_ok());
        assert!(outcome(Err(anyhow!("the board: not within 900s"))).right(true).is_err());
        assert!(outcome(Ok("all is there".to_owned())).right(true).is_err());
    }

    #[test]
    fn with_syncs_every_failure_counts_and_so_does_a_run_without_cuts() {
        assert!(outcome(Ok("all is there".to_owned())).right(false).is_ok());
        assert!(outcome(Err(anyhow!("the board: not within 900s"))).right(false).is_err());
        assert!(outcome(Err(Lost("a floor is lower".to_owned()).into())).right(false).is_err());
        assert!(Outcome::default().right(false).is_err());
    }
}
