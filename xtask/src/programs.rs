//! The workspace as it is built and tested, and the programs of its integration tests.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{cargo, output};

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

/// Every program of integration tests, built. They are started without Cargo, which would wait for what it builds beside them.
pub(crate) fn programs() -> Result<Vec<TestProgram>> {
    let told = output(&mut workspace("test", &["--all-targets", "--no-run", "--message-format", "json"]))?;
    told.lines().filter_map(|line| TestProgram::told(line).transpose()).collect()
}

/// A program of integration tests.
pub(crate) struct TestProgram {
    pub(crate) name: String,
    path: PathBuf,
    /// The package's folder, in which its tests are run.
    folder: PathBuf,
}

impl TestProgram {
    /// What a line of Cargo's messages tells of one; most tell of something else.
    fn told(line: &str) -> Result<Option<Self>> {
        let message: Value = serde_json::from_str(line).with_context(|| format!("not of Cargo: {line}"))?;
        let (target, path) = (&message["target"], message["executable"].as_str());
        let (Some(path), Some("test")) = (path, target["kind"][0].as_str()) else { return Ok(None) };
        let manifest = message["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
        Ok(Some(Self {
            name: target["name"].as_str().unwrap_or_default().to_owned(),
            path: path.into(),
            folder: manifest.context("a package lies in a folder")?.into(),
        }))
    }

    /// Its tests, one after the other: most start servers and fleets.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).arg("--test-threads=1");
        command
    }
}

/// The end-to-end tests.
pub(crate) fn end_to_end_tests(programs: &[TestProgram]) -> Result<Command> {
    let program = programs.iter().find(|program| program.name == END_TO_END);
    Ok(program.with_context(|| format!("no test program {END_TO_END}"))?.command())
}
