//! The controller's database: SQLite with one writer connection and a pool of readers.
//!
//! Each noun has its file with an `impl Store`. Queries are plain text, checked by tests against the
//! migrations in `controller/migrations`, which are part of the binary.
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Connection, Sqlite, Transaction};

mod admissions;
mod alerts;
mod assignments;
mod audit;
mod boots;
mod certificates;
mod claims;
mod commands;
mod devices;
mod health;
mod programs;
mod refused;
mod registry;
mod reports;
mod retention;
mod rollouts;
mod row;
mod runs;
mod samples;
mod tasks;
mod telemetry;
mod tokens;

pub use admissions::{Admission, AdmissionState, Batch, Expected, Verdict};
pub use alerts::Alert;
pub(crate) use audit::audit_append;
pub use boots::{BootRow, GapRow};
pub use certificates::CertificateRow;
pub use claims::Claim;
pub use commands::PendingCommand;
pub use devices::{DeviceRow, DeviceState, NewDevice, key_id, phase_of, phase_text};
pub use health::{Damage, NAMED_MAX};
pub use programs::{ProgramOrder, ProgramRow};
pub use refused::RefusedRow;
pub use registry::{Followed, Listed, PolicyRow, ReleaseRow, ReleaseState};
pub use reports::Happening;
pub use row::Read;
pub use samples::SampleRow;
pub use telemetry::{Stored, WindowRow};
pub use tokens::TokenRow;

/// Parallel readers. Reads are short; four of them saturate the cores of the machines this runs on.
const READERS: u32 = 4;
/// How long a statement waits for another process that holds the file, before it fails.
const BUSY: Duration = Duration::from_secs(10);
/// Rows hold whole windows of some KiB; larger pages keep them out of overflow chains.
const PAGE_BYTES: u32 = 16 * 1024;
/// Cached pages, as SQLite counts a negative `cache_size`: KiB.
const CACHE_KIB: &str = "-32768";
/// Pages of write-ahead log after which it is folded back; larger means fewer syncs under load, 64 MiB here.
const CHECKPOINT_PAGES: &str = "4096";

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or failed.
    #[error("database: {attempted}")]
    Sql {
        /// What was attempted.
        attempted: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("could not bring the database schema up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A row holds what this build can not read.
    #[error("row {row} of {table} is damaged ({what}); run `dunlin doctor`")]
    Corrupt {
        /// Table.
        table: &'static str,
        /// Its key, as text.
        row: String,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing has this key.
    #[error("there is no {what} {key:?}")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// Its key.
        key: String,
    },
    /// It is there already, or not in a state that allows the change.
    #[error("{0}")]
    Conflict(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(source: sqlx::Error) -> Self {
        Self::Sql { attempted: "a statement failed", source }
    }
}

/// Short form for the results of this module.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Names what was attempted when a statement fails.
pub trait Attempt<T> {
    /// Turns a database error into one that says what it was about.
    fn attempt(self, attempted: &'static str) -> Result<T>;
}

impl<T> Attempt<T> for std::result::Result<T, sqlx::Error> {
    fn attempt(self, attempted: &'static str) -> Result<T> {
        self.map_err(|source| StoreError::Sql { attempted, source })
    }
}

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens the file, makes it if need be, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(PAGE_BYTES)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY)
            .pragma("cache_size", CACHE_KIB)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            // A commit that found no room leaves a transaction that ended for SQLite and not for the client, which would
            // never begin another one.
            .before_acquire(|connection, _| {
                Box::pin(async move { Ok(!Connection::is_in_transaction(connection)) })
            })
            // Only here: SQLite takes this setting for a write, which readers may not do.
            .connect_with(options.clone().auto_vacuum(SqliteAutoVacuum::Incremental))
            .await
            .attempt("opening the database file")?;
        sqlx::migrate!("./migrations").run(&writer).await.map_err(StoreError::Migrate)?;
        // None of the settings above: a connection that only reads can not make them, and need not.
        let reading = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(BUSY)
            .pragma("cache_size", CACHE_KIB);
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(reading)
            .await
            .attempt("opening the database file for reading")?;
        Ok(Self { writer, readers })
    }

    /// The one connection that writes; a pool of size one, so that it also queues.
    pub fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    /// Connections that only read.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// A write transaction. It rolls back when dropped; the writer is busy until then, so nothing slow is
    /// awaited inside it.
    pub async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.attempt("beginning a write transaction")
    }

    /// Closes all connections; what was committed is on disk already.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// SQLite integers are signed; counts and times of ours stay far below the edge, hostile ones are cut to it.
pub fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The other way; a negative number in the database reads as zero.
pub fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
pub(crate) async fn test_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let store = Store::open(&dir.path().join("dunlin.db")).await.expect("a new database opens");
    (dir, store)
}
