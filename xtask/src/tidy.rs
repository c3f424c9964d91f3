//! Checks on the tree itself that need no build.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use dunlin_protocol::DeviceProfile;

use crate::command::{output, root};
use crate::{cross, layers};

/// Texts that must not stand in a tracked file, and why.
const BANNED: &[(&str, &str)] = &[
    (concat!("crates", ".io/api"), "no registry's address belongs into a file"),
    (concat!("todo", "!("), "unfinished code"),
    (concat!("unimplemented", "!("), "unfinished code"),
    (concat!("#[ig", "nore"), "a test is never skipped silently"),
    (concat!("FIX", "ME"), "unfinished work is an entry in docs/capabilities.md"),
];

/// Files a stranger looks for.
const EXPECTED: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs/protocol.md",
    "docs/protocol.cddl",
    "docs/capabilities.md",
    "docs/pipelines.md",
    "docs/inference.md",
    "docs/operations.md",
    "docs/threat-model.md",
];

pub(crate) fn run() -> Result<()> {
    layers::check()?;
    let mut errors = Vec::new();
    for path in EXPECTED.iter().filter(|path| !root().join(path).is_file()) {
        errors.push(format!("{path} is missing"));
    }
    for path in tracked()? {
        // Binary files have no lines to complain about.
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        errors.extend(findings(&path, &text));
    }
    errors.extend(boards()?);
    errors.extend(absent_tests()?);
    if !errors.is_empty() {
        bail!("tidy:\n  {}", errors.join("\n  "));
    }
    Ok(())
}

fn tracked() -> Result<Vec<PathBuf>> {
    let list = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    Ok(list.lines().map(PathBuf::from).collect())
}

fn findings(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, why) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
            found.push(format!("{}:{}: {word:?}: {why}", path.display(), number + 1));
        }
    }
    let manifest = path.file_name().is_some_and(|name| name == "Cargo.toml") && path.components().count() > 1;
    if manifest && !text.contains("[lints]\nworkspace = true") {
        found.push(format!("{}: add `[lints] workspace = true`", path.display()));
    }
    found
}

/// A board file: a device profile plus build and test settings.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Board {
    device: DeviceProfile,
    build: Build,
    test: Option<BoardTest>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    triple: String,
    #[serde(rename = "target_cpu")]
    _target_cpu: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct BoardTest {
    qemu_cpu: String,
}

fn board(path: &Path) -> Result<Board> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))
}

fn board_files() -> Result<Vec<PathBuf>> {
    let folder = root().join("firmware-targets/boards");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The target that a board file asks for.
pub(crate) fn triple_of(path: &Path) -> Result<String> {
    Ok(board(path)?.build.triple)
}

/// The processors that the emulator stands for on the boards of a target.
pub(crate) fn emulated_processors(triple: &str) -> Result<Vec<String>> {
    let mut processors = Vec::new();
    for path in board_files()? {
        let board = board(&path)?;
        processors.extend(board.test.filter(|_| board.build.triple == triple).map(|test| test.qemu_cpu));
    }
    Ok(processors)
}

fn boards() -> Result<Vec<String>> {
    let matrix = cross::matrix()?;
    let mut errors = Vec::new();
    for path in board_files()? {
        let board = match board(&path) {
            Ok(board) => board,
            Err(error) => {
                errors.push(format!("{error:#}"));
                continue;
            }
        };
        if path.file_stem().and_then(|stem| stem.to_str()) != Some(board.device.class.as_str()) {
            errors.push(format!("{}: the class is not the file's name", path.display()));
        }
        if !matrix.target.iter().any(|target| target.triple == board.build.triple) {
            errors.push(format!("{}: {} is not in cross/matrix.toml", path.display(), board.build.triple));
        }
    }
    Ok(errors)
}

/// Tests that the threat model names as `path::name` and that are not there.
fn absent_tests() -> Result<Vec<String>> {
    let model = root().join("docs/threat-model.md");
    let text = std::fs::read_to_string(&model).with_context(|| format!("reading {}", model.display()))?;
    let named = text.split('`').filter_map(|quoted| quoted.split_once(".rs::"));
    let absent = named.filter(|(path, test)| {
        let file = std::fs::read_to_string(root().join(format!("{path}.rs"))).unwrap_or_default();
        !file.contains(&format!("fn {test}("))
    });
    Ok(absent.map(|(path, test)| format!("docs/threat-model.md: there is no {path}.rs::{test}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threat_model_names_tests_that_are_there() {
        assert_eq!(absent_tests().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_board_is_a_device_profile_of_a_known_target() {
        assert_eq!(boards().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_finding_names_file_and_line() {
        let text = format!("fn f() {{\n    {}\n}}\n", concat!("todo", "!()"));
        assert_eq!(
            findings(Path::new("a.rs"), &text),
            [format!("a.rs:2: {:?}: unfinished code", concat!("todo", "!("))]
        );
        assert_eq!(findings(Path::new("a/Cargo.toml"), "[package]\n").len(), 1);
    }
}
