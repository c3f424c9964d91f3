//! An OTA pipeline by shell alone: the script of docs/pipelines.md, for each of its endings.
use std::path::Path;
use std::time::Duration;

use dunlin_tests::digits::{CLASSES, Image, NEW, views};
use dunlin_tests::operator::{self, TASK, train, write_csv};
use dunlin_tests::process::{program, wait_for};
use dunlin_tests::small::Small;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(240);

/// The script as the page shows it.
fn script() -> &'static str {
    let page = include_str!("../../../docs/pipelines.md");
    page.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the page holds a script")
}

struct Pipeline<'a> {
    world: &'a Small,
    token: String,
    folder: &'a Path,
}

impl Pipeline<'_> {
    /// Runs the script; returns its exit code and what it printed.
    async fn run(&self, name: &str, images: &[Image], timeout: &str) -> (i32, String) {
        let job = self.folder.join(name);
        train(&self.world.controller, &job, images, &["logistic"], 4).await.unwrap();
        write_csv(&job.join("samples.csv"), images).unwrap();
        let model = job.join("candidates/logistic/model.onnx");
        self.script(name, &model, &job.join("samples.csv"), timeout).await
    }

    /// Runs the script on a file.
    async fn script(&self, name: &str, model: &Path, samples: &Path, timeout: &str) -> (i32, String) {
        let dunlin = program("dunlin").unwrap();
        let path = format!("{}:{}", dunlin.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(script())
            .env("PATH", path)
            .env("DUNLIN_SERVER", self.world.controller.url())
            .env("DUNLIN_TOKEN", &self.token)
            .env("DUNLIN_CA", self.world.controller.ca())
            .env("MODEL", model)
            .env("SAMPLES", samples)
            .env("TASK", TASK)
            .env("NAME", name)
            .env("LABELS", (0..CLASSES).map(|digit| digit.to_string()).collect::<Vec<_>>().join(","))
            .env("KEYS", self.world.offline_keys())
            .env("SIGNED", self.folder.join(format!("{name}-targets.json")))
            .env("TIMEOUT", timeout)
            .kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output()).await.expect("the script ends").unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_by_shell_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &["raspberry-pi-4", "raspberry-pi-4", "raspberry-pi-zero-2w"])
        .await
        .unwrap();
    let first = world.first_model(folder.path()).await.unwrap();
    world.enrol().await.unwrap();
    world.ask().unwrap();
    world.committed(&first, Duration::from_secs(90)).await.unwrap();
    let made = world.controller.json(&["token", "create", "ci", "--scope", "releaser"]).await.unwrap();
    let token = made["token"].as_str().expect("a token").to_owned();
    let pipeline = Pipeline { world: &world, token, folder: folder.path() };

    // A model that is always wrong is stopped by the canary's gate.
    let (code, text) = pipeline.run("meter-wrong", &world.mislabelled(), "3m").await;
    assert_eq!(code, 10, "{text}");
    assert!(text.contains("stopped"), "{text}");

    // Two seconds are too short for any wave.
    let better = views(&world.pools.training, NEW, 4, 5);
    let (code, text) = pipeline.run("meter-hasty", &better, "2s").await;
    assert_eq!(code, 11, "{text}");

    // A better one takes the hasty one's place, and its gates promote it on labelled inputs. The margin is wide: three
    // devices show no finer difference within their probation.
    let narrow = operator::unhurried(&operator::definition(&[first].into(), None));
    let definition = narrow.replace("[rollout]\n", "[rollout]\nmargin_ppm = 300000\n");
    assert_ne!(definition, narrow);
    let task = folder.path().join("task.toml");
    std::fs::write(&task, definition).unwrap();
    world.controller.json(&["task", "apply", &task.display().to_string()]).await.unwrap();
    let images = [better, views(&world.pools.stream, NEW, 2, 6)].concat();
    let (code, text) = pipeline.run("meter-better", &images, "3m").await;
    assert_eq!(code, 0, "{text}");
    world.committed("meter-better@1", Duration::from_secs(60)).await.unwrap();
    // What its last gate says is noted a moment after the plan that the script waits for.
    let row = wait_for("the word of its last gate", Duration::from_secs(60), async || {
        let rollouts = world.controller.json(&["rollout", "list"]).await?;
        let mut rows = rollouts.as_array().into_iter().flatten();
        let row = rows.find(|row| row["plan"]["candidates"][0] == "meter-better@1").cloned();
        Ok(row.filter(|row| row["report"]["verdict"]["verdict"] == "promote"))
    })
    .await
    .unwrap();
    assert_eq!(row["plan"]["state"]["state"], "promoted", "{row}");
    assert!(row["report"]["verdict"]["evidence"].is_object(), "it was promoted on evidence: {row}");
    let log = world.controller.json(&["audit", "show", "--limit", "1000"]).await.unwrap();
    let by_gate = |row: &serde_json::Value| row["what"] == "rollout.promote" && row["who"] == "planner";
    assert!(log.as_array().into_iter().flatten().any(by_gate), "its last gate promoted it: {log}");

    // What is no model ends the script where it is handed in, with the code that says so.
    let garbage = folder.path().join("garbage.onnx");
    std::fs::write(&garbage, b"no model").unwrap();
    let samples = folder.path().join("meter-better/samples.csv");
    let (code, text) = pipeline.script("meter-garbage", &garbage, &samples, "2s").await;
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("model_malformed") && !text.contains("pushed"), "{text}");

    // The token may publish and roll out, and no more.
    let forbidden = Command::new(program("dunlin").unwrap())
        .args(["token", "create", "mine", "--scope", "admin"])
        .env("DUNLIN_SERVER", world.controller.url())
        .env("DUNLIN_TOKEN", &pipeline.token)
        .env("DUNLIN_CA", world.controller.ca())
        .output()
        .await
        .unwrap();
    assert_eq!(forbidden.status.code(), Some(4), "{}", String::from_utf8_lossy(&forbidden.stderr));
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}
