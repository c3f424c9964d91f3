//! What is refused, by its reason code, and what nobody managed to change.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use sqlx::{Row, SqlitePool};

use super::{Claim, holds};
use crate::agent::{Agent, Application};
use crate::digits::PIXELS;
use crate::operator::TASK;
use crate::process::wait_for;

/// A device reports one of these reasons within `limit`, as an indicator or as an outcome.
pub async fn refused(database: &SqlitePool, device: &str, reasons: &[&str], limit: Duration) -> Claim {
    wait_for(&format!("{device} to report {}", reasons.join(" or ")), limit, async || {
        for reason in reasons {
            let row = sqlx::query(
                "SELECT detail FROM indicators WHERE device = ?1 AND reason = ?2 UNION ALL SELECT detail FROM outcomes WHERE device = ?1 AND reason = ?2 LIMIT 1",
            )
            .bind(device)
            .bind(reason)
            .fetch_optional(database)
            .await?;
            if let Some(row) = row {
                return Ok(Some(format!("{device} reports {reason}: {}", row.get::<String, _>(0))));
            }
        }
        Ok(None)
    })
    .await
}

/// One of `devices` refuses to install the release, because it is not what was signed, within `limit`.
pub async fn tampering_refused(
    database: &SqlitePool,
    release: &str,
    devices: &[&str],
    limit: Duration,
) -> Claim {
    wait_for(&format!("a device to refuse {release}"), limit, async || {
        let rows =
            sqlx::query("SELECT device FROM outcomes WHERE release = ? AND reason = 'digest_mismatch'")
                .bind(release)
                .fetch_all(database)
                .await?;
        let told =
            rows.iter().map(|row| row.get::<String, _>(0)).find(|device| devices.contains(&device.as_str()));
        Ok(told.map(|device| format!("{device} reports digest_mismatch of {release}")))
    })
    .await
}

/// None of `devices` answered a request with this release.
pub async fn never_answered(database: &SqlitePool, release: &str, devices: &[&str]) -> Claim {
    let rows = sqlx::query("SELECT device, count(*) FROM windows WHERE release = ? GROUP BY device")
        .bind(release)
        .fetch_all(database)
        .await?;
    let windows: i64 = rows
        .iter()
        .filter(|row| devices.contains(&row.get::<String, _>(0).as_str()))
        .map(|row| row.get::<i64, _>(1))
        .sum();
    holds(windows == 0, format!("{windows} windows of {release}"))
}

/// What each device says it serves: device → release, empty for the constant baseline.
pub async fn serving(database: &SqlitePool) -> Result<BTreeMap<String, String>> {
    let rows = sqlx::query("SELECT device, coalesce(release, '') FROM installed WHERE task = ?")
        .bind(TASK)
        .fetch_all(database)
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Who asks these devices now is answered by the releases that they served `before`.
pub async fn no_model_moved(agents: &[&Agent], before: &BTreeMap<String, String>) -> Claim {
    let application = Application::new(TASK)?;
    let (mut kept, mut told) = (!agents.is_empty(), Vec::new());
    for agent in agents {
        let answer = application.infer(agent.api, "who-answers", &[0.0; PIXELS]).await;
        let version = answer.map_or_else(|error| format!("no answer, {error:#}"), |answer| answer.version);
        kept &= before.get(&agent.id) == Some(&version);
        told.push(format!("{} serves {version}", agent.id));
    }
    holds(kept, told.join(", "))
}

/// `n` devices have enrolled, and each has committed to a release.
pub async fn every_device_serves(database: &SqlitePool, n: usize) -> Claim {
    let done: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM installed WHERE phase = 'committed' AND release IS NOT NULL",
    )
    .fetch_one(database)
    .await?;
    holds(usize::try_from(done)? == n, format!("{done} of {n}"))
}
