//! Who the devices are, what they serve, and whether it is said why.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use super::{Claim, holds, signed};
use crate::controller::Controller;
use crate::operator::TASK;

/// Families that a choice is made among: linear models, trees, networks.
const FAMILIES_MIN: usize = 3;

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

/// The pool of the task holds approved models of at least three families.
pub async fn families(controller: &Controller) -> Claim {
    let task = controller.json(&["task", "show", TASK]).await?;
    families_of(&task, &controller.json(&["model", "list", "--task", TASK]).await?)
}

/// The same of a task and its releases as the controller shows them. A pushed model is `imported`, whoever trained it, so
/// that its family is told by the operators that the controller found in it.
fn families_of(task: &Value, releases: &Value) -> Claim {
    let releases = releases.as_array().context("releases")?;
    let mut families: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for release in task["definition"]["pool"].as_array().context("a pool")? {
        let shown = releases.iter().find(|shown| shown["release"] == *release);
        let shown = shown.with_context(|| format!("the controller has no {release}"))?;
        ensure!(shown["state"] == "approved", "{release} is {}", shown["state"]);
        let ops = shown["bundle"]["hard"]["ops"].as_array().context("operators")?;
        let ops: BTreeSet<&str> = ops.iter().filter_map(Value::as_str).collect();
        let family = family(&ops).with_context(|| format!("{release} is of no known family: {ops:?}"))?;
        families.entry(family).or_default().push(release.as_str().context("a release")?);
    }
    holds(families.len() >= FAMILIES_MIN, format!("{} families: {families:?}", families.len()))
}

/// The family of a model of these operators. What makes a network of weighted sums is what lies between them.
fn family(ops: &BTreeSet<&str>) -> Option<&'static str> {
    if ops.iter().any(|op| op.starts_with("ai.onnx.ml/TreeEnsemble")) {
        Some("trees")
    } else if !ops.contains("ai.onnx/Gemm") && !ops.contains("ai.onnx/MatMul") {
        None
    } else if ops.contains("ai.onnx/Relu") {
        Some("network")
    } else {
        Some("linear")
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn release(name: &str, state: &str, ops: &[&str]) -> Value {
        json!({"release": name, "state": state, "bundle": {"family": "imported", "hard": {"ops": ops}}})
    }

    #[test]
    fn a_pool_is_of_the_families_that_its_operators_tell() {
        let releases = json!([
            release("a@1", "approved", &["ai.onnx/Gemm", "ai.onnx/Softmax"]),
            release("b@1", "approved", &["ai.onnx/Gemm", "ai.onnx/Relu", "ai.onnx/Softmax"]),
            release("c@1", "approved", &["ai.onnx.ml/TreeEnsembleClassifier", "ai.onnx/Add"]),
            release("d@1", "approved", &["ai.onnx/MatMul", "ai.onnx/Softmax"]),
            release("e@1", "pending", &["ai.onnx.ml/TreeEnsembleClassifier"]),
            release("f@1", "approved", &["ai.onnx/Softmax"]),
        ]);
        let of = |pool: &[&str]| families_of(&json!({"definition": {"pool": pool}}), &releases);
        assert!(of(&["a@1", "b@1", "c@1"]).unwrap().starts_with("3 families: "));
        assert!(of(&["a@1", "c@1"]).unwrap_err().to_string().starts_with("2 families: "));
        assert!(of(&["a@1", "b@1", "d@1"]).unwrap_err().to_string().starts_with("2 families: "));
        for pool in [&["a@1", "b@1", "e@1"][..], &["a@1", "b@1", "f@1"], &["a@1", "b@1", "g@1"]] {
            assert!(of(pool).is_err(), "{pool:?}");
        }
    }
}
