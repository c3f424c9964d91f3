//! What a cut leaves on the disk.
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use dunlin_trust::floors::{self, Floors, Recovery};

pub(super) use crate::breakage::copy;
use crate::breakage::files;

/// Puts what `state` holds on `disk`, as synced.
pub(super) fn sync(state: &Path, disk: &Path) -> Result<()> {
    if disk.exists() {
        std::fs::remove_dir_all(disk)?;
    }
    std::fs::create_dir_all(disk)?;
    for path in files(state)? {
        std::fs::copy(&path, disk.join(std::fs::metadata(&path)?.ino().to_string()))?;
    }
    Ok(())
}

/// Takes from `state` what was not synced to `disk`.
pub(super) fn lose_power(state: &Path, disk: &Path) -> Result<()> {
    for path in files(state)? {
        let kept = disk.join(std::fs::metadata(&path)?.ino().to_string());
        let content = if kept.is_file() { std::fs::read(&kept)? } else { Vec::new() };
        std::fs::write(&path, content)?;
    }
    Ok(())
}

/// The floors in `state`.
pub(super) fn floors(state: &Path) -> Result<Floors> {
    let copy = |name: &str| std::fs::read(state.join("trust").join(name)).ok();
    match floors::recover(copy("floors.a").as_deref(), copy("floors.b").as_deref()) {
        Ok(Recovery::Known { floors, .. }) => Ok(floors),
        Ok(Recovery::Fresh) => bail!("the floors are gone"),
        Err(error) => bail!("the floors are not readable: {error}"),
    }
}

/// Whether no floor is lower than before.
pub(super) fn not_lower(before: &Floors, now: &Floors) -> Result<()> {
    ensure!(now.not_below(before), "a floor is lower: {before:?} became {now:?}");
    Ok(())
}

/// Bytes of each download, by digest.
pub(super) type Downloads = BTreeMap<String, u64>;

/// What of downloads is in `state`.
pub(super) fn downloaded(state: &Path) -> Result<Downloads> {
    let blobs = state.join("slots/blobs");
    let mut all = BTreeMap::new();
    for path in files(&blobs)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digest = name.strip_suffix(".part").unwrap_or(name).to_owned();
        let bytes: &mut u64 = all.entry(digest).or_default();
        *bytes = std::fs::metadata(&path)?.len().max(*bytes);
    }
    Ok(all)
}
