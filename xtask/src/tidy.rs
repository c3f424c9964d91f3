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
    #[serde(default, rename = "test")]
    _test: Option<BoardTest>,
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
    #[serde(rename = "qemu_cpu")]
    _qemu_cpu: String,
}

fn boards() -> Result<Vec<String>> {
    let matrix = cross::matrix()?;
    let mut errors = Vec::new();
    let folder = root().join("firmware-targets/boards");
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let board: Board = match toml::from_str(&text) {
            Ok(board) => board,
            Err(error) => {
                errors.push(format!("{}: {error}", path.display()));
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

#[cfg(test)]
mod tests {
    use super::*;

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
