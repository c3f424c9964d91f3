//! Two tasks on a small board that has no room for all their models: what is worth least leaves memory and says so, what
//! answers stays right, and what left comes back with the room.
use std::path::Path;
use std::time::Duration;

use dunlin_engine::Model;
use dunlin_tests::agent::Agent;
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{CLASSES, PIXELS};
use dunlin_tests::networks;
use dunlin_tests::operator::{self, TASK};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);
/// What was sent out stays out for a minute at least.
const RETURN_LIMIT: Duration = Duration::from_secs(240);
/// The task that comes later, for the devices of a group.
const OTHER: &str = "gauge";
const GROUP: &str = "gauges";
/// Largest difference of two scores that sum the same numbers in another order.
const DIFFERENCE_MAX: f32 = 1e-4;

/// A pushed release and its file.
struct Pushed {
    release: String,
    onnx: Vec<u8>,
}

impl Pushed {
    /// Pushes a network that was never trained.
    async fn new(world: &Small, folder: &Path, task: &str, name: &str, seed: u64) -> Self {
        let onnx = networks::perceptron(PIXELS, 64, CLASSES, seed);
        let file = folder.join(format!("{name}.onnx"));
        std::fs::write(&file, &onnx).unwrap();
        let (file, labels) = (file.display().to_string(), labels().join(","));
        let what = ["model", "push", &file, "--task", task, "--name", name, "--labels", &labels];
        let scored = ["--accuracy-ppm", "100000", "--accuracy-n", "100"];
        let pushed = world.controller.json(&[&what[..], &scored].concat()).await.unwrap();
        Self { release: pushed["release"].as_str().unwrap().to_owned(), onnx }
    }

    /// Memory that its manifest says, bytes.
    async fn ram_bytes(&self, world: &Small) -> u64 {
        let shown = world.controller.json(&["model", "show", &self.release]).await.unwrap();
        shown["bundle"]["hard"]["ram_bytes"].as_u64().unwrap_or_else(|| panic!("{shown}"))
    }

    /// Whether an answer has the scores that this model gives.
    fn gave(&self, answer: &Value, row: &[f32]) -> bool {
        let want = Model::load(&self.onnx, None).unwrap().run_f32(row, 1).unwrap();
        let last = answer["outputs"].as_array().unwrap().last().unwrap();
        let got: Vec<f32> =
            last["data"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap() as f32).collect();
        got.len() == CLASSES && got.iter().zip(&want).all(|(a, b)| (a - b).abs() < DIFFERENCE_MAX)
    }
}

fn labels() -> Vec<String> {
    (0..CLASSES).map(|digit| digit.to_string()).collect()
}

/// What an application on the device asks.
struct Asking<'a> {
    http: reqwest::Client,
    agent: &'a Agent,
    row: &'a [f32],
}

