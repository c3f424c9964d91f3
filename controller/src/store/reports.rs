//! What devices report of their updates, and what they run.
use dunlin_protocol::{DeviceId, Digest, Report};
use dunlin_trust::sha256;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::alerts::raise;
use super::{Attempt, Result, Store, int, phase_text, uint};
use crate::ingest::Record;

/// How far a device's generation may lie above the last assignment in the database, which may be an older copy. More was
/// counted by stolen keys, or is a lie.
const GENERATION_AHEAD_MAX: u64 = 1 << 20;

/// Alert: a device goes on from an older copy of its state.
const STATE_RESTORED: &str = "state_restored";

/// Alert: what is stored of a device is not what it signed for.
const TELEMETRY_MISMATCH: &str = "telemetry_mismatch";
/// Windows of one digest that are compared, inside the one write transaction: those of a device that reports every minute are
/// a handful.
const WINDOWS_COMPARED_MAX: u64 = 256;
/// Windows after a report that are counted, by their index alone: ten times what a batch of records holds unless it is set larger.
const WINDOWS_LATER_MAX: u64 = 10_000;

/// Where a report stands among what its device said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    /// Its boot.
    pub(super) boot: i64,
    /// Whether no later record of that boot is here.
    pub(super) is_last: bool,
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

impl Store {
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
}

/// Stores a report: outcomes, indicators, the profile, and what runs now.
pub(super) async fn store_report(
    tx: &mut SqliteConnection,
    record: &Record,
    report: &Report,
    order: Order,
) -> Result<()> {
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
    // A report that was spooled long ago does not hide a newer one. One that nobody here can have assigned says what runs, but
    // hides nothing that comes after it.
    let assigned: i64 =
        sqlx::query_scalar("SELECT coalesce(max(generation), 0) FROM assignments WHERE device = ?")
            .bind(device.as_str())
            .fetch_one(&mut *tx)
            .await
            .attempt("looking up what a device was assigned")?;
    if report.generation <= uint(assigned).saturating_add(GENERATION_AHEAD_MAX) {
        let current = sqlx::query("UPDATE devices SET generation = ?1 WHERE id = ?2 AND generation <= ?1")
            .bind(int(report.generation))
            .bind(device.as_str())
            .execute(&mut *tx)
            .await
            .attempt("noting the generation of a device")?;
        if current.rows_affected() == 0 {
            // An agent that has not taken up its journal yet says 0.
            if report.generation > 0 && order.is_last && is_latest_boot(tx, record, order.boot).await? {
                let what = format!("it is at generation {} and was further", report.generation);
                restored(tx, record, &what).await?;
            }
            return Ok(());
        }
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

/// Whether this boot had a session, and no later boot of the device had one. Boots are numbered as they are first heard of:
/// session numbers come out of the state that may have been set back.
async fn is_latest_boot(tx: &mut SqliteConnection, record: &Record, boot: i64) -> Result<bool> {
    let latest: Option<i64> =
        sqlx::query_scalar("SELECT no FROM boots WHERE device = ? AND epoch > 0 ORDER BY no DESC LIMIT 1")
            .bind(record.device().as_str())
            .fetch_optional(tx)
            .await
            .attempt("looking up the latest boot of a device")?;
    Ok(latest == Some(boot))
}

/// Compares a window that came again with what was stored under its number: a machine that was set back with its memory
/// counts the same numbers for other records.
pub(super) async fn same_window(
    tx: &mut SqliteConnection,
    boot: i64,
    record: &Record,
    bytes: &[u8],
) -> Result<()> {
    let stored: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT body FROM windows WHERE boot_no = ? AND seq = ?")
            .bind(boot)
            .bind(int(record.seq()))
            .fetch_optional(&mut *tx)
            .await
            .attempt("looking up a window that came again")?;
    if stored.is_some_and(|stored| stored != bytes) {
        restored(tx, record, &format!("record {} came again with another content", record.seq())).await?;
    }
    Ok(())
}

/// Compares the windows since the report before with those that the device counted into its digest, if every window that the
/// boot had closed by then is here and none has gone with its time.
pub(super) async fn compare_windows(
    tx: &mut SqliteConnection,
    boot: i64,
    record: &Record,
    report: &Report,
) -> Result<()> {
    let Some(digest) = report.windows_digest.filter(|digest| digest.n <= WINDOWS_COMPARED_MAX) else {
        return Ok(());
    };
    // Windows that were closed after the report do not stand in for those that are missing before it.
    let (stored, later): (i64, i64) = sqlx::query_as(
        "SELECT windows_stored, (SELECT count(*) FROM (SELECT 1 FROM windows WHERE boot_no = ?1 AND seq > ?2 LIMIT ?3)) \
         FROM boots WHERE no = ?1",
    )
    .bind(boot)
    .bind(int(record.seq()))
    .bind(int(WINDOWS_LATER_MAX))
    .fetch_one(&mut *tx)
    .await
    .attempt("counting the windows of a boot")?;
    if uint(later) >= WINDOWS_LATER_MAX || stored - later != int(report.windows_closed) {
        return Ok(());
    }
    let (mut n, mut chained) = (0, Digest([0; 32]));
    {
        let mut bodies = sqlx::query_scalar::<_, Vec<u8>>(
            "SELECT body FROM windows WHERE boot_no = ?1 AND seq < ?2 AND seq >= (SELECT min(seq) FROM \
             (SELECT seq FROM windows WHERE boot_no = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3)) ORDER BY seq",
        )
        .bind(boot)
        .bind(int(record.seq()))
        .bind(int(digest.n))
        .fetch(&mut *tx);
        while let Some(body) = bodies.try_next().await.attempt("reading the windows of a digest")? {
            n += 1;
            chained = sha256(&[&chained.0[..], &body].concat());
        }
    }
    if n == digest.n && chained != digest.sha256 {
        let device = record.device();
        tracing::error!(%device, "the windows that are stored are not those that the device closed");
        let detail = format!("the windows stored of {device} are not those that it closed");
        let facts = serde_json::json!({ "boot": record.boot(), "report": record.seq(), "windows": digest.n });
        let subject = format!("device:{device}");
        raise(tx, TELEMETRY_MISMATCH, &subject, &detail, &facts, record.received_ms()).await?;
    }
    Ok(())
}

async fn restored(tx: &mut SqliteConnection, record: &Record, what: &str) -> Result<()> {
    let device = record.device();
    tracing::warn!(%device, what, "a device goes on from an older copy of its state");
    let detail =
        format!("{device} goes on from an older copy of its state: {what}; find out who restored it");
    let facts = serde_json::json!({ "boot": record.boot(), "record": record.seq() });
    raise(tx, STATE_RESTORED, &format!("device:{device}"), &detail, &facts, record.received_ms()).await?;
    Ok(())
}
