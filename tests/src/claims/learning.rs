//! That the system learnt something, by itself, and that it helped.
use std::collections::BTreeMap;

use anyhow::{Context, Result};
use dunlin_monitor::rate::Rate;
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use super::signed::Targets;
use super::{Claim, holds};
use crate::controller::Controller;
use crate::operator::TASK;

/// Accuracy by hardware class, and whether the devices are never retrained.
pub type Measured = BTreeMap<(String, bool), Rate>;

/// Two-sided 95 %.
const Z95: f64 = 1.96;
/// What the task's gate asks of a retrained model: 5 % shared among the candidates, one point, 100 rows.
const ALPHA: f64 = 0.05;
const GAIN_MIN: f64 = 0.01;
const ROWS_MIN: u64 = 100;

/// A rate with its 95 % Wilson interval.
pub fn show(rate: Rate) -> String {
    let interval = rate.wilson(Z95);
    format!(
        "{:.1} % [{:.1}, {:.1}] of {}",
        rate.value().unwrap_or(0.0) * 100.0,
        interval.low * 100.0,
        interval.high * 100.0,
        rate.n
    )
}

/// The rate over all classes.
pub fn total(measured: &Measured, held: bool) -> Rate {
    let of_group = measured.iter().filter(|((_, of), _)| *of == held);
    of_group.fold(Rate { hits: 0, n: 0 }, |sum, (_, rate)| sum.plus(*rate))
}

/// On every class that is managed, accuracy fell from `before` to `during` and rose from there to `after`.
pub fn recovered(before: &Measured, during: &Measured, after: &Measured) -> Claim {
    let (mut classes, mut fell, mut rose) = (0, 0, 0);
    for class in before.keys().filter(|(_, held)| !held) {
        let [was, low, is] = [before, during, after]
            .map(|measured| measured.get(class).copied().unwrap_or(Rate { hits: 0, n: 0 }).wilson(Z95));
        classes += 1;
        fell += usize::from(low.high < was.low);
        rose += usize::from(is.low > low.high);
    }
    let totals = [before, during, after].map(|measured| show(total(measured, false)));
    holds(
        classes > 0 && fell == classes && rose == classes,
        format!("managed: {}; of {classes} classes {fell} fell and {rose} rose again", totals.join(" → ")),
    )
}

/// Devices that are never retrained are worse off than they were, and than the managed ones.
pub fn not_retrained_stayed(before: &Measured, after: &Measured) -> Claim {
    let (was, held, managed) = (total(before, true), total(after, true), total(after, false));
    let below = |other: Rate| held.wilson(Z95).high < other.wilson(Z95).low;
    holds(
        held.n > 0 && below(was) && below(managed),
        format!("{} → {} beside {}", show(was), show(held), show(managed)),
    )
}

/// The cause of a run is something the controller saw, and no operator.
pub fn started_by_itself(run: &str, cause: &str) -> Claim {
    let kind = &serde_json::from_str::<Value>(cause)?["cause"];
    holds(*kind == "drift" || *kind == "accuracy", format!("run {run}: {cause}"))
}

/// An alert tells that the inputs of the task drifted, in more than single devices.
pub async fn drift_seen(database: &SqlitePool) -> Claim {
    first_drift(database).await?.context("no alert")
}

/// No alert tells so: there is no false alarm.
pub async fn no_drift_seen(database: &SqlitePool) -> Claim {
    let alarm = first_drift(database).await?;
    holds(alarm.is_none(), alarm.unwrap_or_else(|| "no alert".into()))
}

async fn first_drift(database: &SqlitePool) -> Result<Option<String>> {
    let row = sqlx::query("SELECT kind, subject, detail FROM alerts WHERE kind = 'drift' AND subject LIKE ? ORDER BY raised_ms LIMIT 1")
        .bind(format!("task:{TASK} %"))
        .fetch_optional(database)
        .await?;
    let told = |row: sqlx::sqlite::SqliteRow| {
        format!("{} of {}: {}", row.get::<String, _>(0), row.get::<String, _>(1), row.get::<String, _>(2))
    };
    Ok(row.map(told))
}

/// Every model that a run released is better than its incumbent beyond chance, reckoned anew from the counts in the
/// facts of the run.
pub fn gained(facts: &str) -> Claim {
    let facts: Value = serde_json::from_str(facts)?;
    let matches = facts["matches"].as_array().context("the run compared nothing")?;
    let released = facts["releases"].as_array().map_or(0, Vec::len);
    let mut better = 0;
    let mut told = Vec::new();
    for one in matches {
        // A verdict that deploys is its numbers; one that does not says why beside them.
        let verdict = &one["verdict"];
        let compared = &verdict.get("numbers").unwrap_or(verdict)["compared"];
        let count = |name: &str| compared[name].as_u64().with_context(|| format!("no count {name} in {one}"));
        let (new, old, right, wrong) =
            (count("only_new")?, count("only_old")?, count("both_right")?, count("both_wrong")?);
        let n = new + old + right + wrong;
        let (gain, p) = ((new as f64 - old as f64) / n as f64, at_least(new, new + old));
        better += usize::from(n >= ROWS_MIN && p <= ALPHA / matches.len() as f64 && gain >= GAIN_MIN);
        told.push(format!(
            "{} against {}: of {n} held-out rows only the new one right {new}, only the old one {old}; p = {p:.2e}",
            one["candidate"], one["incumbent"]
        ));
    }
    holds(released > 0 && released <= better, format!("{released} released; {}", told.join("; ")))
}

