//! Act 5: power cuts. An agent dies in mid-download, the controller in mid-rollout; both resume, nothing is lost.
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::digits::{AGED, NEW, views};
use dunlin_tests::operator::{TASK, push_file, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::wide::widen;
use sqlx::Row;

use crate::ageing::follow;
use crate::report::Report;

use crate::world::World;
use crate::{books, setup};

/// How long a rollout of the size of this fleet may take.
const LIMIT: Duration = Duration::from_secs(240);

/// Width that makes the network about 20 MB.
const WIDE_UNITS: usize = 40_000;

/// A device with a partial download, and how much of it there is.
fn partial_download(world: &World) -> Result<Option<(usize, u64)>> {
    // A download lasts a fraction of a second here, so this looks many times before it says no.
    for _ in 0..100 {
        for (index, agent) in world.agents.iter().enumerate() {
            let folder = agent.folder.join("state/slots/blobs");
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in
                entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".part"))
            {
                let length = entry.metadata().map_or(0, |metadata| metadata.len());
                if length > 1 << 20 {
                    return Ok(Some((index, length)));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(None)
}

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("power cuts");
    let folder = world.out.join("world/next-model");
    let images = [views(&world.pools.training, AGED, 2, 5), views(&world.pools.training, NEW, 1, 6)].concat();
    let result = train(&world.controller, &folder, &images, &["logistic", "mlp"], 3).await?;
    let mut releases = Vec::new();
    for candidate in result["candidates"].as_array().context("candidates")? {
        let (id, family) =
            (candidate["id"].as_str().context("id")?, candidate["family"].as_str().context("family")?);
        let mut file = folder.join("candidates").join(id).join("model.onnx");
        if family == "mlp" {
            // Same answers, many megabytes: a download long enough to be cut.
            let wide = widen(&std::fs::read(&file)?, WIDE_UNITS)?;
            file = folder.join("wide.onnx");
            std::fs::write(&file, wide)?;
        }
        releases.push(
            push_file(&world.controller, &folder, &file, &format!("meter-next-{family}"), candidate).await?,
        );
    }
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", "--keys", &keys]).await?;
    let mut args = vec!["rollout", "create", "--task", TASK, "--cause", "trained at the desk on aged images"];
    args.extend(releases.iter().map(String::as_str));
    let created = world.controller.json(&args).await?;
    let rollout = created["plan"]["rollout"].as_str().context("a rollout id")?.to_owned();
    world.mark("power cuts");

    let database = world.database().await?;
    let (index, partial) =
        wait_for("a device in the middle of a download", LIMIT, async || partial_download(world)).await?;
    world.agents[index].kill().await?;
    let device = world.agents[index].id.clone();
    report.say(&format!("{device} was killed with {partial} bytes of the model on its disk"));
    world.controller.kill().await?;
    report.say("the controller was killed in the middle of the rollout");
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.start_agent(index).await?;
    world.controller.start().await?;
    report.say("both were started again");
    let resumed = wait_for("the canary to finish", LIMIT, async || {
        let status = world.controller.json(&["rollout", "status", &rollout]).await?;
        let (tally, members) = (&status["report"]["tally"], &status["report"]["tally"]["members"]);
        let state = status["plan"]["state"]["state"].as_str().unwrap_or_default().to_owned();
        let done = tally["committed"] == *members && members.as_u64() > Some(0);
        Ok((done || state != "open").then(|| (state, status["report"]["verdict"].to_string())))
    })
    .await?;
    report.say(&format!(
        "the canary is through; the gate says {}",
        resumed.1.chars().take(200).collect::<String>()
    ));
    if resumed.0 == "open" {
        // So few labels need not be enough for the gate; it then waits for an operator, who has seen enough.
        world.controller.json(&["rollout", "promote", &rollout]).await?;
        report.say("the operator promotes it");
    }
    let state = follow(world, report, &rollout, LIMIT).await?;
    report.claim("the controller resumed the rollout it died in", state == "promoted", state);
    let serving = wait_for("the killed device to finish", Duration::from_secs(60), async || {
        let row = sqlx::query("SELECT release FROM installed WHERE device = ? AND phase = 'committed'")
            .bind(&device)
            .fetch_optional(&database)
            .await?;
        Ok(row.and_then(|row| row.get::<Option<String>, _>(0)).filter(|release| releases.contains(release)))
    })
    .await;
    report.claim(
        "the killed device took its download up again and committed",
        serving.is_ok(),
        serving.unwrap_or_else(|error| error.to_string()),
    );
    let blamed: i64 = sqlx::query_scalar("SELECT count(*) FROM outcomes WHERE device = ? AND phase IN ('failed', 'rolled_back') AND release LIKE 'meter-next-%'")
        .bind(&device)
        .fetch_one(&database)
        .await?;
    report.claim("its cut did not count as a failed deployment", blamed == 0, format!("{blamed} failures"));

    setup::with_cron(world).await?;
    report.say("the task gets a schedule: every minute");
    let cron = world
        .wait_text(
            "the schedule to start a run by itself",
            130,
            "SELECT id || ' because ' || cause FROM runs WHERE cause LIKE '%cron%' LIMIT 1",
        )
        .await;
    report.claim(
        "a cron trigger fired by itself",
        cron.is_ok(),
        cron.unwrap_or_else(|error| error.to_string()),
    );

    world.traffic.abort_all();
    for agent in &mut world.agents {
        agent.stop().await?;
    }
    report.say("the fleet was told to end; what it had not delivered yet stays on its disks");
    for index in 0..world.agents.len() {
        world.start_agent(index).await?;
    }
    let (agreed, numbers) = books::agree(world).await?;
    report.claim("every telemetry window is accounted for, none is stored twice", agreed, numbers);
    let failures: u64 = world.scene.failures().values().sum();
    report.say(&format!(
        "{failures} requests of applications found no agent, in all; those fell into the cuts"
    ));
    let audit = world
        .controller
        .run(&["audit", "verify", "--data", &world.controller.data.display().to_string()])
        .await;
    report.claim(
        "the audit log is whole",
        audit.is_ok(),
        audit.map_or_else(|error| error.to_string(), |ended| ended.stdout.trim().to_owned()),
    );
    for agent in &mut world.agents {
        agent.stop().await?;
    }
    world.controller.stop().await
}
