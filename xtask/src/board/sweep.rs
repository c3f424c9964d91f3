//! One update whose disk writes are cut after each prefix.
//!
//! A board does the update while every write to its disk is recorded. The disk is then made again as it was after each write,
//! checked as a boot does, and an agent of this machine goes on with the state on it: the files are the same on every target.
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dunlin_trust::floors::Floors;

use super::device::{CHUNK_BYTES, Device, Told, not_fetched_again, until};
use super::disk::{self, Left};
use super::fleet::{Fleet, TEXT_BYTES, words};
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
    /// The floors after the cut before.
    floors: Floors,
    /// From where on a download was gone on with after a cut, bytes; the most of all.
    resumed: u64,
}

/// Records an update and cuts it at about `cuts` places, or at all. Among them are the end, and where a part of the new
/// release is on the disk.
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
    let mut machine = Machine::new(parts, programs, &fleet, folder, &Use::cut(false))?;
    let (disk, log) = (folder.join("disk"), folder.join("writes"));
    disk::make(&disk)?;
    fleet.assign(first)?;
    let mut board = machine.start(&disk, None)?;
    board.up()?;
    board.device.takes(first)?;
    board.cut()?;
    let base = folder.join("disk-before");
    std::fs::copy(&disk, &base)?;

    if without_sync {
        // Not before: a board without a state would be no older one.
        machine = Machine::new(parts, programs, &fleet, folder, &Use::cut(true))?;
    }
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
    let part = before_last_run(&writes.with(words(1).repeat(2).as_bytes())?);
    let places = places(writes.number(), cuts, part);
    println!("{} writes are recorded; {} of them are cut after", writes.number(), places.len());
    let floors = Left::on(&base, &folder.join("cut"))?.floors;
    let mut recorded =
        Recorded { fleet: &fleet, programs, folder, releases: [first, second], told, floors, resumed: 0 };
    let mut outcome = Outcome::default();
    writes.replay(&base, |number| {
        if places.contains(&number) {
            outcome.cut(&format!("after write {number}"), recorded.cut(&base, number));
        }
        Ok(())
    })?;
    if let Err(error) = fleet.not_blamed() {
        outcome.bad("in all", &error);
    }
    if recorded.resumed == 0 {
        outcome.bad("in all", &anyhow!("no download was gone on with"));
    }
    Ok(outcome)
}

/// After which of so many writes there is a cut.
fn places(writes: u64, cuts: Option<u64>, part: Option<u64>) -> BTreeSet<u64> {
    let step = cuts.map_or(1, |cuts| writes.checked_div(cuts).unwrap_or(writes).max(1));
    (1..=writes).filter(|number| number % step == 0 || *number == writes).chain(part).collect()
}

/// Where the last run of consecutive `writes` has not begun and others were done: what a download wrote up to its last sync
/// but one is on the disk then, and nothing of what came later.
fn before_last_run(writes: &[u64]) -> Option<u64> {
    writes.windows(2).rev().find(|pair| pair[0] + 1 < pair[1]).map(|pair| pair[1] - 1)
}

impl Recorded<'_> {
    /// Looks at the disk as it is after so many writes, and has an agent go on with it.
    fn cut(&mut self, disk: &Path, number: u64) -> Result<String> {
        let left = Left::on(disk, &self.folder.join("cut"))?;
        left.not_below(&self.floors)?;
        self.floors.clone_from(&left.floors);
        let nothing = Told::default();
        let before =
            self.told.iter().rev().find(|(from, _)| *from <= number).map_or(&nothing, |(_, told)| told);
        left.has_generation(before.generation)?;

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
        let resumed = not_fetched_again(&agent.log()?, &left.downloads, CHUNK_BYTES)?;
        self.resumed = self.resumed.max(resumed);
        self.fleet.stored(&told, false)?;
        let part =
            if resumed > 0 { format!(", a download went on from byte {resumed}") } else { String::new() };
        Ok(format!("{version} answered{part}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_spread_evenly_and_the_end_and_the_part_of_a_download_are_among_them() {
        let at = |writes, cuts, part| places(writes, cuts, part).into_iter().collect::<Vec<_>>();
        assert_eq!(at(23, Some(5), Some(14)), [4, 8, 12, 14, 16, 20, 23]);
        assert_eq!(at(3, Some(100), None), [1, 2, 3]);
        assert_eq!(at(3, Some(0), None), [3]);
        assert_eq!(at(4, None, Some(2)), [1, 2, 3, 4]);
        assert_eq!(at(0, Some(5), None), [0; 0]);
    }

    #[test]
    fn a_part_of_a_download_is_on_the_disk_before_its_last_writes_begin() {
        assert_eq!(before_last_run(&[5, 6, 9, 12, 13]), Some(11));
        assert_eq!(before_last_run(&[5, 6, 7]), None);
        assert_eq!(before_last_run(&[]), None);
    }
}
