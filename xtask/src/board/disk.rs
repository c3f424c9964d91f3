//! A board's disk as a file, and what is on it after a cut.
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use dunlin_trust::floors::{self, Floors, Recovery};

use super::Lost;
use crate::command::run;

/// Bytes of a board's disk: the agent's state several times, and small enough to be copied for each cut.
const BYTES: u64 = 48 << 20;
/// The same of one that the program lies on too.
const WITH_PROGRAM_BYTES: u64 = BYTES + (32 << 20);
/// Exit codes of a check that repaired everything by itself.
const REPAIRED: [i32; 2] = [0, 1];
/// The agent's state on the disk.
const STATE: &str = "/dunlin";

/// Makes an empty disk for an agent's state.
pub(super) fn make(path: &Path) -> Result<()> {
    of_bytes(path, BYTES)
}

/// Makes one that has room for the program too.
pub(super) fn make_with_program(path: &Path) -> Result<()> {
    of_bytes(path, WITH_PROGRAM_BYTES)
}

fn of_bytes(path: &Path, bytes: u64) -> Result<()> {
    File::create(path)?.set_len(bytes)?;
    let lazily = "lazy_itable_init=0,lazy_journal_init=0";
    run(tool("mkfs.ext4").args(["-q", "-F", "-E", lazily]).arg(path))
}

/// Copies a disk.
pub(super) fn copy(disk: &Path, copy: &Path) -> Result<()> {
    run(Command::new("cp").arg("--sparse=always").arg(disk).arg(copy))
}

/// What a cut left of an agent's state.
pub(super) struct Left {
    /// The state folder, taken from the disk.
    pub(super) state: PathBuf,
    /// The floors.
    pub(super) floors: Floors,
    /// Bytes of each download, by digest.
    pub(super) downloads: BTreeMap<String, u64>,
}

impl Left {
    /// Checks a copy of the disk as a boot does and takes the agent's state from it into `folder`.
    pub(super) fn on(disk: &Path, folder: &Path) -> Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        let whole = folder.join("disk");
        copy(disk, &whole)?;
        let check = tool("e2fsck").arg("-p").arg(&whole).output().context("starting e2fsck")?;
        let repaired = check.status.code().is_some_and(|code| REPAIRED.contains(&code));
        ensure!(repaired, "the file system can not be repaired: {}", String::from_utf8_lossy(&check.stdout));
        let dump = format!("rdump {STATE} {}", folder.display());
        let told = tool("debugfs").arg("-R").arg(dump).arg(&whole).output().context("starting debugfs")?;
        let error = String::from_utf8_lossy(&told.stderr);
        ensure!(told.status.success(), Lost(format!("the state can not be read: {error}")));
        std::fs::remove_file(&whole)?;
        let state = folder.join(STATE.trim_start_matches('/'));
        let floors = floors(&state)?;
        let downloads = downloads(&state)?;
        Ok(Self { state, floors, downloads })
    }

    /// The generation that a board told of is there.
    pub(super) fn has_generation(&self, told: u64) -> Result<()> {
        let left = self.floors.generation;
        ensure!(left >= told, Lost(format!("generation {told} was accepted, {left} is left")));
        Ok(())
    }

    /// No floor is lower than `before`.
    pub(super) fn not_below(&self, before: &Floors) -> Result<()> {
        let now = &self.floors;
        ensure!(now.not_below(before), Lost(format!("a floor is lower: {before:?} became {now:?}")));
        Ok(())
    }
}

fn floors(state: &Path) -> Result<Floors> {
    let copy = |name: &str| std::fs::read(state.join("trust").join(name)).ok();
    match floors::recover(copy("floors.a").as_deref(), copy("floors.b").as_deref()) {
        Ok(Recovery::Known { floors, .. }) => Ok(floors),
        Ok(Recovery::Fresh) => bail!(Lost("the floors are gone".to_owned())),
        Err(error) => bail!(Lost(format!("the floors are not readable: {error}"))),
    }
}

fn downloads(state: &Path) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    let entries = std::fs::read_dir(state.join("slots/blobs"));
    for entry in entries.map_err(|error| Lost(format!("the downloads are gone: {error}")))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let digest = name.strip_suffix(".part").unwrap_or(&name).to_owned();
        let bytes: &mut u64 = all.entry(digest).or_default();
        *bytes = entry.metadata()?.len().max(*bytes);
    }
    Ok(all)
}

/// Tools of the file system lie where only an administrator's shell looks.
fn tool(name: &str) -> Command {
    let folder = ["/usr/sbin", "/sbin"].into_iter().map(Path::new).find(|folder| folder.join(name).is_file());
    Command::new(folder.map_or_else(|| name.into(), |folder| folder.join(name)))
}
