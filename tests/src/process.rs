//! Child processes that end with their handle, with their output in a file.
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dunlin_protocol::weaken::Defence;
use tokio::process::{Child, Command};

/// Environment variable with the path of an agent to run instead of the one built beside: benches measure the released
/// one. It does not begin as the agent's own settings do, which would be read as one of them.
pub const AGENT_PROGRAM: &str = "AGENT_PROGRAM";
/// The same for the controller.
pub const CONTROLLER_PROGRAM: &str = "CONTROLLER_PROGRAM";
/// Environment variable that is set where that agent runs behind an emulator, whose own memory the kernel counts as the
/// agent's.
pub const AGENT_EMULATED: &str = "AGENT_EMULATED";

/// How the programs are built.
const BUILD: &str = "cargo build --workspace --bins";
/// How those are built whose defences can be switched off.
const BUILD_WEAK: &str = "cargo build --workspace --bin dunlin-agent-weak --bin dunlin-weak --features dunlin-agent/weaken,dunlin-controller/weaken";

/// The program `name`, which lies beside (or one folder above) the running test.
pub fn program(name: &str) -> Result<PathBuf> {
    let instead = match name {
        "dunlin-agent" => std::env::var_os(AGENT_PROGRAM),
        "dunlin" => std::env::var_os(CONTROLLER_PROGRAM),
        _ => None,
    };
    if let Some(instead) = instead {
        return Ok(instead.into());
    }
    let here = std::env::current_exe()?;
    here.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file()).with_context(
        || {
            format!(
                "{name} is not built; run `{}` first",
                if name.ends_with("-weak") { BUILD_WEAK } else { BUILD }
            )
        },
    )
}

/// Defences as the weak programs take them.
pub(crate) fn names(off: &[Defence]) -> String {
    off.iter().map(|defence| defence.name()).collect::<Vec<_>>().join(",")
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `name` with its standard output and error appended to `log`.
    pub fn start<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>, log: &Path) -> Result<Self> {
        Self::start_with(name, args, log, &[])
    }

    /// The same with more in its environment.
    pub fn start_with<S: AsRef<OsStr>>(
        name: &str,
        args: impl IntoIterator<Item = S>,
        log: &Path,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let child = Command::new(program(name)?)
            .args(args)
            .envs([dunlin_engine::tie()])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { child, log: log.into() })
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("killing a process")
    }

    /// SIGSTOP: it stands still and keeps its connections.
    pub fn freeze(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        let sent = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status()?;
        if !sent.success() {
            bail!("process {pid} could not be sent SIG{name}");
        }
        Ok(())
    }

    /// SIGTERM, and waits for a clean end.
    pub async fn stop(mut self, limit: Duration) -> Result<()> {
        let Some(pid) = self.child.id() else { return Ok(()) };
        self.signal("TERM")?;
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                if !status.success() {
                    bail!("process {pid} ended with {status}; its log is {}", self.log.display());
                }
                Ok(())
            }
            Err(_) => bail!("process {pid} did not end in {limit:?}; its log is {}", self.log.display()),
        }
    }

    /// Whether it has a handler for SIGTERM (proc(5), `SigCgt`): a program that was just put in its place has none yet.
    pub fn listens_to_term(&self) -> bool {
        const TERM: u64 = 1 << (15 - 1);
        let status =
            self.child.id().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let caught =
            status.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("SigCgt:")));
        caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & TERM != 0)
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails if it has ended by itself.
    pub fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let end: Vec<_> = log.lines().rev().take(15).collect();
            let end: Vec<_> = end.into_iter().rev().collect();
            bail!("a process ended with {status}; the end of {}:\n{}", self.log.display(), end.join("\n"));
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

/// Asks again and again until `probe` gives an answer, at most for `limit`.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}
