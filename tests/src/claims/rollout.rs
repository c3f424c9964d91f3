//! How far a release came.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use super::attacks::serving;
use super::fleet::HELD;
use super::{Claim, holds};
use crate::agent::Agent;
use crate::controller::Controller;
use crate::process::wait_for;

/// How long the controller may take to write down what it found when it made a plan.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

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

/// The rollout was promoted, by its gates or by an operator.
pub async fn promoted(database: &SqlitePool, rollout: &str) -> Claim {
    let state: String = sqlx::query_scalar("SELECT state FROM rollouts WHERE id = ?")
        .bind(rollout)
        .fetch_one(database)
        .await?;
    holds(state == "promoted", state)
}

/// The rollout was promoted without an order of an operator, it had opened to every device but those that the task holds, and
/// each of them committed to one of its releases, or kept what it ran because none of them is for it.
pub async fn reached_all_by_itself(database: &SqlitePool, rollout: &str) -> Claim {
    let state = promoted(database, rollout).await?;
    let orders = orders(database, rollout, 0).await?;
    let open = newest(database, rollout).await?;
    let managed: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM devices WHERE state = 'active' AND id NOT IN (SELECT device FROM device_groups WHERE grp = ?)",
    )
    .bind(HELD)
    .fetch_all(database)
    .await?;
    let members = open["members"].as_object().context("members")?;
    let left_out: Vec<&String> = managed.iter().filter(|device| !members.contains_key(*device)).collect();
    let report = wait_for("the report of the newest plan", REPORT_LIMIT, async || {
        let report = last_report(database, rollout).await?;
        Ok(Some(report).filter(|report| report["generation"] == open["generation"]))
    })
    .await?;
    let count = |name: &str| report["tally"][name].as_u64().context("a count");
    let (counted, committed, declined) = (count("members")?, count("committed")?, count("declined")?);
    holds(
        orders == 0
            && left_out.is_empty()
            && !managed.is_empty()
            && committed > 0
            && committed + declined == counted,
        format!(
            "{state}, open to {} devices, left out {left_out:?}; of {counted} devices {committed} committed, {declined} kept what \
             they ran, {} failed; {orders} orders",
            members.len(),
            report["tally"]["failed"].as_array().map_or(0, Vec::len),
        ),
    )
}

/// What the controller found when it last looked at a rollout.
async fn last_report(database: &SqlitePool, rollout: &str) -> Result<Value> {
    let report: Option<String> = sqlx::query_scalar("SELECT report FROM rollouts WHERE id = ?")
        .bind(rollout)
        .fetch_one(database)
        .await?;
    Ok(serde_json::from_str(&report.context("the controller has not looked at it")?)?)
}

/// The devices of a rollout's canary, and how far the rollout had come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The devices.
    pub devices: BTreeSet<String>,
    /// Generation of the newest plan.
    pub generation: i64,
    /// Number of the newest row of the audit log.
    pub audited: i64,
    /// Number of the newest outcome that a device reported.
    pub reported: i64,
}

/// The canary of a rollout as the database has it.
pub async fn canary(database: &SqlitePool, rollout: &str) -> Result<Canary> {
    let plan = newest(database, rollout).await?;
    let members = plan["members"].as_object().context("members")?;
    let devices = members
        .iter()
        .filter(|(_, previous)| previous["wave"] == 0)
        .map(|(device, _)| device.clone())
        .collect();
    let audited = sqlx::query_scalar("SELECT coalesce(max(no), 0) FROM audit").fetch_one(database).await?;
    let reported =
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM outcomes").fetch_one(database).await?;
    Ok(Canary {
        devices,
        generation: plan["generation"].as_i64().context("a generation")?,
        audited,
        reported,
    })
}

/// The newest plan of a rollout.
async fn newest(database: &SqlitePool, rollout: &str) -> Result<Value> {
    Ok(plans(database, rollout).await?.pop().context("a plan")?.1)
}

/// Parents and bodies of a rollout's plans, oldest first.
async fn plans(database: &SqlitePool, rollout: &str) -> Result<Vec<(Option<i64>, Value)>> {
    let rows = sqlx::query("SELECT parent, body FROM plans WHERE rollout = ? ORDER BY generation")
        .bind(rollout)
        .fetch_all(database)
        .await?;
    rows.iter().map(|row| Ok((row.get(0), serde_json::from_str(&row.get::<String, _>(1))?))).collect()
}

