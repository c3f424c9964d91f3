//! Who changed what: append-only rows, each hashed together with the one before (SHA-256), so that a
//! changed, removed or reordered row shows.
use dunlin_protocol::Digest;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::clock;
use crate::store::{self, Store};

/// What the first row's hash is chained to.
pub const GENESIS: Digest = Digest([0; 32]);

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Number, from 1 without holes.
    pub no: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Name of the token, or of the part of the controller that acted.
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

/// The log, for those who write to it.
#[derive(Debug, Clone)]
pub struct Audit {
    store: Store,
}

impl Audit {
    /// The log in `store`.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Appends a row. `before` and `after` hold what is needed to understand the change, no secrets.
    pub async fn record(&self, who: &str, what: &str, before: Value, after: Value) -> store::Result<u64> {
        self.store.audit_append(clock::wall_ms(), who, what, &before.to_string(), &after.to_string()).await
    }
}
