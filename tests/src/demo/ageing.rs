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
use sqlx::{Row, SqlitePool};

use crate::gate::follow;
use crate::plot::intervals;
use crate::report::Report;
use crate::world::{CLASSES, World};

/// How long drift, training and rollout may take all together.
const LIMIT: Duration = Duration::from_secs(300);
/// The newest windows that the controller's own accuracy is read from, milliseconds.
const RECENT_MS: u64 = 12_000;
/// Labels of a class that are enough to tell its accuracy by.
const LABELS_MIN: u64 = 200;
/// How long so many labels may take.
const LABELS_LIMIT: Duration = Duration::from_secs(60);

/// Accuracy at one moment.
struct Moment {
    /// On the third pool.
    measured: Measured,
    /// As the controller has it from labels.
    labelled: Measured,
}

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("the cameras age");
    let database = world.database().await?;
    let labelled = recent(&database, 0, &[]).await?;
    let before = Moment { measured: measure(world).await?, labelled };
    report
        .say(&format!("measured on the third pool before: managed {}", show(total(&before.measured, false))));
    report.check("no drift was reported while nothing had changed", claims::no_drift_seen(&database).await);

    // Nothing that follows reads this: the system and the checks go by what devices report.
    *world.scene.ageing.lock().expect("no holder panics") = AGED;
    world.mark("cameras age");
    report.say(&format!(
        "brackets sag by {} row, contrast falls to {:.0} %, haze rises by {} of 16 grey levels",
        AGED.sag_rows,
        AGED.contrast * 100.0,
        AGED.haze
    ));
    let measured = measure(world).await?;
    report.say(&format!(
        "measured on the third pool with aged cameras: managed {}",
        show(total(&measured, false))
    ));

    let (run, cause, facts, labelled) = retrained(world, report).await?;
    let during = Moment { measured, labelled };
    report.check(
        "drift or fallen accuracy started retraining by itself",
        claims::started_by_itself(&run, &cause),
    );
    report.check("the new models passed the gate against the incumbent", claims::gained(&facts));
    report.check("the drift of the inputs was detected", claims::drift_seen(&database).await);
    report.check(
        "it learnt from labelled samples sent by devices, and from none that are left out",
        claims::learnt_from_devices(&world.controller, &database, &run).await,
    );
    let rollout = wait_for("the rollout of the run", LIMIT, async || {
        Ok(sqlx::query_scalar::<_, String>("SELECT id FROM rollouts WHERE run = ?")
            .bind(&run)
            .fetch_optional(&database)
            .await?)
    })
    .await?;
    follow(world, report, &rollout, LIMIT).await?;
    report.check(
        "without an operator, every device that is not held committed to a new model or had none that is for it",
        claims::reached_all_by_itself(&database, &rollout).await,
    );
    world.mark("promoted");
    let promoted_ms = wall_ms()?;
    report.check(
        "it went out in waves, a canary of one device per class first",
        claims::in_waves(&world.controller, &rollout, CLASSES.len(), 3).await,
    );
    report.check(
        "the new models are signed by the confined online key, under names of their task only",
        claims::confined(&world.controller, &rollout).await,
    );

    report.check(
        "devices that are held out of rollouts ran nothing of it",
        claims::kept_out(&database, &world.pool).await,
    );
    let measured = measure(world).await?;
    let releases = candidates(world, &rollout).await?;
    let after = Moment { measured, labelled: recent(&database, promoted_ms, &releases).await? };
    compare(report, &before, &during, &after);
    Ok(())
}

