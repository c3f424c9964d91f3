//! A Debian package from its installation to its purge, and its agent's time in between, in a root that is only in memory.
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::root::{AS_USER, Root, left};
use super::{PROGRAM, Package};
use crate::board::Fleet;
use crate::command::until;
use crate::cross;

/// How long the installed agent may take until it serves, has a session, or has ended: behind an emulator it is slow.
const LIMIT: Duration = Duration::from_secs(180);
/// What makes the version of the upgrade higher than any.
const HIGHER: &str = "+upgrade";

/// Where a package's life is looked at.
pub(super) enum Stage {
    /// It is installed, and its agent has not run.
    Installed,
    /// Its agent has had a session with its controller.
    Ran,
    /// A higher version is installed.
    Upgraded,
    /// Removed, and not purged.
    Removed,
}

/// Installs a package in a root in `mounted`, has its agent check its settings, enrol, serve and come to a session with a
/// controller that lives in `controller` and is of `programs`, upgrades it, has the same device do so again, and purges it.
/// `look` is called in between. An agent of another machine runs behind the emulator of its target. It is given no model: for
/// a proof it would start itself, in front of which nobody puts the emulator.
pub(super) fn lives(
    mut package: Package,
    [mounted, controller, programs]: [&Path; 3],
    look: impl Fn(&Stage, &Root) -> Result<()>,
) -> Result<()> {
    let root = Root::new(mounted)?;
    root.install(&package)?;
    let agent = Agent::of(&root, &package)?;
    look(&Stage::Installed, &root)?;
    agent.takes_its_settings()?;
    agent.is_not_enrolled()?;

    let fleet = Fleet::start(controller, programs)?;
    root.ok(&agent.words(&["enrol", &fleet.claim()?]))?;
    let device = agent.runs()?;
    look(&Stage::Ran, &root)?;

    package.version.push_str(HIGHER);
    // The one before was pressed as what is released is; that took most of the time.
    package.preset = 0;
    root.install(&package)?;
    let version = ["dpkg-query", "--show", "--showformat=${Version} ${db:Status-Status}", "dunlin-agent"];
    let version = root.ok(&version)?;
    ensure!(version == format!("{} installed", package.version), "after the upgrade: {version}");
    look(&Stage::Upgraded, &root)?;
    let same = agent.runs()?;
    ensure!(same == device, "it was {device} before the upgrade and is {same} after it");

    root.ok(&["dpkg", "--remove", "dunlin-agent"])?;
    ensure!(!root.path(PROGRAM).exists(), "{PROGRAM} is left when it is removed");
    ensure!(root.path("var/lib/dunlin").read_dir()?.next().is_some(), "its state is gone before the purge");
    look(&Stage::Removed, &root)?;
    root.ok(&["dpkg", "--purge", "dunlin-agent"])?;
    std::fs::remove_dir_all(root.path("packages"))?;
    for folder in [root.written(), root.path("run")] {
        let left: Vec<PathBuf> = left(&folder)?;
        ensure!(left.is_empty(), "left after the purge: {left:?}");
    }
    Ok(())
}

/// The agent that is installed in a root.
struct Agent<'a> {
    root: &'a Root,
    /// What starts it there.
    program: String,
}

impl<'a> Agent<'a> {
    fn of(root: &'a Root, package: &Package) -> Result<Self> {
        let mut program = format!("/{PROGRAM}");
        if let Some(emulator) = cross::target(&package.triple)?.emulator()? {
            // Where it lies, the agent's user may not come.
            std::fs::copy(&emulator, root.path("packages/emulator"))
                .with_context(|| format!("copying {}", emulator.display()))?;
            let behind = format!("#!/bin/sh\nexec /packages/emulator {program} \"$@\"\n");
            "/packages/agent".clone_into(&mut program);
            std::fs::write(root.path("packages/agent"), behind)?;
            std::fs::set_permissions(root.path("packages/agent"), PermissionsExt::from_mode(0o755))?;
        }
        Ok(Self { root, program })
    }

    /// The words that run it as the user that it has.
    fn words<'b>(&'b self, verb: &[&'b str]) -> Vec<&'b str> {
        [&AS_USER[..], &[&self.program], verb].concat()
    }

    fn takes_its_settings(&self) -> Result<()> {
        let told = self.root.ok(&self.words(&["--json", "check"]))?;
        let settings: Value =
            serde_json::from_str(&told).with_context(|| format!("`check` printed {told}"))?;
        ensure!(settings["warnings"] == json!([]), "`check` warns: {}", settings["warnings"]);
        Ok(())
    }

    fn is_not_enrolled(&self) -> Result<()> {
        let (went_well, told) = self.root.run(&self.words(&["run"]))?;
        ensure!(!went_well && told.contains("is not enrolled"), "`run` before enrolment: {told}");
        self.is_healthy(0)
    }

    /// What an updater of the operating system asks; waits for so many seconds.
    fn is_healthy(&self, seconds: u64) -> Result<()> {
        let mut healthy = self.root.command(&["/usr/lib/dunlin/os-healthy", &seconds.to_string()])?;
        let status = healthy.env("AGENT_PROGRAM", &self.program).status()?;
        ensure!(status.success(), "os-healthy ended with {status}");
        Ok(())
    }

    /// It comes to serve and to a session with its controller, and ends when it is asked to. Returns which device it is.
    fn runs(&self) -> Result<String> {
        // Another one may run on this machine.
        let mut run = self.root.command(&self.words(&["run"]))?;
        let mut running = Running(run.env("DUNLIN_API__LISTEN", "127.0.0.1:0").spawn()?);
        self.is_healthy(LIMIT.as_secs())?;
        let mut told = Value::Null;
        until("a session", LIMIT, || {
            ensure!(running.0.try_wait()?.is_none(), "the agent has ended");
            let (_, text) = self.root.run(&self.words(&["--json", "status"]))?;
            told = serde_json::from_str(&text).unwrap_or_default();
            Ok((told["link"]["up"] == true).then_some(()))
        })
        .with_context(|| format!("it says {told}"))?;
        kill_process(Pid::from_child(&running.0), Signal::TERM)?;
        let status = until("its end", LIMIT, || Ok(running.0.try_wait()?))?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(told["device"].as_str().with_context(|| format!("no device in {told}"))?.to_owned())
    }
}

/// An agent that is ended with what started it, whatever comes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none())
            && let Err(error) = self.0.kill().and_then(|()| self.0.wait().map(drop))
        {
            eprintln!("the agent could not be ended: {error}");
        }
    }
}
