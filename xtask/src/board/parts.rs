//! What a virtual board is made of: an emulator, a kernel with the modules it needs, a few commands. All of it is unpacked
//! from Debian's packages and none of it installed.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kind::Kind;
use super::tied;
use crate::command::{on_path, target_dir};
use crate::cross::{Archive, forget};
use crate::install;

/// Debian's name for this machine.
const HOST: &str = "amd64";
/// Where its packages keep libraries.
const HOST_LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// The release whose kernel boards run: its modules are not compressed, so that busybox loads them.
const SUITE: &str = "bookworm";

/// What the control runs the agent under; it makes syncs do nothing.
pub(super) const CONTROL: &str = "strace";

/// The parts of a kind of board.
pub(super) struct Parts {
    home: PathBuf,
    kind: &'static Kind,
    version: String,
}

impl Parts {
    /// Fetches what is not there.
    pub(super) fn set_up(kind: &'static Kind) -> Result<Self> {
        install::debian("mkfs.ext4", "e2fsprogs")?;
        install::debian("sqlite3", "sqlite3")?;
        let mut parts =
            Self { home: target_dir().join("board").join(kind.arch), kind, version: String::new() };
        std::fs::create_dir_all(&parts.home)?;
        let (emulator, package) = kind.emulator;
        if !on_path(emulator) {
            // That of the release itself would take the place of other programs of qemu from backports.
            parts.once("qemu", |home, into| {
                Archive::open_backports(home, HOST)?.unpack_whole(home, into, package, true)
            })?;
        }
        parts.once("board", |home, into| {
            let archive = Archive::open(home, SUITE, kind.arch)?;
            let kernel = archive.depends(kind.kernel, "linux-image-")?;
            archive.unpack(home, into, &[&kernel, "busybox-static"])?;
            archive.unpack_whole(home, into, CONTROL, false)
        })?;
        forget(&parts.home)?;
        let version = parts.emulator().arg("--version").output().context("starting the emulator")?;
        let told = String::from_utf8_lossy(&version.stderr);
        ensure!(version.status.success(), "{emulator} does not run: {told}");
        let told = String::from_utf8_lossy(&version.stdout);
        told.lines().next().unwrap_or_default().clone_into(&mut parts.version);
        println!("{}", parts.version);
        Ok(parts)
    }

    /// Fills a folder, which gets its name when it is complete.
    fn once(&self, name: &str, fill: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
        let (folder, fresh) = (self.home.join(name), self.home.join(format!("{name}.new")));
        if folder.is_dir() {
            return Ok(());
        }
        if fresh.exists() {
            std::fs::remove_dir_all(&fresh)?;
        }
        std::fs::create_dir_all(&fresh)?;
        println!("unpacking {name} into {} (once)", folder.display());
        fill(&self.home, &fresh)?;
        Ok(std::fs::rename(&fresh, &folder)?)
    }

    /// The folder of everything that is made for boards of this kind.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// What the emulator says of itself.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// What kind it is.
    pub(super) fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The emulator, this machine's or the unpacked one with its libraries.
    pub(super) fn emulator(&self) -> Command {
        let unpacked = self.home.join("qemu");
        let program = unpacked.join("usr/bin").join(self.kind.emulator.0);
        if !program.is_file() {
            return tied(Path::new(self.kind.emulator.0));
        }
        let libraries = HOST_LIBRARIES.map(|folder| unpacked.join(folder).display().to_string());
        let mut command = tied(&program);
        command.env("QEMU_MODULE_DIR", Path::new(&libraries[0]).join("qemu"));
        for firmware in ["qemu", "seabios"] {
            command.arg("-L").arg(unpacked.join("usr/share").join(firmware));
        }
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        command
    }

    /// Kernel and commands of the board, unpacked.
    pub(super) fn board(&self) -> PathBuf {
        self.home.join("board")
    }

    /// The kernel.
    pub(super) fn kernel(&self) -> Result<PathBuf> {
        let boot = self.board().join("boot");
        let entries = std::fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
        let mut files = entries.flatten().map(|entry| entry.path());
        let kernel = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("vmlinuz"))
        };
        files.find(kernel).with_context(|| format!("no kernel in {}", boot.display()))
    }
}
