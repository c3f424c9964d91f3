//! What devices report of their updates, and what they run.
use dunlin_protocol::{DeviceId, Report};
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::{Attempt, Result, Store, int, phase_text, uint};
use crate::ingest::Record;

/// How far a device's generation may lie above the last assignment in the database, which may be an older copy. More was
/// counted by stolen keys, or is a lie.
const GENERATION_AHEAD_MAX: u64 = 1 << 20;

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
pub(super) async fn store_report(tx: &mut SqliteConnection, record: &Record, report: &Report) -> Result<()> {
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
