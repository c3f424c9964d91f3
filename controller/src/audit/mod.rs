//! Who changed what: append-only rows, each hashed together with the one before (SHA-256), so that a
//! changed, removed or reordered row shows. That rows are missing at the end shows by the [`Head`], which lies beside the
//! database, goes to the log with every row, and can be kept elsewhere.
use std::path::Path;
use std::sync::Arc;

use dunlin_protocol::Digest;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Sqlite, SqliteConnection, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};
use utoipa::ToSchema;

mod head;

use head::Keeper;
pub use head::{HEAD_FILE, Head, read as read_head};

use crate::clock;
use crate::identity::{Identity, IdentityError};
use crate::store::{self, Attempt, Store};

/// Names of the parts of the controller that act by themselves. No token is called so.
pub const ACTORS: [&str; 5] = ["planner", "trainer", "init", "dunlin key", "controller"];

/// What the first row's hash is chained to.
pub const GENESIS: Digest = Digest([0; 32]);

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Number, from 1 without holes.
    pub no: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Name of the token with its id, or of the part of the controller that acted.
    pub who: String,
    /// What was done, as `noun.verb`.
    pub what: String,
    /// The state before, JSON.
    pub before: String,
    /// The state after, JSON.
    pub after: String,
    /// Hash of this row and the hash before it.
    #[schema(value_type = String)]
    pub hash: Digest,
}

impl Entry {
    /// The hash this row must have after one with the hash `previous`. Every field is preceded by its length,
    /// so that no two rows read alike.
    pub fn chained(&self, previous: &Digest) -> Digest {
        let mut context = Context::new(&SHA256);
        context.update(b"dunlin-audit-v1\0");
        context.update(&previous.0);
        context.update(&self.no.to_be_bytes());
        context.update(&self.at_ms.to_be_bytes());
        for field in [&self.who, &self.what, &self.before, &self.after] {
            context.update(&(field.len() as u64).to_be_bytes());
            context.update(field.as_bytes());
        }
        Digest(context.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

/// Where the chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum Broken {
    /// Rows are missing at the end.
    #[error("the audit log ends at row {rows}, but its head names row {head}: rows were cut off")]
    Truncated {
        /// The last row.
        rows: u64,
        /// The row that the head names.
        head: u64,
    },
    /// The log is not the one the head was taken of.
    #[error("row {no} of the audit log is not the one that its head names: the log was written anew")]
    Replaced {
        /// The row that the head names.
        no: u64,
    },
    /// The head is not signed by this controller.
    #[error("the head of the audit log is not signed by this controller's key")]
    Forged,
    /// There is no head beside the log.
    #[error("the audit log has no head beside it ({HEAD_FILE}), so rows may have been cut off")]
    Headless,
    /// A number is missing or there twice.
    #[error("row {expected} of the audit log is missing (found {found})")]
    Missing {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A row is not what was written.
    #[error("row {no} of the audit log was changed, or the one before it was")]
    Changed {
        /// Its number.
        no: u64,
    },
}

/// Checks rows that follow a row with number `no` and hash `previous`; returns the last ones.
pub fn verify(entries: &[Entry], mut no: u64, mut previous: Digest) -> Result<(u64, Digest), Broken> {
    for entry in entries {
        if entry.no != no + 1 {
            return Err(Broken::Missing { expected: no + 1, found: entry.no });
        }
        if entry.chained(&previous) != entry.hash {
            return Err(Broken::Changed { no: entry.no });
        }
        (no, previous) = (entry.no, entry.hash);
    }
    Ok((no, previous))
}

/// The log, for those who write to it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    store: Store,
    keeper: Arc<Mutex<Keeper>>,
}

impl Audit {
    /// The log in `store`, with its head in the data folder `data`.
    ///
    /// # Errors
    /// The key that signs heads can not be read.
    pub fn open(store: Store, data: &Path, identity: &Identity) -> Result<Self, IdentityError> {
        Ok(Self { store, keeper: Arc::new(Mutex::new(Keeper::open(data, identity)?)) })
    }

    /// Begins a change that is committed together with its row.
    ///
    /// # Errors
    /// The database does not take one now.
    pub async fn begin(&self) -> store::Result<Change> {
        let keeper = Arc::clone(&self.keeper).lock_owned().await;
        Ok(Change { tx: self.store.begin().await?, keeper })
    }

    /// Appends a row of what is in no database, and moves the head. `before` and `after` hold what is needed to understand it, no
    /// secrets.
    pub async fn record(&self, who: &str, what: &str, before: Value, after: Value) -> store::Result<u64> {
        self.begin().await?.commit(who, what, before, after).await
    }

    /// The head as it is now, signed; none before the first row.
    pub async fn head(&self) -> store::Result<Option<Head>> {
        let keeper = self.keeper.lock().await;
        Ok(self.store.audit_last().await?.and_then(|entry| keeper.sign(&entry)))
    }

    /// Compares the log with the head that lies beside it. A head that does not fit is put aside, because the next
    /// row brings another one; a log without any gets one.
    pub async fn settle(&self) -> store::Result<Option<Broken>> {
        let keeper = self.keeper.lock().await;
        let last = self.store.audit_last().await?;
        let broken = match keeper.read() {
            Some(head) => self.store.audit_fits(&head).await?.err(),
            None => None,
        };
        if broken.is_some() {
            keeper.put_aside();
        }
        if let Some(entry) = &last {
            keeper.keep(entry);
        }
        Ok(broken)
    }
}

/// A change of the fleet and its row in the log, in one transaction: neither is there without the other. Dropped, it never
/// happened.
#[derive(Debug)]
pub struct Change {
    tx: Transaction<'static, Sqlite>,
    // Held over both, so that heads are written in the order of their rows.
    keeper: OwnedMutexGuard<Keeper>,
}

impl Change {
    /// Where the change is written. No other write gets through until it is committed or dropped.
    pub fn tx(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }

    /// Appends the row, commits both and moves the head; the row's number.
    ///
    /// # Errors
    /// The database does not take it; then nothing has changed.
    pub async fn commit(mut self, who: &str, what: &str, before: Value, after: Value) -> store::Result<u64> {
        let (before, after) = (before.to_string(), after.to_string());
        let entry = store::audit_append(&mut self.tx, clock::wall_ms(), who, what, &before, &after).await?;
        self.tx.commit().await.attempt("committing a change with its row of the audit log")?;
        tracing::info!(target: "audit", no = entry.no, hash = %entry.hash, who, what, "audit");
        self.keeper.keep(&entry);
        Ok(entry.no)
    }
}
