//! Act 3: a model that is properly signed and bad. The canary stops it.
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::claims;
use dunlin_tests::operator::TASK;

use crate::desk::Made;
use crate::gate::follow;
use crate::report::Report;
use crate::world::{CLASSES, World};

/// How long the gate may take.
const LIMIT: Duration = Duration::from_secs(150);
/// How long the return may take.
const RETURN_LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn play(world: &mut World, report: &mut Report, made: &Made) -> Result<()> {
    report.act("a bad model, properly signed");
    let serving = claims::serving(&world.database().await?).await?;
    let bad = &made.bad;
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", bad, "--keys", &keys]).await?;
    let created = world
        .controller
        .json(&["rollout", "create", "--task", TASK, bad, "--cause", "swapped labels"])
        .await?;
    let rollout = created["plan"]["rollout"]
        .as_str()
        .with_context(|| format!("rollout create said {created}"))?
        .to_owned();
    world.mark("bad model");
    report.say(&format!("{bad} is approved and rollout {rollout} begins"));
    follow(world, report, &rollout, LIMIT).await?;
    world.mark("stopped");
    let database = world.database().await?;
    report.check("the canary stopped the bad model", claims::stopped(&database, &rollout).await);
    report.check(
        "`dunlin rollout watch` says so to a pipeline",
        claims::told_to_pipelines(&world.controller, &rollout).await,
    );
    report.check(
        "nobody outside the canary ran it",
        claims::only_the_canary_ran(&world.controller, &database, &rollout, bad, CLASSES.len()).await,
    );
    report.check(
        "its devices went back to what they ran before",
        claims::returned(&database, bad, &serving, RETURN_LIMIT).await,
    );
    Ok(())
}
