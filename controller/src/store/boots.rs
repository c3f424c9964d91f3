//! Boots of devices: which of their records are stored, and which session speaks.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use dunlin_protocol::{BootId, DeviceId, Status};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::alerts::raise;
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::ingest::{Record, Seen};

/// Bytes of stored ranges: 1024 ranges of two varints.
const AHEAD_BYTES_MAX: usize = 1024 * 20;
/// Missing ranges shown of one boot.
const MISSING_MAX: usize = 32;

/// How a boot's records stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootRow {
    /// The boot, hex.
    pub boot: String,
    /// Last record of the unbroken run.
    pub upto: u64,
    /// First record's arrival, Unix milliseconds.
    pub first_ms: u64,
    /// Last record's arrival, Unix milliseconds.
    pub last_ms: u64,
    /// Windows the agent says it closed.
    pub windows_closed: u64,
    /// Windows stored.
    pub windows_stored: u64,
    /// Records the agent declared lost.
    pub records_lost: u64,
    /// Ranges of numbers that are on their way still, or were kept from coming; inclusive, the first of them.
    #[serde(default)]
    pub missing: Vec<(u64, u64)>,
    /// Records that came again after they were stored: sent twice, or replayed by somebody. They change nothing.
    #[serde(default)]
    pub repeated: u64,
}

/// Records that a device declared lost: its bounds forced them out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GapRow {
    /// The boot, hex.
    pub boot: String,
    /// First number.
    pub first: u64,
    /// Last number.
    pub last: u64,
    /// When it said so, Unix milliseconds.
    pub received_ms: u64,
}

/// A boot while a batch of its records is stored.
pub(super) struct Boot {
    pub(super) no: i64,
    pub(super) seen: Seen,
    pub(super) closed: u64,
    pub(super) windows: u64,
    pub(super) lost: u64,
    pub(super) repeated: u64,
}

/// The boots of a batch.
pub(super) type Boots = BTreeMap<(DeviceId, BootId), Boot>;

/// The boot of a record, from the batch or from the table.
pub(super) async fn boot<'a>(
    tx: &mut SqliteConnection,
    boots: &'a mut Boots,
    device: &DeviceId,
    id: BootId,
    at_ms: u64,
) -> Result<&'a mut Boot> {
    match boots.entry((device.clone(), id)) {
        Entry::Occupied(entry) => Ok(entry.into_mut()),
        Entry::Vacant(entry) => {
            let row = sqlx::query(
                "INSERT INTO boots (device, boot, first_ms, last_ms) VALUES (?1, ?2, ?3, ?3) \
                 ON CONFLICT (device, boot) DO UPDATE SET last_ms = max(last_ms, excluded.last_ms) RETURNING no, upto, ahead",
            )
            .bind(device.as_str())
            .bind(id.0.to_vec())
            .bind(int(at_ms))
            .fetch_one(tx)
            .await
            .attempt("opening a boot")?;
            let ahead: Vec<u8> = row.try_get("ahead")?;
            let upto = uint(row.try_get("upto")?);
            // A damaged list of ranges costs a few repeats, which the unique index of windows catches.
            let seen = Seen::restore(upto, &ahead, AHEAD_BYTES_MAX).unwrap_or_else(|| {
                tracing::error!(%device, boot = %id, "the ranges of a boot are damaged and dropped");
                Seen::restore(upto, &[], 0).unwrap_or_default()
            });
            Ok(entry.insert(Boot {
                no: row.try_get("no")?,
                seen,
                closed: 0,
                windows: 0,
                lost: 0,
                repeated: 0,
            }))
        }
    }
}

/// Which records of a boot are stored.
pub(super) fn seen(row: &SqliteRow) -> Result<Seen> {
    let (no, upto, ahead): (i64, i64, Vec<u8>) =
        (row.try_get("no")?, row.try_get("upto")?, row.try_get("ahead")?);
    Seen::restore(uint(upto), &ahead, AHEAD_BYTES_MAX).ok_or_else(|| StoreError::Corrupt {
        table: "boots",
        row: no.to_string(),
        what: "the ranges of stored records".into(),
    })
}

