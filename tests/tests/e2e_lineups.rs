//! Line-ups of three releases on a real agent: what an operator writes into a task becomes a vote, a cascade with a
//! challenger, and a smaller member while the link is down.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use dunlin_tests::agent::Agent;
use dunlin_tests::digits::{NEW, PIXELS, views};
use dunlin_tests::operator::{self, TASK, push, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use serde_json::{Value, json};
use sqlx::Row;

const LIMIT: Duration = Duration::from_secs(120);

/// What the answer to one row of zeros says of itself.
async fn ask(agent: &Agent, id: &str) -> anyhow::Result<(String, Value)> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
    let data = vec![0.0; PIXELS];
    let body = json!({ "id": id, "inputs": [{ "name": "x", "shape": [1, PIXELS], "datatype": "FP32", "data": data }] });
    let url = format!("http://{}/v2/models/{TASK}/infer", agent.api);
    let answer: Value = client.post(url).json(&body).send().await?.error_for_status()?.json().await?;
    Ok((answer["model_version"].as_str().unwrap_or_default().to_owned(), answer["parameters"].clone()))
}

async fn answered_by(world: &Small, who: &str) -> (String, Value) {
    wait_for(&format!("an answer by {who}"), LIMIT, async || {
        let answer = ask(&world.agents[0], "look").await.ok();
        Ok(answer.filter(|(_, parameters)| parameters["answered_by"] == who))
    })
    .await
    .unwrap()
}

/// The task with a line-up beside the release of its pool.
async fn line_up(world: &Small, folder: &Path, pool: &str, lineup: &str) {
    let rules = operator::definition(&BTreeSet::from([pool.to_owned()]), None);
    let file = folder.join("task.toml");
    std::fs::write(&file, format!("{rules}\n[lineup]\n{lineup}\n")).unwrap();
    world.controller.json(&["task", "apply", &file.display().to_string()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_lines_up_answers_together_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut world = Small::new(folder, &["raspberry-pi-4"]).await.unwrap();
    let first = world.first_model(folder).await.unwrap();
    let images = views(&world.pools.training, NEW, 1, 2);
    let job = folder.join("second-model");
    let result = train(&world.controller, &job, &images, &["logistic"], 2).await.unwrap();
    let mut pushed = Vec::new();
    for name in ["meter-big", "meter-tiny"] {
        let candidate = &result["candidates"][0];
        pushed.push(push(&world.controller, &job, "logistic", name, candidate).await.unwrap());
    }
    let [big, tiny] = [&pushed[0], &pushed[1]];
    world.controller.json(&["model", "approve", "--keys", &world.offline_keys()]).await.unwrap();
    world.enrol().await.unwrap();
    world.ask().unwrap();
    world.committed(&first, LIMIT).await.unwrap();

    let lineup = format!(
        "rule = \"soft_vote\"
        members = [
            {{ release = \"{big}\", role = {{ voter = {{ weight_ppm = 1000000 }} }} }},
            {{ release = \"{tiny}\", role = \"smaller\" }},
        ]
        context = [{{ signal = \"link\", enter = 0, leave = 1, dwell_ms = 0 }}]"
    );
    line_up(&world, folder, &first, &lineup).await;
    let (version, parameters) = answered_by(&world, "vote").await;
    assert_eq!(version, first);
    assert_eq!(parameters["voters"], format!("{first},{big}"));
    assert!(
        parameters["generation"].as_u64().unwrap() > 1 && parameters["left_out"].is_null(),
        "{parameters}"
    );
    let device = world.agents[0].id.clone();
    let why = world.controller.json(&["device", "explain", &device]).await.unwrap().to_string();
    assert!(
        why.contains(&format!("with voter {big}")) && why.contains(&format!("with smaller {tiny}")),
        "{why}"
    );

    // Both voters are counted by the controller, each in windows of its own.
    let database = world.controller.database().await.unwrap();
    wait_for("windows of both voters", LIMIT, async || {
        let query = "SELECT count(DISTINCT release) FROM windows WHERE release IN (?, ?)";
        let row = sqlx::query(query).bind(&first).bind(big).fetch_one(&database).await?;
        Ok((row.get::<i64, _>(0) == 2).then_some(()))
    })
    .await
    .unwrap();
    database.close().await;

    // Without its controller the device saves what it can, and returns when the link does.
    world.controller.stop().await.unwrap();
    let (version, parameters) = answered_by(&world, "smaller").await;
    assert_eq!(&version, tiny);
    assert!(parameters["voters"].is_null());
    world.controller.start().await.unwrap();
    answered_by(&world, "vote").await;
    let database = world.controller.database().await.unwrap();
    wait_for("the device to report degraded", LIMIT, async || {
        let query = "SELECT count(*) FROM indicators WHERE device = ? AND reason = 'degraded'";
        let row = sqlx::query(query).bind(&device).fetch_one(&database).await?;
        Ok((row.get::<i64, _>(0) > 0).then_some(()))
    })
    .await
    .unwrap();
    database.close().await;

    // No two scores are a whole apart, so every request goes on to the bigger one, but for the challenger's.
    let lineup = format!(
        "rule = {{ cascade = {{ margin_ppm = 1000000 }} }}
        members = [
            {{ release = \"{big}\", role = \"bigger\" }},
            {{ release = \"{tiny}\", role = {{ challenger = {{ share_ppm = 500000 }} }} }},
        ]"
    );
    line_up(&world, folder, &first, &lineup).await;
    wait_for("the cascade", LIMIT, async || {
        let (_, parameters) = ask(&world.agents[0], "look").await?;
        Ok((parameters["answered_by"] == "bigger" || parameters["answered_by"] == "challenger").then_some(()))
    })
    .await
    .unwrap();
    let mut challenged = 0;
    for n in 0..200 {
        let id = format!("share-{n}");
        let (version, parameters) = ask(&world.agents[0], &id).await.unwrap();
        let is_challenger = parameters["answered_by"] == "challenger";
        assert_eq!(&version, if is_challenger { tiny } else { big }, "{parameters}");
        assert_eq!(ask(&world.agents[0], &id).await.unwrap().0, version, "the id decides, not chance");
        challenged += u32::from(is_challenger);
    }
    assert!((60..140).contains(&challenged), "{challenged} of 200 at a half");

    world.stop().await.unwrap();
}
