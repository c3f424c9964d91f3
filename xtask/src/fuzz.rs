//! `cargo xtask fuzz`: builds the fuzz targets and runs them.
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::command::{cargo, root, run as execute, target_dir};

/// Seconds for each target in the tests, after its corpus was replayed.
const TEST_SECONDS: u64 = 10;

/// What makes LLVM count branches and comparisons, and bolero take libFuzzer for its engine. `cargo bolero` sets the same, but
/// builds every program of the package so, most of which do not link then.
const GUIDED: &str = "--cfg fuzzing -Cpasses=sancov-module --cfg fuzzing_libfuzzer \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-sanitizer-coverage-stack-depth";
/// How libFuzzer ends an input that takes too long, seconds, and one that is too long to be bent often, bytes.
const LIMITS: &str = "-timeout=10 -max_len=65536";
/// A folder for each target, in that of the tests.
const CORPORA: &str = "src/fuzzed/__fuzz__";

#[derive(Args)]
pub(crate) struct Options {
    /// metadata, director, cbor, topic, manifest, range; all without any
    targets: Vec<String>,
    /// Minutes for each
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The same seed bends the same inputs alike
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Guided by coverage, by libFuzzer; needs a C++ compiler, and builds what the tests need once more
    #[arg(long)]
    guided: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.guided {
        return guided(options);
    }
    let seconds = (options.minutes * 60).to_string();
    // With debug assertions and overflow checks: they find more than speed does.
    execute(&mut cargo(&["build", "--locked", "--workspace", "--bin", "dunlin-fuzz"]))?;
    fuzz(&options.targets, &["--seconds", &seconds, "--seed", &options.seed.to_string()])
}

/// A short run of every target, with the program that the tests have built.
pub(crate) fn test() -> Result<()> {
    fuzz(&[], &["--seconds", &TEST_SECONDS.to_string()])
}

fn fuzz(targets: &[String], args: &[&str]) -> Result<()> {
    let mut program = Command::new(target_dir().join("debug/dunlin-fuzz"));
    execute(program.current_dir(root()).args(targets).args(args))
}

/// Each target by libFuzzer, which begins with the corpus and keeps what it finds in `out/fuzz`.
fn guided(options: &Options) -> Result<()> {
    let corpora = root().join("tests").join(CORPORA);
    let mut targets = options.targets.clone();
    if targets.is_empty() {
        for entry in corpora.read_dir().with_context(|| format!("reading {}", corpora.display()))? {
            targets.push(entry?.file_name().to_string_lossy().into_owned());
        }
        targets.sort();
    }
    for target in &targets {
        ensure!(corpora.join(target).is_dir(), "there is no target {target}");
        std::fs::create_dir_all(root().join("out/fuzz/guided").join(target))?;
        // Cargo starts tests in the folder of their package. The first folder is the one that is written to.
        let args = format!(
            "../out/fuzz/guided/{target} {CORPORA}/{target}/corpus -artifact_prefix=../out/fuzz/{target}- \
             -max_total_time={} -seed={} {LIMITS}",
            options.minutes * 60,
            options.seed
        );
        let mut build =
            cargo(&["test", "--locked", "--package", "dunlin-tests", "--lib", "--profile", "fuzz"]);
        build.args(["--target", "host-tuple", "--target-dir"]).arg(target_dir().join("guided"));
        build.args(["--", "--nocapture", "--exact", &format!("fuzzed::tests::{target}")]);
        execute(build.env("RUSTFLAGS", GUIDED).env("BOLERO_LIBFUZZER_ARGS", args))?;
    }
    Ok(())
}
