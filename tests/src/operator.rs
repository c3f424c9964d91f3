//! What the operator of the digits' task does: rules, training at the desk, pushing, the signed policy.
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use dunlin_protocol::{Bytes, DType, GoldenSet, TensorData, cbor};
use dunlin_trust::sha256;
use serde_json::{Value, json};

use crate::controller::Controller;
use crate::digits::{CLASSES as DIGITS, Image, PIXELS};

/// The task: reading a meter.
pub const TASK: &str = "meter";

/// Waves of the task's rollouts: share of the devices and probability of a wrong decision, parts per million each. They
/// are those of the default policy but for one that no fleet of this size would be larger in than in the one before.
const WAVES: [(u32, u32); 3] = [(10_000, 10_000), (250_000, 10_000), (1_000_000, 20_000)];

/// The rules of the task: the defaults with what takes days shortened, and a trigger of retraining.
pub fn definition(pool: &BTreeSet<String>, cron: Option<&str>) -> String {
    let labels: Vec<String> = (0..DIGITS).map(|digit| format!("\"{digit}\"")).collect();
    let pool: Vec<String> = pool.iter().map(|release| format!("{release:?}")).collect();
    format!(
        "task = \"{TASK}\"\nlabels = [{}]\nheld = [\"held\"]\npool = [{}]\n\n\
         [choice]\njudged_ms = 120000\n[choice.switching]\ndwell_ms = 10000\n\n\
         [probation]\nms_min = 4000\nrequests_min = 100\nerror_ppm_max = 10000\nlatency_percent_max = 300\nrss_bytes_max = 0\ndisagree_ppm_max = 1000000\n\n\
         [retraining]\nseed = 1\ntrials = 6\nexclude = [\"held\"]\njudged_ms = 15000\nage_ms_max = 30000\nsplit = {{ policy = \"time_ordered\", holdout_percent = 25 }}\n{}\n\
         [rollout]\n{}",
        labels.join(", "),
        pool.join(", "),
        triggers(cron),
        rollout_rules("rollout.", &WAVES),
    )
}

/// The same rules without the guard of latency: for who shows something else, on machines whose other work takes longer than
/// an answer.
pub fn unhurried(rules: &str) -> String {
    rules.replace("latency_percent_max = 300", "latency_percent_max = 0")
}

/// When the task is retrained: with a schedule by nothing else, without one by drift.
pub fn triggers(cron: Option<&str>) -> String {
    let triggers = match cron {
        Some(cron) => format!("cron = {cron:?}\ncooldown_ms = 10000\n"),
        None => "drift_ppm_min = 300000\ncooldown_ms = 600000\n".to_owned(),
    };
    format!("[retraining.triggers]\n{triggers}")
}

/// Those of a rollout that opens to all devices after its canary.
const TWO_WAVES: [(u32, u32); 2] = [WAVES[0], WAVES[2]];

/// The rules of a rollout of two waves: one device of each class, and then all.
pub fn two_waves() -> String {
    rollout_rules("", &TWO_WAVES)
}

/// Rules of a rollout as tables below `parent`.
fn rollout_rules(parent: &str, waves: &[(u32, u32)]) -> String {
    let mut text = format!(
        "silence_ms_max = 60000\n[{parent}probation]\nms_min = 10000\nrequests_min = 100\nerror_ppm_max = 10000\nlatency_percent_max = 300\nrss_bytes_max = 0\ndisagree_ppm_max = 1000000\n"
    );
    for (share, alpha) in waves {
        write!(
            text,
            "[[{parent}waves]]\nshare_ppm = {share}\nsoak_ms = 6000\nrequests_min = 100\nlabels_min = 100\nalpha_ppm = {alpha}\napproval = false\n"
        )
        .expect("writing to a string");
    }
    text
}

