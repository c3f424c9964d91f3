//! Messages that were not taken, counted by device and cause.
use std::collections::BTreeMap;

use dunlin_protocol::DeviceId;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use utoipa::ToSchema;

use super::{Attempt, Result, Store, int, uint};
use crate::ingest::Refused;

/// Messages that were not stored, by cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedRow {
    /// Device of the topic; empty if it is not one of the fleet.
    pub device: String,
    /// Reason code.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// The last one, Unix milliseconds.
    pub last_ms: u64,
    /// What was wrong with the last one.
    pub detail: String,
}

impl Store {
    /// Counts messages that were not taken.
    pub async fn count_refused(
        &self,
        refused: &BTreeMap<(String, &'static str), (u64, Refused)>,
        now_ms: u64,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        for ((device, reason), (count, last)) in refused {
            sqlx::query(
                "INSERT INTO refused (device, reason, count, last_ms, detail) VALUES (?, ?, ?, ?, ?) \
                 ON CONFLICT (device, reason) DO UPDATE SET count = count + excluded.count, last_ms = excluded.last_ms, detail = excluded.detail",
            )
            .bind(device)
            .bind(*reason)
            .bind(int(*count))
            .bind(int(now_ms))
            .bind(&last.detail)
            .execute(&mut *tx)
            .await
            .attempt("counting refused messages")?;
        }
        tx.commit().await.attempt("committing counts of refused messages")
    }

    /// Messages that were not taken, by device and cause; of one device or of all.
    pub async fn refused(&self, device: Option<&DeviceId>) -> Result<Vec<RefusedRow>> {
        let rows =
            sqlx::query("SELECT * FROM refused WHERE ?1 IS NULL OR device = ?1 ORDER BY device, reason")
                .bind(device.map(DeviceId::as_str))
                .fetch_all(self.readers())
                .await
                .attempt("reading refused messages")?;
        rows.iter()
            .map(|row| {
                Ok(RefusedRow {
                    device: row.try_get("device")?,
                    reason: row.try_get("reason")?,
                    count: uint(row.try_get("count")?),
                    last_ms: uint(row.try_get("last_ms")?),
                    detail: row.try_get("detail")?,
                })
            })
            .collect()
    }
}
