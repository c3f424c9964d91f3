//! The model verbs of the command line against a daemon, as an operator uses them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dunlin_controller::repo::Repos;
use dunlin_controller::{clock, init, keys};
use dunlin_learn::data::Table;
use dunlin_learn::job::{Feature, Schema};
use dunlin_learn::rng::Rng;
use dunlin_learn::{Config, fit};
use serde_json::Value;
use tempfile::TempDir;

use crate::document::DOCUMENT;

mod integers;
mod rows;

const DUNLIN: &str = env!("CARGO_BIN_EXE_dunlin");

/// A daemon that ends with its handle.
struct Daemon {
    child: Child,
    folder: TempDir,
    server: String,
    token: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Daemon {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let any = Some("127.0.0.1:0".parse().unwrap());
        let options = init::Options { listen: any, mqtt_listen: any, ..init::Options::default() };
        let token = init::init(&data, &options).await.unwrap();
        let online = keys::OnlineKeys::read(&data.join("keys/online.json")).unwrap();
        let options =
            keys::CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms: clock::wall_ms() };
        keys::ceremony(&folder.path().join("safe"), &online, options).unwrap();
        Repos::open(&data).unwrap().import(&folder.path().join("safe/public"), clock::wall_ms()).unwrap();
        let mut command = Command::new(DUNLIN);
        let child =
            command.arg("serve").arg("--data").arg(&data).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut daemon = Self { child: child.unwrap(), folder, server: String::new(), token };
        let limit = Instant::now() + Duration::from_secs(60);
        let address = loop {
            if let Ok(address) = fs::read_to_string(data.join("run/api.addr")) {
                break address;
            }
            assert!(
                daemon.child.try_wait().unwrap().is_none() && Instant::now() < limit,
                "the daemon did not start"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        daemon.server = format!("https://{}", address.trim());
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(DUNLIN);
        command.args(args).arg("--json").env("DUNLIN_SERVER", &self.server).env("DUNLIN_TOKEN", &self.token);
        command.env("DUNLIN_CA", self.path("data/ca.pem")).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let printed = serde_json::from_slice(&output.stdout).unwrap();
        DOCUMENT.assert_printed(args, &printed);
        printed
    }
}

/// Writes a model and the rows it was made from.
fn model(dir: &Path, l2: f64) {
    let mut rng = Rng::new(9, "rows");
    let rows: String = (0..120)
        .map(|i| {
            format!("{},{},{}\n", rng.unit() + f64::from(i % 2), rng.unit(), ["off", "on"][i as usize % 2])
        })
        .collect();
    let csv = format!("u,i,y\n{rows}");
    let feature = |name: &str| Feature { name: name.into(), unit: String::new(), min: None, max: None };
    let schema = Schema {
        features: vec![feature("u"), feature("i")],
        label: "y".into(),
        labels: vec!["off".into(), "on".into()],
        time: None,
    };
    let table = Table::parse(csv.as_bytes(), &schema).unwrap();
    fs::write(dir.join("model.onnx"), fit(&Config::Logistic { l2 }, &table, 1).unwrap().onnx()).unwrap();
    fs::write(dir.join("rows.csv"), csv).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_push_to_withdrawal() {
    let daemon = Daemon::start().await;
    model(daemon.folder.path(), 1e-3);
    let (file, rows, safe) =
        (daemon.path("model.onnx"), daemon.path("rows.csv"), daemon.path("safe/private"));
    let (file, rows, safe) = (file.to_str().unwrap(), rows.to_str().unwrap(), safe.to_str().unwrap());

    let checked = daemon.json(&["model", "check", file]);
    assert_eq!((&checked["ops"][0], &checked["rewritten"]), (&"ai.onnx/Gemm".into(), &serde_json::json!([])));
    let refused = daemon.run(&["model", "check", rows]);
    assert_eq!(refused.status.code(), Some(4));

    let push = ["model", "push", file, "--task", "lamp", "--name", "lamp", "--samples", rows, "--skip", "y"];
    let pushed = daemon.json(&[&push[..], &["--labels", "off,on", "--accuracy-ppm", "990000"]].concat());
    assert_eq!((&pushed["release"], &pushed["state"]), (&"lamp@1".into(), &"pending".into()));
    assert_eq!(pushed["bundle"]["signature"]["features"][1]["name"], "i");
    assert_eq!(daemon.run(&push).status.code(), Some(4), "the same model is no second release");
    assert_eq!(daemon.json(&["model", "pending"])[0]["name"], "lamp.1.json");

    let approved = daemon.json(&["model", "approve", "lamp@1", "--keys", safe]);
    assert_eq!(approved[0]["state"], "approved");
    daemon.json(&["model", "alias", "lamp@1", "stable"]);
    assert_eq!(daemon.json(&["model", "aliases", "lamp"]), serde_json::json!({ "stable": 1 }));
    assert_eq!(daemon.json(&["model", "show", "lamp@stable"])["state"], "approved");
    assert_eq!(daemon.run(&["model", "show", "lamp@2"]).status.code(), Some(3));

    ranges(&daemon, pushed["bundle"]["model"]["digest"].as_str().unwrap(), &fs::read(file).unwrap()).await;

    policy(&daemon, rows, safe);

    let withdrawn = daemon.json(&["model", "withdraw", "lamp@1", "--keys", safe]);
    assert_eq!((&withdrawn[0]["release"], &withdrawn[0]["state"]), (&"lamp@1".into(), &"withdrawn".into()));
    assert_eq!(daemon.json(&["model", "list"])[0]["state"], "withdrawn");
}

/// A policy that lets retrained models run within bounds: from rows to the signed file in force.
fn policy(daemon: &Daemon, rows: &str, safe: &str) {
    let set = daemon.path("anchor.cbor");
    let set = set.to_str().unwrap();
    let made = daemon.json(&["model", "anchor", rows, "--label", "y", "--labels", "off,on", "--out", set]);
    let policy = serde_json::json!({
        "format": 1, "task": "lamp", "task_type": "classification", "metric": "accuracy", "baseline_class": 0,
        "labels": ["off", "on"],
        "retrained": {
            "inputs": [{ "name": "x", "datatype": "FP32", "shape": [-1, 2] }],
            "outputs": [{ "name": "scores", "datatype": "FP32", "shape": [-1, 2] }],
            "ops": ["ai.onnx/Gemm"], "bundle_bytes_max": 100_000, "ram_bytes_max": 50_000_000,
            "latency_us_max": 5000, "anchor": made, "anchor_score_ppm_min": 600_000,
        },
    });
    let file = daemon.path("policy.json");
    fs::write(&file, policy.to_string()).unwrap();
    let sign = ["model", "policy", "sign", "--file", file.to_str().unwrap(), "--keys", safe];
    assert_eq!(daemon.run(&sign).status.code(), Some(4), "the anchor set has to be there first");
    assert_eq!(daemon.json(&["model", "blob", set]), made);
    daemon.json(&sign);
    assert_eq!(daemon.json(&["model", "policy", "show", "lamp"])["retrained"]["anchor"], made);
}

/// A blob whole, in part, from beyond its end, and without a token.
async fn ranges(daemon: &Daemon, digest: &str, content: &[u8]) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let pem = fs::read(daemon.path("data/ca.pem")).unwrap();
    let authority = reqwest::Certificate::from_pem(&pem).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
    let url = format!("{}/v1/blobs/{digest}", daemon.server);
    let get = |range: Option<&str>| {
        let request = client.get(&url).bearer_auth(&daemon.token);
        match range {
            Some(range) => request.header("range", range).send(),
            None => request.send(),
        }
    };
    let whole = get(None).await.unwrap();
    assert_eq!((whole.status().as_u16(), whole.content_length()), (200, Some(content.len() as u64)));
    assert_eq!(whole.bytes().await.unwrap(), content);
    for (range, first, last) in [
        ("bytes=10-19", 10, 19),
        ("bytes=100-", 100, content.len() - 1),
        ("bytes=-7", content.len() - 7, content.len() - 1),
    ] {
        let part = get(Some(range)).await.unwrap();
        assert_eq!(part.status().as_u16(), 206, "{range}");
        let expected = format!("bytes {first}-{last}/{}", content.len());
        assert_eq!(part.headers()["content-range"], expected.as_str());
        assert_eq!(part.bytes().await.unwrap(), &content[first..=last], "{range}");
    }
    let beyond = get(Some("bytes=100000000-")).await.unwrap();
    assert_eq!(beyond.status().as_u16(), 416);
    assert_eq!(client.get(&url).send().await.unwrap().status().as_u16(), 401);
}
