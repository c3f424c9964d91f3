//! How far a release came.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use super::attacks::serving;
use super::{Claim, holds};
use crate::controller::Controller;
use crate::process::wait_for;

/// The devices a rollout opened to, with the wave of each.
async fn members(controller: &Controller, rollout: &str) -> Result<BTreeMap<String, u64>> {
    let file = controller.json(&["rollout", "status", rollout]).await?;
    let members = file["plan"]["members"].as_object().context("the plan names its devices")?;
    members
        .iter()
        .map(|(device, previous)| Ok((device.clone(), previous["wave"].as_u64().context("a wave")?)))
        .collect()
}

/// It opened in at least so many waves, the first of them to one device of each of `classes` classes.
pub async fn in_waves(controller: &Controller, rollout: &str, classes: usize, waves: usize) -> Claim {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for wave in members(controller, rollout).await?.into_values() {
        *counts.entry(wave).or_default() += 1;
    }
    let open: Vec<usize> = counts
        .values()
        .scan(0, |open, n| {
            *open += n;
            Some(*open)
        })
        .collect();
    holds(open.first() == Some(&classes) && open.len() >= waves, format!("devices open per wave: {open:?}"))
}

/// The rollout stopped by itself.
pub async fn stopped(database: &SqlitePool, rollout: &str) -> Claim {
    let body: String =
        sqlx::query_scalar("SELECT body FROM plans WHERE rollout = ? ORDER BY generation DESC LIMIT 1")
            .bind(rollout)
            .fetch_one(database)
            .await?;
    let plan: Value = serde_json::from_str(&body)?;
    let state = &plan["state"];
    let by_itself = state["state"] == "stopped" && state["reason"]["because"] != "operator";
    holds(by_itself, state.to_string().chars().take(400).collect())
}

/// The rollout reached every wave and was promoted.
pub async fn promoted(database: &SqlitePool, rollout: &str) -> Claim {
    let state: String = sqlx::query_scalar("SELECT state FROM rollouts WHERE id = ?")
        .bind(rollout)
        .fetch_one(database)
        .await?;
    holds(state == "promoted", state)
}

/// The devices of a rollout's canary, and how far its plans had come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The devices.
    pub devices: BTreeSet<String>,
    /// Generation of the newest plan.
    pub generation: i64,
    /// Number of the newest row of the audit log.
    pub audited: i64,
}

/// The canary of a rollout as the database has it.
pub async fn canary(database: &SqlitePool, rollout: &str) -> Result<Canary> {
    let (_, plan) = plans(database, rollout).await?.pop().context("a plan")?;
    let members = plan["members"].as_object().context("members")?;
    let devices = members
        .iter()
        .filter(|(_, previous)| previous["wave"] == 0)
        .map(|(device, _)| device.clone())
        .collect();
    let audited = sqlx::query_scalar("SELECT coalesce(max(no), 0) FROM audit").fetch_one(database).await?;
    Ok(Canary { devices, generation: plan["generation"].as_i64().context("a generation")?, audited })
}

/// Parents and bodies of a rollout's plans, oldest first.
async fn plans(database: &SqlitePool, rollout: &str) -> Result<Vec<(Option<i64>, Value)>> {
    let rows = sqlx::query("SELECT parent, body FROM plans WHERE rollout = ? ORDER BY generation")
        .bind(rollout)
        .fetch_all(database)
        .await?;
    rows.iter().map(|row| Ok((row.get(0), serde_json::from_str(&row.get::<String, _>(1))?))).collect()
}

/// A rollout that stood so when its controller died was taken up and promoted by its successor: each plan follows the
/// one before, the canary is the same, and no operator gave an order since.
pub async fn taken_up(database: &SqlitePool, rollout: &str, before: &Canary) -> Claim {
    promoted(database, rollout).await?;
    let plans = plans(database, rollout).await?;
    let generations: Vec<i64> = plans.iter().filter_map(|(_, plan)| plan["generation"].as_i64()).collect();
    let unbroken = plans.first().is_some_and(|(parent, _)| parent.is_none())
        && plans.iter().skip(1).zip(&generations).all(|((parent, _), before)| *parent == Some(*before));
    let now = canary(database, rollout).await?;
    let orders: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit WHERE no > ?1 AND what = 'rollout.order' AND json_extract(before, '$.rollout') = ?2",
    )
    .bind(before.audited)
    .bind(rollout)
    .fetch_one(database)
    .await?;
    let further = generations.iter().filter(|generation| **generation > before.generation).count();
    holds(
        unbroken && further > 0 && now.devices == before.devices && orders == 0,
        format!(
            "plan {} was followed by {further}, each made from the one before; canary {:?} before, {:?} after; {orders} orders",
            before.generation, before.devices, now.devices
        ),
    )
}

/// `dunlin rollout watch` ends with the exit code that tells a pipeline so.
pub async fn told_to_pipelines(controller: &Controller, rollout: &str) -> Claim {
    let watched = controller.try_run(&["rollout", "watch", rollout, "--timeout", "5s"]).await?;
    holds(watched.code == 10, format!("exit code {}", watched.code))
}

/// Some device ran the release, and each that did is of the canary, which is one device of each of `classes` classes.
pub async fn only_the_canary_ran(
    controller: &Controller,
    database: &SqlitePool,
    rollout: &str,
    release: &str,
    classes: usize,
) -> Claim {
    let members = members(controller, rollout).await?;
    let canary: BTreeSet<&String> =
        members.iter().filter(|(_, wave)| **wave == 0).map(|(device, _)| device).collect();
    let ran = ran(database, release).await?;
    let inside = ran.iter().all(|device| canary.contains(device));
    holds(inside && !ran.is_empty() && canary.len() <= classes, format!("canary {canary:?}, ran on {ran:?}"))
}

/// The devices that served a release, if only on probation.
async fn ran(database: &SqlitePool, release: &str) -> Result<BTreeSet<String>> {
    let rows = sqlx::query("SELECT DISTINCT device FROM windows WHERE release = ?1 UNION SELECT DISTINCT device FROM outcomes WHERE release = ?1 AND phase IN ('probation', 'committed')")
        .bind(release)
        .fetch_all(database)
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Every device that ran the release serves what it served `before`, within `limit`.
pub async fn returned(
    database: &SqlitePool,
    release: &str,
    before: &BTreeMap<String, String>,
    limit: Duration,
) -> Claim {
    let ran = ran(database, release).await?;
    wait_for("the devices to return", limit, async || {
        let now = serving(database).await?;
        let back =
            ran.iter().filter(|device| now.contains_key(*device) && now.get(*device) == before.get(*device));
        let back: Vec<String> = back.map(|device| format!("{device} → {}", now[device])).collect();
        Ok((!ran.is_empty() && back.len() == ran.len()).then(|| back.join(", ")))
    })
    .await
}

/// Not every class of hardware runs the same release.
pub fn choice_differs(by_class: &BTreeMap<&str, BTreeMap<String, usize>>) -> Claim {
    let distinct: BTreeSet<&String> = by_class.values().flat_map(BTreeMap::keys).collect();
    holds(distinct.len() >= 2, format!("{distinct:?}"))
}
