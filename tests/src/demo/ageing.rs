//! Act 2: the cameras age; the system notices, retrains, and rolls the new models out by itself.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_monitor::rate::Rate;
use dunlin_tests::digits::AGED;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::wait_for;
use dunlin_tests::traffic;
use serde_json::Value;
use sqlx::Row;

use crate::report::Report;
use crate::world::{CLASSES, World, Z95, show};

/// How long drift, training and rollout may take all together.
const LIMIT: Duration = Duration::from_secs(300);

type Measured = BTreeMap<(String, bool), Rate>;

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("the cameras age");
    // A stretch of ordinary life, so that there is a before.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let before = measure(world).await?;
    report.say(&format!("measured on the third pool before: managed {}", show(total(&before, false))));

    *world.scene.ageing.lock().expect("no holder panics") = AGED;
    world.mark("cameras age");
    let aged_ms = wall_ms()?;
    report.say(&format!(
        "brackets sag by {} row, contrast falls to {:.0} %, haze rises by {} of 16 grey levels",
        AGED.sag_rows,
        AGED.contrast * 100.0,
        AGED.haze
    ));
    let during = measure(world).await?;
    report.say(&format!(
        "measured on the third pool with aged cameras: managed {}",
        show(total(&during, false))
    ));

    let database = world.database().await?;
    let (run, cause, facts) = retrained(world, report, aged_ms).await?;
    report.claim(
        "drift or fallen accuracy started retraining by itself",
        cause.contains("drift") || cause.contains("accuracy"),
        format!("run {run}: {cause}"),
    );
    report.claim("the new models passed the gate against the incumbent", true, gate_numbers(&facts));
    let drift = drift_seen(&database, aged_ms).await?;
    report.claim(
        "the drift of the inputs was detected",
        drift.is_some(),
        drift.unwrap_or_else(|| "no alert".into()),
    );
    let rollout = wait_for("the rollout of the run", LIMIT, async || {
        Ok(sqlx::query_scalar::<_, String>("SELECT id FROM rollouts WHERE run = ?")
            .bind(&run)
            .fetch_optional(&database)
            .await?)
    })
    .await?;
    follow(world, report, &rollout, LIMIT).await?;
    world.mark("promoted");
    let waves = plan_waves(world, &rollout).await?;
    report.claim(
        "it went out in waves, a canary of one device per class first",
        waves.first().is_some_and(|n| *n == CLASSES.len()) && waves.len() >= 3,
        format!("devices open per wave: {waves:?}"),
    );

    let signed = retrained_roles(world, &rollout).await?;
    report.claim(
        "the new models are signed by the confined online key, under names of their task only",
        signed.0,
        signed.1,
    );

    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = measure(world).await?;
    compare(report, &before, &during, &after);
    Ok(())
}

/// Waits for a run that ends well, telling of those that found no gain on the way: the first one may come too early to
/// have seen enough of the new world, and then its gate says so.
async fn retrained(
    world: &mut World,
    report: &mut Report,
    since_ms: u64,
) -> Result<(String, String, String)> {
    let database = world.database().await?;
    let since = i64::try_from(since_ms)?;
    let mut told = BTreeMap::new();
    wait_for("a retraining run that passes its gate", LIMIT, async || {
        let rows =
            sqlx::query("SELECT id, cause, state, facts FROM runs WHERE created_ms >= ? ORDER BY created_ms")
                .bind(since)
                .fetch_all(&database)
                .await?;
        for row in rows {
            let (id, cause, state, facts): (String, String, String, String) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            if told.insert(id.clone(), state.clone()).as_ref() != Some(&state) {
                report.say(&format!("retraining {id}: {state} ({cause})"));
                if told.len() == 1 && state == "waiting" {
                    world.marks.push((world.scene.now(), "retraining"));
                }
            }
            if state == "succeeded" {
                return Ok(Some((id, cause, facts)));
            }
        }
        Ok(None)
    })
    .await
}

async fn measure(world: &World) -> Result<Measured> {
    traffic::measure(&world.scene, &world.pools.measurement, TASK).await
}

fn wall_ms() -> Result<u64> {
    Ok(u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?)
}

fn total(measured: &Measured, held: bool) -> Rate {
    measured
        .iter()
        .filter(|((_, of), _)| *of == held)
        .fold(Rate { hits: 0, n: 0 }, |sum, (_, rate)| sum.plus(*rate))
}

async fn drift_seen(database: &sqlx::SqlitePool, since_ms: u64) -> Result<Option<String>> {
    let row = sqlx::query("SELECT kind, subject, detail FROM alerts WHERE kind LIKE '%drift%' AND raised_ms >= ? ORDER BY raised_ms LIMIT 1")
        .bind(i64::try_from(since_ms)?)
        .fetch_optional(database)
        .await?;
    Ok(row.map(|row| {
        format!("{} of {}: {}", row.get::<String, _>(0), row.get::<String, _>(1), row.get::<String, _>(2))
    }))
}

