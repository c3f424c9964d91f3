//! Act 1: an operator sets the controller up, trains and signs the first models, and the fleet enrols.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dunlin_protocol::{Bytes, DType, GoldenSet, TensorData, cbor};
use dunlin_tests::digits::{CLASSES as DIGITS, Image, PIXELS};
use dunlin_tests::process::wait_for;
use dunlin_trust::sha256;
use serde_json::{Value, json};

use crate::attacks::steal_director;
use crate::report::Report;
use crate::traffic;
use crate::world::{AGENT_CONFIG, CLASSES, CONTROLLER_CONFIG, RATE, TASK, World};

/// Devices that start at the same time, so that a small machine is not swamped.
const START_AT_ONCE: usize = 6;

pub(crate) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    report.act("the fleet enrols");
    report.quote("What the demonstration shortens, as ordinary configuration of controller, agents and task", &format!(
        "# controller.toml\n{CONTROLLER_CONFIG}\n# agent.toml\n{AGENT_CONFIG}\n# the task\n{}",
        definition(&BTreeSet::new(), None)
    ));
    world.controller.init(CONTROLLER_CONFIG).await?;
    report.say("online keys made by `dunlin init`, offline keys by `dunlin key ceremony` in another folder");
    world.controller.start().await?;
    report.say(&format!("controller is up: API on {}, broker on {}", world.controller.api, world.controller.mqtt));

    let pool = first_models(world, report).await?;
    policy(world).await?;
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "approve", "--keys", &keys]).await?;
    report.say("the three models and the task's policy are signed with the offline keys");
    world.pool = pool;
    apply_task(world, None).await?;

    world.controller.json(&["group", "create", "held"]).await?;
    enrol(world, report).await?;
    settle(world, report).await
}

