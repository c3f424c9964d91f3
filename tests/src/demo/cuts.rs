//! Act 5: power cuts. An agent dies in mid-download, the controller in mid-rollout; both resume, nothing is lost.
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::claims::{self, Cut};
use dunlin_tests::digits::NEW;
use dunlin_tests::operator::{TASK, two_waves};
use dunlin_tests::process::wait_for;

use crate::desk::Made;
use crate::gate::follow;
use crate::report::Report;
use crate::setup;
use crate::world::World;

/// How long a rollout of the size of this fleet may take.
const LIMIT: Duration = Duration::from_secs(240);
/// How long one device, or the last records, may take.
const DEVICE_LIMIT: Duration = Duration::from_secs(60);
/// When the schedule is due, seconds from the moment it is given: while the rollout is under way, which it waits for.
const CRON_DELAY_S: u64 = 15;
/// How long the run of the schedule may take to begin once nothing is in its way.
const CRON_LIMIT: Duration = Duration::from_secs(60);
/// How long nobody runs after the cut.
const DARK: Duration = Duration::from_secs(2);

/// Bytes on the disk that make a download worth cutting.
const CUT_BYTES: u64 = 1 << 20;

/// Kills a device in the middle of a download. That lasts a fraction of a second here, so this looks all the time; one that
/// was through before the blow is started again.
async fn cut_download(world: &mut World) -> Result<(usize, Cut)> {
    let look = async {
        loop {
            let mut agents = world.agents.iter();
            if let Some(index) = agents.position(|agent| agent.downloading(CUT_BYTES).is_some()) {
                world.agents[index].kill().await?;
                match world.agents[index].downloading(CUT_BYTES) {
                    Some(cut) => return Ok((index, cut)),
                    None => world.start_agent(index).await?,
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.context("no device was seen in the middle of a download")?
}

/// Waits until the canary has committed, as the planner tells it; returns whether the rollout still waits at its gate.
async fn canary_through(world: &mut World, report: &mut Report, rollout: &str) -> Result<bool> {
    let (state, verdict) = wait_for("the canary to finish", LIMIT, async || {
        let status = world.controller.json(&["rollout", "status", rollout]).await?;
        let (tally, members) = (&status["report"]["tally"], &status["report"]["tally"]["members"]);
        let state = status["plan"]["state"]["state"].as_str().unwrap_or_default().to_owned();
        let done = tally["committed"] == *members && members.as_u64() > Some(0);
        Ok((done || state != "open").then(|| (state, status["report"]["verdict"].to_string())))
    })
    .await?;
    report.say(&format!(
        "the canary is through; the gate says {}",
        verdict.chars().take(200).collect::<String>()
    ));
    Ok(state == "open")
}

/// Brings the rollout to its end. Models that are about as good as those before need more labels than probation brings
/// for the gate to decide; it then waits for an operator, and here it gets an order.
async fn to_its_end(world: &mut World, report: &mut Report, rollout: &str, waits: bool) -> Result<()> {
    let database = world.database().await?;
    if !waits {
        follow(world, report, rollout, LIMIT).await?;
        report.check("its gates then promoted it", claims::promoted(&database, rollout).await);
        return Ok(());
    }
    world.controller.json(&["rollout", "promote", rollout]).await?;
    report.say("the operator has seen enough and orders it to be promoted");
    report.check("it was then promoted, as the operator ordered", claims::promoted(&database, rollout).await);
    Ok(())
}

pub(crate) async fn play(world: &mut World, report: &mut Report, made: &Made) -> Result<()> {
    report.act("power cuts");
    setup::with_cron(world, CRON_DELAY_S).await?;
    report.say(&format!(
        "the task gets a schedule instead of the drift trigger: once a day, next in {CRON_DELAY_S} s; it waits for rollouts to end"
    ));
    *world.scene.ageing.lock().expect("no holder panics") = NEW;
    world.mark("serviced");
    report.say(
        "the cameras are serviced; the operator rolls out what she trained on the pool of the first models",
    );
    let keys = world.controller.keys.join("private").display().to_string();
    let releases = &made.next;
    let names: Vec<&str> = releases.iter().map(String::as_str).collect();
    world.controller.json(&[&["model", "approve"][..], &names, &["--keys", &keys]].concat()).await?;
    let policy = world.out.join("world/two-waves.toml");
    std::fs::write(&policy, two_waves())?;
    let policy = policy.display().to_string();
    let args = ["rollout", "create", "--task", TASK, "--cause", "cameras serviced", "--policy", &policy];
    let created = world.controller.json(&[&args[..], &names].concat()).await?;
    let rollout = created["plan"]["rollout"].as_str().context("a rollout id")?.to_owned();
    world.mark("power cuts");

    let database = world.database().await?;
    let (index, cut) = cut_download(world).await?;
    let device = world.agents[index].id.clone();
    report.say(&format!("{device} was killed with {} bytes of the model on its disk", cut.bytes));
    let canary = claims::canary(&database, &rollout).await?;
    world.controller.kill().await?;
    report.say(&format!(
        "the controller was killed in the middle of the rollout, at plan {} with {:?} as its canary",
        canary.generation, canary.devices
    ));
    tokio::time::sleep(DARK).await;
    world.start_agent(index).await?;
    world.controller.start().await?;
    report.say("both were started again");
    let waits = canary_through(world, report, &rollout).await?;
    report.check(
        "the controller went on by itself with the rollout it died in, until its canary had committed",
        claims::went_on(&database, &rollout, &canary, releases).await,
    );
    to_its_end(world, report, &rollout, waits).await?;
    report.check(
        "the killed device asked only for what was missing of its download",
        claims::resumed(&world.agents[index], &cut, DEVICE_LIMIT).await,
    );
    report.check("it then committed", claims::committed(&database, &device, releases, DEVICE_LIMIT).await);
    report.check(
        "its cut did not count as a failed deployment",
        claims::not_blamed(&database, &device, releases).await,
    );

    report.check("a cron trigger fired by itself", claims::schedule_fired(&database, 1.., CRON_LIMIT).await);

    world.traffic.abort_all();
    world.stop_agents().await?;
    report.say("the fleet was told to end; what it had not delivered yet stays on its disks");
    world.start_agents().await?;
    let agents: Vec<_> = world.agents.iter().collect();
    report.check(
        "every telemetry window is accounted for: none is missing, stored twice, or given up on a device",
        claims::accounted_for(&agents, &database, DEVICE_LIMIT).await,
    );
    let failures: u64 = world.scene.failures().values().sum();
    report.say(&format!(
        "{failures} requests of applications found no agent, in all; those fell into the cuts"
    ));
    report.check(
        "the schedule of once a day fired once",
        claims::schedule_fired(&database, 1..=1, Duration::ZERO).await,
    );
    report.check("the audit log is whole", claims::audit_whole(&world.controller).await);
    world.stop_agents().await?;
    world.controller.stop().await
}
