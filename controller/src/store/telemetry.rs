use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::{AckRange, BootId, DeviceId, Report, Status, TaskId, Window};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, SqliteConnection};
use utoipa::ToSchema;

use super::{Attempt, Result, Store, StoreError, int, phase_text, uint};
use crate::ingest::record::Body;
use crate::ingest::{Record, Refused, Seen};

/// Rows of one INSERT: SQLite takes 32,766 parameters in a statement, a window has 16.
const ROWS_MAX: usize = 1000;
/// Bytes of stored ranges: 1024 ranges of two varints.
const AHEAD_BYTES_MAX: usize = 1024 * 20;

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

/// Something the controller noticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// Number.
    pub id: u64,
    /// Kind, such as `cloned_identity` or `drift`.
    pub kind: String,
    /// What it is about: `device:x`, `task:y`.
    pub subject: String,
    /// For people.
    pub detail: String,
    /// Further facts.
    #[schema(value_type = Object)]
    pub facts: serde_json::Value,
    /// Unix milliseconds.
    pub raised_ms: u64,
    /// Unix milliseconds, once it is over.
    pub cleared_ms: Option<u64>,
}

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
}

/// A step of an update, a refusal or a fault, as a device reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Happening {
    /// When it was stored, Unix milliseconds.
    pub received_ms: u64,
    /// Phase of the update; `indicator` for what happened outside one.
    pub phase: String,
    /// The task, if one is meant.
    pub task: Option<String>,
    /// The release, if one is meant.
    pub release: Option<String>,
    /// Generation of the assignment.
    pub generation: Option<u64>,
    /// Reason code.
    pub reason: String,
    /// The same for people.
    pub detail: String,
}

struct Boot {
    no: i64,
    seen: Seen,
    closed: u64,
    windows: u64,
    lost: u64,
}

type Boots = BTreeMap<(DeviceId, BootId), Boot>;

async fn boot<'a>(
    tx: &mut SqliteConnection,
    boots: &'a mut Boots,
    device: &DeviceId,
    id: BootId,
    at_ms: u64,
) -> Result<&'a mut Boot> {
    use std::collections::btree_map::Entry;
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
            Ok(entry.insert(Boot { no: row.try_get("no")?, seen, closed: 0, windows: 0, lost: 0 }))
        }
    }
}

