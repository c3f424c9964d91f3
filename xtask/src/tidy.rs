//! Checks on the tree itself that need no build.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{output, root};
use crate::{boards, cross, layers};

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
    "docs/ab-images.md",
    "docs/capabilities.md",
    "docs/footprint.md",
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
    errors.extend(board_errors()?);
    let threats = threat_model()?;
    errors.extend(absent_tests(&threats));
    errors.extend(attacks_without_tests(&threats));
    errors.extend(claims_without_control()?);
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

fn board_errors() -> Result<Vec<String>> {
    let matrix = cross::matrix()?;
    let mut errors = Vec::new();
    for path in boards::files()? {
        let board = match boards::read(&path) {
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

fn threat_model() -> Result<String> {
    let model = root().join("docs/threat-model.md");
    std::fs::read_to_string(&model).with_context(|| format!("reading {}", model.display()))
}

/// Attacks of the threat model's first table that its second does not give a test of the real programs, or of the part
/// that stands against them.
fn attacks_without_tests(text: &str) -> Vec<String> {
    let table = |head: &str| {
        let rows = text.split_once(head).map_or("", |(_, rest)| rest).lines().skip(2);
        rows.map_while(|row| row.strip_prefix("| ")?.split_once(" | ")).collect::<Vec<_>>()
    };
    let (attacks, tests) = (table("| attack | what it takes "), table("| attack | tests "));
    let tested = |name: &str| tests.iter().any(|(row, tests)| *row == name && tests.contains(".rs::"));
    let missing = attacks.iter().filter(|(name, _)| !tested(name));
    let none = attacks.is_empty().then(|| "docs/threat-model.md: there is no table of attacks".to_owned());
    missing.map(|(name, _)| format!("docs/threat-model.md: no test of {name}")).chain(none).collect()
}

/// Tests that the threat model names as `path::name` and that are not there.
fn absent_tests(text: &str) -> Vec<String> {
    let named = text.split('`').filter_map(|quoted| quoted.split_once(".rs::"));
    let absent = named.filter(|(path, test)| {
        let file = std::fs::read_to_string(root().join(format!("{path}.rs"))).unwrap_or_default();
        !file.contains(&format!("fn {test}("))
    });
    absent.map(|(path, test)| format!("docs/threat-model.md: there is no {path}.rs::{test}")).collect()
}

/// What the demonstration calls of the claims that is no claim itself.
const NO_CLAIMS: &[&str] =
    &["by_class", "canary", "every_device_serves", "labelled", "last_indicator", "serving"];

/// Claims of the demonstration that no control shows to be able to fail.
fn claims_without_control() -> Result<Vec<String>> {
    let read = |folder: &str| -> Result<String> {
        let entries = std::fs::read_dir(root().join(folder)).with_context(|| format!("listing {folder}"))?;
        entries.map(|entry| Ok(std::fs::read_to_string(entry?.path())?)).collect()
    };
    let controls = read("tests/tests/e2e/controls")?;
    Ok(uncontrolled(&read("tests/src/demo")?, &controls)
        .into_iter()
        .map(|claim| {
            format!(
                "tests/src/demo: no control in tests/tests/e2e/controls shows that claims::{claim} can fail"
            )
        })
        .collect())
}

/// Functions of the claims that one text calls, and the other one not where a claim must fail.
fn uncontrolled(demonstration: &str, controls: &str) -> Vec<String> {
    let calls = |text: &str, before: &str| -> Vec<String> {
        let names = text.split(before).skip(1).filter_map(|rest| rest.split_once('('));
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        names.map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty() && is_name(name)).collect()
    };
    // A claim is also seen to fail where a method of the test's world calls it, or where its failure is waited for.
    let mut failing = calls(controls, "fails(claims::");
    failing.extend(calls(controls, "fails(self."));
    failing.extend(calls(controls, "claims::").into_iter().filter(|claim| {
        controls.split(&format!("claims::{claim}(")).skip(1).any(|rest| {
            rest.split(';')
                .next()
                .is_some_and(|call| call.contains(".await.is_err()") || call.contains(".await.err()"))
        })
    }));
    let mut claims = calls(demonstration, "claims::");
    claims.sort();
    claims.dedup();
    claims.retain(|claim| !NO_CLAIMS.contains(&claim.as_str()) && !failing.contains(claim));
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_claim_of_the_demonstration_has_a_control() {
        assert_eq!(claims_without_control().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_claim_that_only_ever_holds_is_found() {
        let demonstration = "claims::moved(a); claims::kept(b).await; claims::serving(c); claims::Cut { x }";
        assert_eq!(
            uncontrolled(demonstration, "claims::moved(a).unwrap(); fails(claims::kept(b))"),
            ["moved"]
        );
        assert_eq!(
            uncontrolled(demonstration, "claims::moved(a).await.is_err(); fails(self.kept(b))"),
            [""; 0]
        );
    }

    #[test]
    fn the_threat_model_names_tests_that_are_there() {
        let text = threat_model().unwrap();
        assert_eq!(absent_tests(&text), Vec::<String>::new());
        assert_eq!(attacks_without_tests(&text), Vec::<String>::new());
    }

    #[test]
    fn an_attack_without_a_test_and_a_test_that_is_not_there_are_found() {
        let tables = "| attack | what it takes |\n|---|---|\n| a | b |\n| c | d |\n\n\
                      | attack | tests |\n|---|---|\n| a | `x.rs::y` |\n| c | thought |\n";
        assert_eq!(attacks_without_tests(tables), ["docs/threat-model.md: no test of c"]);
        assert_eq!(absent_tests(tables), ["docs/threat-model.md: there is no x.rs::y"]);
        assert_eq!(attacks_without_tests("").len(), 1);
    }

    #[test]
    fn every_board_is_a_device_profile_of_a_known_target() {
        assert_eq!(board_errors().unwrap(), Vec::<String>::new());
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
