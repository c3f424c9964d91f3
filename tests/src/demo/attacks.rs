//! Act 4: attacks from the attacker's real position; the reason code is read from the device's next report.
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_protocol::{Assignment, DeviceId, RepoFiles};
use dunlin_tests::attacker::Attacker;
use dunlin_tests::digits::{AGED, views};
use dunlin_tests::operator::{TASK, push, train};
use dunlin_tests::process::wait_for;
use sqlx::{Row, SqlitePool};

use crate::report::Report;

use crate::world::World;

/// How long a device may take to report.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("attacks");
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    let database = world.database().await?;
    let before = world.installed().await?;
    // The forged versions are far ahead, so the second victim accepts no director document any more until an operator
    // renews the stolen keys: it is one that nothing is rolled out to.
    let last = world.agents.len() - 1;
    let (victim, frozen): (DeviceId, DeviceId) =
        (world.agents[0].id.parse()?, world.agents[last].id.parse()?);
    let other: DeviceId = world.agents[1].id.parse()?;

    let old = oldest_director(world, &victim)?;
    attacker.push(&victim, old).await.context("replaying over the broker")?;
    report.say("on the broker, with the stolen controller identity: an older director document is replayed");
    let seen = reported(&database, &victim, &["metadata_rollback", "generation_rollback"]).await;
    report.claim("a replayed older director document is refused", seen.is_ok(), told(seen));

    let foreign = attacker.forge(&frozen, |assignment: &mut Assignment| assignment.device = other.clone())?;
    attacker.push(&frozen, foreign).await?;
    report.say(&format!("with the stolen online keys: an assignment meant for {other} is sent to {frozen}"));
    let seen = reported(&database, &frozen, &["wrong_device"]).await;
    report.claim("an assignment meant for another device is refused", seen.is_ok(), told(seen));

    tampered(world, report, &database).await?;
    let after = world.installed().await?;
    let kept = [&victim, &frozen].iter().all(|device| after[device.as_str()].0 == before[device.as_str()].0);
    report.claim(
        "no attack moved a model",
        kept,
        format!("{victim} serves {}, {frozen} serves {}", after[victim.as_str()].0, after[frozen.as_str()].0),
    );
    Ok(())
}

/// The first director files of a device that are still in the controller's folder.
fn oldest_director(world: &World, device: &DeviceId) -> Result<RepoFiles> {
    let path = world.out.join(format!("world/stolen-{device}.json"));
    let text = std::fs::read(&path).with_context(|| format!("the copy taken earlier, {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Copies the director files of a device as they are served at this moment, for a later replay.
pub(crate) fn steal_director(world: &World, device: &DeviceId) -> Result<()> {
    let files = Attacker::new(&world.controller.data, world.controller.mqtt).director_files(device)?;
    std::fs::write(world.out.join(format!("world/stolen-{device}.json")), serde_json::to_vec(&files)?)?;
    Ok(())
}

/// Changes one byte of a freshly approved model in the artifact store, and rolls it out.
async fn tampered(world: &mut World, report: &mut Report, database: &SqlitePool) -> Result<()> {
    let folder = world.out.join("world/tampered-model");
    let images = views(&world.pools.training, AGED, 1, 4);
    let result = train(&world.controller, &folder, &images, &["logistic"], 11).await?;
    let candidate = result["candidates"].as_array().and_then(|all| all.first()).context("a candidate")?;
    let id = candidate["id"].as_str().context("id")?;
    let release = push(&world.controller, &folder, id, "meter-tampered", candidate).await?;
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", &release, "--keys", &keys]).await?;
    let digest = candidate["files"]["model.onnx"]["digest"].as_str().context("the model's digest")?;
    let blob = find(&world.controller.data, digest)?.context("the model in the artifact store")?;
    let mut bytes = std::fs::read(&blob)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes)?;
    report.say(&format!("in the artifact store: one bit of {release} is flipped after it was signed"));
    let created = world
        .controller
        .json(&["rollout", "create", "--task", TASK, &release, "--cause", "tampered"])
        .await?;
    let rollout = created["plan"]["rollout"].as_str().context("a rollout id")?.to_owned();
    let seen = wait_for("a device to refuse the tampered model", LIMIT, async || {
        let row = sqlx::query("SELECT device, phase, reason FROM outcomes WHERE release = ? AND reason = 'digest_mismatch' LIMIT 1")
            .bind(&release)
            .fetch_optional(database)
            .await?;
        Ok(row.map(|row| format!("{}: {} {}", row.get::<String, _>(0), row.get::<String, _>(1), row.get::<String, _>(2))))
    })
    .await;
    report.claim("a tampered artifact is refused", seen.is_ok(), told(seen));
    let served: i64 = sqlx::query_scalar("SELECT count(*) FROM windows WHERE release = ?")
        .bind(&release)
        .fetch_one(database)
        .await?;
    report.claim("the tampered artifact never answered a request", served == 0, format!("{served} windows"));
    // The rollout may have stopped by itself already; either way it must not go on.
    drop(world.controller.try_run(&["rollout", "abort", &rollout]).await?);
    Ok(())
}

/// A file of this name anywhere below a folder.
fn find(folder: &std::path::Path, name: &str) -> Result<Option<std::path::PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|file| file.to_string_lossy().contains(name)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Waits until a device has reported one of these reasons, as an indicator or as an outcome.
async fn reported(database: &SqlitePool, device: &DeviceId, reasons: &[&str]) -> Result<String> {
    wait_for("the device's report", LIMIT, async || {
        for reason in reasons {
            let row = sqlx::query(
                "SELECT detail FROM indicators WHERE device = ? AND reason = ? UNION ALL SELECT detail FROM outcomes WHERE device = ? AND reason = ? LIMIT 1",
            )
            .bind(device.as_str())
            .bind(reason)
            .bind(device.as_str())
            .bind(reason)
            .fetch_optional(database)
            .await?;
            if let Some(row) = row {
                return Ok(Some(format!("{device} reports {reason}: {}", row.get::<String, _>(0))));
            }
        }
        Ok(None)
    })
    .await
}

fn told(seen: Result<String>) -> String {
    seen.unwrap_or_else(|error| error.to_string())
}
