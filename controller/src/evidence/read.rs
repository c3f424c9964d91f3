use dunlin_monitor::rate::Rate;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Ledger, Row, SkippedCount};
use crate::store::{Attempt, Result, Store, int, uint};

/// Rows read at a time: a few MiB of windows.
const CHUNK: u64 = 500;
/// Rows from before the time that quality is kept for that are looked at for labels: less than a second.
const EARLIER_ROWS_MAX: u64 = 200_000;

impl Ledger {
    /// Folds all windows of the task that were stored since the last call; the first call goes as far back as the
    /// ledger keeps anything. Name the roster and the profiles before. Returns the number of rows.
    pub async fn read(&mut self, store: &Store, now_ms: u64) -> Result<u64> {
        let config = self.config();
        let quality_from = now_ms.saturating_sub(config.quality_ms.max(config.drift_memory_ms()));
        let pairs_from = now_ms.saturating_sub(self.config().pairs_ms);
        if self.upto == 0 {
            self.read_earlier(store, pairs_from, quality_from).await?;
        }
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

    /// Sums the labels of the last rows of a time, without those that are folded for their pairs.
    async fn read_earlier(&mut self, store: &Store, from_ms: u64, to_ms: u64) -> Result<()> {
        let rows = sqlx::query(
            "SELECT device, release, sum(labelled) AS labelled, sum(correct) AS correct FROM ( \
                 SELECT device, release, labelled, correct FROM windows \
                 WHERE task = ?1 AND received_ms >= ?2 AND received_ms < ?3 AND probation = 0 \
                 ORDER BY received_ms DESC LIMIT ?4) \
             WHERE labelled > 0 AND release IS NOT NULL GROUP BY device, release",
        )
        .bind(self.task().as_str())
        .bind(int(from_ms))
        .bind(int(to_ms))
        .bind(int(EARLIER_ROWS_MAX))
        .fetch_all(store.readers())
        .await
        .attempt("summing the earlier labels of a task")?;
        for row in &rows {
            let (device, release): (String, String) = (row.try_get("device")?, row.try_get("release")?);
            // Damaged rows are named by who examines the tables.
            if let (Ok(device), Ok(release)) = (device.parse(), release.parse()) {
                let labels = Rate::new(uint(row.try_get("correct")?), uint(row.try_get("labelled")?));
                self.earlier.insert((device, release), labels);
            }
        }
        Ok(())
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
