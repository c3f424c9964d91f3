//! A board that loses its power at random moments of updates, one after another.
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

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
    let path = folder.join("disk");
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
    let mut left: Option<Left> = None;
    for pair in releases[1..].windows(2) {
        let [old, new] = [&pair[0], &pair[1]];
        let moment = length.mul_f64(dice.share() * LENGTHS);
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
        let looked = look(&path, folder, &told, left.as_ref());
        let started = Instant::now();
        board = machine.start(&path, None)?;
        let came = looked.and_then(|now| {
            comes_up(&mut board, &fleet, &told, &now, [old, new])?;
            left = Some(now);
            Ok(format!("at {new} {:.1} s after", started.elapsed().as_secs_f64()))
        });
        let failed = came.is_err();
        outcome.note(&what, came);
        if failed {
            // What comes after would only say so again.
            break;
        }
    }
    let whole = fleet.not_blamed().and_then(|()| fleet.no_false_alarm());
    if let Err(error) = whole {
        outcome.note("in all", Err(error));
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

/// What is on the disk is not behind what was there after the cut before, nor behind what the board told.
fn look(disk: &Path, folder: &Path, told: &Told, before: Option<&Left>) -> Result<Left> {
    let left = Left::on(disk, &folder.join("left"))?;
    if let Some(before) = before {
        left.not_below(&before.floors)?;
    }
    let generation = left.floors.generation;
    ensure!(
        generation >= told.generation,
        "generation {} was accepted, {generation} is left",
        told.generation
    );
    Ok(left)
}

/// The board answers from the first question on, with the old release or the new one, and finishes the update.
fn comes_up(
    board: &mut Running,
    fleet: &Fleet,
    told: &Told,
    left: &Left,
    [old, new]: [&str; 2],
) -> Result<()> {
    let version = board.first_answer()?;
    let right: &[&str] = if told.committed(new) { &[new] } else { &[old, new] };
    ensure!(right.contains(&version.as_str()), "{version} answers after the cut, which is none of {right:?}");
    let now = board.device.comes_to(new, right)?;
    now.keeps(told)?;
    not_fetched_again(&board.log()?, &left.downloads, CHUNK_BYTES)?;
    fleet.stored(&now, true).context("reports")
}
