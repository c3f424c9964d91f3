//! A virtual board that runs, until its power is cut.
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::Programs;
use super::device::{Device, infer_path, question, until};
use super::disk;
use super::fleet::Fleet;
use super::initramfs::Initramfs;
use super::kind::{memory_mib, size};
use super::parts::{CONTROL, Parts};
use crate::cross::Elf;

/// Where the board sees the controller; nothing else is there to be seen.
const CONTROLLER: &str = "10.0.2.100";
/// Port of the API on the board.
const API_PORT: u16 = 8090;
/// Settings of agents on boards and of those that go on with a board's state here.
pub(super) const SETTINGS: &str = "[telemetry]\nwindow_s = 1\nreport_s = 1\n\n[update]\ncheck_s = 5\nretry_min_s = 1\nretry_max_s = 2\n\n\
     [device.budgets]\nmodel_bytes_max = 16777216\nmodel_ram_bytes_max = 134217728\nlatency_us_max = 60000000\n";

/// Time of an instruction of a board whose time goes by them, ns; the emulator takes powers of two. That makes 250 million a second,
/// which is fewer than the slowest board of `firmware-targets/boards` does.
pub(crate) const INSTRUCTION_NS: u64 = 4;

/// What differs between boards that are cut and one that is measured.
pub(super) struct Use<'a> {
    /// Settings of the agent beyond those that a board needs.
    pub(super) settings: &'a str,
    /// Memory, MiB; as much as the board has, up to what an emulated one needs, if nothing is said.
    pub(super) memory_mib: Option<u64>,
    /// What the agent syncs is not synced.
    pub(super) without_sync: bool,
    /// Seconds between two looks at the agent that the board prints.
    pub(super) look_s: Option<u64>,
    /// The board's time goes by its instructions, [`INSTRUCTION_NS`] each, however busy the machine is that emulates.
    pub(super) counted: bool,
}

impl Use<'_> {
    /// That of boards whose power is cut.
    pub(super) fn cut(without_sync: bool) -> Self {
        Self { settings: SETTINGS, memory_mib: None, without_sync, look_s: None, counted: false }
    }
}

/// A board that can be switched on.
pub(super) struct Machine<'a> {
    parts: &'a Parts,
    programs: &'a Programs,
    initramfs: PathBuf,
    log: PathBuf,
    memory_mib: u64,
    counted: bool,
    /// Where the controller listens here.
    ports: [u16; 2],
}

impl<'a> Machine<'a> {
    /// Puts agent and settings into the first file system.
    pub(super) fn new(
        parts: &'a Parts,
        programs: &'a Programs,
        fleet: &Fleet,
        folder: &Path,
        used: &Use<'_>,
    ) -> Result<Self> {
        let mut initramfs = Initramfs::of(parts)?;
        initramfs.program("bin/dunlin-agent", &programs.agent)?;
        // The address that the controller gives devices is one of the machine that it runs on.
        initramfs.text("etc/hosts", &format!("{CONTROLLER} localhost\n"));
        let settings = format!(
            "state_dir = \"/data/dunlin\"\nrun_dir = \"/run/dunlin\"\nboard = \"/etc/dunlin/board.toml\"\n\n\
             [api]\nlisten = \"0.0.0.0:{API_PORT}\"\nallow_remote = true\n\n{}",
            used.settings
        );
        initramfs.text("etc/dunlin/agent.toml", &settings);
        initramfs.text("etc/dunlin/board.toml", &std::fs::read_to_string(&programs.board_file)?);
        initramfs.text("etc/dunlin/claim", &fleet.claim()?);
        if let Some(seconds) = used.look_s {
            initramfs.text("etc/dunlin/look", &seconds.to_string());
            initramfs.text("etc/dunlin/url", &format!("http://127.0.0.1:{API_PORT}{}", infer_path()));
            initramfs.text("etc/dunlin/question", &question().to_string());
        }
        if used.without_sync {
            initramfs.program("bin/strace", &parts.board().join("usr/bin").join(CONTROL))?;
        }
        if used.without_sync || Elf(&std::fs::read(&programs.agent)?).has_interpreter() {
            initramfs.libraries(&parts.board(), parts.kind().libraries)?;
        }
        let path = folder.join("initramfs");
        initramfs.write(&path)?;
        let memory_mib = used.memory_mib.unwrap_or_else(|| memory_mib(&programs.board.device));
        let log = folder.join("board.log");
        let (counted, ports) = (used.counted, fleet.ports);
        Ok(Self { parts, programs, initramfs: path, log, memory_mib, counted, ports })
    }