/// Writes images as a dataset: one column per pixel, the digit last.
pub fn write_csv(path: &Path, images: &[Image]) -> Result<()> {
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
pub async fn train(
    controller: &Controller,
    folder: &Path,
    images: &[Image],
    families: &[&str],
    seed: u64,
) -> Result<Value> {
    std::fs::create_dir_all(folder)?;
    write_csv(&folder.join("data.csv"), images)?;
    let features: Vec<Value> =
        (0..PIXELS).map(|i| json!({"name": format!("p{i:02}"), "min": 0.0, "max": 16.0})).collect();
    let labels: Vec<String> = (0..DIGITS).map(|digit| digit.to_string()).collect();
    let schema = json!({"features": features, "label": "digit", "labels": labels});
    let job = json!({
        "format": 1,
        "task": TASK,
        "task_type": "classification",
        "seed": seed,
        "families": families,
        "split": {"policy": "stratified", "holdout_percent": 25},
        "trials": families.len() * 3,
        "dataset": {"file": "data.csv", "digest": sha256(&std::fs::read(folder.join("data.csv"))?)},
    });
    std::fs::write(folder.join("schema.json"), schema.to_string())?;
    std::fs::write(folder.join("job.json"), job.to_string())?;
    controller.run(&["train-worker", &folder.display().to_string()]).await?;
    Ok(serde_json::from_slice(&std::fs::read(folder.join("result.json"))?)?)
}

/// Pushes a candidate of a job folder; returns the release.
pub async fn push(
    controller: &Controller,
    folder: &Path,
    id: &str,
    name: &str,
    candidate: &Value,
) -> Result<String> {
    push_file(controller, folder, &folder.join("candidates").join(id).join("model.onnx"), name, candidate)
        .await
}

/// Pushes an ONNX file with the data and the scores of a job folder.
pub async fn push_file(
    controller: &Controller,
    folder: &Path,
    file: &Path,
    name: &str,
    candidate: &Value,
) -> Result<String> {
    let file = file.display().to_string();
    let samples = folder.join("data.csv").display().to_string();
    let labels = (0..DIGITS).map(|digit| digit.to_string()).collect::<Vec<_>>().join(",");
    let (accuracy, n) = (candidate["accuracy_ppm"].to_string(), candidate["n"].to_string());
    let pushed = controller
        .json(&[
            "model",
            "push",
            &file,
            "--task",
            TASK,
            "--name",
            name,
            "--samples",
            &samples,
            "--skip",
            "digit",
            "--labels",
            &labels,
            "--accuracy-ppm",
            &accuracy,
            "--accuracy-n",
            &n,
        ])
        .await?;
    Ok(pushed["release"].as_str().with_context(|| format!("push said {pushed}"))?.to_owned())
}

/// The policy, signed by the owner: samples may leave, retrained models may run within bounds. Returns what was signed.
pub async fn policy(controller: &Controller, folder: &Path, anchor: &[Image]) -> Result<Value> {
    let keys = controller.keys.join("private").display().to_string();
    policy_signed(controller, folder, anchor, &["--keys", &keys]).await
}

/// The same, signed as these arguments say.
pub async fn policy_signed(
    controller: &Controller,
    folder: &Path,
    anchor: &[Image],
    signing: &[&str],
) -> Result<Value> {
    let rows = anchor;
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
    let file = folder.join("anchor.cbor");
    std::fs::write(&file, cbor::encode(&anchor))?;
    let blob = controller.json(&["model", "blob", &file.display().to_string()]).await?;
    let ops: BTreeSet<&str> = [
        "ai.onnx/Sub",
        "ai.onnx/Mul",
        "ai.onnx/Add",
        "ai.onnx/Div",
        "ai.onnx/MatMul",
        "ai.onnx/Gemm",
        "ai.onnx/Relu",
        "ai.onnx/Softmax",
        "ai.onnx/Sigmoid",
        "ai.onnx/ReduceSum",
        "ai.onnx.ml/TreeEnsembleClassifier",
        "ai.onnx.ml/TreeEnsembleRegressor",
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
            // What was learnt from aged cameras reads new ones less well; chance is 100,000.
            "anchor_score_ppm_min": 400_000,
        },
    });
    let file = folder.join("policy.json");
    std::fs::write(&file, policy.to_string())?;
    let file = file.display().to_string();
    let sign = ["model", "policy", "sign", "--file", &file];
    controller.json(&[&sign[..], signing].concat()).await?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use dunlin_controller::planner::TaskDefinition;

    use super::*;

    /// What may differ from a task that says nothing: lengths of time, who takes part, when and on what it is retrained,
    /// and how long the trainer searches. No threshold, no least count, no alpha.
    const SHORTENED: [&str; 14] = [
        "choice.judged_ms",
        "choice.switching.dwell_ms",
        "held",
        "probation.ms_min",
        "retraining.age_ms_max",
        "retraining.exclude",
        "retraining.judged_ms",
        "retraining.split.policy",
        "retraining.trials",
        "retraining.triggers.cooldown_ms",
        "retraining.triggers.cron",
        "retraining.triggers.drift_ppm_min",
        "rollout.probation.ms_min",
        "rollout.silence_ms_max",
    ];

    /// Paths of values that differ.
    fn differences(path: &str, one: &Value, other: &Value, found: &mut BTreeSet<String>) {
        let (Value::Object(a), Value::Object(b)) = (one, other) else {
            if one != other {
                found.insert(path.to_owned());
            }
            return;
        };
        for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
            let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            differences(
                &below,
                a.get(key).unwrap_or(&Value::Null),
                b.get(key).unwrap_or(&Value::Null),
                found,
            );
        }
    }

    fn value(text: &str) -> Value {
        let definition: TaskDefinition = toml::from_str(text).unwrap();
        definition.check().unwrap();
        serde_json::to_value(definition).unwrap()
    }

    /// A task that leaves everything to the defaults.
    fn silent() -> Value {
        let labels: Vec<String> = (0..DIGITS).map(|digit| digit.to_string()).collect();
        value(&format!("task = \"{TASK}\"\nlabels = {labels:?}\npool = [\"base@1\"]\n[retraining]\n"))
    }

    #[test]
    fn what_the_task_and_its_rollouts_shorten_are_times_and_no_threshold() {
        let silent = silent();
        let default = silent["rollout"]["waves"].as_array().unwrap().clone();
        let pool = ["base@1".to_owned()].into();
        let two = definition(&pool, None).split("[rollout]").next().unwrap().to_owned()
            + "[rollout]\n"
            + &rollout_rules("rollout.", &TWO_WAVES);
        for text in [definition(&pool, None), definition(&pool, Some("0 0 * * *")), two] {
            let mut told = value(&text);
            let waves = std::mem::replace(&mut told["rollout"]["waves"], default.clone().into());
            for wave in waves.as_array().unwrap() {
                let mut same =
                    default.iter().find(|of| of["share_ppm"] == wave["share_ppm"]).unwrap().clone();
                same["soak_ms"] = wave["soak_ms"].clone();
                assert_eq!(*wave, same);
            }
            let mut found = BTreeSet::new();
            differences("", &told, &silent, &mut found);
            let unlisted: Vec<_> = found.iter().filter(|path| !SHORTENED.contains(&path.as_str())).collect();
            assert!(unlisted.is_empty(), "{unlisted:?}");
        }
    }

    #[test]
    fn who_is_unhurried_judges_no_latency_of_tasks_and_rollouts() {
        let hurried = value(&definition(&["base@1".to_owned()].into(), None));
        let unhurried = value(&unhurried(&definition(&["base@1".to_owned()].into(), None)));
        let mut found = BTreeSet::new();
        differences("", &unhurried, &hurried, &mut found);
        for limits in [&unhurried["probation"], &unhurried["rollout"]["probation"]] {
            assert_eq!(limits["latency_percent_max"], 0);
        }
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
