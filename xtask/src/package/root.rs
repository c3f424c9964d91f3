//! A root file system to install packages in: this machine's own, with everything that is written going to memory, without
//! services, in a mount namespace of its own.
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Package, deb};
use crate::command::output;

const MOUNT: &str = "mount -t tmpfs tmpfs \"$1\" && cd \"$1\" && mkdir written work root && \
    mount -t overlay overlay -o lowerdir=/,upperdir=written,workdir=work root && \
    mount -t proc proc root/proc && mount --rbind /dev root/dev && mount -t tmpfs tmpfs root/run && \
    mkdir root/packages && echo ready && exec sleep 1800";

/// What runs a program as the user that the package makes.
pub(super) const AS_USER: [&str; 4] = ["setpriv", "--reuid=dunlin", "--regid=dunlin", "--clear-groups"];

/// A root, while it lives.
pub(super) struct Root {
    holder: Child,
    /// Seen from here.
    root: PathBuf,
}

impl Root {
    /// Mounts one in `folder`, which is empty, as seen from elsewhere, before and after.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let user = output(Command::new("id").arg("-u"))?;
        ensure!(user.trim() == "0", "a root file system of its own is mounted by root alone");
        let mut mount = Command::new("unshare");
        mount.args(["--mount", "--propagation", "private", "sh", "-ec", MOUNT, "sh"]).arg(folder);
        let holder = mount.stdout(Stdio::piped()).spawn().context("starting unshare")?;
        let seen = PathBuf::from(format!("/proc/{}/root{}", holder.id(), folder.display()));
        let mut made = Self { holder, root: seen.join("root") };
        let mut ready = [0; 6];
        let told = made.holder.stdout.as_mut().map(|out| out.read_exact(&mut ready));
        told.context("a pipe")?.context("an overlay of the root file system can not be mounted")?;
        Ok(made)
    }

    /// A program in it.
    pub(super) fn command(&self, words: &[&str]) -> Result<Command> {
        let process = format!("/proc/{}", self.holder.id());
        let inside = Path::new("/").join(self.root.strip_prefix(format!("{process}/root"))?);
        let mut command = Command::new("nsenter");
        command.args([&format!("--mount={process}/ns/mnt"), "--wd=/", "chroot"]).arg(inside).args(words);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        Ok(command)
    }

    /// Runs one; standard output and error together, and whether it went well.
    pub(super) fn run(&self, words: &[&str]) -> Result<(bool, String)> {
        let output = self.command(words)?.output().with_context(|| format!("starting {words:?}"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// The same for what has to go well.
    pub(super) fn ok(&self, words: &[&str]) -> Result<String> {
        let (ok, text) = self.run(words)?;
        ensure!(ok, "{words:?}: {text}");
        Ok(text)
    }

    /// What lies there, seen from here.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// What was written in it.
    pub(super) fn written(&self) -> PathBuf {
        self.root.with_file_name("written")
    }

    /// Packs a program and hands the package to dpkg.
    pub(super) fn install(&self, package: &Package) -> Result<()> {
        let (name, bytes) = deb::pack(package)?;
        std::fs::write(self.path("packages").join(&name), bytes)?;
        let mut words = vec!["dpkg"];
        if package.is_foreign() {
            words.push("--force-architecture");
        }
        let path = format!("/packages/{name}");
        self.ok(&[&words[..], &["--install", &path]].concat()).map(drop)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // With its last process the namespace ends, and with it its mounts.
        if let Err(error) = self.holder.kill().and_then(|()| self.holder.wait().map(drop)) {
            eprintln!("the holder of the mounts could not be ended: {error}");
        }
    }
}

/// Files below a folder whose path names the agent.
pub(super) fn left(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        if metadata.is_dir() {
            found.extend(left(&path)?);
        }
        // An overlay notes a deleted file as a device without a number.
        let deleted = metadata.mode() & 0o170_000 == 0o020_000 && metadata.rdev() == 0;
        if !deleted && path.file_name().is_some_and(|name| name.to_string_lossy().contains("dunlin")) {
            found.push(path);
        }
    }
    Ok(found)
}
