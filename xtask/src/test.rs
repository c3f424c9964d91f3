//! `cargo xtask test`: set-up, every check, every test, and the minutes each took.
use std::fs::{self, File};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{cargo, run as execute, target_dir};
use crate::{board, cross, docs, fuzz, install, parity, tidy};

/// The whole run must stay below this, so that a two-core machine finishes it in time.
const LIMIT: Duration = Duration::from_secs(75 * 60);

/// The Rust target whose static build is part of the tests.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

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
}

/// What is built beyond the ordinary: the negative controls, and the two programs whose defences can be switched off. The
/// ordinary programs have no such switch, whatever they are built with, so that one build serves all stages.
const FEATURES: &str = "dunlin-tests/weaken,dunlin-agent/weaken,dunlin-controller/weaken";
/// The end-to-end tests that run beside all the others, and take about as long.
const BESIDE: &[&str] =
    &["airgap::", "alone::", "attacks::", "bad_controller::", "bad_input::", "bad_models::"];
/// Every other program of integration tests.
const OTHERS: &[&str] = &["--test", "[!e]*", "--test", "e[!2]*"];
/// The negative controls, which tell their story.
const CONTROL: &str = "controls::without_its_defence_a_claim_";

/// Always the whole workspace with the same features: another selection would rebuild what is built.
fn workspace(verb: &str, more: &[&str]) -> Command {
    let mut command = cargo(&[verb, "--locked", "--workspace", "--features", FEATURES]);
    command.args(more);
    command
}

/// End-to-end tests, one after the other, with these arguments and names.
fn end_to_end_tests(more: &[&str]) -> Command {
    let mut command = workspace("test", &["--test", "e2e", "--", "--test-threads=1"]);
    command.args(more);
    command
}

type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
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
    ("end-to-end", end_to_end),
    ("parity", parity::test),
    ("fuzz", fuzz::test),
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
    ("static build", static_build),
    ("board", power_cut),
];

/// The small feature set, as released; everything else here is built and tested with the full one. Two of its agents go the
/// whole way, asked over REST: the test is built already, so that costs no build beside the agent's.
fn static_build() -> Result<()> {
    let program = cross::static_build(STATIC_TARGET)?;
    // All targets, for the same reason as before the end-to-end tests.
    execute(&mut workspace("build", &["--all-targets"]))?;
    execute(end_to_end_tests(&["main_loop::"]).env("AGENT_PROGRAM", program))
}

/// The same agent on a virtual board that loses its power.
fn power_cut() -> Result<()> {
    let program = cross::emulated_agent(STATIC_TARGET)?;
    execute(&mut workspace("build", &["--all-targets"]))?;
    board::test(program, target_dir().join("debug"))
}

/// These start whole fleets, which wait for windows and time limits most of the time: two of them share two processors,
/// more would starve one another.
fn end_to_end() -> Result<()> {
    // All targets, as above: without the tests, dependencies would have fewer features and be built again.
    execute(&mut workspace("build", &["--all-targets"]))?;
    let mut beside = end_to_end_tests(BESIDE);
    let mut here = end_to_end_tests(&["--skip", CONTROL]);
    here.args(BESIDE.iter().flat_map(|name| ["--skip", *name]));
    // Two that print at once would be read by nobody.
    let log = target_dir().join("end-to-end.log");
    let file = File::create(&log).with_context(|| format!("could not write {}", log.display()))?;
    beside.stdout(file.try_clone()?).stderr(file);
    println!("one half prints here, the other to {} until it has ended", log.display());
    let (beside, here) = thread::scope(|scope| {
        let beside = scope.spawn(|| execute(&mut beside));
        let here = execute(workspace("test", OTHERS).args(["--", "--test-threads=1"]))
            .and_then(|()| execute(&mut here))
            .and_then(|()| execute(&mut end_to_end_tests(&[CONTROL, "--nocapture"])));
        (beside.join(), here)
    });
    println!("\n{}", fs::read_to_string(&log)?);
    beside.unwrap_or_else(|_| bail!("the half that printed to {} was not run", log.display()))?;
    here
}

/// What is free on the disk that everything is built on, gigabytes. A linker that finds none left dies of a bus error, which
/// tells nobody why.
fn free_gb() -> Result<f64> {
    let folder = crate::command::root();
    let disk = rustix::fs::statvfs(folder)
        .with_context(|| format!("could not ask {} for its space", folder.display()))?;
    Ok((disk.f_bavail * disk.f_frsize) as f64 / 1e9)
}

pub(crate) fn run_stages(only: Option<&str>) -> Result<()> {
    let begin = Instant::now();
    let mut table = Vec::new();
    for (name, stage) in STAGES {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = stage();
        let minutes = started.elapsed().as_secs_f64() / 60.0;
        let failed = if outcome.is_ok() { "" } else { "  FAILED" };
        table.push(format!("{minutes:7.1} min  {:5.1} GB free  {name}{failed}", free_gb()?));
        if let Err(error) = outcome {
            println!("\n{}", table.join("\n"));
            return Err(error.context(format!("stage {name:?} failed")));
        }
    }
    let total = begin.elapsed();
    println!("\n{}\n{:7.1} min  in all", table.join("\n"), total.as_secs_f64() / 60.0);
    if table.is_empty() {
        bail!("no stage has {:?} in its name", only.unwrap_or_default());
    }
    if total > LIMIT {
        bail!("the tests took longer than {} minutes; find out which stage grew", LIMIT.as_secs() / 60);
    }
    Ok(())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    run_stages(options.only.as_deref())
}