impl Asking<'_> {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.agent.api)
    }

    /// The answer of a task, or of the version of it that the path names; `None` if there is none.
    async fn infer(&self, of: &str) -> Option<Value> {
        let body = json!({ "inputs": [{ "name": "x", "shape": [1, PIXELS], "datatype": "FP32", "data": self.row }] });
        let sent = self.http.post(self.url(&format!("/v2/models/{of}/infer"))).json(&body).send().await;
        let answer = sent.unwrap();
        if answer.status().is_success() { Some(answer.json().await.unwrap()) } else { None }
    }

    /// State and reason of a release in the index of the repository.
    async fn state(&self, release: &str) -> anyhow::Result<Option<(String, String)>> {
        let index: Vec<Value> = self.http.post(self.url("/v2/repository/index")).send().await?.json().await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let line = index.iter().find(|line| line["version"] == release);
        Ok(line.map(|line| (text(&line["state"]), text(&line["reason"]))))
    }

    async fn becomes(&self, release: &str, state: &str, limit: Duration) -> String {
        wait_for(&format!("{release} to be {state}"), limit, async || {
            let now = self.state(release).await?;
            Ok(now.filter(|(now, _)| now == state).map(|(_, reason)| reason))
        })
        .await
        .unwrap()
    }

    /// Status and text.
    async fn get(&self, path: &str) -> (u16, String) {
        let got = self.http.get(self.url(path)).send().await.unwrap();
        (got.status().as_u16(), got.text().await.unwrap())
    }

    /// A task is answered by its champion, rightly.
    async fn answers(&self, task: &str, champion: &Pushed) {
        let answer = self.infer(task).await.unwrap();
        assert_eq!(answer["parameters"]["answered_by"], "champion", "{answer}");
        assert_eq!(answer["model_version"], champion.release, "{answer}");
        assert!(champion.gave(&answer, self.row), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_worth_least_leaves_memory_for_a_new_task_and_comes_back_when_that_goes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut controller = Controller::new(folder);
    controller.init(CONTROLLER_CONFIG).await.unwrap();
    controller.start().await.unwrap();
    let mut world = Small::with(folder, &[], controller, AGENT_CONFIG).unwrap();
    let first = world.first_model(folder).await.unwrap();
    let onnx = std::fs::read(folder.join("meter-first/candidates/logistic/model.onnx")).unwrap();
    let first = Pushed { release: first, onnx };
    let spare = Pushed::new(&world, folder, TASK, "meter-spare", 2).await;
    let other = Pushed::new(&world, folder, OTHER, "gauge-first", 3).await;
    world.controller.json(&["model", "approve", "--keys", &world.offline_keys()]).await.unwrap();
    let file = folder.join("task.toml");
    let rules = operator::definition(&[first.release.clone()].into(), None);
    std::fs::write(&file, format!("fallback = \"{}\"\n{rules}", spare.release)).unwrap();
    let apply = ["task", "apply", &file.display().to_string()];
    world.controller.json(&apply).await.unwrap();

    // One byte short of all three, which leaves room to spare for any two.
    let mut ram_bytes = 0;
    for pushed in [&first, &spare, &other] {
        ram_bytes += pushed.ram_bytes(&world).await;
    }
    let config = format!("{AGENT_CONFIG}\n[serving]\nram_bytes_max = {}\n", ram_bytes - 1);
    world.agents.push(Agent::new(folder, "pole-0", "raspberry-pi-zero-2w", &config).unwrap());
    world.enrol().await.unwrap();
    world.ask().unwrap();
    world.committed(&first.release, LIMIT).await.unwrap();
    let row = world.pools.measurement[0].pixels;
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    let device = Asking { http, agent: &world.agents[0], row: &row };
    device.becomes(&spare.release, "READY", LIMIT).await;
    device.answers(TASK, &first).await;
    let spare_alone = format!("{TASK}/versions/{}", spare.release);
    assert!(spare.gave(&device.infer(&spare_alone).await.unwrap(), &row));

    // Another task comes. Its champion, and that of the first, are worth more than a fallback.
    let labels: Vec<String> = labels().iter().map(|label| format!("{label:?}")).collect();
    let rules = format!(
        "task = \"{OTHER}\"\nlabels = [{}]\ngroups = [\"{GROUP}\"]\npool = [\"{}\"]\n\
         [probation]\nms_min = 1000\nrequests_min = 0\nerror_ppm_max = 10000\nlatency_percent_max = 300\n\
         rss_bytes_max = 0\ndisagree_ppm_max = 1000000\n",
        labels.join(", "),
        other.release
    );
    std::fs::write(&file, rules).unwrap();
    let id = world.agents[0].id.clone();
    world.controller.json(&["group", "create", GROUP]).await.unwrap();
    world.controller.json(&["device", "group", &id, GROUP]).await.unwrap();
    world.controller.json(&apply).await.unwrap();
    device.becomes(&other.release, "READY", LIMIT).await;
    let reason = device.becomes(&spare.release, "UNAVAILABLE", LIMIT).await;
    assert_eq!(reason, "there is no room for it in memory");
    let (status, text) = device.get(&format!("/v2/models/{spare_alone}/ready")).await;
    assert!(status == 404 && text.contains("there is no room for it in memory"), "{status} {text}");
    assert!(device.infer(&spare_alone).await.is_none());
    let (_, metrics) = device.get("/metrics").await;
    for line in ["dunlin_members_away{task=\"meter\"} 1", "dunlin_members_away{task=\"gauge\"} 0"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    for path in ["/v2/health/ready".to_owned(), format!("/v2/models/{TASK}/ready")] {
        assert_eq!(device.get(&path).await.0, 200, "{path}: the champion answers");
    }
    device.answers(TASK, &first).await;
    device.answers(OTHER, &other).await;

    // The task goes, and with it what took the room.
    world.controller.json(&["device", "group", &id]).await.unwrap();
    device.becomes(&spare.release, "READY", RETURN_LIMIT).await;
    assert!(device.infer(OTHER).await.is_none());
    let (_, metrics) = device.get("/metrics").await;
    assert!(metrics.contains("dunlin_members_away{task=\"meter\"} 0"), "{metrics}");
    assert!(spare.gave(&device.infer(&spare_alone).await.unwrap(), &row));
    device.answers(TASK, &first).await;
    world.stop().await.unwrap();
}
