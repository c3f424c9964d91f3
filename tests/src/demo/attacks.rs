//! Act 4: attacks from the attacker's real position; the reason code is read from the indicators of the device's next report.
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_protocol::{Assignment, DeviceId, RepoFiles};
use dunlin_tests::attacker::Attacker;
use dunlin_tests::claims;
use dunlin_tests::operator::TASK;
use sqlx::SqlitePool;

use crate::desk::Made;
use crate::report::Report;
use crate::world::{CLASSES, World};

/// How long a device may take to report.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn play(world: &mut World, report: &mut Report, made: &Made) -> Result<()> {
    report.act("attacks");
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    let database = world.database().await?;
    let before = claims::serving(&database).await?;
    // The forged versions are far ahead, so the second victim accepts no director document any more until an operator
    // renews the stolen keys: it is one that nothing is rolled out to, of the class that has no choice among models.
    let held = world.scene.cameras.iter().rposition(|camera| camera.held && camera.class == CLASSES[0]);
    let last = held.context("a held device of the smallest class")?;
    let (victim, frozen): (DeviceId, DeviceId) =
        (world.agents[0].id.parse()?, world.agents[last].id.parse()?);
    let other: DeviceId = world.agents[1].id.parse()?;

    let old = oldest_director(world, &victim)?;
    let since = claims::last_indicator(&database).await?;
    attacker.push(&victim, old).await.context("replaying over the broker")?;
    report.say("on the broker, with the stolen controller identity: an older director document is replayed");
    // All is sent before anything is waited for: who takes the controller's session over delays what devices report.
    let foreign = attacker.forge(&frozen, |assignment: &mut Assignment| assignment.device = other.clone())?;
    attacker.push(&frozen, foreign).await?;
    report.say(&format!("with the stolen online keys: an assignment meant for {other} is sent to {frozen}"));
    report.check(
        "a replayed older director document is refused",
        claims::refused(&database, victim.as_str(), "metadata_rollback", since, LIMIT).await,
    );
    report.check(
        "an assignment meant for another device is refused",
        claims::refused(&database, frozen.as_str(), "wrong_device", since, LIMIT).await,
    );

    tampered(world, report, &database, made).await?;
    let devices: Vec<_> = world.agents.iter().collect();
    report.check(
        "no attack moved a model",
        claims::no_model_moved(&devices, &before, &database, &[&made.tampered]).await,
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
async fn tampered(world: &mut World, report: &mut Report, database: &SqlitePool, made: &Made) -> Result<()> {
    let release = &made.tampered;
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", release, "--keys", &keys]).await?;
    Attacker::new(&world.controller.data, world.controller.mqtt).tamper(&made.digest)?;
    report.say(&format!("in the artifact store: one bit of {release} is flipped after it was signed"));
    let since = claims::last_indicator(database).await?;
    let created =
        world.controller.json(&["rollout", "create", "--task", TASK, release, "--cause", "tampered"]).await?;
    let rollout = created["plan"]["rollout"].as_str().context("a rollout id")?.to_owned();
    let all: Vec<&str> = world.agents.iter().map(|agent| agent.id.as_str()).collect();
    report.check(
        "a tampered artifact is refused",
        claims::tampering_refused(database, release, &all, since, LIMIT).await,
    );
    report.check(
        "the tampered artifact never answered a request",
        claims::never_answered(database, release, &all).await,
    );
    // The rollout may have stopped by itself already; either way it must not go on.
    drop(world.controller.try_run(&["rollout", "abort", &rollout]).await?);
    Ok(())
}
