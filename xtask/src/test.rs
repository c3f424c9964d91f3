//! `cargo xtask test`: set-up, every check, every test, and the minutes each took.
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::command::{cargo, line, run as execute, target_dir};
use crate::programs::{END_TO_END, TestProgram, end_to_end_tests, programs, workspace};
use crate::{board, cross, docs, fuzz, install, package, parity, tidy};

/// The whole run must stay below this, so that a two-core machine finishes it in time.
const LIMIT: Duration = Duration::from_secs(75 * 60);

/// The Rust target whose static build is part of the tests.
const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";
/// Those that are tested behind an emulator; `cargo xtask cross test` does more of it on further processors, and what is slow
/// there.
const EMULATED: &[&str] = &["aarch64-unknown-linux-musl", "armv7-unknown-linux-musleabihf"];

/// A TUF client that others wrote: the reference implementation.
const FOREIGN_PYTHON: &[&str] = &["tuf==7.0.0", "securesystemslib[crypto]==1.4.0"];
/// Another one, which npm itself checks provenance with; the newest release for this Node's long-term line.
const FOREIGN_NODE: &[&str] = &["tuf-js@4.1.0"];
/// Inference clients that others wrote: of Triton (HTTP and gRPC) and of MLServer.
const FOREIGN_INFERENCE: &[&str] = &["tritonclient[http,grpc]==2.73.0", "mlserver==1.7.1"];
/// That of KServe, whose releases do not go together with the two above.
const FOREIGN_KSERVE: &[&str] = &["kserve==0.16.0"];

#[derive(Args)]
pub(crate) struct Options {
    /// Run only the stages whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Run what is run beside the end-to-end tests; these start it
    #[arg(long, hide = true, conflicts_with = "only")]
    beside: bool,
}

/// The end-to-end tests that run beside all the others, and take about as long.
const HALF: &[&str] =
    &["airgap::", "alone::", "attacks::", "bad_controller::", "bad_input::", "bad_models::"];