impl Store {
    /// Stores records, all or none, each once by (device, boot, number). What is in the result's `acks` is
    /// durable when this returns.
    pub async fn store_records(&self, records: &[Record]) -> Result<Stored> {
        let mut out = Stored::default();
        let mut boots = Boots::new();
        let mut windows: Vec<(i64, &Record, &Window, &[u8])> = Vec::with_capacity(records.len());
        let mut tx = self.begin().await?;
        for record in records {
            let (device, at_ms) = (record.device(), record.received_ms());
            if let Body::Status(status) = &record.body {
                out.news |= status_changed(&mut tx, record, status).await?;
                *out.stored.entry(record.kind()).or_default() += 1;
                continue;
            }
            let home = boot(&mut tx, &mut boots, device, record.boot(), at_ms).await?;
            if home.seen.contains(record.seq()) {
                out.duplicates += 1;
                continue;
            }
            if home.seen.insert(record.seq(), record.seq()).is_err() {
                out.put_off += 1;
                continue;
            }
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
                    store_report(&mut tx, record, report).await?;
                    out.news = true;
                }
                Body::Samples(samples) => {
                    self.insert_samples(&mut tx, device, samples, at_ms).await?;
                    out.sampled.insert(samples.task.clone());
                }
                Body::Gap(gap) => {
                    let home = boot(&mut tx, &mut boots, device, gap.boot, at_ms).await?;
                    for &(first, last) in &gap.ranges {
                        // A range of an honest agent never overflows the list; what does not fit stays a hole.
                        home.lost =
                            home.lost.saturating_add(home.seen.insert(first.max(1), last).unwrap_or(0));
                        sqlx::query("INSERT INTO gaps (device, boot, first_seq, last_seq, received_ms) VALUES (?, ?, ?, ?, ?)")
                            .bind(device.as_str())
                            .bind(gap.boot.0.to_vec())
                            .bind(int(first))
                            .bind(int(last))
                            .bind(int(at_ms))
                            .execute(&mut *tx)
                            .await
                            .attempt("storing a gap")?;
                    }
                }
                Body::Reply(reply) => {
                    sqlx::query("INSERT INTO replies (id, device, reason, detail, received_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
                        .bind(&reply.id)
                        .bind(device.as_str())
                        .bind(reply.reason.as_str())
                        .bind(&reply.detail)
                        .bind(int(at_ms))
                        .execute(&mut *tx)
                        .await
                        .attempt("storing a reply")?;
                }
                Body::Status(_) => unreachable!("statuses were dealt with above"),
            }
            *out.stored.entry(record.kind()).or_default() += 1;
        }
        insert_windows(&mut tx, &windows).await?;
        close_boots(&mut tx, &boots).await?;
        touch(&mut tx, records).await?;
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
                Ok(BootRow {
                    boot: data_encoding::HEXLOWER.encode(row.try_get("boot")?),
                    upto: uint(row.try_get("upto")?),
                    first_ms: uint(row.try_get("first_ms")?),
                    last_ms: uint(row.try_get("last_ms")?),
                    windows_closed: uint(row.try_get("windows_closed")?),
                    windows_stored: uint(row.try_get("windows_stored")?),
                    records_lost: uint(row.try_get("records_lost")?),
                })
            })
            .collect()
    }

    /// What happened to a device, newest first.
    pub async fn happenings(&self, device: &DeviceId, limit: u64) -> Result<Vec<Happening>> {
        let rows = sqlx::query(
            "SELECT received_ms, phase, task, release, generation, reason, detail, id FROM outcomes WHERE device = ?1 \
             UNION ALL SELECT received_ms, 'indicator', NULL, NULL, NULL, reason, detail, id FROM indicators WHERE device = ?1 \
             ORDER BY received_ms DESC, id DESC LIMIT ?2",
        )
        .bind(device.as_str())
        .bind(int(limit))
        .fetch_all(self.readers())
        .await
        .attempt("reading what happened to a device")?;
        rows.iter()
            .map(|row| {
                Ok(Happening {
                    received_ms: uint(row.try_get("received_ms")?),
                    phase: row.try_get("phase")?,
                    task: row.try_get("task")?,
                    release: row.try_get("release")?,
                    generation: row.try_get::<Option<i64>, _>("generation")?.map(uint),
                    reason: row.try_get("reason")?,
                    detail: row.try_get("detail")?,
                })
            })
            .collect()
    }

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

    /// Messages that were not taken, by device and cause.
    pub async fn refused(&self) -> Result<Vec<RefusedRow>> {
        let rows = sqlx::query("SELECT * FROM refused ORDER BY device, reason")
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

    /// Raises an alert, or renews the one that is open; returns whether it is new.
    pub async fn alert_raise(
        &self,
        kind: &str,
        subject: &str,
        detail: &str,
        facts: &serde_json::Value,
        now_ms: u64,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        let new = raise(&mut tx, kind, subject, detail, facts, now_ms).await?;
        tx.commit().await.attempt("committing an alert")?;
        Ok(new)
    }

    /// Closes an open alert; returns whether there was one.
    pub async fn alert_clear(&self, kind: &str, subject: &str, now_ms: u64) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE alerts SET cleared_ms = ? WHERE kind = ? AND subject = ? AND cleared_ms IS NULL",
        )
        .bind(int(now_ms))
        .bind(kind)
        .bind(subject)
        .execute(self.writer())
        .await
        .attempt("closing an alert")?;
        Ok(done.rows_affected() > 0)
    }

    /// Alerts, newest first; only open ones if `open`.
    pub async fn alerts(&self, open: bool, limit: u64) -> Result<Vec<Alert>> {
        let rows =
            sqlx::query("SELECT * FROM alerts WHERE NOT ?1 OR cleared_ms IS NULL ORDER BY id DESC LIMIT ?2")
                .bind(open)
                .bind(int(limit))
                .fetch_all(self.readers())
                .await
                .attempt("reading alerts")?;
        rows.iter()
            .map(|row| {
                let id: i64 = row.try_get("id")?;
                let facts = serde_json::from_str(row.try_get("facts")?);
                Ok(Alert {
                    facts: facts.map_err(|error| StoreError::Corrupt {
                        table: "alerts",
                        row: id.to_string(),
                        what: error.to_string(),
                    })?,
                    id: uint(id),
                    kind: row.try_get("kind")?,
                    subject: row.try_get("subject")?,
                    detail: row.try_get("detail")?,
                    raised_ms: uint(row.try_get("raised_ms")?),
                    cleared_ms: row.try_get::<Option<i64>, _>("cleared_ms")?.map(uint),
                })
            })
            .collect()
    }

    /// The reply to a command, if it came: reason code and detail.
    pub async fn reply(&self, device: &DeviceId, id: &str) -> Result<Option<(String, String)>> {
        let row = sqlx::query("SELECT reason, detail FROM replies WHERE device = ? AND id = ?")
            .bind(device.as_str())
            .bind(id);
        let row = row.fetch_optional(self.readers()).await.attempt("reading a reply")?;
        row.map(|row| Ok((row.try_get("reason")?, row.try_get("detail")?))).transpose()
    }
}

