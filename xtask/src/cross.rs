//! Building for other machines, from the one list in `cross/matrix.toml`.
mod archive;
mod artifact;
mod build;
mod emulated;
mod matrix;
mod musl;
mod toolchain;
mod zig;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

pub(crate) use archive::{Archive, forget, sha256};
pub(crate) use artifact::{Elf, Machine, machine};
use build::Built;
use emulated::Scope;
use matrix::chosen;
pub(crate) use matrix::{How, Libc, Target, matrix, target};
use toolchain::Toolchain;

use crate::command::{run as execute, target_dir};

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the matrix
    List,
    /// Make the toolchain of a target, or of all
    Setup {
        /// Target triple, one of the matrix
        triple: Option<String>,
    },
    /// Build the agent for a target, or for all, in the development profile
    Build {
        /// Target triple, one of the matrix
        triple: Option<String>,
    },
    /// Test on this machine what decides, the engine, and an agent against this machine's controller, for a target, or for
    /// those of tiers 1 and 2
    Test {
        /// Target triple, one of the matrix
        triple: Option<String>,
    },
    /// Build the agent in the size profile, with its provenance, into `target/dist`, for a target, or for those of tier 1
    Dist {
        /// Target triple, one of the matrix
        triple: Option<String>,
        /// Build for this board of `firmware-targets/boards` instead
        #[arg(long, conflicts_with = "triple")]
        board: Option<String>,
        /// With everything an agent can do, into a folder `full` beside the one that is released
        #[arg(long)]
        full: bool,
    },
}

/// The agent's feature sets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Features {
    /// The small set, which is released: the API is REST alone.
    Edge,
    /// Everything.
    Full,
}

impl Features {
    /// As the agent's manifest calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Full => "full",
        }
    }
}

impl Verb {
    /// The last tier of targets that it takes where none is named.
    const fn last_tier(&self) -> u8 {
        match self {
            Self::Dist { .. } => RELEASED,
            Self::Test { .. } => TESTED,
            Self::List | Self::Setup { .. } | Self::Build { .. } => u8::MAX,
        }
    }
}

/// The last tier whose targets are released.
const RELEASED: u8 = 1;
/// The last tier whose targets are tested.
const TESTED: u8 = 2;
/// The profile that is released.
const DIST: &str = "dist";

pub(crate) fn run(options: &Options) -> Result<()> {
    let each = |triple: &Option<String>, what: &dyn Fn(&Target) -> Result<()>| {
        let targets = chosen(matrix()?, triple.as_deref(), options.verb.last_tier())?;
        targets.iter().try_for_each(what)
    };
    match &options.verb {
        Verb::List => {
            for target in matrix()?.target {
                let link = if target.is_static { "static" } else { "dynamic" };
                let (libc, how) = (target.libc.name(), target.how.name());
                let runner = target.runner.as_deref().unwrap_or("-");
                println!("tier {}  {:32} {libc:6} {link:8} {how:8} {runner}", target.tier, target.triple);
            }
            Ok(())
        }
        Verb::Setup { triple } => each(triple, &|target| Toolchain::set_up(target).map(drop)),
        Verb::Build { triple } => {
            each(triple, &|target| build_agent(target, "dev", Features::Edge).map(drop))
        }
        Verb::Test { triple } => each(triple, &|target| {
            let toolchain = Toolchain::set_up(target)?;
            emulated::units(&toolchain, Scope::All)?;
            emulated::whole_way(&toolchain).map(drop)
        }),
        Verb::Dist { triple, board, full } => {
            let of_board = board.as_deref().map(crate::boards::named).transpose()?;
            let triple = of_board.map(|board| board.build.triple).or_else(|| triple.clone());
            let features = if *full { Features::Full } else { Features::Edge };
            each(&triple, &|target| build_agent(target, DIST, features).map(drop))
        }
    }
}

/// The triples of the targets that are released.
pub(crate) fn released_triples() -> Result<Vec<String>> {
    Ok(chosen(matrix()?, None, RELEASED)?.into_iter().map(|target| target.triple).collect())
}

/// Builds an agent and asks it for its version, so that a file that only looks like one is found.
fn checked_agent<'a>(
    target: &'a Target,
    profile: &str,
    features: Features,
) -> Result<(Toolchain<'a>, Built, String)> {
    let toolchain = Toolchain::set_up(target)?;
    let built = build::agent(&toolchain, profile, features)?;
    let version = artifact::check(&toolchain, &built)?;
    Ok((toolchain, built, version))
}