/// How many orders operators gave to a rollout after this row of the audit log.
async fn orders(database: &SqlitePool, rollout: &str, after: i64) -> Result<i64> {
    Ok(sqlx::query_scalar(
        "SELECT count(*) FROM audit WHERE no > ?1 AND what = 'rollout.order' AND json_extract(before, '$.rollout') = ?2",
    )
    .bind(after)
    .bind(rollout)
    .fetch_one(database)
    .await?)
}

/// A controller went on by itself with the rollout that its predecessor died in: the canary is the same, each plan
/// follows the one before, no operator gave an order since, every device of the canary has committed to one of
/// `releases`, one of them at least after that death, and the controller counts them all as done.
pub async fn went_on(database: &SqlitePool, rollout: &str, before: &Canary, releases: &[String]) -> Claim {
    let plans = plans(database, rollout).await?;
    let generations: Vec<i64> = plans.iter().filter_map(|(_, plan)| plan["generation"].as_i64()).collect();
    let unbroken = plans.first().is_some_and(|(parent, _)| parent.is_none())
        && plans.iter().skip(1).zip(&generations).all(|((parent, _), before)| *parent == Some(*before));
    let now = canary(database, rollout).await?;
    let orders = orders(database, rollout, before.audited).await?;
    let rows = sqlx::query(
        "SELECT device, release, id FROM outcomes WHERE phase = 'committed' AND release IS NOT NULL",
    )
    .fetch_all(database)
    .await?;
    let of_canary = rows.iter().filter(|row| {
        before.devices.contains(&row.get::<String, _>(0)) && releases.contains(&row.get::<String, _>(1))
    });
    let mut committed: BTreeMap<String, i64> = BTreeMap::new();
    for row in of_canary {
        let newest = committed.entry(row.get(0)).or_default();
        *newest = row.get::<i64, _>(2).max(*newest);
    }
    let since = committed.values().filter(|outcome| **outcome > before.reported).count();
    let report = last_report(database, rollout).await?;
    let counted = report["tally"]["committed"].as_u64().context("a count")?;
    let devices = before.devices.len();
    holds(
        unbroken
            && now.devices == before.devices
            && orders == 0
            && committed.len() == devices
            && since > 0
            && counted >= devices as u64,
        format!(
            "canary {:?} before, {:?} after; {} of {devices} committed, {since} of them after plan {}'s controller died; \
             the controller counts {counted}; {orders} orders",
            before.devices,
            now.devices,
            committed.len(),
            before.generation
        ),
    )
}

/// The same, and it made further plans until the rollout was promoted.
pub async fn taken_up(database: &SqlitePool, rollout: &str, before: &Canary, releases: &[String]) -> Claim {
    promoted(database, rollout).await?;
    let went_on = went_on(database, rollout, before, releases).await?;
    let now = newest(database, rollout).await?["generation"].as_i64().context("a generation")?;
    holds(now > before.generation, format!("{went_on}; plan {now} promoted it"))
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

/// How many of these devices serve which release, by class of hardware.
pub fn by_class<'a>(
    agents: impl IntoIterator<Item = &'a Agent>,
    serving: &BTreeMap<String, String>,
) -> BTreeMap<&'a str, BTreeMap<String, usize>> {
    let mut by_class: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for agent in agents {
        let release = serving.get(&agent.id).cloned().unwrap_or_default();
        *by_class.entry(&agent.class).or_default().entry(release).or_default() += 1;
    }
    by_class
}

/// The release that most devices of a class run is not the same one for every class.
pub fn choice_differs(by_class: &BTreeMap<&str, BTreeMap<String, usize>>) -> Claim {
    let mostly: BTreeMap<&str, &String> = by_class
        .iter()
        .filter_map(|(class, releases)| Some((*class, releases.iter().max_by_key(|(_, n)| **n)?.0)))
        .collect();
    let distinct: BTreeSet<&&String> = mostly.values().collect();
    holds(distinct.len() >= 2, format!("most devices of each class run {mostly:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type ByClass = BTreeMap<&'static str, BTreeMap<String, usize>>;

    fn runs(releases: &[(&str, usize)]) -> BTreeMap<String, usize> {
        releases.iter().map(|(release, n)| ((*release).to_owned(), *n)).collect()
    }

    #[test]
    fn single_devices_of_a_class_make_no_difference_between_classes() {
        let mixed = runs(&[("a@1", 7), ("b@1", 1)]);
        let same = ByClass::from([("small", mixed.clone()), ("large", runs(&[("a@1", 8)]))]);
        assert!(choice_differs(&same).is_err());
        let different = ByClass::from([("small", mixed), ("large", runs(&[("b@1", 8)]))]);
        assert!(choice_differs(&different).is_ok());
    }
}