fn window(row: &SqliteRow) -> Result<WindowRow> {
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

async fn insert_windows(tx: &mut SqliteConnection, windows: &[(i64, &Record, &Window, &[u8])]) -> Result<()> {
    for chunk in windows.chunks(ROWS_MAX) {
        QueryBuilder::new(
            "INSERT OR IGNORE INTO windows (boot_no, seq, device, task, release, generation, start_ms, end_ms, wall, received_ms, probation, \
             n, errors, labelled, correct, body) ",
        )
        .push_values(chunk, |mut row, (boot_no, record, window, bytes)| {
            let (labelled, correct) = labels(window);
            row.push_bind(boot_no)
                .push_bind(int(record.seq()))
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

async fn close_boots(tx: &mut SqliteConnection, boots: &Boots) -> Result<()> {
    for boot in boots.values() {
        sqlx::query(
            "UPDATE boots SET upto = ?, ahead = ?, windows_closed = max(windows_closed, ?), windows_stored = windows_stored + ?, \
             records_lost = records_lost + ? WHERE no = ?",
        )
        .bind(int(boot.seen.upto()))
        .bind(boot.seen.ahead())
        .bind(int(boot.closed))
        .bind(int(boot.windows))
        .bind(int(boot.lost))
        .bind(boot.no)
        .execute(&mut *tx)
        .await
        .attempt("noting which records are stored")?;
    }
    Ok(())
}

async fn touch(tx: &mut SqliteConnection, records: &[Record]) -> Result<()> {
    let mut last: BTreeMap<&DeviceId, u64> = BTreeMap::new();
    for record in records {
        let at = last.entry(record.device()).or_default();
        *at = record.received_ms().max(*at);
    }
    for (device, at_ms) in last {
        sqlx::query("UPDATE devices SET seen_ms = max(seen_ms, ?) WHERE id = ?")
            .bind(int(at_ms))
            .bind(device.as_str())
            .execute(&mut *tx)
            .await
            .attempt("noting when a device was seen")?;
    }
    Ok(())
}

async fn store_report(tx: &mut SqliteConnection, record: &Record, report: &Report) -> Result<()> {
    let (device, at_ms) = (record.device(), int(record.received_ms()));
    for outcome in &report.outcomes {
        sqlx::query(
            "INSERT INTO outcomes (device, generation, task, release, correlation, phase, reason, detail, at_ms, received_ms) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(device.as_str())
        .bind(int(outcome.generation))
        .bind(outcome.task.as_ref().map(|task| task.as_str()))
        .bind(outcome.release.as_ref().map(ToString::to_string))
        .bind(&outcome.correlation)
        .bind(phase_text(outcome.phase))
        .bind(outcome.reason.as_str())
        .bind(&outcome.detail)
        .bind(outcome.at_ms.map(int))
        .bind(at_ms)
        .execute(&mut *tx)
        .await
        .attempt("storing an outcome")?;
    }
    for indicator in &report.indicators {
        sqlx::query("INSERT INTO indicators (device, reason, detail, count, at_ms, received_ms) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(device.as_str())
            .bind(indicator.reason.as_str())
            .bind(&indicator.detail)
            .bind(int(indicator.count))
            .bind(indicator.at_ms.map(int))
            .bind(at_ms)
            .execute(&mut *tx)
            .await
            .attempt("storing an indicator")?;
    }
    if let Some(profile) = &report.profile {
        sqlx::query("UPDATE devices SET profile = ?, class = ? WHERE id = ?")
            .bind(serde_json::to_string(profile).expect("a profile is JSON"))
            .bind(profile.class.as_str())
            .bind(device.as_str())
            .execute(&mut *tx)
            .await
            .attempt("storing a profile")?;
    }
    // A report that was spooled long ago does not hide a newer one.
    let current = sqlx::query("UPDATE devices SET generation = ?1 WHERE id = ?2 AND generation <= ?1")
        .bind(int(report.generation))
        .bind(device.as_str())
        .execute(&mut *tx)
        .await
        .attempt("noting the generation of a device")?;
    if current.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query("DELETE FROM installed WHERE device = ?")
        .bind(device.as_str())
        .execute(&mut *tx)
        .await
        .attempt("replacing what a device runs")?;
    for (task, installed) in &report.installed {
        sqlx::query("INSERT INTO installed (device, task, release, manifest, phase, generation, proof_us, proof_bytes, updated_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(device.as_str())
            .bind(task.as_str())
            .bind(installed.release.as_ref().map(ToString::to_string))
            .bind(installed.manifest.map(|digest| digest.0.to_vec()))
            .bind(phase_text(installed.phase))
            .bind(int(report.generation))
            .bind(installed.proof_us.map(int))
            .bind(installed.proof_bytes.map(int))
            .bind(at_ms)
            .execute(&mut *tx)
            .await
            .attempt("storing what a device runs")?;
    }
    Ok(())
}

/// Notes a session's status; a status of an older epoch is late and changes nothing. Returns whether
/// something changed.
///
/// A boot's sessions have rising epochs, and a boot that another one followed never connects again. So a
/// session of a boot beside which a later one was seen means two devices with one key.
async fn status_changed(tx: &mut SqliteConnection, record: &Record, status: &Status) -> Result<bool> {
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
    let done = sqlx::query("UPDATE devices SET online = ?1, epoch = ?2, agent = ?3 WHERE id = ?4 AND epoch <= ?2 AND (online <> ?1 OR epoch <> ?2 OR agent <> ?3)")
        .bind(status.online)
        .bind(epoch)
        .bind(&status.agent)
        .bind(device.as_str())
        .execute(&mut *tx)
        .await
        .attempt("noting the status of a device")?;
    Ok(done.rows_affected() > 0)
}

async fn raise(
    tx: &mut SqliteConnection,
    kind: &str,
    subject: &str,
    detail: &str,
    facts: &serde_json::Value,
    now_ms: u64,
) -> Result<bool> {
    let open = sqlx::query(
        "UPDATE alerts SET detail = ?, facts = ? WHERE kind = ? AND subject = ? AND cleared_ms IS NULL",
    )
    .bind(detail)
    .bind(facts.to_string())
    .bind(kind)
    .bind(subject)
    .execute(&mut *tx)
    .await
    .attempt("renewing an alert")?;
    if open.rows_affected() > 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO alerts (kind, subject, detail, facts, raised_ms) VALUES (?, ?, ?, ?, ?)")
        .bind(kind)
        .bind(subject)
        .bind(detail)
        .bind(facts.to_string())
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .attempt("raising an alert")?;
    Ok(true)
}
