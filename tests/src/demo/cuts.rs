//! Act 5: power cuts. An agent dies in mid-download, the controller in mid-rollout; both resume, nothing is lost.
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::claims::{self, Cut};
use dunlin_tests::digits::{AGED, NEW, views};
use dunlin_tests::operator::{TASK, push_file, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::wide::widen;

use crate::ageing::follow;
use crate::report::Report;

use crate::setup;
use crate::world::World;

/// How long a rollout of the size of this fleet may take.
const LIMIT: Duration = Duration::from_secs(240);
/// How long one device, or the last records, may take.
const DEVICE_LIMIT: Duration = Duration::from_secs(60);
/// How long a schedule of every minute may take, and a little more.
const CRON_LIMIT: Duration = Duration::from_secs(130);

/// Width that makes the network about 20 MB.
const WIDE_UNITS: usize = 40_000;

/// Bytes on the disk that make a download worth cutting.
const CUT_BYTES: u64 = 1 << 20;

/// Waits for a device in the middle of a download. That lasts a fraction of a second here, so this looks all the time.
async fn downloading(world: &World) -> Result<(usize, Cut)> {
    let look = async {
        loop {
            let mut agents = world.agents.iter().enumerate();
            if let Some(found) = agents.find_map(|(i, agent)| Some((i, agent.downloading(CUT_BYTES)?))) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.context("no device was seen in the middle of a download")
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
    let (index, cut) = downloading(world).await?;
    world.agents[index].kill().await?;
    let device = world.agents[index].id.clone();
    report.say(&format!("{device} was killed with {} bytes of the model on its disk", cut.bytes));
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
    follow(world, report, &rollout, LIMIT).await?;
    report
        .check("the controller resumed the rollout it died in", claims::promoted(&database, &rollout).await);
    report.check(
        "the killed device asked only for what was missing of its download",
        claims::resumed(&world.agents[index], &cut, DEVICE_LIMIT).await,
    );
    report.check("it then committed", claims::committed(&database, &device, &releases, DEVICE_LIMIT).await);
    report.check(
        "its cut did not count as a failed deployment",
        claims::not_blamed(&database, &device, &releases).await,
    );

    setup::with_cron(world).await?;
    report.say("the task gets a schedule: every minute");
    report.check("a cron trigger fired by itself", claims::schedule_fired(&database, CRON_LIMIT).await);

    world.traffic.abort_all();
    for agent in &mut world.agents {
        agent.stop().await?;
    }
    report.say("the fleet was told to end; what it had not delivered yet stays on its disks");
    for index in 0..world.agents.len() {
        world.start_agent(index).await?;
    }
    let agents: Vec<_> = world.agents.iter().collect();
    report.check(
        "every telemetry window is accounted for, none is stored twice",
        claims::accounted_for(&agents, &database, DEVICE_LIMIT).await,
    );
    let failures: u64 = world.scene.failures().values().sum();
    report.say(&format!(
        "{failures} requests of applications found no agent, in all; those fell into the cuts"
    ));
    report.check("the audit log is whole", claims::audit_whole(&world.controller).await);
    for agent in &mut world.agents {
        agent.stop().await?;
    }
    world.controller.stop().await
}
