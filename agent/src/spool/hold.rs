//! Records that tell nothing new, and how long they may wait in memory for a commit of others to take them along.
//!
//! They are numbered and sent as any other. One that is acknowledged while it waits never touches the disk. What dies
//! with the process is declared lost at the next start: each commit reserves the numbers that may be given before the
//! next one, so no start takes one of them for free.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;

use dunlin_protocol::BootId;

use crate::update::KERNEL_BOOT;

/// Numbers that may be given between two commits: what a power cut loses at most, and one more than reports of the
/// shipped settings come in [`WAIT_MS_MAX`].
pub(super) const NUMBERS_MAX: u64 = 4;
/// Longest wait for a commit, milliseconds.
pub(super) const WAIT_MS_MAX: u64 = 15 * 60 * 1000;

/// One record that waits.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) seq: u64,
    pub(super) body: Vec<u8>,
    at_ms: u64,
}

/// What waits of the running boot. Its numbers follow those of the last commit.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The last number given since the last commit; zero if none was.
    last: u64,
    /// What is not acknowledged, oldest first.
    records: VecDeque<Held>,
}

impl Hold {
    /// The number of a record that may wait; `None` if it has to be committed, with all that waits. A commit made up to
    /// number `appended` and reserved those up to `reserved`. Nothing is looked at before `next_ms`, when the next
    /// record of this kind is due, so what would wait for too long by then does not wait at all.
    pub(super) fn admit(&self, appended: u64, reserved: u64, now_ms: u64, next_ms: u64) -> Option<u64> {
        let seq = self.last(appended) + 1;
        let oldest_ms = self.records.front().map_or(now_ms, |held| held.at_ms);
        (seq <= reserved && next_ms.saturating_sub(oldest_ms) <= WAIT_MS_MAX).then_some(seq)
    }

    /// Keeps an admitted record.
    pub(super) fn put(&mut self, seq: u64, body: Vec<u8>, at_ms: u64) {
        self.last = seq;
        self.records.push_back(Held { seq, body, at_ms });
    }

    /// The last number given, where a commit made those up to `appended` durable.
    pub(super) fn last(&self, appended: u64) -> u64 {
        self.last.max(appended)
    }

    /// The last number up to which all are acknowledged, if those up to `appended` are.
    pub(super) fn acked_upto(&self, appended: u64) -> u64 {
        self.records.front().map_or(self.last(appended), |held| held.seq - 1)
    }

    /// Whether no number was given since the last commit.
    pub(super) fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// What waits, oldest first.
    pub(super) fn records(&self) -> impl Iterator<Item = &Held> {
        self.records.iter()
    }

    /// Forgets what the controller holds. Returns how many records went.
    pub(super) fn acknowledge(&mut self, upto: u64) -> u64 {
        let before = self.records.len();
        self.records.retain(|held| held.seq > upto);
        (before - self.records.len()) as u64
    }

    /// The disk holds all up to `appended`; a commit takes all that waits or nothing.
    pub(super) fn committed(&mut self, appended: u64) {
        if self.last <= appended {
            *self = Self::default();
        }
    }
}

/// The last number given and the last one acknowledged, in a file that outlives the process but not the board's boot:
/// with it the loss of a killed process is known exactly, without it only what it may have been at most.
#[derive(Debug)]
pub(super) struct Note(pub(super) Option<PathBuf>);

impl Note {
    /// Says what is about to be given.
    pub(super) fn write(&self, boot: &BootId, last: u64, acked_upto: u64) -> std::io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let Some(heading) = heading(boot) else { return Ok(()) };
        fs::write(path, format!("{heading}{last} {acked_upto}\n"))
    }

    /// What a process of the same boot of the board said last, if it was started under `boot`.
    pub(super) fn read(&self, boot: &BootId) -> Option<(u64, u64)> {
        let text = fs::read_to_string(self.0.as_ref()?).ok()?;
        // Cut short it lacks its end, and tells nothing.
        let (last, acked_upto) = text.strip_prefix(&heading(boot)?)?.strip_suffix('\n')?.split_once(' ')?;
        Some((last.parse().ok()?, acked_upto.parse().ok()?))
    }
}

/// Names the board's boot and the agent's. A board that does not tell its boots apart has none, and so no note.
fn heading(boot: &BootId) -> Option<String> {
    let kernel = fs::read_to_string(KERNEL_BOOT).ok().filter(|id| !id.is_empty())?;
    Some(format!("{kernel}{boot}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: u64 = 60_000;

    #[test]
    fn a_record_waits_until_the_next_would_come_too_late_and_while_numbers_are_reserved() {
        let mut hold = Hold::default();
        let at = |hold: &Hold, minute: u64, every: u64| {
            hold.admit(7, 7 + NUMBERS_MAX, minute * MINUTE_MS, (minute + every) * MINUTE_MS)
        };
        assert_eq!(at(&hold, 0, 15), Some(8));
        assert_eq!(at(&hold, 0, 16), None, "nobody would look in time");
        for (minute, seq) in [(0, 8), (5, 9), (10, 10)] {
            assert_eq!(at(&hold, minute, 5), Some(seq));
            hold.put(seq, vec![], minute * MINUTE_MS);
        }
        assert_eq!(at(&hold, 15, 5), None, "the first has waited for as long as it may");
        assert_eq!(hold.acknowledge(8), 1);
        assert_eq!((hold.last(7), hold.acked_upto(7)), (10, 8));
        assert_eq!(at(&hold, 15, 5), Some(11), "the second may still wait");
        hold.put(11, vec![], 15 * MINUTE_MS);
        assert_eq!(hold.acknowledge(11), 3);
        assert_eq!(at(&hold, 20, 5), None, "no number is reserved");
        hold.committed(10);
        assert_eq!(hold.last(7), 11, "a commit that did not reach the disk changes nothing");
        hold.committed(11);
        assert_eq!((hold.last(11), hold.acked_upto(11)), (11, 11));
    }

    #[test]
    fn a_note_is_read_whole_and_of_its_own_boot_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        let (note, boot) = (Note(Some(path.clone())), BootId([7; 16]));
        assert_eq!(note.read(&boot), None);
        note.write(&boot, 112, 99).unwrap();
        assert_eq!((note.read(&boot), note.read(&BootId([8; 16]))), (Some((112, 99)), None));
        let whole = fs::read_to_string(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(note.read(&boot), None, "cut at {cut}");
        }
        let other = if whole.starts_with('0') { "1" } else { "0" };
        fs::write(&path, format!("{other}{}", &whole[1..])).unwrap();
        assert_eq!(note.read(&boot), None, "the board was started since");
    }
}
