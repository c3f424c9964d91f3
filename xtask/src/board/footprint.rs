//! What an agent takes of a small board: one that has nothing to do, then one with a model, then one that is switched on.
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::Programs;
use super::device::until;
use super::disk;
use super::fleet::Fleet;
use super::look::{Window, first_answer_s, looks};
use super::parts::Parts;
use super::vm::{Machine, Running, Use};

/// Memory of the board, MiB: what the smallest boards that are meant have beside their application.
const MEMORY_MIB: u64 = 96;
/// Windows without a model, one after the other. With the shipped settings an idle agent reports every five minutes, and each commit
/// reserves the numbers of four reports that need none, so every fifth makes one: half an hour has one in it, if a window is of
/// ten minutes.
const IDLE_WINDOWS: usize = 3;
/// A board has settled after this part of a window: a telemetry window or two, if those of the measurement are of ten minutes.
const SETTLING: u32 = 5;
/// Seconds between two looks: often enough for the most memory that is taken, and rare beside what a look costs the board.
const LOOK_S: u64 = 15;
/// The agent has the settings that are installed, but for this: how long an emulated board takes over an answer says nothing.
const SETTINGS: &str = "[device.budgets]\nlatency_us_max = 60000000\n";

/// How the agent says that it has a session.
const SESSION: &str = "session with the broker epoch=";

/// What was measured on one board.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) memory_mib: u64,
    /// The emulator, and the kernel that the board runs.
    pub(crate) emulator: String,
    pub(crate) kernel: String,
    /// Enrolled, connected, without a model, asked nothing.
    pub(crate) idle: Vec<Window>,
    /// With a model, asked nothing.
    pub(crate) with_model: Window,
    /// From the start of the agent to the first answer of the model, on a board that was switched on, seconds.
    pub(crate) first_answer_s: f64,
}

/// Measures by windows of this length.
pub(super) fn measure(
    parts: &Parts,
    programs: &Programs,
    folder: &Path,
    window: Duration,
) -> Result<Measured> {
    let fleet = Fleet::start(folder, &programs.here)?;
    let releases = fleet.releases(1, 0)?;
    let used = Use {
        settings: SETTINGS,
        memory_mib: Some(MEMORY_MIB),
        without_sync: false,
        look_s: Some(LOOK_S),
        counted: true,
    };
    let machine = Machine::new(parts, programs, &fleet, folder, &used)?;
    let path = folder.join("disk");
    disk::make_with_program(&path)?;

    let mut board = machine.start(&path, None)?;
    board.up()?;
    board.device.connects()?;
    println!("the board is connected");
    sleep(window / SETTLING);
    let mut idle = Vec::new();
    for _ in 0..IDLE_WINDOWS {
        idle.push(watch(&mut board, window)?);
        println!("idle: {:?}", idle.last());
    }
    fleet.assign(&releases[0])?;
    board.device.takes(&releases[0])?;
    sleep(window / SETTLING);
    let with_model = watch(&mut board, window)?;
    println!("with a model: {with_model:?}");
    board.cut()?;

    let mut board = machine.start(&path, None)?;
    let first_answer_s = until("the first answer", || {
        board.has_power()?;
        first_answer_s(&board.log()?)
    })?;
    println!("first answer: {first_answer_s:.2} s");
    let kernel = parts.kernel()?;
    let kernel = kernel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(Measured {
        memory_mib: MEMORY_MIB,
        emulator: parts.version().to_owned(),
        kernel: kernel.trim_start_matches("vmlinuz-").to_owned(),
        idle,
        with_model,
        first_answer_s,
    })
}

/// One window, in which nobody asks the board anything. On a machine so busy that the board's time falls behind that of the
/// controller, sessions end for want of a sign of life, and what is seen is no idle agent.
fn watch(board: &mut Running, window: Duration) -> Result<Window> {
    let log = board.log()?;
    let (before, met) = (looks(&log)?.len(), sessions(&log));
    sleep(window);
    until("the window to end", || {
        board.has_power()?;
        let log = board.log()?;
        ensure!(sessions(&log) == met, "the session was lost within the window; this machine is too busy");
        Window::over(&looks(&log)?[before..], window.as_secs_f64())
    })
}

/// How often the agent has met the broker.
fn sessions(log: &str) -> usize {
    log.matches(SESSION).count()
}