/// What the gate's record says of the best candidate.
fn gate_numbers(facts: &str) -> String {
    let facts: Value = serde_json::from_str(facts).unwrap_or_default();
    let best = facts["matches"].as_array().and_then(|all| all.first()).cloned().unwrap_or_default();
    let (compared, gain) =
        (&best["verdict"]["compared"], best["verdict"]["gain_ppm"].as_f64().unwrap_or(0.0) / 1e4);
    format!(
        "{} against {} on held-out rows: only the new one right {}, only the old one {}, both {}, neither {}; gain {gain:.1} points, p = {}",
        best["candidate"],
        best["incumbent"],
        compared["only_new"],
        compared["only_old"],
        compared["both_right"],
        compared["both_wrong"],
        best["verdict"]["p_value"]
    )
}

/// Follows a rollout to its end, telling each change.
pub(crate) async fn follow(
    world: &mut World,
    report: &mut Report,
    rollout: &str,
    limit: Duration,
) -> Result<String> {
    let database = world.database().await?;
    let mut told = String::new();
    wait_for("the rollout to end", limit, async || {
        let row = sqlx::query("SELECT state, generation, coalesce(report, '{}') FROM rollouts WHERE id = ?")
            .bind(rollout)
            .fetch_one(&database)
            .await?;
        let state: String = row.get(0);
        let line = format!("rollout {rollout}: {state}, plan {}", row.get::<i64, _>(1));
        if line != told {
            report.say(&line);
            told = line;
        }
        Ok(matches!(state.as_str(), "promoted" | "stopped" | "superseded").then_some(state))
    })
    .await
}

/// Devices open after each wave.
async fn plan_waves(world: &World, rollout: &str) -> Result<Vec<usize>> {
    let file = world.controller.json(&["rollout", "status", rollout]).await?;
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for previous in file["plan"]["members"].as_object().context("the plan names its devices")?.values() {
        *counts.entry(previous["wave"].as_u64().context("a wave")?).or_default() += 1;
    }
    let mut open = 0;
    Ok(counts
        .values()
        .map(|n| {
            open += n;
            open
        })
        .collect())
}

/// Whether every release of the rollout stands in the delegated role alone, under the task's own path.
async fn retrained_roles(world: &World, rollout: &str) -> Result<(bool, String)> {
    let status = world.controller.json(&["rollout", "status", rollout]).await?;
    let releases: Vec<String> = status["plan"]["candidates"]
        .as_array()
        .context("candidates")?
        .iter()
        .filter_map(|release| release.as_str().map(str::to_owned))
        .collect();
    let folder = world.controller.data.join("repo/image");
    let newest = |suffix: &str| -> Result<Value> {
        let mut files: Vec<(u64, std::path::PathBuf)> = std::fs::read_dir(&folder)?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let number = path.file_name()?.to_str()?.strip_suffix(suffix)?.parse().ok()?;
                Some((number, path))
            })
            .collect();
        files.sort();
        let path = &files.last().context("a metadata file")?.1;
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    let (offline, online) = (newest(".targets.json")?, newest(".retrained.json")?);
    let name = |release: &String| format!("{}.json", release.replace('@', "."));
    let confined = !releases.is_empty()
        && releases.iter().all(|release| {
            let name = name(release);
            name.starts_with(&format!("auto.{TASK}."))
                && online["signed"]["targets"].get(&name).is_some()
                && offline["signed"]["targets"].get(&name).is_none()
        });
    Ok((confined, releases.join(", ")))
}

fn compare(report: &mut Report, before: &Measured, during: &Measured, after: &Measured) {
    let mut rows = Vec::new();
    let mut all_better = true;
    for class in CLASSES {
        for held in [false, true] {
            let of = |measured: &Measured| {
                measured.get(&(class.to_owned(), held)).copied().unwrap_or(Rate { hits: 0, n: 0 })
            };
            let name = if held { "not retrained" } else { "managed" };
            rows.push(vec![
                class.to_owned(),
                name.to_owned(),
                show(of(before)),
                show(of(during)),
                show(of(after)),
            ]);
            if !held {
                let (fell, rose) = (of(during).wilson(Z95), of(after).wilson(Z95));
                all_better &= fell.high < of(before).wilson(Z95).low && rose.low > fell.high;
            }
        }
    }
    report.table(
        "Accuracy on the third pool, which nobody trained on, with 95 % Wilson intervals",
        &["class", "group", "before", "aged", "after"],
        &rows,
    );
    report.claim(
        "accuracy fell when the cameras aged and recovered on every class",
        all_better,
        format!(
            "managed: {} → {} → {}",
            show(total(before, false)),
            show(total(during, false)),
            show(total(after, false))
        ),
    );
    let (managed, held) = (total(after, false).wilson(Z95), total(after, true).wilson(Z95));
    report.claim(
        "devices that were not retrained did not recover",
        held.high < managed.low,
        format!("{} beside {}", show(total(after, true)), show(total(after, false))),
    );
}
