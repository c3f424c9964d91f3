use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Ledger, Row, SkippedCount};
use crate::store::{Attempt, Result, Store, int, uint};

/// Rows read at a time: a few MiB of windows.
const CHUNK: u64 = 500;

impl Ledger {
    /// Folds all windows of the task that were stored since the last call; the first call goes as far back as the
    /// ledger keeps anything. Name the roster and the profiles before. Returns the number of rows.
    pub async fn read(&mut self, store: &Store, now_ms: u64) -> Result<u64> {
        let config = self.config();
        let quality_from = now_ms.saturating_sub(config.quality_ms.max(config.drift_memory_ms()));
        let pairs_from = now_ms.saturating_sub(self.config().pairs_ms);
        let mut count = 0;
        loop {
            let rows = sqlx::query(
                "SELECT id, device, received_ms, body FROM windows \
                 WHERE task = ?1 AND id > ?2 AND received_ms >= ?3 AND (received_ms >= ?4 OR probation = 1) \
                 ORDER BY id LIMIT ?5",
            )
            .bind(self.task().as_str())
            .bind(int(self.upto))
            .bind(int(pairs_from))
            .bind(int(quality_from))
            .bind(int(CHUNK))
            .fetch_all(store.readers())
            .await
            .attempt("reading the windows of a task")?;
            for row in &rows {
                self.fold_stored(row)?;
            }
            count += rows.len() as u64;
            if (rows.len() as u64) < CHUNK {
                break;
            }
        }
        self.advance(now_ms);
        Ok(count)
    }

    fn fold_stored(&mut self, row: &SqliteRow) -> Result<()> {
        let id = uint(row.try_get("id")?);
        let device: String = row.try_get("device")?;
        let Ok(device) = device.parse() else {
            // No device has such a name, so there is nothing to count it under.
            tracing::error!(row = id, "the device of a stored window is not an id; the row is skipped");
            self.upto = id;
            return Ok(());
        };
        let before = self.skipped_rows(&device);
        let row =
            Row { id, device, received_ms: uint(row.try_get("received_ms")?), body: row.try_get("body")? };
        self.fold(&row);
        if self.skipped_rows(&row.device) > before {
            let cause = self.skipped().get(&row.device).map_or("", |skipped| &skipped.last_cause);
            tracing::error!(row = id, device = %row.device, cause, "a stored window is skipped");
        }
        Ok(())
    }

    fn skipped_rows(&self, device: &dunlin_protocol::DeviceId) -> u64 {
        self.skipped().get(device).map_or(0, |SkippedCount { rows, .. }| *rows)
    }
}
