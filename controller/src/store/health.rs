use sqlx::Row;

use super::{Attempt, Result, Store, StoreError};

/// Damaged rows named by a report; more than this is a broken file, not some broken rows.
const NAMED_MAX: usize = 20;

impl Store {
    /// SQLite's own check of the file.
    pub async fn integrity(&self) -> Result<String> {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(self.readers())
            .await
            .attempt("checking the database file")?;
        if verdict == "ok" {
            return Ok("the file is whole".into());
        }
        Err(StoreError::Corrupt { table: "the database", row: String::new(), what: verdict })
    }

    /// Devices, tokens and claims that this build can not read.
    pub async fn damaged(&self) -> Result<Vec<String>> {
        let mut damaged = Vec::new();
        let rows = sqlx::query("SELECT id FROM devices ORDER BY id")
            .fetch_all(self.readers())
            .await
            .attempt("listing devices")?;
        for row in rows {
            let id: String = row.try_get("id")?;
            let read = match id.parse() {
                Ok(id) => self.device(&id).await.map(|_| ()),
                Err(error) => {
                    Err(StoreError::Corrupt { table: "devices", row: id, what: format!("{error}") })
                }
            };
            damaged.extend(read.err().map(|error| error.to_string()));
            if damaged.len() >= NAMED_MAX {
                break;
            }
        }
        damaged.extend(self.tokens().await.err().map(|error| error.to_string()));
        damaged.extend(self.claims().await.err().map(|error| error.to_string()));
        damaged.extend(self.batches().await.err().map(|error| error.to_string()));
        damaged.extend(self.admissions(true).await.err().map(|error| error.to_string()));
        Ok(damaged)
    }
}
