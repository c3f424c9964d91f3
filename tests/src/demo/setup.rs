//! Act 1: an operator sets the controller up, trains and signs the first models, and the fleet enrols.
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::agent::Agent;
use dunlin_tests::claims;
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{Image, NEW, views};
use dunlin_tests::operator::{self, TASK, definition, push, train, triggers, two_waves};
use dunlin_tests::process::wait_for;
use dunlin_tests::traffic::{self, Camera};
use futures_util::future::try_join_all;

use crate::attacks::steal_director;
use crate::report::Report;
use crate::world::{AGENT_CONFIG, CLASSES, CONTROLLER_CONFIG, RATE, START_AT_ONCE, World, start};
use crate::{charts, desk};

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("the fleet enrols");
    report.quote(
        "What the demonstration shortens, as ordinary configuration of controller, agents and task",
        &format!(
            "# controller.toml\n{CONTROLLER_CONFIG}\n# agent.toml\n{AGENT_CONFIG}\n# the task\n{}\n\
             # the triggers of its retraining in act 5\n{}\n# the rollout of act 5\n{}",
            definition(&BTreeSet::new(), None),
            triggers(Some("SECOND MINUTE HOUR * * *")),
            two_waves()
        ),
    );
    world.controller.init(CONTROLLER_CONFIG).await?;
    report.say("online keys made by `dunlin init`, offline keys by `dunlin key ceremony` in another folder");
    world.controller.start().await?;
    report.say(&format!(
        "controller is up: API on {}, broker on {}",
        world.controller.api, world.controller.mqtt
    ));

    world.controller.json(&["group", "create", "held"]).await?;
    let desk = world.controller.seat();
    let (folder, images) = (world.out.join("world/first-models"), views(&world.pools.training, NEW, 3, 1));
    let (models, ()) = tokio::try_join!(first_models(&desk, &folder, &images), enrol(world, report))?;
    report.table(
        "The first models, on held-out images of the first pool",
        &["release", "accuracy", "files", "one row here"],
        &models.rows,
    );
    let pool = models.pool;
    let policy = operator::policy(
        &world.controller,
        &world.out.join("world"),
        &views(&world.pools.training[..150], NEW, 1, 2),
    )
    .await?;
    report.quote(
        "The task's policy, which holders of the offline keys sign",
        &serde_json::to_string_pretty(&policy)?,
    );
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", "--keys", &keys]).await?;
    report.say("the three models and the task's policy are signed with the offline keys");
    world.pool = pool;
    apply_task(world, None).await?;
    settle(world, report).await
}

async fn apply_task(world: &World, cron: Option<&str>) -> Result<()> {
    let file = world.out.join("world/task.toml");
    std::fs::write(&file, definition(&world.pool, cron))?;
    world.controller.json(&["task", "apply", &file.display().to_string()]).await.map(drop)
}

/// Gives the task a schedule: once a day, for the first time in so many seconds.
pub(crate) async fn with_cron(world: &World, in_s: u64) -> Result<()> {
    let due = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() + in_s;
    let (second, minute, hour) = (due % 60, due / 60 % 60, due / 3600 % 24);
    apply_task(world, Some(&format!("{second} {minute} {hour} * * *"))).await
}

/// The first models: releases, and a row of a table for each.
struct Models {
    pool: BTreeSet<String>,
    rows: Vec<Vec<String>>,
}

/// Families of the first models: linear, trees, a network.
const FAMILIES: [&str; 3] = ["logistic", "gbdt", "mlp"];

/// Trains one model per family on the first pool, as an engineer would at her desk, and pushes them.
async fn first_models(desk: &Controller, folder: &Path, images: &[Image]) -> Result<Models> {
    let result = train(desk, folder, images, &FAMILIES, 1).await?;
    let mut models = Models { pool: BTreeSet::new(), rows: Vec::new() };
    for candidate in result["candidates"].as_array().context("candidates")? {
        let (id, family) =
            (candidate["id"].as_str().context("id")?, candidate["family"].as_str().context("family")?);
        let release = push(desk, folder, id, &format!("meter-{family}"), candidate).await?;
        let bytes: u64 = candidate["files"]
            .as_object()
            .context("files")?
            .values()
            .filter_map(|file| file["length"].as_u64())
            .sum();
        models.rows.push(vec![
            release.clone(),
            format!("{:.1} %", candidate["accuracy_ppm"].as_f64().unwrap_or(0.0) / 1e4),
            format!("{:.0} KiB", bytes as f64 / 1024.0),
            format!("{} µs", candidate["latency_us"]),
        ]);
        models.pool.insert(release);
    }
    Ok(models)
}

async fn enrol(world: &mut World, report: &mut Report) -> Result<()> {
    let n = world.agents.len();
    let mut enrolled = 0;
    let World { controller, agents, scene, .. } = world;
    let controller = &*controller;
    for (agents, cameras) in agents.chunks_mut(START_AT_ONCE).zip(scene.cameras.chunks(START_AT_ONCE)) {
        try_join_all(
            agents.iter_mut().zip(cameras).map(|(agent, camera)| enrol_one(controller, agent, camera)),
        )
        .await?;
        enrolled += cameras.len();
        report.say(&format!("{enrolled} of {n} devices have enrolled and started"));
    }
    Ok(())
}

async fn enrol_one(controller: &Controller, agent: &mut Agent, camera: &Camera) -> Result<()> {
    let group: &[&str] = if camera.held { &["--group", "held"] } else { &[] };
    let claim = controller.json(&[&["device", "claim", "--device", &agent.id][..], group].concat()).await?;
    agent.enrol(claim["token"].as_str().with_context(|| format!("claim said {claim}"))?).await?;
    start(agent, camera).await
}

/// Waits until every device serves a model of the pool, and looks at which.
async fn settle(world: &mut World, report: &mut Report) -> Result<()> {
    let n = world.agents.len();
    let images = std::sync::Arc::new(world.pools.stream.clone());
    world.traffic = traffic::stream(&world.scene, &images, TASK, RATE)?;
    world.mark("enrolled");
    charts::watch_drift(world)?;
    desk::begin(world);
    let database = world.database().await?;
    wait_for("every device to commit to a model", Duration::from_secs(120), async || {
        Ok(claims::every_device_serves(&database, n).await.ok())
    })
    .await?;
    let installed = claims::serving(&database).await?;
    let by_class = claims::by_class(&world.agents, &installed);
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
        claims::own_key_and_signed_model(&world.controller, &database, n).await,
    );
    report.check("the pool holds models of three families", claims::families(&world.controller).await);
    report.check(
        "hardware makes the right choice differ for most devices of a class",
        claims::choice_differs(&by_class),
    );
    steal_director(world, &world.agents[0].id.parse()?)?;
    for class in CLASSES {
        let device =
            world.agents.iter().find(|agent| agent.class == class).context("a device of each class")?;
        report.check(
            &format!("`explain` gives every model of the pool a score or a constraint on {class}"),
            claims::explained(&world.controller, &device.id, &world.pool).await,
        );
        let text = world.controller.run(&["device", "explain", &device.id]).await?.stdout;
        report.quote(&format!("Why {} ({class}) runs what it runs", device.id), &text);
    }
    Ok(())
}
