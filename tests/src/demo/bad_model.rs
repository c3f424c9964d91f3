//! Act 3: a model that is properly signed and bad. The canary stops it.
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::digits::{AGED, views};
use dunlin_tests::operator::{TASK, push, train};
use dunlin_tests::process::wait_for;
use sqlx::Row;

use crate::ageing::follow;
use crate::report::Report;

use crate::world::{CLASSES, World};

/// How long the gate may take.
const LIMIT: Duration = Duration::from_secs(150);

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("a bad model, properly signed");
    let serving = world.installed().await?;
    // An honest mistake: the labels of half of the classes were swapped before training.
    let mut images = views(&world.pools.training, AGED, 1, 3);
    for image in &mut images {
        image.digit = (image.digit + 5) % 10;
    }
    let folder = world.out.join("world/bad-model");
    let result = train(&world.controller, &folder, &images, &["logistic"], 7).await?;
    let candidate = result["candidates"].as_array().and_then(|all| all.first()).context("a candidate")?;
    let id = candidate["id"].as_str().context("id")?;
    let bad = push(&world.controller, &folder, id, "meter-swapped", candidate).await?;
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", &bad, "--keys", &keys]).await?;
    let created = world
        .controller
        .json(&["rollout", "create", "--task", TASK, &bad, "--cause", "swapped labels"])
        .await?;
    let rollout = created["plan"]["rollout"]
        .as_str()
        .with_context(|| format!("rollout create said {created}"))?
        .to_owned();
    world.mark("bad model");
    report.say(&format!("{bad} is approved and rollout {rollout} begins"));
    let state = follow(world, report, &rollout, LIMIT).await?;
    world.mark("stopped");
    let reason: String = {
        let database = world.database().await?;
        sqlx::query_scalar::<_, String>(
            "SELECT body FROM plans WHERE rollout = ? ORDER BY generation DESC LIMIT 1",
        )
        .bind(&rollout)
        .fetch_one(&database)
        .await?
    };
    let reason: serde_json::Value = serde_json::from_str(&reason)?;
    report.claim(
        "the canary stopped the bad model",
        state == "stopped",
        reason["state"].to_string().chars().take(400).collect::<String>(),
    );
    let watched = world.controller.try_run(&["rollout", "watch", &rollout, "--timeout", "5s"]).await?;
    report.claim(
        "`dunlin rollout watch` says so to a pipeline",
        watched.code == 10,
        format!("exit code {}", watched.code),
    );

    let database = world.database().await?;
    let rows = sqlx::query("SELECT DISTINCT device FROM windows WHERE release = ? UNION SELECT DISTINCT device FROM outcomes WHERE release = ? AND phase IN ('probation', 'committed')")
        .bind(&bad)
        .bind(&bad)
        .fetch_all(&database)
        .await?;
    let ran: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    report.claim(
        "nobody outside the canary ran it",
        ran.len() <= CLASSES.len() && !ran.is_empty(),
        format!("{ran:?}"),
    );

    let returned = wait_for("the devices to return", Duration::from_secs(60), async || {
        let mut back = Vec::new();
        for device in &ran {
            let row = sqlx::query(
                "SELECT coalesce(release, ''), phase FROM installed WHERE device = ? AND task = 'meter'",
            )
            .bind(device)
            .fetch_one(&database)
            .await?;
            if row.get::<String, _>(0) == serving[device].0 {
                back.push(format!("{device} → {}", row.get::<String, _>(0)));
            }
        }
        Ok((back.len() == ran.len()).then_some(back))
    })
    .await;
    let held = returned.is_ok();
    report.claim(
        "its devices went back to what they ran before",
        held,
        returned.map_or_else(|error| error.to_string(), |back| back.join(", ")),
    );
    Ok(())
}
