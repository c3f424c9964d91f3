//! One update whose disk writes are cut after each prefix.
//!
//! A board does the update while every write to its disk is recorded. The disk is then made again as it was after each write,
//! checked as a boot does, and an agent of this machine goes on with the state on it: the files are the same on every target.
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};
use dunlin_trust::floors::Floors;

use super::device::{CHUNK_BYTES, Device, Told, not_fetched_again, until};
use super::disk::{self, Left};
use super::fleet::{Fleet, TEXT_BYTES};
use super::parts::Parts;
use super::vm::{Machine, SETTINGS, Use};
use super::writes::Writes;
use super::{Outcome, Programs, tied};

/// The writes of an update, and what the board told while it did them.
struct Recorded<'a> {
    fleet: &'a Fleet,
    programs: &'a Programs,
    folder: &'a Path,
    releases: [&'a str; 2],
    /// From how many writes on what was told.
    told: Vec<(u64, Told)>,
}

/// Records an update and cuts it at about `cuts` places, or at all.
pub(super) fn every_write(
    parts: &Parts,
    programs: &Programs,
    folder: &Path,
    cuts: Option<u64>,
    without_sync: bool,
) -> Result<Outcome> {
    let fleet = Fleet::start(folder, &programs.here)?;
    let releases = fleet.releases(2, TEXT_BYTES)?;
    let [first, second] = [releases[0].as_str(), releases[1].as_str()];
    let machine = Machine::new(parts, programs, &fleet, folder, &Use::cut(without_sync))?;
    let (disk, log) = (folder.join("disk"), folder.join("writes"));
    disk::make(&disk)?;
    fleet.assign(first)?;
    let mut board = machine.start(&disk, None)?;
    board.up()?;
    board.device.takes(first)?;
    board.cut()?;
    let base = folder.join("disk-before");
    std::fs::copy(&disk, &base)?;

    Writes::make(&log)?;
    let mut board = machine.start(&disk, Some(&log))?;
    board.first_answer()?;
    fleet.assign(second)?;
    let device = board.device;
    let mut told = Vec::new();
    until("the recorded update", || {
        let version = device.answer()?;
        ensure!(releases.contains(&version), "{version} answers");
        let now = device.told()?;
        let done = now.committed(second);
        // Looked at after the board told it, so that what is recorded by then is what it stands on.
        told.push((Writes::so_far(&log)?, now));
        Ok(done.then_some(()))
    })?;
    board.cut()?;
    let writes = Writes::open(&log)?;
    let step = cuts.map_or(1, |cuts| (writes.number() / cuts).max(1));
    println!("{} writes are recorded; every {step}th is cut at", writes.number());
    let recorded = Recorded { fleet: &fleet, programs, folder, releases: [first, second], told };
    let mut outcome = Outcome::default();
    let mut floors = Left::on(&base, &folder.join("cut"))?.floors;
    writes.replay(&base, |number| {
        if number % step == 0 {
            outcome.note(&format!("after write {number}"), recorded.cut(&base, number, &mut floors));
        }
        Ok(())
    })?;
    if let Err(error) = fleet.not_blamed() {
        outcome.note("in all", Err(error));
    }
    Ok(outcome)
}

impl Recorded<'_> {
    /// Looks at the disk as it is after so many writes, and has an agent go on with it.
    fn cut(&self, disk: &Path, number: u64, floors: &mut Floors) -> Result<String> {
        let left = Left::on(disk, &self.folder.join("cut"))?;
        left.not_below(floors)?;
        floors.clone_from(&left.floors);
        let nothing = Told::default();
        let before =
            self.told.iter().rev().find(|(from, _)| *from <= number).map_or(&nothing, |(_, told)| told);
        let generation = left.floors.generation;
        ensure!(
            generation >= before.generation,
            "generation {} was accepted, {generation} is left",
            before.generation
        );

        let [first, second] = self.releases;
        let agent = Agent::start(self.programs, self.folder, &left.state)?;
        let version = agent.device.answer().context("the first question was not answered")?;
        let right: &[&str] = if before.committed(second) { &[second] } else { &[first, second] };
        ensure!(
            right.contains(&version.as_str()),
            "{version} answers after the cut, which is none of {right:?}"
        );
        let told = agent.device.comes_to(second, right)?;
        told.keeps(before)?;
        not_fetched_again(&agent.log()?, &left.downloads, CHUNK_BYTES)?;
        self.fleet.stored(&told, false)?;
        Ok(format!("{version} answered"))
    }
}

/// An agent of this machine that goes on with a board's state.
struct Agent {
    child: Child,
    device: Device,
    log: std::path::PathBuf,
}

impl Agent {
    fn start(programs: &Programs, folder: &Path, state: &Path) -> Result<Self> {
        let (run, settings, log) = (folder.join("run"), folder.join("agent.toml"), folder.join("agent.log"));
        if run.exists() {
            std::fs::remove_dir_all(&run)?;
        }
        let text = format!(
            "state_dir = {state:?}\nrun_dir = {run:?}\nboard = {:?}\n\n[api]\nlisten = \"127.0.0.1:0\"\n\n{SETTINGS}",
            programs.board_file
        );
        std::fs::write(&settings, text)?;
        let out = std::fs::File::create(&log)?;
        let mut agent = tied(&programs.here.join("dunlin-agent"));
        agent
            .arg("--config")
            .arg(&settings)
            .arg("run")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let mut child = agent.spawn().context("starting an agent of this machine")?;
        let address = run.join("api.addr");
        let api = until("the agent's API", || {
            if let Some(status) = child.try_wait()? {
                bail!("the agent ended with {status}: {}", std::fs::read_to_string(&log)?);
            }
            Ok(std::fs::read_to_string(&address).ok().and_then(|text| text.trim().parse().ok()))
        });
        let mut agent = Self { child, device: Device { api: ([127, 0, 0, 1], 0).into() }, log };
        agent.device.api = api?;
        Ok(agent)
    }

    fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("an agent could not be ended: {error}");
        }
    }
}
