use dunlin_protocol::Digest;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::audit::{self, Entry, Head};

/// Rows checked at a time: bounds memory, whatever the log's length.
const VERIFY_CHUNK: u64 = 10_000;

fn entry(row: &SqliteRow) -> Result<Entry> {
    let no = uint(row.try_get("no")?);
    let hash: Vec<u8> = row.try_get("hash")?;
    let hash = hash.try_into().map(Digest);
    let hash = hash.map_err(|_| StoreError::Corrupt {
        table: "audit",
        row: no.to_string(),
        what: "its hash is not 32 bytes".into(),
    })?;
    Ok(Entry {
        no,
        at_ms: uint(row.try_get("at_ms")?),
        who: row.try_get("who")?,
        what: row.try_get("what")?,
        before: row.try_get("before")?,
        after: row.try_get("after")?,
        hash,
    })
}

impl Store {
    /// The last row.
    pub async fn audit_last(&self) -> Result<Option<Entry>> {
        let row = sqlx::query("SELECT * FROM audit ORDER BY no DESC LIMIT 1")
            .fetch_optional(self.readers())
            .await
            .attempt("reading the last row of the audit log")?;
        row.as_ref().map(entry).transpose()
    }

    /// Whether the log holds the row that a head names.
    pub async fn audit_fits(&self, head: &Head) -> Result<std::result::Result<(), audit::Broken>> {
        let found = self.audit_entries(head.no.saturating_sub(1), 1).await?;
        Ok(match found.first() {
            Some(entry) if entry.no == head.no && entry.hash == head.hash => Ok(()),
            Some(_) => Err(audit::Broken::Replaced { no: head.no }),
            None => {
                let rows = self.audit_last().await?.map_or(0, |last| last.no);
                Err(audit::Broken::Truncated { rows, head: head.no })
            }
        })
    }

    /// Rows after number `after`, oldest first.
    pub async fn audit_entries(&self, after: u64, limit: u64) -> Result<Vec<Entry>> {
        let rows = sqlx::query("SELECT * FROM audit WHERE no > ? ORDER BY no LIMIT ?")
            .bind(int(after))
            .bind(int(limit))
            .fetch_all(self.readers())
            .await
            .attempt("reading the audit log")?;
        rows.iter().map(entry).collect()
    }

    /// Checks the whole chain; the number of rows and the last hash, or where it breaks.
    pub async fn audit_verify(&self) -> Result<std::result::Result<(u64, Digest), audit::Broken>> {
        let (mut no, mut hash) = (0, audit::GENESIS);
        loop {
            let entries = self.audit_entries(no, VERIFY_CHUNK).await?;
            if entries.is_empty() {
                return Ok(Ok((no, hash)));
            }
            match audit::verify(&entries, no, hash) {
                Ok(last) => (no, hash) = last,
                Err(broken) => return Ok(Err(broken)),
            }
        }
    }
}

/// Appends a row to the audit log and returns it.
pub(crate) async fn audit_append(
    tx: &mut SqliteConnection,
    at_ms: u64,
    who: &str,
    what: &str,
    before: &str,
    after: &str,
) -> Result<Entry> {
    let last = sqlx::query("SELECT * FROM audit ORDER BY no DESC LIMIT 1").fetch_optional(&mut *tx).await?;
    let (no, previous) = match last.as_ref().map(entry).transpose()? {
        Some(last) => (last.no, last.hash),
        None => (0, audit::GENESIS),
    };
    let mut row = Entry {
        no: no + 1,
        at_ms,
        who: who.into(),
        what: what.into(),
        before: before.into(),
        after: after.into(),
        hash: audit::GENESIS,
    };
    row.hash = row.chained(&previous);
    sqlx::query("INSERT INTO audit (no, at_ms, who, what, before, after, hash) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(int(row.no))
        .bind(int(at_ms))
        .bind(who)
        .bind(what)
        .bind(before)
        .bind(after)
        .bind(row.hash.0.as_slice())
        .execute(tx)
        .await
        .attempt("appending to the audit log")?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Broken;
    use crate::store::test_store;

    async fn three_rows() -> (tempfile::TempDir, Store) {
        let (dir, store) = test_store().await;
        for after in ["1", "2", "3"] {
            let mut tx = store.begin().await.unwrap();
            audit_append(&mut tx, 7, "alice", "thing.set", "null", after).await.unwrap();
            tx.commit().await.unwrap();
        }
        (dir, store)
    }

    async fn tamper(store: &Store, sql: &'static str) {
        for statement in ["DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete", sql] {
            sqlx::query(statement).execute(store.writer()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_untouched_log_verifies() {
        let (_dir, store) = three_rows().await;
        assert_eq!(store.audit_verify().await.unwrap().unwrap().0, 3);
    }

    #[tokio::test]
    async fn rows_can_not_be_changed_by_plain_statements() {
        let (_dir, store) = three_rows().await;
        assert!(sqlx::query("UPDATE audit SET who = 'bob'").execute(store.writer()).await.is_err());
        assert!(sqlx::query("DELETE FROM audit").execute(store.writer()).await.is_err());
    }

    #[tokio::test]
    async fn a_changed_row_shows() {
        let (_dir, store) = three_rows().await;
        tamper(&store, "UPDATE audit SET after = '9' WHERE no = 2").await;
        assert_eq!(store.audit_verify().await.unwrap(), Err(Broken::Changed { no: 2 }));
    }

    #[tokio::test]
    async fn a_removed_row_shows() {
        let (_dir, store) = three_rows().await;
        tamper(&store, "DELETE FROM audit WHERE no = 2").await;
        assert_eq!(store.audit_verify().await.unwrap(), Err(Broken::Missing { expected: 2, found: 3 }));
    }
}
