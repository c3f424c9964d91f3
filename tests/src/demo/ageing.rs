//! Act 2: the cameras age; the system notices, retrains, and rolls the new models out by itself.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use dunlin_monitor::rate::Rate;
use dunlin_tests::claims::{self, Measured, show, total};
use dunlin_tests::digits::AGED;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::wait_for;
use dunlin_tests::traffic;
use sqlx::Row;

use crate::report::Report;
use crate::world::{CLASSES, World};

/// How long drift, training and rollout may take all together.
const LIMIT: Duration = Duration::from_secs(300);

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
    report.check(
        "drift or fallen accuracy started retraining by itself",
        claims::started_by_itself(&run, &cause),
    );
    report.check("the new models passed the gate against the incumbent", claims::gained(&facts));
    report.check("the drift of the inputs was detected", claims::drift_seen(&database).await);
    let rollout = wait_for("the rollout of the run", LIMIT, async || {
        Ok(sqlx::query_scalar::<_, String>("SELECT id FROM rollouts WHERE run = ?")
            .bind(&run)
            .fetch_optional(&database)
            .await?)
    })
    .await?;
    follow(world, report, &rollout, LIMIT).await?;
    world.mark("promoted");
    report.check(
        "it went out in waves, a canary of one device per class first",
        claims::in_waves(&world.controller, &rollout, CLASSES.len(), 3).await,
    );
    report.check(
        "the new models are signed by the confined online key, under names of their task only",
        claims::confined(&world.controller, &rollout).await,
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

/// Follows a rollout to its end, telling each change.
pub(crate) async fn follow(
    world: &mut World,
    report: &mut Report,
    rollout: &str,
    limit: Duration,
) -> Result<()> {
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
        Ok(matches!(state.as_str(), "promoted" | "stopped" | "superseded").then_some(()))
    })
    .await
}

fn compare(report: &mut Report, before: &Measured, during: &Measured, after: &Measured) {
    let mut rows = Vec::new();
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
        }
    }
    report.table(
        "Accuracy on the third pool, which nobody trained on, with 95 % Wilson intervals",
        &["class", "group", "before", "aged", "after"],
        &rows,
    );
    report.check(
        "accuracy fell when the cameras aged and recovered on every class",
        claims::recovered(before, during, after),
    );
    report.check("devices that were not retrained did not recover", claims::not_retrained_stayed(after));
}
