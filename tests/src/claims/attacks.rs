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

/// Number of the last indicator that is stored: what is told of an attack comes after it.
pub async fn last_indicator(database: &SqlitePool) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM indicators").fetch_one(database).await?)
}

/// A device tells this reason as an indicator of a report that came after indicator `since`, within `limit`.
pub async fn refused(
    database: &SqlitePool,
    device: &str,
    reason: &str,
    since: i64,
    limit: Duration,
) -> Claim {
    wait_for(&format!("{device} to indicate {reason}"), limit, async || {
        Ok(indicated(database, device, reason, since).await?)
    })
    .await
}

async fn indicated(
    database: &SqlitePool,
    device: &str,
    reason: &str,
    since: i64,
) -> sqlx::Result<Option<String>> {
    let query = "SELECT detail FROM indicators WHERE device = ? AND reason = ? AND id > ? LIMIT 1";
    let row = sqlx::query(query).bind(device).bind(reason).bind(since).fetch_optional(database).await?;
    Ok(row.map(|row| format!("{device} indicates {reason}: {}", row.get::<String, _>(0))))
}

/// One of `devices` refuses to install the release, because it is not what was signed, and tells it as an indicator after
/// `since`, within `limit`.
pub async fn tampering_refused(
    database: &SqlitePool,
    release: &str,
    devices: &[&str],
    since: i64,
    limit: Duration,
) -> Claim {
    let reason = "digest_mismatch";
    wait_for(&format!("a device to refuse {release}"), limit, async || {
        let rows = sqlx::query("SELECT DISTINCT device FROM outcomes WHERE release = ? AND reason = ?")
            .bind(release)
            .bind(reason)
            .fetch_all(database)
            .await?;
        for device in rows.iter().map(|row| row.get::<String, _>(0)) {
            if devices.contains(&device.as_str())
                && indicated(database, &device, reason, since).await?.is_some()
            {
                return Ok(Some(format!("{device} indicates {reason} of {release}")));
            }
        }
        Ok(None)
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

/// Who asks these devices now is answered by the releases that they served `before`, or that the controller, by its own
/// books, has chosen for them since; by none of `tampered`.
pub async fn no_model_moved(
    agents: &[&Agent],
    before: &BTreeMap<String, String>,
    database: &SqlitePool,
    tampered: &[&str],
) -> Claim {
    let application = Application::new(TASK)?;
    let mut answering = Vec::new();
    for agent in agents {
        let answer = application.infer(agent.api, "who-answers", &[0.0; PIXELS]).await;
        let version = answer.map_or_else(|error| format!("no answer, {error:#}"), |answer| answer.version);
        answering.push((agent.id.as_str(), version));
    }
    let rows = sqlx::query("SELECT device, json_extract(task.value, '$.lineup.champion') FROM assignments, json_each(body, '$.tasks') task WHERE json_extract(task.value, '$.task') = ?")
        .bind(TASK)
        .fetch_all(database)
        .await?;
    let chosen: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut moved = Vec::new();
    for (device, version) in &answering {
        let (served, chosen) = (before.get(*device), chosen.get(*device));
        if ![served, chosen].contains(&Some(version)) || tampered.contains(&version.as_str()) {
            moved
                .push(format!("{device}: {version} instead of {}", served.map_or("nothing", String::as_str)));
        }
    }
    holds(
        !answering.is_empty() && moved.is_empty(),
        format!("{} devices asked, moved {moved:?}", agents.len()),
    )
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
