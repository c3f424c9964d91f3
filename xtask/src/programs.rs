//! The workspace as it is built and tested, and the programs of its integration tests.
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{MESSAGES, cargo, output, run, target_dir};

/// What is built beyond the ordinary: the negative controls, and the two programs whose defences can be switched off. The
/// ordinary programs have no such switch, whatever they are built with, so that one build serves all stages.
const FEATURES: &str = "dunlin-tests/weaken,dunlin-agent/weaken,dunlin-controller/weaken";
/// The program of end-to-end tests.
pub(crate) const END_TO_END: &str = "e2e";

/// Always the whole workspace with the same features and, where tests are built, all of them: another selection would build
/// again what is built.
pub(crate) fn workspace(verb: &str, more: &[&str]) -> Command {
    let mut command = cargo(&[verb, "--locked", "--workspace", "--features", FEATURES]);
    command.args(more);
    command
}

/// The folder of this machine's programs, built.
pub(crate) fn here() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    Ok(target_dir().join("debug"))
}

/// Every program of integration tests, built. They are started without Cargo, which would wait for what it builds beside them.
pub(crate) fn programs() -> Result<Vec<TestProgram>> {
    let mut all = TestProgram::built(&mut workspace("test", &["--all-targets"]))?;
    all.retain(|program| program.integration);
    Ok(all)
}

/// A program of tests.
pub(crate) struct TestProgram {
    pub(crate) name: String,
    path: PathBuf,
    /// The package's folder, in which its tests are run.
    pub(crate) folder: PathBuf,
    /// Whether it tests its package from outside.
    integration: bool,
}

impl TestProgram {
    /// Those that `cargo test` with these arguments would run.
    pub(crate) fn built(tests: &mut Command) -> Result<Vec<Self>> {
        Self::among(&output(tests.arg("--no-run").args(MESSAGES))?)
    }

    /// Those that Cargo's messages tell of.
    pub(crate) fn among(messages: &str) -> Result<Vec<Self>> {
        messages.lines().filter_map(|line| Self::told(line).transpose()).collect()
    }

    /// What a line of Cargo's messages tells of one; most tell of something else.
    fn told(line: &str) -> Result<Option<Self>> {
        let message: Value = serde_json::from_str(line).with_context(|| format!("not of Cargo: {line}"))?;
        let (target, path) = (&message["target"], message["executable"].as_str());
        let (Some(path), Some(true)) = (path, message["profile"]["test"].as_bool()) else { return Ok(None) };
        let manifest = message["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
        Ok(Some(Self {
            name: target["name"].as_str().unwrap_or_default().to_owned(),
            path: path.into(),
            folder: manifest.context("a package lies in a folder")?.into(),
            integration: target["kind"][0] == "test",
        }))
    }

    /// Its tests, one after the other: most start servers and fleets.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.behind(&[]);
        command.arg("--test-threads=1");
        command
    }

    /// Its tests behind a program that runs it.
    pub(crate) fn behind(&self, runner: &[String]) -> Command {
        let mut words = runner.iter().map(OsStr::new).chain([self.path.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(&self.folder);
        command
    }
}

/// The end-to-end tests.
pub(crate) fn end_to_end_tests(programs: &[TestProgram]) -> Result<Command> {
    let program = programs.iter().find(|program| program.name == END_TO_END);
    Ok(program.with_context(|| format!("no test program {END_TO_END}"))?.command())
}