/// The rules of the task.
fn definition(pool: &BTreeSet<String>, cron: Option<&str>) -> String {
    let labels: Vec<String> = (0..DIGITS).map(|digit| format!("\"{digit}\"")).collect();
    let pool: Vec<String> = pool.iter().map(|release| format!("{release:?}")).collect();
    let cron = cron.map(|cron| format!("cron = {cron:?}\n")).unwrap_or_default();
    let mut waves = String::new();
    for (share, alpha) in [(10_000, 10_000), (50_000, 10_000), (250_000, 10_000), (1_000_000, 20_000)] {
        write!(
            waves,
            "[[rollout.waves]]\nshare_ppm = {share}\nsoak_ms = 6000\nrequests_min = 100\nlabels_min = 100\nalpha_ppm = {alpha}\napproval = false\n"
        )
        .expect("writing to a string");
    }
    format!(
        "task = \"{TASK}\"\nlabels = [{}]\nheld = [\"held\"]\npool = [{}]\n\n\
         [choice]\njudged_ms = 30000\n[choice.switching]\ndwell_ms = 10000\n\n\
         [probation]\nms_min = 4000\nrequests_min = 20\nerror_ppm_max = 10000\nlatency_percent_max = 300\nrss_bytes_max = 0\ndisagree_ppm_max = 1000000\n\n\
         [retraining]\nseed = 1\nexclude = [\"held\"]\njudged_ms = 20000\n[retraining.triggers]\ndrift_ppm_min = 300000\ncooldown_ms = 45000\nruns_per_day_max = 8\n{cron}\
         [retraining.triggers.accuracy]\nppm_min = 850000\nlabels_min = 200\n\n\
         [rollout]\nsilence_ms_max = 60000\n[rollout.probation]\nms_min = 6000\nrequests_min = 100\nerror_ppm_max = 10000\nlatency_percent_max = 300\nrss_bytes_max = 0\ndisagree_ppm_max = 1000000\n{waves}",
        labels.join(", "),
        pool.join(", "),
    )
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

/// Writes images as a dataset: one column per pixel, the digit last.
pub(crate) fn write_csv(path: &Path, images: &[Image]) -> Result<()> {
    let mut text: String = (0..PIXELS).map(|i| format!("p{i:02},")).collect();
    text.push_str("digit\n");
    for image in images {
        for pixel in image.pixels {
            write!(text, "{pixel},")?;
        }
        writeln!(text, "{}", image.digit)?;
    }
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Writes a job folder over `images` and runs the trainer on it; returns its result.
pub(crate) async fn train(world: &World, folder: &Path, images: &[Image], families: &[&str], seed: u64) -> Result<Value> {
    std::fs::create_dir_all(folder)?;
    write_csv(&folder.join("data.csv"), images)?;
    let features: Vec<Value> = (0..PIXELS).map(|i| json!({"name": format!("p{i:02}"), "min": 0.0, "max": 16.0})).collect();
    let labels: Vec<String> = (0..DIGITS).map(|digit| digit.to_string()).collect();
    let schema = json!({"features": features, "label": "digit", "labels": labels});
    let job = json!({
        "format": 1,
        "task": TASK,
        "task_type": "classification",
        "seed": seed,
        "families": families,
        "split": {"policy": "stratified", "holdout_percent": 25},
        "trials": families.len() * 2,
        "dataset": {"file": "data.csv", "digest": sha256(&std::fs::read(folder.join("data.csv"))?)},
    });
    std::fs::write(folder.join("schema.json"), schema.to_string())?;
    std::fs::write(folder.join("job.json"), job.to_string())?;
    world.controller.run(&["train-worker", &folder.display().to_string()]).await?;
    Ok(serde_json::from_slice(&std::fs::read(folder.join("result.json"))?)?)
}

/// Trains one model per family on the first pool, as an engineer would at her desk, and pushes them.
async fn first_models(world: &World, report: &mut Report) -> Result<BTreeSet<String>> {
    let folder = world.out.join("world/first-models");
    let result = train(world, &folder, &world.pools.training, &["logistic", "gbdt", "mlp"], 1).await?;
    let mut pool = BTreeSet::new();
    let mut rows = Vec::new();
    for candidate in result["candidates"].as_array().context("candidates")? {
        let (id, family) = (candidate["id"].as_str().context("id")?, candidate["family"].as_str().context("family")?);
        let release = push(world, &folder, id, &format!("meter-{family}"), candidate).await?;
        let bytes: u64 = candidate["files"].as_object().context("files")?.values().filter_map(|file| file["length"].as_u64()).sum();
        rows.push(vec![
            release.clone(),
            format!("{:.1} %", candidate["accuracy_ppm"].as_f64().unwrap_or(0.0) / 1e4),
            format!("{:.0} KiB", bytes as f64 / 1024.0),
            format!("{} µs", candidate["latency_us"]),
        ]);
        pool.insert(release);
    }
    report.table("The first models, on held-out images of the first pool", &["release", "accuracy", "files", "one row here"], &rows);
    ensure!(pool.len() >= 3, "the trainer offered only {pool:?}");
    Ok(pool)
}

/// Pushes a candidate of a job folder; returns the release.
pub(crate) async fn push(world: &World, folder: &Path, id: &str, name: &str, candidate: &Value) -> Result<String> {
    push_file(world, folder, &folder.join("candidates").join(id).join("model.onnx"), name, candidate).await
}

/// Pushes an ONNX file with the data and the scores of a job folder.
pub(crate) async fn push_file(world: &World, folder: &Path, file: &Path, name: &str, candidate: &Value) -> Result<String> {
    let file = file.display().to_string();
    let samples = folder.join("data.csv").display().to_string();
    let labels = (0..DIGITS).map(|digit| digit.to_string()).collect::<Vec<_>>().join(",");
    let (accuracy, n) = (candidate["accuracy_ppm"].to_string(), candidate["n"].to_string());
    let pushed = world
        .controller
        .json(&[
            "model", "push", &file, "--task", TASK, "--name", name, "--samples", &samples, "--skip", "digit", "--labels", &labels,
            "--accuracy-ppm", &accuracy, "--accuracy-n", &n,
        ])
        .await?;
    Ok(pushed["release"].as_str().with_context(|| format!("push said {pushed}"))?.to_owned())
}

/// The offline-signed policy: samples may leave, retrained models may run within bounds.
async fn policy(world: &World) -> Result<()> {
    let rows: Vec<&Image> = world.pools.training.iter().take(150).collect();
    let data: Vec<u8> = rows.iter().flat_map(|image| image.pixels).flat_map(f32::to_le_bytes).collect();
    let anchor = GoldenSet {
        format: 1,
        inputs: vec![TensorData {
            name: "x".into(),
            datatype: DType::Fp32,
            shape: vec![rows.len() as u64, PIXELS as u64],
            data: Bytes(data),
        }],
        outputs: Vec::new(),
        tolerance_ppm: 0,
        labels: rows.iter().map(|image| image.digit).collect(),
    };
    let file = world.out.join("world/anchor.cbor");
    std::fs::write(&file, cbor::encode(&anchor))?;
    let blob = world.controller.json(&["model", "blob", &file.display().to_string()]).await?;
    let ops: BTreeSet<&str> = [
        "ai.onnx/Sub", "ai.onnx/Mul", "ai.onnx/Add", "ai.onnx/Div", "ai.onnx/MatMul", "ai.onnx/Gemm", "ai.onnx/Relu", "ai.onnx/Softmax",
        "ai.onnx/Sigmoid", "ai.onnx/ReduceSum", "ai.onnx.ml/TreeEnsembleClassifier", "ai.onnx.ml/TreeEnsembleRegressor",
    ]
    .into();
    let policy = json!({
        "format": 1,
        "task": TASK,
        "task_type": "classification",
        "metric": "accuracy",
        "baseline_class": 0,
        "labels": (0..DIGITS).map(|digit| digit.to_string()).collect::<Vec<_>>(),
        "samples": {"bytes_per_day_max": 200_000_000, "random_ppm_min": 300_000},
        "retrained": {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, PIXELS]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, DIGITS]}],
            "ops": ops,
            "bundle_bytes_max": 16 << 20,
            "ram_bytes_max": 64 << 20,
            "latency_us_max": 50_000,
            "anchor": {"digest": blob["digest"], "length": blob["length"]},
            "anchor_score_ppm_min": 600_000,
        },
    });
    let file = world.out.join("world/policy.json");
    std::fs::write(&file, policy.to_string())?;
    let keys = world.controller.keys.join("private").display().to_string();
    world.controller.json(&["model", "policy", "sign", "--file", &file.display().to_string(), "--keys", &keys]).await.map(drop)
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
        let done: i64 = sqlx::query_scalar("SELECT count(*) FROM installed WHERE phase = 'committed' AND release IS NOT NULL")
            .fetch_one(&database)
            .await?;
        Ok((done == n as i64).then_some(()))
    })
    .await?;
    let installed = world.installed().await?;
    let mut by_class: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for agent in &world.agents {
        let (release, _) = &installed[&agent.id];
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
    report.claim("every device enrolled with its own key and serves a signed model", installed.len() == n, format!("{} of {n}", installed.len()));
    let distinct: BTreeSet<&String> = by_class.values().flat_map(BTreeMap::keys).collect();
    report.claim("hardware makes the right choice differ", distinct.len() >= 2, format!("{distinct:?}"));
    steal_director(world, &world.agents[0].id.parse()?)?;
    for class in CLASSES {
        let device = world.agents.iter().find(|agent| agent.class == class).context("a device of each class")?;
        let text = world.controller.run(&["device", "explain", &device.id]).await?.stdout;
        report.quote(&format!("Why {} ({class}) runs what it runs", device.id), &text);
    }
    Ok(())
}