/// The same, with its provenance, and where it is released from.
fn build_agent(target: &Target, profile: &str, features: Features) -> Result<PathBuf> {
    let (toolchain, built, version) = checked_agent(target, profile, features)?;
    let provenance = artifact::provenance(&toolchain, &built, profile)?;
    let mut program = built.program;
    if profile == DIST {
        let released = released(&target.triple, features);
        std::fs::create_dir_all(released.parent().context("a program lies in a folder")?)?;
        std::fs::copy(&provenance, released.with_extension("provenance.json"))?;
        std::fs::copy(&program, &released)?;
        program = released;
    }
    let bytes = std::fs::metadata(&program)?.len();
    let link = if target.is_static { "static" } else { "dynamic" };
    println!("{}: {version} in {bytes} bytes, {link}, runs", program.display());
    Ok(program)
}

/// Builds the agent that tests of a target run, and takes its symbols away, which an emulated board would have to unpack.
pub(crate) fn emulated_agent(triple: &str) -> Result<PathBuf> {
    let target = target(triple)?;
    let (toolchain, built, version) = checked_agent(&target, emulated::PROFILE, Features::Edge)?;
    println!("{version}");
    stripped(&toolchain, &built.program)
}

/// Tests of a target within a process, without those that are slow.
pub(crate) fn units(triple: &str) -> Result<()> {
    emulated::units(&Toolchain::set_up(&target(triple)?)?, Scope::Short)
}

/// An agent of a target on its whole way; returns where it lies, without its symbols.
pub(crate) fn whole_way(triple: &str) -> Result<PathBuf> {
    let target = target(triple)?;
    let toolchain = Toolchain::set_up(&target)?;
    stripped(&toolchain, &emulated::whole_way(&toolchain)?)
}

/// A program without its symbols, which are half of it.
fn stripped(toolchain: &Toolchain<'_>, program: &Path) -> Result<PathBuf> {
    let stripped = program.with_extension("stripped");
    execute(Command::new(toolchain.strip()).arg("-o").arg(&stripped).arg(program))?;
    Ok(stripped)
}

/// Where `cross dist` leaves a target's agent.
pub(crate) fn released(triple: &str, features: Features) -> PathBuf {
    let folder = target_dir().join(DIST).join(triple);
    match features {
        Features::Edge => folder.join("dunlin-agent"),
        Features::Full => folder.join(features.name()).join("dunlin-agent"),
    }
}

/// Builds the agent of a target as it is released, and returns where it lies.
pub(crate) fn release(triple: &str, features: Features) -> Result<PathBuf> {
    build_agent(&target(triple)?, DIST, features)
}

/// The variable that switches defences off in test builds, and that no other program has to know.
const SWITCHES: &[u8] = b"DUNLIN_WEAKEN";

/// A static build for this machine, as part of the tests. It is of the small feature set: it says of itself that it has no
/// gRPC. And it is built as what is released is, so it has no switches for its defences. Returns where it lies.
pub(crate) fn static_build(triple: &str) -> Result<PathBuf> {
    let program = build_agent(&target(triple)?, emulated::PROFILE, Features::Edge)?;
    let check = |address: &str| {
        let mut command = Command::new(&program);
        command.arg("check").env("DUNLIN_API__GRPC_LISTEN", address).output()
    };
    let (rest, grpc) = (check("")?, check("127.0.0.1:0")?);
    let told = String::from_utf8_lossy(&grpc.stderr).into_owned();
    if !rest.status.success() || grpc.status.success() || !told.contains("built without gRPC") {
        bail!("the agent for {triple} is not of the small feature set: {told}");
    }
    if std::fs::read(&program)?.windows(SWITCHES.len()).any(|bytes| bytes == SWITCHES) {
        bail!("{} can switch its defences off", program.display());
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        verb: Verb,
    }

    /// The tiers that a verb takes targets of.
    fn tiers(words: &[&str], triple: Option<&str>) -> Vec<u8> {
        let cli = Cli::try_parse_from([&["cross"], words].concat()).unwrap();
        let targets = chosen(matrix().unwrap(), triple, cli.verb.last_tier()).unwrap();
        let mut tiers: Vec<u8> = targets.into_iter().map(|target| target.tier).collect();
        tiers.sort_unstable();
        tiers.dedup();
        tiers
    }

    #[test]
    fn a_verb_takes_of_the_matrix_what_it_is_for_unless_a_target_is_named() {
        assert_eq!(tiers(&["dist"], None), [1]);
        assert_eq!(tiers(&["dist", "--full"], None), [1]);
        assert_eq!(tiers(&["test"], None), [1, 2]);
        assert_eq!(tiers(&["build"], None), [1, 2, 3]);
        assert_eq!(tiers(&["setup"], None), [1, 2, 3]);
        for verb in ["dist", "test", "build", "setup"] {
            assert_eq!(tiers(&[verb], Some("riscv64gc-unknown-linux-musl")), [3]);
        }
    }

    #[test]
    fn a_target_that_the_matrix_does_not_have_is_refused() {
        let refusal = target("m68k-unknown-linux-musl").err().map(|error| error.to_string());
        assert!(refusal.unwrap().contains("is not in cross/matrix.toml"));
    }
}
