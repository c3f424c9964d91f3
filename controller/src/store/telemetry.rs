//! Records as they arrive: each stored once, and the windows read back.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{AckRange, BootId, DeviceId, Report, TaskId, Window};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, SqliteConnection};

use super::boots::{Boots, boot, close_boots, status_changed};
use super::commands::store_reply;
use super::reports::{Order, compare_windows, same_window, store_report};
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::ingest::record::Body;
use crate::ingest::{Record, TooManyHoles};

/// Rows of one INSERT: SQLite takes 32,766 parameters in a statement, a window has 16.
const ROWS_MAX: usize = 1000;

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Stored {
    /// What to acknowledge, by device.
    pub acks: BTreeMap<DeviceId, Vec<AckRange>>,
    /// Records stored by kind.
    pub stored: BTreeMap<&'static str, u64>,
    /// Records that were stored before.
    pub duplicates: u64,
    /// Records that could not be taken now and will be sent again.
    pub put_off: u64,
    /// Whether something a plan depends on has changed: outcomes, profiles, presence.
    pub news: bool,
    /// Devices with a session that was not known.
    pub returned: BTreeSet<DeviceId>,
    /// Tasks that got labels or samples.
    pub sampled: BTreeSet<TaskId>,
}

/// A window as it is stored.
#[derive(Debug, Clone)]
pub struct WindowRow {
    /// Row number; rises with arrival.
    pub id: u64,
    /// The device.
    pub device: DeviceId,
    /// When it arrived, Unix milliseconds.
    pub received_ms: u64,
    /// What the device said.
    pub window: Window,
}

impl Store {
    /// Stores records, all or none, each once by (device, boot, number). What is in the result's `acks` is
    /// durable when this returns.
    pub async fn store_records(&self, records: &[Record]) -> Result<Stored> {
        let mut out = Stored::default();
        let mut boots = Boots::new();
        let mut windows: Vec<(i64, &Record, &Window, &[u8])> = Vec::with_capacity(records.len());
        let mut heard: BTreeMap<&DeviceId, u64> = BTreeMap::new();
        let mut digests: Vec<(i64, &Record, &Report)> = Vec::new();
        let mut tx = self.begin().await?;
        for record in records {
            let (device, at_ms) = (record.device(), record.received_ms());
            if let Body::Status(status) = &record.body {
                let changed = status_changed(&mut tx, record, status).await?;
                out.news |= changed;
                // A will comes from the broker.
                if changed && status.online {
                    hear(&mut heard, record);
                    out.returned.insert(device.clone());
                }
                *out.stored.entry(record.kind()).or_default() += 1;
                continue;
            }
            let home = boot(&mut tx, &mut boots, device, record.boot(), at_ms).await?;
            if home.seen.contains(record.seq()) && !weaken::off(Defence::Once) {
                out.duplicates += 1;
                home.repeated += 1;
                if let Body::Window(_, bytes) = &record.body {
                    same_window(&mut tx, home.no, record, bytes).await?;
                }
                continue;
            }
            if home.seen.insert(record.seq(), record.seq()).is_err() {
                out.put_off += 1;
                continue;
            }
            hear(&mut heard, record);
            match &record.body {
                Body::Window(window, bytes) => {
                    home.windows += 1;
                    windows.push((home.no, record, window, bytes));
                    if labels(window).0 > 0 {
                        out.sampled.insert(window.task.clone());
                    }
                }
                Body::Report(report) => {
                    home.closed = home.closed.max(report.windows_closed);
                    let order = Order { boot: home.no, is_last: home.seen.is_last(record.seq()) };
                    store_report(&mut tx, record, report, order).await?;
                    digests.push((home.no, record, report));
                    out.news = true;
                }
                Body::Samples(samples) => {
                    self.insert_samples(&mut tx, device, samples, at_ms).await?;
                    out.sampled.insert(samples.task.clone());
                }
                Body::Gap(gap) => {
                    let home = boot(&mut tx, &mut boots, device, gap.boot, at_ms).await?;
                    let mut lost = Vec::with_capacity(gap.ranges.len());
                    for &(first, last) in &gap.ranges {
                        let first = first.max(1);
                        let unseen = home.seen.unseen(first, last);
                        match home.seen.insert(first, last) {
                            // A device that was cut off declares what it may have sent; what came is not lost.
                            Ok(fresh) => {
                                home.lost = home.lost.saturating_add(fresh);
                                lost.extend(unseen);
                            }
                            // A range of an honest agent never overflows the list; what does not fit stays a hole.
                            Err(TooManyHoles) => lost.push((first, last)),
                        }
                    }
                    insert_gap(&mut tx, record, gap.boot, &lost).await?;
                }
                Body::Reply(reply) => store_reply(&mut tx, device, reply, at_ms).await?,
                // Counted where it was refused.
                Body::Refused(_) => continue,
                Body::Status(_) => unreachable!("statuses were dealt with above"),
            }
            *out.stored.entry(record.kind()).or_default() += 1;
        }
        insert_windows(&mut tx, &windows).await?;
        close_boots(&mut tx, &boots).await?;
        for (boot, record, report) in digests {
            compare_windows(&mut tx, boot, record, report).await?;
        }
        touch(&mut tx, &heard).await?;
        tx.commit().await.attempt("committing a batch of records")?;
        for ((device, id), boot) in boots {
            out.acks.entry(device).or_default().push(AckRange { boot: id, upto: boot.seen.upto() });
        }
        Ok(out)
    }