/// Waits for a run that ends well, telling of those that found no gain on the way: the first one may come too early to
/// have seen enough of the new world, and then its gate says so. Returns besides what the controller knew of accuracy
/// when the first one was due.
async fn retrained(world: &mut World, report: &mut Report) -> Result<(String, String, String, Measured)> {
    let database = world.database().await?;
    let mut told = BTreeMap::new();
    let mut labelled = None;
    let (run, cause, facts) = wait_for("a retraining run that passes its gate", LIMIT, async || {
        let rows = sqlx::query("SELECT id, cause, state, facts FROM runs ORDER BY created_ms")
            .fetch_all(&database)
            .await?;
        if !rows.is_empty() && labelled.is_none() {
            labelled = Some(claims::labelled(&database, wall_ms()?.saturating_sub(RECENT_MS), &[]).await?);
            world.marks.push((world.scene.now(), "retraining"));
        }
        for row in rows {
            let (id, cause, state, facts): (String, String, String, String) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            if told.insert(id.clone(), state.clone()).as_ref() != Some(&state) {
                report.say(&format!("retraining {id}: {state} ({cause})"));
            }
            if state == "succeeded" {
                return Ok(Some((id, cause, facts)));
            }
        }
        Ok(None)
    })
    .await?;
    Ok((run, cause, facts, labelled.unwrap_or_default()))
}

/// What the controller knows of accuracy: from windows that began within the last seconds and not before `since_ms`, as
/// soon as each class has enough labels.
async fn recent(database: &SqlitePool, since_ms: u64, releases: &[String]) -> Result<Measured> {
    let enough = |labelled: &Measured| {
        let managed: Vec<_> = labelled.iter().filter(|((_, held), _)| !held).collect();
        managed.len() == CLASSES.len() && managed.iter().all(|(_, rate)| rate.n >= LABELS_MIN)
    };
    wait_for("labels of every class", LABELS_LIMIT, async || {
        let from_ms = match since_ms {
            0 => wall_ms()?.saturating_sub(RECENT_MS),
            since_ms => since_ms,
        };
        Ok(Some(claims::labelled(database, from_ms, releases).await?).filter(enough))
    })
    .await
}

async fn candidates(world: &World, rollout: &str) -> Result<Vec<String>> {
    let status = world.controller.json(&["rollout", "status", rollout]).await?;
    let named = status["plan"]["candidates"].as_array().cloned().unwrap_or_default();
    Ok(named.iter().filter_map(|release| release.as_str().map(str::to_owned)).collect())
}

async fn measure(world: &World) -> Result<Measured> {
    traffic::measure(&world.scene, &world.pools.measurement, TASK).await
}

fn wall_ms() -> Result<u64> {
    Ok(u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?)
}

fn compare(report: &mut Report, before: &Moment, during: &Moment, after: &Moment) {
    let mut groups = Vec::new();
    let mut rows = Vec::new();
    for class in CLASSES {
        for held in [false, true] {
            let of = |measured: &Measured| {
                measured.get(&(class.to_owned(), held)).copied().unwrap_or(Rate { hits: 0, n: 0 })
            };
            let name = if held { "not retrained" } else { "managed" };
            let rates = [before, during, after].map(|moment| of(&moment.measured));
            let told = [before, during, after].map(|moment| show(of(&moment.labelled)));
            rows.push(
                [vec![class.to_owned(), name.to_owned()], rates.map(show).into(), told.into()].concat(),
            );
            let short = class.split('-').next_back().unwrap_or(class);
            groups.push((format!("{short}, {name}"), rates.to_vec()));
        }
    }
    let title = "Accuracy with 95 % Wilson intervals: on the third pool, which nobody trained on, and as the controller has it from labels";
    let head = ["class", "group", "before", "aged", "after", "labels before", "labels aged", "labels after"];
    report.table(title, &head, &rows);
    report.plot(
        "Accuracy on the third pool by class, with 95 % Wilson intervals",
        intervals(&["before", "aged", "after"], &groups),
    );
    report.check(
        "accuracy fell when the cameras aged and recovered on every class",
        claims::recovered(&before.measured, &during.measured, &after.measured),
    );
    report.check(
        "the controller saw it fall and recover by itself, from labels",
        claims::recovered(&before.labelled, &during.labelled, &after.labelled),
    );
    report.check(
        "devices that were not retrained stayed below what they were, and below the others",
        claims::not_retrained_stayed(&before.measured, &after.measured),
    );
}
