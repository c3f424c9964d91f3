//! What breaks in the field, for tests: disks without room, clocks that are wrong, backups that come back.
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Set for a test that runs in a mount namespace of its own, to a file that it makes.
const NAMESPACE: &str = "DUNLIN_TESTS_NAMESPACE";

/// Runs the test of this name, modules included, again in a mount namespace of its own, as which any user may mount. Says
/// whether this is that run.
pub fn in_own_namespace(test: &str) -> Result<bool> {
    if let Some(ran) = std::env::var_os(NAMESPACE) {
        std::fs::write(ran, "")?;
        return Ok(true);
    }
    let folder = tempfile::tempdir()?;
    let ran = folder.path().join("ran");
    let ended = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe()?)
        .args([test, "--exact", "--nocapture"])
        .env(NAMESPACE, &ran)
        .status()
        .context("`unshare` of util-linux is needed to try a full disk")?;
    if !ended.success() {
        bail!("the test failed in its own mount namespace, or none could be made");
    }
    ensure!(ran.is_file(), "there is no test of the name {test}");
    Ok(false)
}

/// Makes `folder` a file system of its own with `mib` MiB of room. For a mount namespace of one's own.
pub fn small_disk(folder: &Path, mib: u32) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let size = format!("size={mib}m");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder).status()?;
    if !mounted.success() {
        bail!("a small file system could not be mounted at {}", folder.display());
    }
    Ok(())
}

/// Lengthens `path` until the disk takes no more.
pub fn fill(path: &Path) -> Result<()> {
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    for piece in [1 << 20, 4096, 1] {
        let bytes = vec![0x5a; piece];
        while file.write_all(&bytes).is_ok() {}
    }
    Ok(())
}

/// The library that lies about the time. Its program would stand between this process and the one that is lied to.
pub fn faketime() -> Result<String> {
    let folders = std::fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path()));
    let library =
        folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file());
    let library = library.context("the Debian package faketime is needed to try a wrong clock")?;
    Ok(library.display().to_string())
}

/// The environment of a program whose wall clock is wrong in the way faketime calls `time`.
pub fn clock<'a>(library: &'a str, time: &'a str) -> [(&'a str, &'a str); 3] {
    [("LD_PRELOAD", library), ("FAKETIME", time), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
}

/// Every file below `folder`.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Makes `to` a copy of `from`, whatever was there: a backup, or what comes back from one.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::create_dir_all(to)?;
    for path in files(from)? {
        let into = to.join(path.strip_prefix(from)?);
        std::fs::create_dir_all(into.parent().context("a file lies in a folder")?)?;
        std::fs::copy(&path, &into)?;
    }
    Ok(())
}