    /// Switches it on. With `writes`, every write to the disk is recorded there.
    pub(super) fn start(&self, disk: &Path, writes: Option<&Path>) -> Result<Running> {
        let (board, kind) = (&self.programs.board, self.parts.kind());
        let api = free_port()?;
        let mut qemu = self.parts.emulator();
        // By its name: a machine may have a /dev/kvm that no guest starts under.
        if self.counted {
            let shift = INSTRUCTION_NS.ilog2();
            qemu.args(["-accel", "tcg,thread=single", "-icount", &format!("shift={shift},sleep=on")]);
        } else {
            qemu.args(["-accel", "tcg,thread=multi"]);
        }
        qemu.args(["-M", kind.machine]);
        qemu.args(size(&board.device, board.qemu_cpu(), self.memory_mib));
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(self.parts.kernel()?).arg("-initrd").arg(&self.initramfs);
        qemu.args(["-append", &format!("{} quiet loglevel=3 panic=-1", kind.console)]);
        let [network, disk_device] = kind.devices;
        qemu.args(["-netdev", &self.network(api)?]);
        qemu.args(["-device", &format!("{network},netdev=net")]);
        qemu.args(["-blockdev", &format!("driver=file,node-name=disk,filename={}", name(disk)?)]);
        if let Some(writes) = writes {
            qemu.args(["-blockdev", &format!("driver=file,node-name=writes,filename={}", name(writes)?)]);
            // After each write the log says how many it holds, so that somebody else can look on.
            let logged = "driver=blklogwrites,node-name=logged,file=disk,log=writes,log-sector-size=512,log-super-update-interval=1";
            qemu.args(["-blockdev", logged]);
        }
        let drive = if writes.is_some() { "logged" } else { "disk" };
        qemu.args(["-device", &format!("{disk_device},drive={drive}")]);
        let mark = std::fs::metadata(&self.log).map_or(0, |about| about.len());
        let log = File::options().create(true).append(true).open(&self.log)?;
        qemu.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = qemu.spawn().context("starting the emulator")?;
        let device = Device { api: SocketAddr::from(([127, 0, 0, 1], api)) };
        Ok(Running { child, device, log: self.log.clone(), mark })
    }

    /// The board sees the two ports of the controller and is seen at its API; it reaches nothing else.
    fn network(&self, api: u16) -> Result<String> {
        // Not by its path: a build that came meanwhile has put another file there.
        let relay = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
        let mut text = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{api}-10.0.2.15:{API_PORT}");
        for port in self.ports {
            let command = format!("{} board relay 127.0.0.1:{port}", name(&relay)?);
            text.push_str(&format!(",guestfwd=tcp:{CONTROLLER}:{port}-cmd:{command}"));
        }
        Ok(text)
    }
}

/// A path as the emulator's options take it.
fn name(path: &Path) -> Result<String> {
    let text = path.to_str().context("a path that is no text")?;
    if text.contains([' ', '\'', '"', '\\']) {
        bail!("{text}: the emulator can not be given a path with a space or a quote");
    }
    Ok(text.replace(',', ",,"))
}

/// A port that nobody listens on at this moment: the emulator does not tell which one it would take.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A board with power.
pub(super) struct Running {
    child: Child,
    pub(super) device: Device,
    log: PathBuf,
    mark: u64,
}

impl Running {
    /// Waits until the agent listens.
    pub(super) fn up(&mut self) -> Result<()> {
        let device = self.device;
        until("the board's agent to listen", || {
            self.has_power()?;
            // Until the API listens, the emulator's network takes the call and says nothing.
            Ok(device.listens().then_some(()))
        })
        .with_context(|| format!("the board's log is {}", self.log.display()))
    }

    /// An error if the emulator has ended.
    pub(super) fn has_power(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the emulator ended with {status}: {}", self.log()?),
            None => Ok(()),
        }
    }

    /// Waits for the agent and asks the first question; returns which release answered.
    pub(super) fn first_answer(&mut self) -> Result<String> {
        self.up()?;
        self.device.answer().context("the first question was not answered")
    }

    /// Copies the disk as a cut at this moment would leave it: meanwhile the emulator does nothing.
    pub(super) fn copy_disk(&self, disk: &Path, copy: &Path) -> Result<()> {
        let process = Pid::from_child(&self.child);
        kill_process(process, Signal::STOP)?;
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(process), stopped)?;
        let copied = disk::copy(disk, copy);
        kill_process(process, Signal::CONT)?;
        copied
    }

    /// Cuts the power.
    pub(super) fn cut(mut self) -> Result<String> {
        self.end()?;
        self.log()
    }

    /// What the board has printed since it was switched on.
    pub(super) fn log(&self) -> Result<String> {
        let bytes = std::fs::read(&self.log)?;
        let from = usize::try_from(self.mark)?.min(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
    }

    fn end(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the emulator could not be ended: {error:#}");
        }
    }
}