    /// Windows that arrived after row `after`, of one task, oldest first. Rows that can not be decoded are
    /// logged and left out.
    pub async fn windows(
        &self,
        task: &TaskId,
        since_ms: u64,
        after: u64,
        limit: u64,
    ) -> Result<Vec<WindowRow>> {
        let rows = sqlx::query(
            "SELECT id, device, received_ms, body FROM windows WHERE task = ? AND received_ms >= ? AND id > ? ORDER BY received_ms, id LIMIT ?",
        )
        .bind(task.as_str())
        .bind(int(since_ms))
        .bind(int(after))
        .bind(int(limit))
        .fetch_all(self.readers())
        .await
        .attempt("reading windows")?;
        let mut windows = Vec::with_capacity(rows.len());
        for row in &rows {
            match window(row) {
                Ok(window) => windows.push(window),
                Err(error) => tracing::error!(%error, "a window is left out"),
            }
        }
        Ok(windows)
    }

    /// Number of windows stored, of one device or of all.
    pub async fn windows_count(&self, device: Option<&DeviceId>) -> Result<u64> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM windows WHERE ?1 IS NULL OR device = ?1")
            .bind(device.map(DeviceId::as_str))
            .fetch_one(self.readers())
            .await
            .attempt("counting windows")?;
        Ok(uint(count))
    }
}

pub(super) fn window(row: &SqliteRow) -> Result<WindowRow> {
    let id: i64 = row.try_get("id")?;
    let bad = |what: String| StoreError::Corrupt { table: "windows", row: id.to_string(), what };
    let device: String = row.try_get("device")?;
    Ok(WindowRow {
        id: uint(id),
        device: device.parse().map_err(|error| bad(format!("{error}")))?,
        received_ms: uint(row.try_get("received_ms")?),
        window: dunlin_protocol::cbor::decode(row.try_get("body")?, dunlin_protocol::PAYLOAD_BYTES_MAX)
            .map_err(|error| bad(error.to_string()))?,
    })
}

/// Labelled inputs of a window, and how many of them were answered right.
fn labels(window: &Window) -> (u64, u64) {
    let classes = window.confusion.classes as usize;
    let Some(counts) = classes.checked_mul(classes).and_then(|cells| window.confusion.counts.unpack(cells))
    else {
        return (0, 0);
    };
    let total = counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
    let right = counts.iter().step_by(classes + 1).fold(0u64, |sum, count| sum.saturating_add(*count));
    (total, right)
}

/// The number a window is kept under, which no two of its boot share.
fn number(record: &Record) -> u64 {
    if weaken::off(Defence::Once) {
        // By its arrival, so that the table takes the same window again.
        return record.received_ms().saturating_mul(1_000_000).saturating_add(record.seq());
    }
    record.seq()
}

async fn insert_windows(tx: &mut SqliteConnection, windows: &[(i64, &Record, &Window, &[u8])]) -> Result<()> {
    for chunk in windows.chunks(ROWS_MAX) {
        QueryBuilder::new(
            "INSERT OR IGNORE INTO windows (boot_no, seq, device, task, release, generation, start_ms, end_ms, wall, received_ms, probation, \
             n, errors, labelled, correct, body) ",
        )
        .push_values(chunk, |mut row, (boot_no, record, window, bytes)| {
            let (labelled, correct) = labels(window);
            row.push_bind(boot_no)
                .push_bind(int(number(record)))
                .push_bind(record.device().as_str())
                .push_bind(window.task.as_str())
                .push_bind(window.release.as_ref().map(ToString::to_string))
                .push_bind(int(window.generation))
                .push_bind(int(window.start_ms))
                .push_bind(int(window.end_ms))
                .push_bind(window.wall)
                .push_bind(int(record.received_ms()))
                .push_bind(window.probation)
                .push_bind(int(window.n))
                .push_bind(int(window.errors))
                .push_bind(int(labelled))
                .push_bind(int(correct))
                .push_bind(*bytes);
        })
        .build()
        .execute(&mut *tx)
        .await
        .attempt("storing windows")?;
    }
    Ok(())
}

/// Notes what was lost of a boot: no more ranges than a record and the list of a boot hold, which is few enough for one
/// statement.
async fn insert_gap(
    tx: &mut SqliteConnection,
    record: &Record,
    boot: BootId,
    lost: &[(u64, u64)],
) -> Result<()> {
    if lost.is_empty() {
        return Ok(());
    }
    QueryBuilder::new("INSERT INTO gaps (device, boot, first_seq, last_seq, received_ms) ")
        .push_values(lost, |mut row, &(first, last)| {
            row.push_bind(record.device().as_str())
                .push_bind(boot.0.to_vec())
                .push_bind(int(first))
                .push_bind(int(last))
                .push_bind(int(record.received_ms()));
        })
        .build()
        .execute(tx)
        .await
        .attempt("storing a gap")?;
    Ok(())
}

/// A device is heard by what is new of it: whoever sends old messages again does not make it look alive.
fn hear<'a>(heard: &mut BTreeMap<&'a DeviceId, u64>, record: &'a Record) {
    let at = heard.entry(record.device()).or_default();
    *at = record.received_ms().max(*at);
}

async fn touch(tx: &mut SqliteConnection, heard: &BTreeMap<&DeviceId, u64>) -> Result<()> {
    for (device, at_ms) in heard {
        sqlx::query("UPDATE devices SET seen_ms = max(seen_ms, ?) WHERE id = ?")
            .bind(int(*at_ms))
            .bind(device.as_str())
            .execute(&mut *tx)
            .await
            .attempt("noting when a device was seen")?;
    }
    Ok(())
}
