//! What the report plots: accuracy, drift and waves over time.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use dunlin_controller::cli::ApiClient;
use dunlin_monitor::rate::Rate;
use dunlin_tests::claims::Claim;
use dunlin_tests::operator::TASK;
use serde_json::Value;
use sqlx::Row;
use tokio::task::JoinSet;

use crate::plot::{Scale, Series, lines};
use crate::report::Report;
use crate::world::World;

/// Time between two looks at what the controller says of drift.
const LOOK: Duration = Duration::from_secs(2);
/// Seconds over which answers of the stream are summed.
const STEP_S: f64 = 4.0;

/// Seconds and shares by release.
type Shares = BTreeMap<String, Vec<(f64, f64)>>;

/// Share of drifted features by release over time, as the controller tells it.
#[derive(Default)]
pub(crate) struct Drifts {
    seen: Arc<Mutex<Shares>>,
    watch: JoinSet<()>,
}

/// Begins to ask the controller for drift, again and again. What it can not answer leaves a gap.
pub(crate) fn watch_drift(world: &mut World) -> Result<()> {
    let client = ApiClient::new(
        &world.controller.url(),
        Some(world.controller.token()),
        Some(&world.controller.ca()),
    )?;
    let (scene, seen) = (Arc::clone(&world.scene), Arc::clone(&world.drifts.seen));
    world.drifts.watch.spawn(async move {
        loop {
            if let Ok(told) = client.get::<Value>(&format!("/v1/drift?task={TASK}")).await {
                let mut seen = seen.lock().expect("no holder panics");
                for release in told["releases"].as_array().into_iter().flatten() {
                    if let (Some(name), Some(share)) =
                        (release["release"].as_str(), release["share_ppm"].as_f64())
                    {
                        seen.entry(name.to_owned()).or_default().push((scene.now(), share / 1e6));
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    Ok(())
}

/// Adds every plot over time; without anything to draw, one is missing.
pub(crate) async fn add(world: &mut World, report: &mut Report) -> Claim {
    world.drifts.watch.abort_all();
    let answers = accuracy(world);
    drawn("answers", &answers)?;
    report.plot(
        "Share of right answers on the stream, as the applications saw it",
        lines(&answers, &world.marks, Scale::Share),
    );
    let seen = std::mem::take(&mut *world.drifts.seen.lock().expect("no holder panics"));
    let drift: Vec<Series> = seen.into_iter().map(|(name, points)| Series { name, points }).collect();
    drawn("drift", &drift)?;
    report.plot(
        "Share of features that drifted, by the release that serves, as the controller judges it",
        lines(&drift, &world.marks, Scale::Share),
    );
    let waves = waves(world).await?;
    drawn("rollouts", &waves)?;
    report.plot(
        "Devices that each rollout is open to",
        lines(&waves, &world.marks, Scale::Count(world.agents.len())),
    );
    Ok(format!("answers, drift of {} releases, {} rollouts", drift.len(), waves.len()))
}

/// Refuses a plot with nothing in it.
fn drawn(what: &str, lines: &[Series]) -> Result<()> {
    ensure!(lines.iter().any(|line| !line.points.is_empty()), "there is nothing to draw of {what}");
    Ok(())
}

fn accuracy(world: &World) -> [Series; 2] {
    let mut sums: BTreeMap<(bool, u32), Rate> = BTreeMap::new();
    for seen in world.scene.seen() {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a demonstration lasts minutes"
        )]
        let bucket = (seen.at / STEP_S) as u32;
        let sum =
            sums.entry((world.scene.cameras[seen.camera].held, bucket)).or_insert(Rate { hits: 0, n: 0 });
        sum.n += 1;
        sum.hits += u64::from(seen.right);
    }
    [(false, "managed devices"), (true, "devices that are not retrained")].map(|(held, name)| Series {
        name: name.into(),
        points: sums
            .iter()
            .filter(|((of, _), _)| *of == held)
            .filter_map(|((_, bucket), rate)| Some(((f64::from(*bucket) + 0.5) * STEP_S, rate.value()?)))
            .collect(),
    })
}

/// From every plan of every rollout: to how many devices it was open from when on.
async fn waves(world: &mut World) -> Result<Vec<Series>> {
    let database = world.database().await?;
    let offset = world.scene.now() - wall_s()?;
    let rows = sqlx::query(
        "SELECT r.id, r.cause, p.body, p.made_ms FROM plans p JOIN rollouts r ON r.id = p.rollout ORDER BY r.created_ms, p.generation",
    )
    .fetch_all(&database)
    .await?;
    let mut series: Vec<Series> = Vec::new();
    let mut last = "";
    for row in &rows {
        let (id, cause): (&str, &str) = (row.get(0), row.get(1));
        if id != last {
            let name = if cause.is_empty() { id } else { cause };
            series.push(Series { name: name.chars().take(32).collect(), points: Vec::new() });
            last = id;
        }
        let plan: Value = serde_json::from_str(row.get(2))?;
        // Once it has stopped, its devices return.
        let members = plan["members"].as_object().map_or(0, serde_json::Map::len);
        let open = if plan["state"]["state"] == "stopped" { 0 } else { members };
        let at = row.get::<i64, _>(3) as f64 / 1000.0 + offset;
        if let Some(line) = series.last_mut() {
            line.points.push((at.max(0.0), open as f64));
        }
    }
    Ok(series)
}

fn wall_s() -> Result<f64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_with_nothing_in_it_is_missing() {
        let line = |points: &[(f64, f64)]| Series { name: "managed".into(), points: points.to_vec() };
        assert!(drawn("answers", &[]).is_err() && drawn("answers", &[line(&[])]).is_err());
        assert!(drawn("answers", &[line(&[]), line(&[(0.0, 1.0)])]).is_ok());
    }
}
