//! The board files of `firmware-targets/boards`: a device profile plus build and test settings each.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dunlin_protocol::DeviceProfile;
use serde::Deserialize;

use crate::command::root;

/// One file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Board {
    /// What agents report of themselves.
    pub(crate) device: DeviceProfile,
    pub(crate) build: Build,
    test: Option<BoardTest>,
}

/// How its agent is built.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Build {
    /// One of the matrix.
    pub(crate) triple: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoardTest {
    qemu_cpu: String,
}

impl Board {
    /// What the emulator calls its processor, if it is tested that way.
    pub(crate) fn qemu_cpu(&self) -> Option<&str> {
        self.test.as_ref().map(|test| test.qemu_cpu.as_str())
    }
}

fn folder() -> PathBuf {
    root().join("firmware-targets/boards")
}

/// All of them.
pub(crate) fn files() -> Result<Vec<PathBuf>> {
    let folder = folder();
    let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Where the file of a board lies.
pub(crate) fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.toml"))
}

/// The board of that name.
pub(crate) fn named(name: &str) -> Result<Board> {
    read(&path(name))
}

pub(crate) fn read(path: &Path) -> Result<Board> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("parsing {}", path.display()))
}

/// Reads the text of a board file. A profile on the wire may have fields that this release does not know; here they are typing
/// errors.
fn parse(text: &str) -> Result<Board> {
    let board: Board = toml::from_str(text)?;
    let written: toml::Table = toml::from_str(text)?;
    let written = written["device"].as_table().context("a board has a profile")?;
    let unknown = unknown(written, &toml::Table::try_from(&board.device)?);
    ensure!(unknown.is_empty(), "a device profile has no {}", unknown.join(", "));
    Ok(board)
}

/// The keys of `written`, and of the tables in it, that `known` does not have.
fn unknown(written: &toml::Table, known: &toml::Table) -> Vec<String> {
    let below = |(key, value): (&String, &toml::Value)| match (value.as_table(), known.get(key)) {
        (_, None) => vec![key.clone()],
        (Some(written), Some(toml::Value::Table(known))) => unknown(written, known),
        (_, Some(_)) => Vec::new(),
    };
    written.iter().flat_map(below).collect()
}

/// The processors that the emulator stands for on the boards of a target.
pub(crate) fn emulated_processors(triple: &str) -> Result<Vec<String>> {
    let mut processors = Vec::new();
    for path in files()? {
        let board = read(&path)?;
        processors.extend(board.test.filter(|_| board.build.triple == triple).map(|test| test.qemu_cpu));
    }
    Ok(processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_file_has_no_key_that_a_profile_does_not_know() {
        let text = std::fs::read_to_string(path("raspberry-pi-4")).unwrap();
        assert!(parse(&text).is_ok());
        let refusal = |part: &str, typed: &str| {
            let text = text.replace(&format!("[{part}]\n"), &format!("[{part}]\n{typed} = 4\n"));
            parse(&text).err().map(|error| error.to_string()).unwrap_or_default()
        };
        for (part, typed) in [("device", "core"), ("device.budgets", "latency_ms_max")] {
            assert_eq!(refusal(part, typed), format!("a device profile has no {typed}"));
        }
        for (part, typed) in [("build", "tripel"), ("test", "qemu")] {
            let refusal = refusal(part, typed);
            assert!(refusal.contains(&format!("unknown field `{typed}`")), "{refusal}");
        }
    }
}
