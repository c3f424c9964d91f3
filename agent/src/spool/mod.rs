//! The durable spool: every record stays on disk until the controller says that its database holds it.
//!
//! A record is numbered within one start of the agent (a *boot*), from 1 and without holes; numbers are given
//! inside the transaction that makes the record durable, so a crash can neither lose one that was given nor
//! give it twice. Where the byte bound forces records out, the lowest value goes first (samples, then windows,
//! then reports), oldest first, and what went is itself recorded as a [`dunlin_protocol::Gap`], so that the
//! controller can tell loss from lateness. A damaged database is set aside and declared as gaps from the
//! counters that lie beside it.
//!
//! A report that tells nothing new need not be durable at once: it waits in memory, numbered and sent as any other, for a
//! commit that others need, for the orderly end, or for a quarter of an hour; see [`Spool::append_quiet`].
//!
//! It deliberately knows nothing of links or signatures: an envelope is made when a record is sent.

mod books;
mod counters;
mod database;
mod evict;
mod hold;
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use dunlin_protocol::{AckRange, BootId, Kind, PAYLOAD_BYTES_MAX};
use ring::rand::{SecureRandom, SystemRandom};

pub use counters::{BootCounters, Counters};
use hold::Note;
use store::Store;

/// Room for header and signature round a body within one payload.
const ENVELOPE_BYTES: usize = 1024;
/// Largest body of a record, bytes; a larger one could never be sent.
pub const BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - ENVELOPE_BYTES;

/// One record that waits for the controller's acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Place in the order of sending.
    pub key: Key,
    /// The boot that made it.
    pub boot: BootId,
    /// What its body is.
    pub kind: Kind,
    /// The message, CBOR.
    pub body: Vec<u8>,
}

/// Place of a record: boots in the order they happened, then the number within the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Key {
    /// Counts the boots.
    pub ordinal: u64,
    /// Number within the boot, from 1.
    pub seq: u64,
}

/// Why a record could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk is full: the record is not kept.
    #[error("no space left for the spool in {0}")]
    DiskFull(PathBuf),
    /// The record could never be sent.
    #[error("a record of {0} bytes is over the limit of {BODY_BYTES_MAX}")]
    TooLarge(usize),
    /// The database failed.
    #[error("the spool in {dir} failed")]
    Database {
        /// The spool's folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// The folder or its counters could not be read or written.
    #[error("could not access the spool's folder {dir}")]
    Folder {
        /// The spool's folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl SpoolError {
    /// Whether another process has the spool open.
    pub fn is_held(&self) -> bool {
        match self {
            Self::Database { source, .. } => matches!(**source, redb::Error::DatabaseAlreadyOpen),
            Self::DiskFull(_) | Self::TooLarge(_) | Self::Folder { .. } => false,
        }
    }
}

/// How the spool was found at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// New or whole.
    Sound,
    /// Damaged: the old database lies there, and the spool began empty.
    Damaged(PathBuf),
}

/// The spool of one running agent. All its methods block on the disk.
#[derive(Debug)]
pub struct Spool {
    boot: BootId,
    found: Found,
    store: Mutex<Store>,
}

/// 128 random bits, drawn at each start.
pub fn draw_boot() -> BootId {
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).expect("the operating system has randomness after boot");
    BootId(id)
}

impl Spool {
    /// Opens or makes the spool in `dir` for a new boot; records take at most `bytes_max` bytes. `note` is a file for the
    /// numbers given to what waits in memory, best where files outlive a process and not the board's boot; without it a
    /// boot that was cut off is taken to have given all the numbers that it could.
    pub fn open(dir: &Path, note: Option<PathBuf>, bytes_max: u64, boot: BootId) -> Result<Self, SpoolError> {
        let (store, found) = Store::open(dir, bytes_max, boot, Note(note))?;
        Ok(Self { boot, found, store: Mutex::new(store) })
    }

    /// This start of the agent.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// How the spool was found.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Keeps one record; see [`Self::append_all`].
    pub fn append(&self, kind: Kind, body: Vec<u8>) -> Result<u64, SpoolError> {
        self.append_all(&[(kind, body)]).map(|range| range.0)
    }

    /// Keeps records in one durable commit and returns the first and last of their numbers. When it returns an
    /// error, none of them was kept and no number was given.
    pub fn append_all(&self, records: &[(Kind, Vec<u8>)]) -> Result<(u64, u64), SpoolError> {
        if let Some((_, body)) = records.iter().find(|(_, body)| body.len() > BODY_BYTES_MAX) {
            return Err(SpoolError::TooLarge(body.len()));
        }
        self.lock().append(records)
    }

    /// Keeps a report that tells nothing new and returns its number. It may wait in memory until the next one is due,
    /// at `next_ms` of the clock that reads `now_ms`: at most a few do, and none for longer than a quarter of an hour.
    /// What waits is lost if the process is killed, and the next start declares it as a gap.
    pub fn append_quiet(&self, body: Vec<u8>, now_ms: u64, next_ms: u64) -> Result<u64, SpoolError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(SpoolError::TooLarge(body.len()));
        }
        self.lock().append_quiet(body, now_ms, next_ms)
    }

    /// Commits what waits in memory, at an orderly end.
    pub fn close(&self) -> Result<(), SpoolError> {
        self.lock().close()
    }

    /// Unacknowledged records above `after`, oldest first: at most `count_max` of them, and no more than the
    /// first beyond `bytes_max`. `None` begins at the oldest.
    pub fn pending(
        &self,
        after: Option<Key>,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, SpoolError> {
        self.lock().pending(after, count_max, bytes_max)
    }

    /// Unacknowledged gap records. They are sent before all others: the controller's acknowledgement of a boot
    /// can not pass a hole until it was told of it.
    pub fn pending_gaps(&self) -> Result<Vec<Record>, SpoolError> {
        self.lock().pending_gaps()
    }

    /// Forgets what the controller holds. Returns how many records went; a boot that is not ours changes nothing.
    pub fn acknowledge(&self, range: &AckRange) -> Result<u64, SpoolError> {
        self.lock().acknowledge(range)
    }

    /// Gives a record up that can not be sent: a gap speaks of it from now on. One that is gone changes nothing.
    pub fn give_up(&self, key: Key) -> Result<(), SpoolError> {
        self.lock().give_up(key)
    }

    /// The next session epoch, durable before it is returned.
    pub fn next_epoch(&self) -> Result<u64, SpoolError> {
        self.lock().next_epoch()
    }

    /// Everything counted.
    pub fn counters(&self) -> Counters {
        self.lock().counters()
    }

    /// The counters in `dir` as last written, also while another process holds the spool.
    pub fn read_counters(dir: &Path) -> Result<Counters, SpoolError> {
        counters::read(dir)
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
