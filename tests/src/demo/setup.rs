//! Act 1: an operator sets the controller up, trains and signs the first models, and the fleet enrols.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dunlin_tests::claims;
use dunlin_tests::digits::{NEW, views};
use dunlin_tests::operator::{self, TASK, definition, push, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::traffic;

use crate::attacks::steal_director;
use crate::report::Report;
use crate::world::{AGENT_CONFIG, CLASSES, CONTROLLER_CONFIG, RATE, World};

/// Devices that start at the same time, so that a small machine is not swamped.
const START_AT_ONCE: usize = 6;

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("the fleet enrols");
    report.quote(
        "What the demonstration shortens, as ordinary configuration of controller, agents and task",
        &format!(
            "# controller.toml\n{CONTROLLER_CONFIG}\n# agent.toml\n{AGENT_CONFIG}\n# the task\n{}",
            definition(&BTreeSet::new(), None)
        ),
    );
    world.controller.init(CONTROLLER_CONFIG).await?;
    report.say("online keys made by `dunlin init`, offline keys by `dunlin key ceremony` in another folder");
    world.controller.start().await?;
    report.say(&format!(
        "controller is up: API on {}, broker on {}",
        world.controller.api, world.controller.mqtt
    ));

    let pool = first_models(world, report).await?;
    operator::policy(
        &world.controller,
        &world.out.join("world"),
        &views(&world.pools.training[..150], NEW, 1, 2),
    )
    .await?;
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", "--keys", &keys]).await?;
    report.say("the three models and the task's policy are signed with the offline keys");
    world.pool = pool;
    apply_task(world, None).await?;

    world.controller.json(&["group", "create", "held"]).await?;
    enrol(world, report).await?;
    settle(world, report).await
}

async fn apply_task(world: &World, cron: Option<&str>) -> Result<()> {
    let file = world.out.join("world/task.toml");
    std::fs::write(&file, definition(&world.pool, cron))?;
    world.controller.json(&["task", "apply", &file.display().to_string()]).await.map(drop)
}

/// Gives the task a schedule: every minute.
pub(crate) async fn with_cron(world: &World) -> Result<()> {
    apply_task(world, Some("* * * * *")).await
}

/// Trains one model per family on the first pool, as an engineer would at her desk, and pushes them.
async fn first_models(world: &World, report: &mut Report) -> Result<BTreeSet<String>> {
    let folder = world.out.join("world/first-models");
    let images = views(&world.pools.training, NEW, 3, 1);
    let result = train(&world.controller, &folder, &images, &["logistic", "gbdt", "mlp"], 1).await?;
    let mut pool = BTreeSet::new();
    let mut rows = Vec::new();
    for candidate in result["candidates"].as_array().context("candidates")? {
        let (id, family) =
            (candidate["id"].as_str().context("id")?, candidate["family"].as_str().context("family")?);
        let release = push(&world.controller, &folder, id, &format!("meter-{family}"), candidate).await?;
        let bytes: u64 = candidate["files"]
            .as_object()
            .context("files")?
            .values()
            .filter_map(|file| file["length"].as_u64())
            .sum();
        rows.push(vec![
            release.clone(),
            format!("{:.1} %", candidate["accuracy_ppm"].as_f64().unwrap_or(0.0) / 1e4),
            format!("{:.0} KiB", bytes as f64 / 1024.0),
            format!("{} µs", candidate["latency_us"]),
        ]);
        pool.insert(release);
    }
    report.table(
        "The first models, on held-out images of the first pool",
        &["release", "accuracy", "files", "one row here"],
        &rows,
    );
    ensure!(pool.len() >= 3, "the trainer offered only {pool:?}");
    Ok(pool)
}

async fn enrol(world: &mut World, report: &mut Report) -> Result<()> {
    for first in (0..world.agents.len()).step_by(START_AT_ONCE) {
        let last = (first + START_AT_ONCE).min(world.agents.len());
        for index in first..last {
            let held = world.scene.cameras[index].held;
            let id = world.agents[index].id.clone();
            let mut args = vec!["device", "claim", "--device", &id];
            if held {
                args.extend(["--group", "held"]);
            }
            let claim = world.controller.json(&args).await?;
            let claim = claim["token"].as_str().with_context(|| format!("claim said {claim}"))?.to_owned();
            world.agents[index].enrol(&claim).await?;
            world.start_agent(index).await?;
        }
        report.say(&format!("{last} of {} devices have enrolled and started", world.agents.len()));
    }
    Ok(())
}

/// Waits until every device serves a model of the pool, and looks at which.
async fn settle(world: &mut World, report: &mut Report) -> Result<()> {
    let n = world.agents.len();
    let images = std::sync::Arc::new(world.pools.stream.clone());
    world.traffic = traffic::stream(&world.scene, &images, TASK, RATE)?;
    world.mark("enrolled");
    let database = world.database().await?;
    wait_for("every device to commit to a model", Duration::from_secs(120), async || {
        Ok(claims::every_device_serves(&database, n).await.ok())
    })
    .await?;
    let installed = claims::serving(&database).await?;
    let mut by_class: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for agent in &world.agents {
        let release = &installed[&agent.id];
        *by_class.entry(&agent.class).or_default().entry(release.clone()).or_default() += 1;
    }
    let rows: Vec<Vec<String>> = by_class
        .iter()
        .map(|(class, releases)| {
            let list: Vec<String> = releases.iter().map(|(release, n)| format!("{release} × {n}")).collect();
            vec![(*class).to_owned(), list.join(", ")]
        })
        .collect();
    report.table("What the controller chose", &["hardware class", "release"], &rows);
    report.check(
        "every device enrolled with its own key and serves a signed model",
        claims::every_device_serves(&database, n).await,
    );
    report.check("hardware makes the right choice differ", claims::choice_differs(&by_class));
    steal_director(world, &world.agents[0].id.parse()?)?;
    for class in CLASSES {
        let device =
            world.agents.iter().find(|agent| agent.class == class).context("a device of each class")?;
        let text = world.controller.run(&["device", "explain", &device.id]).await?.stdout;
        report.quote(&format!("Why {} ({class}) runs what it runs", device.id), &text);
    }
    Ok(())
}
