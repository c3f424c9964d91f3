//! Who the devices are, what they serve, and whether it is said why.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use super::{Claim, holds, signed};
use crate::controller::Controller;
use crate::operator::TASK;

/// The group that the task holds out of rollouts and leaves out of retraining.
pub(super) const HELD: &str = "held";

/// `n` active devices have a key each that no other has, and each serves a release whose manifest the image repository
/// lists in a role that only offline keys sign.
pub async fn own_key_and_signed_model(controller: &Controller, database: &SqlitePool, n: usize) -> Claim {
    let keys: Vec<String> =
        sqlx::query_scalar("SELECT key_id FROM devices WHERE state = 'active'").fetch_all(database).await?;
    let distinct: BTreeSet<&String> = keys.iter().collect();
    let rows = sqlx::query("SELECT release, lower(hex(manifest)) FROM installed WHERE task = ? AND phase = 'committed' AND release IS NOT NULL")
        .bind(TASK)
        .fetch_all(database)
        .await?;
    let offline = signed::Targets::offline(controller)?;
    let listed = rows.iter().filter(|row| offline.lists(&row.get::<String, _>(0), &row.get::<String, _>(1)));
    let (signed, told) = (listed.count(), rows.len());
    holds(
        keys.len() == n && distinct.len() == n && told == n && signed == n && n > 0,
        format!(
            "{} keys of {} devices, {signed} of {told} serve a release signed offline",
            distinct.len(),
            keys.len()
        ),
    )
}

/// `dunlin device explain` has a row for every release of the pool, and each says its score or what excludes it; what
/// was chosen is one that has a score.
pub async fn explained(controller: &Controller, device: &str, pool: &BTreeSet<String>) -> Claim {
    let told = controller.json(&["device", "explain", device]).await?;
    let decision = decision(&told).with_context(|| format!("no decision on {TASK} in {told}"))?;
    let rows = decision["selection"]["rows"].as_array().context("rows")?;
    let mut scores = BTreeMap::new();
    let mut excluded = 0;
    for release in pool {
        let row = rows.iter().find(|row| row["release"] == **release);
        let verdict = &row.with_context(|| format!("no row of {release}"))?["verdict"];
        match (verdict["eligible"]["cautious"].as_f64(), verdict["excluded"].as_array()) {
            (Some(score), None) => drop(scores.insert(release.as_str(), score)),
            (None, Some(constraints)) if !constraints.is_empty() => excluded += 1,
            _ => anyhow::bail!("{release} has neither a score nor a constraint: {verdict}"),
        }
    }
    let chosen = decision["chosen"].as_str().context("nothing was chosen")?;
    ensure!(scores.contains_key(chosen), "{chosen} was chosen without a score");
    Ok(format!("{device}: {} with a score, {excluded} excluded, chosen {chosen}", scores.len()))
}

/// The decision on the task, wherever the answer has it.
fn decision(told: &Value) -> Option<&Value> {
    let is_it = |value: &&Value| value["task"] == TASK && value["selection"].is_object();
    match told {
        Value::Array(all) => all.iter().find(is_it),
        Value::Object(_) if is_it(&told) => Some(told),
        Value::Object(fields) => fields.values().find_map(decision),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// No device of the held group ever ran a release that is not of the pool.
pub async fn kept_out(database: &SqlitePool, pool: &BTreeSet<String>) -> Claim {
    let held = members(database, HELD).await?;
    let rows = sqlx::query("SELECT DISTINCT device, release FROM windows WHERE task = ?1 AND release IS NOT NULL UNION SELECT device, release FROM outcomes WHERE task = ?1 AND release IS NOT NULL AND phase IN ('probation', 'committed')")
        .bind(TASK)
        .fetch_all(database)
        .await?;
    let ran: Vec<(String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1))).filter(|(device, _)| held.contains(device)).collect();
    let others: Vec<_> = ran.iter().filter(|(_, release)| !pool.contains(release)).collect();
    holds(
        others.is_empty() && !ran.is_empty(),
        format!("{} devices are held, and ran besides their pool {others:?}", held.len()),
    )
}

/// Devices of a group.
pub(super) async fn members(database: &SqlitePool, group: &str) -> Result<BTreeSet<String>> {
    let devices = sqlx::query_scalar("SELECT device FROM device_groups WHERE grp = ?");
    Ok(devices.bind(group).fetch_all(database).await?.into_iter().collect())
}
