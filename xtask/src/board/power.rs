//! A board that loses its power at random moments of updates, one after another.
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dunlin_trust::floors::Floors;

use super::device::{CHUNK_BYTES, Told, not_fetched_again};
use super::disk::{self, Left};
use super::fleet::{Dice, Fleet, TEXT_BYTES};
use super::parts::Parts;
use super::vm::{Machine, Running, Use};
use super::{Outcome, Programs};

/// How long an update may be cut at, in lengths of one that was not cut: some cuts come after it.
const LENGTHS: f64 = 1.1;
/// Between two looks at a board whose power will be cut.
const PAUSE: Duration = Duration::from_millis(100);

/// Cuts the power so many times, at moments that `seed` decides.
pub(super) fn cuts(
    parts: &Parts,
    programs: &Programs,
    folder: &Path,
    (cuts, seed): (usize, u64),
    without_sync: bool,
) -> Result<Outcome> {
    let fleet = Fleet::start(folder, &programs.here)?;
    let releases = fleet.releases(cuts + 2, TEXT_BYTES)?;
    let machine = Machine::new(parts, programs, &fleet, folder, &Use::cut(without_sync))?;
    let [path, before] = ["disk", "disk-before"].map(|name| folder.join(name));
    disk::make(&path)?;
    fleet.assign(&releases[0])?;
    let begin = Instant::now();
    let mut board = machine.start(&path, None)?;
    board.up()?;
    println!("the board answers {:.1} s after it was switched on", begin.elapsed().as_secs_f64());
    board.device.takes(&releases[0])?;

    // How long an update takes here.
    let begin = Instant::now();
    fleet.assign(&releases[1])?;
    board.device.comes_to(&releases[1], &[&releases[0], &releases[1]])?;
    let length = begin.elapsed();
    println!("an update takes {:.1} s", length.as_secs_f64());

    let mut dice = Dice(seed);
    let mut outcome = Outcome::default();
    let mut floors = Floors::default();
    let mut resumed = 0;
    for pair in releases[1..].windows(2) {
        let [old, new] = [&pair[0], &pair[1]];
        let moment = length.mul_f64(dice.share() * LENGTHS);
        board.copy_disk(&path, &before)?;
        let begin = Instant::now();
        fleet.assign(new)?;
        let told = watch(&board, begin, moment)?;
        board.cut()?;
        let what = format!(
            "{:.1} s into the update to {new}, {} {}",
            moment.as_secs_f64(),
            told.release,
            told.phase
        );
        let looked = look([&before, &path], folder, &told, &floors);
        let started = Instant::now();
        board = machine.start(&path, None)?;
        let came = looked.and_then(|left| {
            let from = comes_up(&mut board, &fleet, &told, &left, [old, new])?;
            resumed = from.max(resumed);
            floors = left.floors;
            let seconds = started.elapsed().as_secs_f64();
            Ok(format!("at {new} {seconds:.1} s after, what was downloaded began at {from} bytes"))
        });
        let failed = came.is_err();
        outcome.cut(&what, came);
        if failed {
            // What comes after would only say so again.
            break;
        }
    }
    // It is only told: none of the random moments need fall into a download.
    println!("the most that was there of a download that went on: {resumed} bytes");
    let whole = fleet.not_blamed().and_then(|()| fleet.no_false_alarm());
    if let Err(error) = whole {
        outcome.bad("in all", &error);
    }
    Ok(outcome)
}

/// What the board tells until the moment of the cut; the last of it.
fn watch(board: &Running, begin: Instant, moment: Duration) -> Result<Told> {
    let mut told = board.device.told()?;
    while begin.elapsed() < moment {
        board.device.answer()?;
        told = board.device.told()?;
        std::thread::sleep(PAUSE.min(moment.saturating_sub(begin.elapsed())));
    }
    Ok(told)
}

/// What is on the disk is not behind what the board told, nor behind what was there `before` the update; nor is that behind
/// the `floors` after the cut before.
fn look([before, disk]: [&Path; 2], folder: &Path, told: &Told, floors: &Floors) -> Result<Left> {
    let left = Left::on(disk, &folder.join("left"))?;
    left.has_generation(told.generation)?;
    let before = Left::on(before, &folder.join("left-before")).context("before the update")?;
    before.not_below(floors).context("before the update")?;
    left.not_below(&before.floors)?;
    Ok(left)
}

/// The board answers from the first question on, with the old release or the new one, and finishes the update. Returns from
/// where on it was downloaded, bytes; zero if nothing was.
fn comes_up(
    board: &mut Running,
    fleet: &Fleet,
    told: &Told,
    left: &Left,
    [old, new]: [&str; 2],
) -> Result<u64> {
    let version = board.first_answer()?;
    let right: &[&str] = if told.committed(new) { &[new] } else { &[old, new] };
    ensure!(right.contains(&version.as_str()), "{version} answers after the cut, which is none of {right:?}");
    let now = board.device.comes_to(new, right)?;
    now.keeps(told)?;
    // A cut may fall where there is nothing to go on with.
    let resumed = not_fetched_again(&board.log()?, &left.downloads, CHUNK_BYTES)?;
    fleet.stored(&now, true).context("reports")?;
    Ok(resumed)
}
