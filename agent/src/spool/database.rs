//! The spool's database file: how it is opened, and what its errors say.

use std::io::ErrorKind;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::SpoolError;
use super::books::{BOOKS, INDEX, RECORDS};
use super::counters::Counters;
use crate::damage;

/// Page cache of the database, bytes: the default would be a gigabyte.
const CACHE_BYTES: usize = 1 << 20;

/// Opens the file, or makes it, and reads its books.
pub(super) fn open(path: &Path) -> Result<(Database, Counters), redb::Error> {
    take_up(Database::builder().set_cache_size(CACHE_BYTES).create(path)?)
}

/// Reads the books of a database.
pub(super) fn take_up(db: Database) -> Result<(Database, Counters), redb::Error> {
    let txn = db.begin_write()?;
    txn.open_table(RECORDS)?;
    txn.open_table(INDEX)?;
    txn.open_table(BOOKS)?;
    txn.commit()?;
    let read = db.begin_read()?;
    let stored = read.open_table(BOOKS)?.get(0)?.map(|bytes| bytes.value().to_vec());
    let mut counters = match stored {
        Some(bytes) => serde_cbor::from_slice(&bytes).map_err(|e| redb::Error::Corrupted(e.to_string()))?,
        None => Counters::default(),
    };
    // Walking the index touches every page of it, so that damage shows at start rather than in service.
    counters.bytes = 0;
    for entry in read.open_table(INDEX)?.iter()? {
        counters.bytes += entry?.1.value();
    }
    Ok((db, counters))
}

/// Whether the file itself is at fault, or the medium below it, and not what is around it or another process.
pub(super) fn is_damage(error: &redb::Error) -> bool {
    let of_file = |io: &std::io::Error| {
        matches!(io.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) || damage::is_damage(io)
    };
    !matches!(error, redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo)
        && !matches!(error, redb::Error::Io(io) if !of_file(io))
}

/// A database error as the spool tells it: a full disk is told apart.
pub(super) fn failure(dir: &Path, error: redb::Error) -> SpoolError {
    if let redb::Error::Io(io) = &error
        && matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
    {
        return SpoolError::DiskFull(dir.to_path_buf());
    }
    SpoolError::Database { dir: dir.to_path_buf(), source: Box::new(error) }
}
