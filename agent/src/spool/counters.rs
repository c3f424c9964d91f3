use std::fs::File;
use std::io::Write;
use std::path::Path;

use dunlin_protocol::BootId;
use serde::{Deserialize, Serialize};

use super::SpoolError;

/// Finished boots that are kept by name; older ones live on in the totals. Enough for a month of daily restarts.
pub(super) const BOOTS_MAX: usize = 32;
const FILE: &str = "counters.json";

/// What happened to the records of one boot. At every instant `appended = acked + evicted + lost + waiting`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootCounters {
    /// The boot.
    pub boot: BootId,
    /// Which boot of this spool it was.
    pub ordinal: u64,
    /// Records made; also the last number given.
    pub appended: u64,
    /// Windows among them.
    pub windows: u64,
    /// Records the controller acknowledged.
    pub acked: u64,
    /// Records that the byte bound forced out.
    pub evicted: u64,
    /// Windows among those.
    pub windows_evicted: u64,
    /// The highest number the controller acknowledged.
    pub acked_upto: u64,
    /// Up to here numbers may be given to records that wait in memory; zero after an orderly end.
    #[serde(skip_serializing_if = "is_zero")]
    pub reserved: u64,
    /// Records that went with the memory of a process that was cut off. If the board itself lost its power, these are
    /// all that may have been made, and some of them may have been acknowledged.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// Records that no commit has taken along yet, acknowledged ones with them; told of a running boot and never kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub in_memory: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Default for BootCounters {
    fn default() -> Self {
        let boot = BootId([0; 16]);
        Self {
            boot,
            ordinal: 0,
            appended: 0,
            windows: 0,
            acked: 0,
            evicted: 0,
            windows_evicted: 0,
            acked_upto: 0,
            reserved: 0,
            lost: 0,
            in_memory: 0,
        }
    }
}

impl BootCounters {
    /// Records that are not acknowledged yet.
    pub fn waiting(&self) -> u64 {
        self.appended.saturating_sub(self.acked).saturating_sub(self.evicted).saturating_sub(self.lost)
    }

    /// Closes the books of a boot that was cut off, and returns the range of numbers that are lost with it, empty if its
    /// first is above its last. `told` is the last number given and the last one acknowledged; where nothing tells them,
    /// all that was reserved may have been given.
    pub(super) fn cut_off(&mut self, told: Option<(u64, u64)>) -> (u64, u64) {
        let (last, acked_upto) = told.unwrap_or((self.reserved, 0));
        let last = last.clamp(self.appended, self.reserved.max(self.appended));
        let acked_upto = acked_upto.clamp(self.appended, last);
        if acked_upto > self.appended {
            self.acked += acked_upto - self.appended;
            self.acked_upto = acked_upto;
        }
        self.lost += last - acked_upto;
        (self.appended, self.reserved) = (last, 0);
        (acked_upto + 1, last)
    }

    fn add(&mut self, other: &Self) {
        self.appended += other.appended;
        self.windows += other.windows;
        self.acked += other.acked;
        self.evicted += other.evicted;
        self.lost += other.lost;
        self.windows_evicted += other.windows_evicted;
    }
}

/// The spool's books.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Number of the last session with the broker.
    pub epoch: u64,
    /// Bytes of the records on disk.
    pub bytes: u64,
    /// Times that a full disk kept records from being written, over the spool's life; they are tried again.
    pub disk_full: u64,
    /// Sums over the boots that are no longer listed.
    pub earlier: BootCounters,
    /// The latest boots, oldest first; the last one is running, or ran last.
    pub boots: Vec<BootCounters>,
}

impl Counters {
    /// The boot `id`, if it is listed.
    pub fn boot(&self, id: &BootId) -> Option<&BootCounters> {
        self.boots.iter().find(|boot| boot.boot == *id)
    }

    /// Sums over all boots.
    pub fn total(&self) -> BootCounters {
        let mut total = self.earlier.clone();
        self.boots.iter().for_each(|boot| total.add(boot));
        total
    }

    /// Moves finished boots into the sums while there are too many.
    pub(super) fn fold(&mut self) {
        while self.boots.len() > BOOTS_MAX {
            let Some(at) = self.boots[..self.boots.len() - 1].iter().position(|boot| boot.waiting() == 0)
            else {
                return;
            };
            let boot = self.boots.remove(at);
            self.earlier.add(&boot);
        }
    }
}

/// Writes the counters so that a reader sees the old or the new ones, never half. It is not synced on its own:
/// the database is the truth, and the next start writes this file from it.
pub(super) fn write(dir: &Path, counters: &Counters) -> std::io::Result<()> {
    let text = serde_json::to_vec_pretty(counters).map_err(std::io::Error::other)?;
    let scratch = dir.join("counters.new");
    let mut file = File::create(&scratch)?;
    file.write_all(&text)?;
    drop(file);
    std::fs::rename(scratch, dir.join(FILE))
}

/// The counters as last written.
pub(super) fn read(dir: &Path) -> Result<Counters, SpoolError> {
    let fail = |source| SpoolError::Folder { dir: dir.to_path_buf(), source };
    let text = std::fs::read(dir.join(FILE)).map_err(fail)?;
    serde_json::from_slice(&text).map_err(|e| fail(std::io::Error::other(e)))
}
