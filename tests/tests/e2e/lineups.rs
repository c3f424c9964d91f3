//! Line-ups of several releases on a real agent: what an operator writes into a task becomes a vote, a cascade with a
//! challenger, a smaller member while the link is down, and a stack with a shadow.
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use dunlin_engine::Model;
use dunlin_protocol::{Window, cbor};
use dunlin_tests::agent::Agent;
use dunlin_tests::digits::{CLASSES, NEW, PIXELS, views};
use dunlin_tests::networks;
use dunlin_tests::operator::{self, TASK, push, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use serde_json::{Value, json};
use sqlx::Row;

const LIMIT: Duration = Duration::from_secs(120);

/// The answer to one row of zeros, of the line-up or of this version alone.
async fn infer(agent: &Agent, version: Option<&str>, id: &str) -> anyhow::Result<Value> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
    let data = vec![0.0; PIXELS];
    let body = json!({ "id": id, "inputs": [{ "name": "x", "shape": [1, PIXELS], "datatype": "FP32", "data": data }] });
    let of = version.map(|version| format!("/versions/{version}")).unwrap_or_default();
    let url = format!("http://{}/v2/models/{TASK}{of}/infer", agent.api);
    Ok(client.post(url).json(&body).send().await?.error_for_status()?.json().await?)
}

/// The scores of an answer.
fn scores(answer: &Value) -> Vec<f32> {
    let last = answer["outputs"].as_array().unwrap().last().unwrap();
    last["data"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap() as f32).collect()
}

/// What the answer to one row of zeros says of itself.
async fn ask(agent: &Agent, id: &str) -> anyhow::Result<(String, Value)> {
    let answer = infer(agent, None, id).await?;
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

/// Pushes a model that takes the scores of two others.
async fn push_meta(world: &Small, folder: &Path, onnx: &[u8]) -> String {
    let file = folder.join("meta.onnx");
    std::fs::write(&file, onnx).unwrap();
    let labels = (0..CLASSES).map(|digit| digit.to_string()).collect::<Vec<_>>().join(",");
    let file = file.display().to_string();
    let args = ["model", "push", &file, "--task", TASK, "--name", "meter-meta", "--labels", &labels];
    let scored = ["--accuracy-ppm", "100000", "--accuracy-n", "100"];
    world.controller.json(&[&args[..], &scored[..]].concat()).await.unwrap()["release"]
        .as_str()
        .unwrap()
        .to_owned()
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
    // What it makes of the scores means nothing, and it is to be heard in the answer.
    let meta_model = networks::perceptron(2 * CLASSES, 16, CLASSES, 5);
    let meta = push_meta(&world, folder, &meta_model).await;
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

    let lineup = format!(
        "rule = \"stack\"
        members = [
            {{ release = \"{big}\", role = {{ voter = {{ weight_ppm = 1000000 }} }} }},
            {{ release = \"{meta}\", role = \"meta\" }},
            {{ release = \"{tiny}\", role = {{ shadow = {{ cpu_ppm = 1000000, ram_bytes = 0, battery_ppm_min = 0 }} }} }},
        ]"
    );
    line_up(&world, folder, &first, &lineup).await;
    let agent = &world.agents[0];
    let stacked = wait_for("an answer of the stack", LIMIT, async || {
        let answer = infer(agent, None, "look").await.ok();
        Ok(answer.filter(|answer| answer["parameters"]["answered_by"] == "stack"))
    })
    .await
    .unwrap();
    let parameters = &stacked["parameters"];
    assert_eq!(
        (&stacked["model_version"], &parameters["voters"]),
        (&json!(meta), &json!(format!("{first},{big}")))
    );
    assert!(parameters["left_out"].is_null(), "{parameters}");
    // The meta-model is given what the two say, champion first.
    let mut heard = Vec::new();
    for release in [&first, big] {
        heard.extend(scores(&infer(agent, Some(release.as_str()), "one").await.unwrap()));
    }
    let want = Model::load(&meta_model, None).unwrap().run_f32(&heard, 1).unwrap();
    let got = scores(&stacked);
    assert!(
        got.len() == CLASSES && got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5),
        "{got:?} where {want:?} belongs"
    );

    // The shadow is in no answer, and in windows beside the champion's.
    let generation = parameters["generation"].as_i64().unwrap();
    let database = world.controller.database().await.unwrap();
    let pair = wait_for("a window of the shadow", LIMIT, async || {
        let (version, parameters) = ask(agent, "still").await?;
        anyhow::ensure!(version != *tiny && parameters["voters"] != json!(tiny), "{parameters}");
        let query = "SELECT body FROM windows WHERE release = ? AND generation = ? AND n > 0";
        let bodies: Vec<Vec<u8>> =
            sqlx::query_scalar(query).bind(tiny).bind(generation).fetch_all(&database).await?;
        let mut windows = bodies.iter().map(|body| cbor::decode::<Window>(body, body.len()));
        Ok(windows.find_map(|window| window.unwrap().pair))
    })
    .await
    .unwrap();
    assert!(pair.other.to_string() == first && pair.n > 0 && pair.disagree <= pair.n, "{pair:?}");
    database.close().await;

    world.stop().await.unwrap();
}