/// Probability of at least `k` heads in `n` throws of a fair coin.
fn at_least(k: u64, n: u64) -> f64 {
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for i in 0..=n {
        if i >= k {
            sum += ln_term.exp();
        }
        ln_term += ((n - i) as f64 / (i + 1) as f64).ln();
    }
    sum
}

/// Every release of the rollout is listed under one of the task's own names, in the role that the controller's confined
/// key signs and in no other; that key signs nothing but this role, and no other key signs it.
pub async fn confined(controller: &Controller, rollout: &str) -> Claim {
    let status = controller.json(&["rollout", "status", rollout]).await?;
    let releases: Vec<String> = status["plan"]["candidates"]
        .as_array()
        .context("candidates")?
        .iter()
        .filter_map(|release| release.as_str().map(str::to_owned))
        .collect();
    let (offline, online) = (Targets::offline(controller)?, Targets::retrained(controller)?);
    let apart = online.by_its_own_keys() && offline.by_its_own_keys() && !online.shares_a_key_with(&offline);
    let alone = releases.iter().all(|release| {
        release.starts_with(&format!("auto.{TASK}."))
            && online.entry(release).is_some()
            && offline.entry(release).is_none()
    });
    holds(
        alone && apart && !releases.is_empty(),
        format!(
            "{}; signed by {}, the others by {}",
            releases.join(", "),
            online.signers(),
            offline.signers()
        ),
    )
}

#[cfg(test)]
mod tests {
    use dunlin_pipeline::{Compared, Gain, compare};
    use serde_json::json;

    use super::*;

    fn measured(managed: u64, held: u64) -> Measured {
        let rate = |hits| Rate { hits, n: 500 };
        [(("small".into(), false), rate(managed)), (("small".into(), true), rate(held))].into()
    }

    #[test]
    fn without_retraining_nothing_recovers() {
        let (before, during) = (measured(470, 470), measured(250, 250));
        assert!(recovered(&before, &during, &measured(440, 250)).is_ok());
        let why = recovered(&before, &during, &during).unwrap_err().to_string();
        assert!(why.ends_with("; of 1 classes 1 fell and 0 rose again"), "nothing was retrained: {why}");
        assert!(recovered(&before, &before, &before).is_err(), "nothing aged");
        assert!(recovered(&Measured::new(), &during, &before).is_err(), "nothing was measured");
    }

    #[test]
    fn a_held_group_that_is_retrained_too_is_noticed() {
        let before = measured(470, 470);
        let managed_alone: Measured = [(("small".into(), false), Rate { hits: 440, n: 500 })].into();
        assert!(not_retrained_stayed(&before, &measured(440, 250)).is_ok());
        assert!(not_retrained_stayed(&before, &measured(440, 440)).is_err());
        assert!(not_retrained_stayed(&before, &managed_alone).is_err(), "no device is held");
        let always_bad = measured(470, 250);
        assert!(not_retrained_stayed(&always_bad, &measured(440, 250)).is_err(), "it was no better before");
    }

    #[test]
    fn an_operators_run_did_not_start_by_itself() {
        assert!(started_by_itself("run-1", r#"{"cause":"drift"}"#).is_ok());
        assert!(started_by_itself("run-1", r#"{"cause":"operator","by":"root"}"#).is_err());
    }

    #[test]
    fn a_release_without_gain_is_noticed() {
        let one = |only_new: u64, only_old: u64| {
            let compared = Compared { both_right: 200, only_new, only_old, both_wrong: 5 };
            json!({ "candidate": "a", "incumbent": "m@1", "verdict": compare(&Gain::default(), &compared) })
        };
        let facts = |matches: &[Value], released: usize| {
            json!({ "matches": matches, "releases": vec!["auto.m@1"; released] }).to_string()
        };
        let (better, same, few) = (one(30, 5), one(12, 11), one(2, 0));
        assert!(gained(&facts(std::slice::from_ref(&better), 1)).is_ok());
        assert!(gained(&facts(&[better.clone(), same.clone()], 1)).is_ok());
        let why = gained(&facts(&[better, same.clone()], 2)).unwrap_err().to_string();
        assert!(why.starts_with("2 released; "), "{why}");
        assert!(gained(&facts(&[same], 1)).is_err());
        assert!(gained(&facts(&[few], 1)).is_err(), "too few to be more than chance");
        assert!((at_least(2, 2) - 0.25).abs() < 1e-12 && (at_least(0, 9) - 1.0).abs() < 1e-12);
    }
}