impl Store {
    /// How the records of a device's boots stand, newest boot first.
    pub async fn boots(&self, device: &DeviceId, limit: u64) -> Result<Vec<BootRow>> {
        let rows = sqlx::query("SELECT * FROM boots WHERE device = ? ORDER BY no DESC LIMIT ?")
            .bind(device.as_str())
            .bind(int(limit))
            .fetch_all(self.readers())
            .await
            .attempt("reading the boots of a device")?;
        rows.iter()
            .map(|row| {
                let upto: i64 = row.try_get("upto")?;
                let seen = seen(row).unwrap_or_default();
                Ok(BootRow {
                    missing: seen.missing(MISSING_MAX),
                    repeated: uint(row.try_get("repeated")?),
                    boot: data_encoding::HEXLOWER.encode(row.try_get("boot")?),
                    upto: uint(upto),
                    first_ms: uint(row.try_get("first_ms")?),
                    last_ms: uint(row.try_get("last_ms")?),
                    windows_closed: uint(row.try_get("windows_closed")?),
                    windows_stored: uint(row.try_get("windows_stored")?),
                    records_lost: uint(row.try_get("records_lost")?),
                })
            })
            .collect()
    }

    /// Ranges that a device declared lost, newest first.
    pub async fn gaps(&self, device: &DeviceId, limit: u64) -> Result<Vec<GapRow>> {
        let rows = sqlx::query("SELECT * FROM gaps WHERE device = ? ORDER BY id DESC LIMIT ?")
            .bind(device.as_str())
            .bind(int(limit))
            .fetch_all(self.readers())
            .await
            .attempt("reading the gaps of a device")?;
        rows.iter()
            .map(|row| {
                Ok(GapRow {
                    boot: data_encoding::HEXLOWER.encode(row.try_get("boot")?),
                    first: uint(row.try_get("first_seq")?),
                    last: uint(row.try_get("last_seq")?),
                    received_ms: uint(row.try_get("received_ms")?),
                })
            })
            .collect()
    }
}

/// Writes what a batch added to its boots.
pub(super) async fn close_boots(tx: &mut SqliteConnection, boots: &Boots) -> Result<()> {
    for boot in boots.values() {
        sqlx::query(
            "UPDATE boots SET upto = ?, ahead = ?, windows_closed = max(windows_closed, ?), windows_stored = windows_stored + ?, \
             records_lost = records_lost + ?, repeated = repeated + ? WHERE no = ?",
        )
        .bind(int(boot.seen.upto()))
        .bind(boot.seen.ahead())
        .bind(int(boot.closed))
        .bind(int(boot.windows))
        .bind(int(boot.lost))
        .bind(int(boot.repeated))
        .bind(boot.no)
        .execute(&mut *tx)
        .await
        .attempt("noting which records are stored")?;
    }
    Ok(())
}

/// Notes a session's status. One of an older epoch is late and changes nothing, nor does one of a session that has
/// ended: a device that comes back brings a higher epoch. Returns whether something changed.
///
/// A boot's sessions have rising epochs, and a boot that another one followed never connects again. So a
/// session of a boot beside which a later one was seen means two devices with one key.
pub(super) async fn status_changed(
    tx: &mut SqliteConnection,
    record: &Record,
    status: &Status,
) -> Result<bool> {
    let (device, epoch, at_ms) = (record.device(), int(status.epoch), record.received_ms());
    if status.online {
        let mut boots = Boots::new();
        let no = boot(&mut *tx, &mut boots, device, record.boot(), at_ms).await?.no;
        let own: i64 =
            sqlx::query_scalar("SELECT epoch FROM boots WHERE no = ?").bind(no).fetch_one(&mut *tx).await?;
        // A new boot must be above all others; a known one that connects again must have had no successor.
        let bar = if own == 0 { epoch - 1 } else { own };
        let later: i64 =
            sqlx::query_scalar("SELECT count(*) FROM boots WHERE device = ? AND no <> ? AND epoch > ?")
                .bind(device.as_str())
                .bind(no)
                .bind(bar)
                .fetch_one(&mut *tx)
                .await?;
        if epoch > own {
            if later > 0 {
                let facts = serde_json::json!({ "boot": record.boot(), "epoch": status.epoch });
                let detail = format!(
                    "two agents hold the key of {device}, or its state was restored from a copy; revoke it and enrol it anew"
                );
                raise(&mut *tx, "cloned_identity", &format!("device:{device}"), &detail, &facts, at_ms)
                    .await?;
            }
            sqlx::query("UPDATE boots SET epoch = ? WHERE no = ?")
                .bind(epoch)
                .bind(no)
                .execute(&mut *tx)
                .await?;
        }
    }
    let done = sqlx::query("UPDATE devices SET online = ?1, epoch = ?2, agent = ?3 WHERE id = ?4 AND (epoch < ?2 OR (epoch = ?2 AND online AND NOT ?1))")
        .bind(status.online)
        .bind(epoch)
        .bind(&status.agent)
        .bind(device.as_str())
        .execute(&mut *tx)
        .await
        .attempt("noting the status of a device")?;
    Ok(done.rows_affected() > 0)
}