/// The negative controls, which tell their story.
const CONTROL: &str = "controls::without_its_defence_a_claim_";
type Stage = (&'static str, fn() -> Result<()>);

/// What has to be there, and what tells soonest that something is wrong.
const FIRST: &[Stage] = &[
    ("set-up", || {
        install::debian("mosquitto", "mosquitto")?;
        install::debian("faketime", "faketime")?;
        install::debian("curl", "curl")?;
        // What reads packages, images, units and scripts that others wrote to do so.
        install::debian("shellcheck", "shellcheck")?;
        install::debian("skopeo", "skopeo")?;
        install::debian("systemd-analyze", "systemd")?;
        install::debian("xz", "xz-utils")?;
        install::python("foreign", FOREIGN_PYTHON)?;
        install::python("foreign-inference", FOREIGN_INFERENCE)?;
        install::python("foreign-kserve", FOREIGN_KSERVE)?;
        install::node("foreign", FOREIGN_NODE)
    }),
    ("tidy", tidy::run),
    ("format", || execute(&mut cargo(&["fmt", "--all", "--check"]))),
    ("build", || execute(&mut workspace("build", &["--all-targets"]))),
    ("test", || execute(&mut workspace("test", &["--lib", "--bins", "--examples"]))),
    ("doc-test", || execute(&mut workspace("test", &["--doc"]))),
];

const FLEETS: Stage = ("end-to-end", end_to_end);

/// What computes and waits for nobody, while fleets wait for windows and time limits most of the time.
const BESIDE: &[Stage] = &[
    ("clippy", || execute(&mut workspace("clippy", &["--all-targets", "--", "--deny", "warnings"]))),
    ("docs", || {
        execute(workspace("doc", &["--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))?;
        docs::check()
    }),
    ("deny", || {
        let program = install::cargo_deny()?;
        execute(Command::new(program).current_dir(crate::command::root()).args([
            "--all-features",
            "check",
            "bans",
            "licenses",
            "sources",
        ]))
    }),
    ("recipes", package::lint),
    ("static build", || cross::static_build(STATIC_TARGET).map(drop)),
    ("emulated units", || EMULATED.iter().try_for_each(|triple| cross::units(triple))),
];

/// What starts fleets with what was built beside the others, and what is over soon.
const LAST: &[Stage] = &[
    ("parity", parity::test),
    ("fuzz", fuzz::test),
    ("static agents", || {
        // The small feature set, as released; everything else here is built and tested with the full one.
        let program = cross::static_build(STATIC_TARGET)?;
        execute(end_to_end_tests(&programs()?)?.arg("main_loop::").env("AGENT_PROGRAM", program))
    }),
    ("emulated agents", || {
        EMULATED.iter().try_for_each(|triple| package::test(triple, &cross::whole_way(triple)?))
    }),
    ("board", || board::test(cross::emulated_agent(STATIC_TARGET)?, target_dir().join("debug"))),
];

/// These start whole fleets, which wait for windows and time limits most of the time: two of them share two processors,
/// more would starve one another.
fn end_to_end() -> Result<()> {
    let programs = programs()?;
    let fleets = || end_to_end_tests(&programs);
    let (mut half, mut other, mut controls) = (fleets()?, fleets()?, fleets()?);
    half.args(HALF);
    other.args(HALF.iter().chain([&CONTROL]).flat_map(|name| ["--skip", *name]));
    controls.args([CONTROL, "--nocapture"]);
    let half = Beside::start("end-to-end", half)?;
    let here = programs
        .iter()
        .filter(|program| program.name != END_TO_END)
        .map(TestProgram::command)
        .chain([other, controls])
        .try_for_each(|mut tests| execute(&mut tests));
    half.end()?;
    here
}

/// A command beside others, which prints to a file: two that print at once would be read by nobody.
struct Beside {
    child: Child,
    log: PathBuf,
}

impl Beside {
    fn start(name: &str, mut command: Command) -> Result<Self> {
        let log = target_dir().join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("could not write {}", log.display()))?;
        println!("{} prints to {}", line(&command), log.display());
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        Ok(Self { child: child.with_context(|| format!("could not start {}", line(&command)))?, log })
    }

    /// Waits for its end, and prints what it printed.
    fn end(mut self) -> Result<()> {
        let status = self.child.wait()?;
        println!("\n{}", fs::read_to_string(&self.log)?);
        ensure!(status.success(), "what printed to {} ended with {status}", self.log.display());
        Ok(())
    }
}

/// What is free on the disk that everything is built on, gigabytes. A linker that finds none left dies of a bus error, which
/// tells nobody why.
fn free_gb() -> Result<f64> {
    let folder = crate::command::root();
    let disk = rustix::fs::statvfs(folder)
        .with_context(|| format!("could not ask {} for its space", folder.display()))?;
    Ok((disk.f_bavail * disk.f_frsize) as f64 / 1e9)
}

/// The minutes that each stage took.
#[derive(Default)]
struct Table(Vec<String>);

impl Table {
    fn run(&mut self, stages: &[Stage]) -> Result<()> {
        stages.iter().try_for_each(|(name, stage)| self.stage(name, stage))
    }

    fn stage(&mut self, name: &str, stage: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = stage();
        let minutes = started.elapsed().as_secs_f64() / 60.0;
        let failed = if outcome.is_ok() { "" } else { "  FAILED" };
        self.0.push(format!("{minutes:7.1} min  {:5.1} GB free  {name}{failed}", free_gb()?));
        if outcome.is_err() {
            println!("\n{}", self.0.join("\n"));
        }
        outcome.with_context(|| format!("stage {name:?} failed"))
    }
}

/// All stages: those of `BESIDE` in a process of the lowest priority, beside the fleets.
fn whole(table: &mut Table) -> Result<()> {
    table.run(FIRST)?;
    let mut command = Command::new("nice");
    // As the stage `build` left it: that may have put another file in the place of the one that runs.
    command.args(["-n", "19"]).arg(target_dir().join("debug/xtask")).args(["test", "--beside"]);
    let beside = Beside::start("beside", command)?;
    let fleets = table.run(&[FLEETS]);
    let beside = table.stage("what ran beside", || beside.end());
    fleets.and(beside)?;
    table.run(LAST)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let mut table = Table::default();
    match &options.only {
        None if options.beside => table.run(BESIDE)?,
        None => whole(&mut table)?,
        Some(only) => {
            let all = [FIRST, &[FLEETS], BESIDE, LAST].concat();
            let some: Vec<Stage> = all.into_iter().filter(|(name, _)| name.contains(only.as_str())).collect();
            ensure!(!some.is_empty(), "no stage has {only:?} in its name");
            table.run(&some)?;
        }
    }
    let total = begin.elapsed();
    println!("\n{}\n{:7.1} min  in all", table.0.join("\n"), total.as_secs_f64() / 60.0);
    ensure!(
        total <= LIMIT,
        "the tests took longer than {} minutes; find out which stage grew",
        LIMIT.as_secs() / 60
    );
    Ok(())
}
