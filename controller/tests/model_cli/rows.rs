//! Every route that changes something leaves one row of the audit log, in the name of who called it, and changes nothing where
//! that row can not be written.
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use dunlin_controller::api::access::{Access, ROUTES};
use dunlin_controller::init::DATABASE;
use dunlin_controller::store::Store;
use dunlin_controller::{clock, keys};
use dunlin_protocol::ClaimToken;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Daemon, model};
use crate::document::DOCUMENT;

/// Longest wait for a rollout or run to be in a state that takes an order.
const LIMIT: Duration = Duration::from_secs(60);

/// What operators change, by table and columns. What the controller writes by itself beside it is left out.
const FLEET: &[(&str, &str)] = &[
    ("tokens", "id, revoked_ms"),
    ("claims", "id, used_by"),
    ("batches", "id, expires_ms"),
    ("expected", "batch, serial"),
    ("admissions", "id, state, device"),
    ("devices", "id, state, key_id, certificate_pem"),
    ("device_groups", "device, grp"),
    ("groups", "id"),
    ("certificates", "serial"),
    ("commands", "device, id"),
    ("forgiven", "device, release"),
    ("models", "name"),
    ("releases", "model, version, state"),
    ("aliases", "model, alias, version"),
    ("policies", "sha256, in_force"),
    ("programs", "model, version"),
    ("program_orders", "model, grp, version"),
    ("tasks", "id, definition"),
    ("rollouts", "id, generation"),
    ("plans", "rollout, generation"),
    ("runs", "id, wanted"),
];

struct Caller<'a> {
    daemon: &'a Daemon,
    store: Store,
    http: reqwest::Client,
    driven: BTreeSet<(String, String)>,
}

impl<'a> Caller<'a> {
    async fn new(daemon: &'a Daemon) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let pem = fs::read(daemon.path("data/ca.pem")).unwrap();
        let authority = reqwest::Certificate::from_pem(&pem).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
        let store = Store::open(&daemon.path("data").join(DATABASE)).await.unwrap();
        Self { daemon, store, http, driven: BTreeSet::new() }
    }

    /// What the fleet is, as far as operators change it.
    async fn fleet(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (table, columns) in FLEET {
            let sql = format!("SELECT '{table} ' || json_array({columns}) FROM {table} ORDER BY 1");
            let rows = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql));
            all.extend(rows.fetch_all(self.store.readers()).await.unwrap());
        }
        all
    }

    /// Calls a route while no row can be written: it fails, and the fleet is what it was.
    async fn unlogged(&self, method: &str, path: &str, body: Vec<u8>) {
        let refuse = "CREATE TRIGGER no_rows BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no row'); END";
        sqlx::query(refuse).execute(self.store.writer()).await.unwrap();
        let before = self.fleet().await;
        let (status, answer) = self.send(method, path, body).await;
        assert!([500, 409].contains(&status), "{method} {path} without its row: {status} {answer}");
        assert_eq!(self.fleet().await, before, "{method} {path} changed something without its row");
        sqlx::query("DROP TRIGGER no_rows").execute(self.store.writer()).await.unwrap();
    }

    async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> (u16, Value) {
        let url = format!("{}{path}", self.daemon.server);
        let request = self
            .http
            .request(method.parse::<Method>().unwrap(), url)
            .bearer_auth(&self.daemon.token)
            .body(body);
        let answer = request.header("content-type", "application/json").send().await.unwrap();
        let status = answer.status().as_u16();
        let body = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null);
        DOCUMENT.assert_answer(method, path, status, &body);
        (status, body)
    }

    /// Rows in the name of the administrator; the controller writes some of its own beside them.
    async fn rows(&self) -> usize {
        let (status, rows) = self.send("GET", "/v1/audit", vec![]).await;
        assert_eq!(status, 200, "{rows}");
        let is_ours = |row: &&Value| row["who"].as_str().unwrap().starts_with("admin (");
        rows.as_array().unwrap().iter().filter(is_ours).count()
    }

    /// Calls a route, first without a row and then with it; `None` if it is not the moment for it.
    async fn attempt(&mut self, method: &str, route: &str, path: &str, body: Vec<u8>) -> Option<Value> {
        self.unlogged(method, path, body.clone()).await;
        self.logged(method, route, path, body).await
    }

    async fn logged(&mut self, method: &str, route: &str, path: &str, body: Vec<u8>) -> Option<Value> {
        let before = self.rows().await;
        let (status, answer) = self.send(method, path, body).await;
        if status == 409 {
            assert_eq!(self.rows().await, before, "{method} {path} was refused");
            return None;
        }
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        assert_eq!(self.rows().await, before + 1, "{method} {path}");
        self.driven.insert((method.to_owned(), route.to_owned()));
        Some(answer)
    }

    async fn call(&mut self, method: &str, route: &str, path: &str, body: Value) -> Value {
        let body = body.to_string().into_bytes();
        self.attempt(method, route, path, body).await.unwrap_or_else(|| panic!("{method} {path}: 409"))
    }

    async fn post(&mut self, route: &str, body: Value) -> Value {
        self.call("POST", route, route, body).await
    }

    async fn raw(&mut self, route: &str, body: Vec<u8>) -> Value {
        self.attempt("POST", route, route, body).await.unwrap()
    }

    /// What a device posts to enrol.
    async fn knock(&self, made: &Value, device: &str) -> Value {
        let token: ClaimToken = made["token"].as_str().unwrap().parse().unwrap();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let budgets = json!({ "model_bytes_max": 1, "model_ram_bytes_max": 1, "latency_us_max": 1 });
        let profile =
            json!({ "class": "pi4", "arch": "aarch64", "cores": 4, "ram_bytes": 1, "budgets": budgets });
        let body = json!({ "secret": token.secret, "csr_pem": csr, "profile": profile, "device": device })
            .to_string()
            .into_bytes();
        self.unlogged("POST", "/v1/enrol", body.clone()).await;
        let (status, answer) = self.send("POST", "/v1/enrol", body).await;
        assert!([200, 202].contains(&status), "{status} {answer}");
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_changes_something_leaves_a_row_or_changes_nothing() {
    let daemon = Daemon::start().await;
    let mut caller = Caller::new(&daemon).await;
    people_and_devices(&mut caller).await;
    models_and_rollouts(&mut caller).await;
    let changes =
        ROUTES.iter().filter(|(method, _, access)| *method != "GET" && matches!(access, Access::Role(_)));
    let changes: BTreeSet<_> =
        changes.map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(caller.driven, changes);
}

async fn people_and_devices(caller: &mut Caller<'_>) {
    let made = caller.post("/v1/tokens", json!({ "name": "alice", "scopes": ["viewer"] })).await;
    let path = format!("/v1/tokens/{}", made["id"].as_str().unwrap());
    caller.call("DELETE", "/v1/tokens/{id}", &path, Value::Null).await;

    let claim = caller.post("/v1/claims", json!({ "device": "a" })).await;
    caller.knock(&claim, "a").await;
    caller.call("PUT", "/v1/groups/{id}", "/v1/groups/north", Value::Null).await;
    caller.call("PUT", "/v1/devices/{id}/groups", "/v1/devices/a/groups", json!(["north"])).await;
    caller
        .call("POST", "/v1/devices/{id}/commands", "/v1/devices/a/commands", json!({ "do": "report" }))
        .await;
    caller.post("/v1/export", json!({ "devices": ["a"], "days": 1 })).await;
    caller.call("PUT", "/v1/devices/{id}/state", "/v1/devices/a/state", json!({ "state": "retired" })).await;
    caller.call("DELETE", "/v1/groups/{id}", "/v1/groups/north", Value::Null).await;

    let batch = caller.post("/v1/batches", json!({ "waiting_max": 2 })).await;
    for (device, verb) in [("b", "approve"), ("c", "reject")] {
        let waits = caller.knock(&batch, device).await;
        let path = format!("/v1/admissions/{}/{verb}", waits["id"].as_str().unwrap());
        caller.call("POST", &format!("/v1/admissions/{{id}}/{verb}"), &path, json!({})).await;
    }
    let (_, batches) = caller.send("GET", "/v1/batches", vec![]).await;
    let path = format!("/v1/batches/{}", batches[0]["id"].as_str().unwrap());
    caller.call("DELETE", "/v1/batches/{id}", &path, Value::Null).await;
}

/// The next targets, signed offline.
async fn next_targets(caller: &Caller<'_>, add: Vec<keys::Addition>) -> Vec<u8> {
    let daemon = caller.daemon;
    let current = caller.http.get(format!("{}/v1/approvals/current", daemon.server));
    let current = current.bearer_auth(&daemon.token).send().await.unwrap().bytes().await.unwrap();
    let request = keys::Request { add, ..keys::Request::default() };
    keys::sign_targets(&current, &request, &daemon.path("safe/private"), clock::wall_ms()).unwrap()
}

/// A program is taken in, approved and ordered.
async fn programs(caller: &mut Caller<'_>) {
    // The header of an executable for x86-64, as far as it is looked at.
    let header = [&b"\x7fELF"[..], &[0; 14], &[0x3e, 0], &[0; 44]].concat();
    let path = "/v1/programs?triple=x86_64-unknown-linux-musl&agent=0.2.0";
    let target = caller.attempt("POST", "/v1/programs", path, header).await.unwrap();
    let next = next_targets(caller, vec![serde_json::from_value(target).unwrap()]).await;
    caller.logged("POST", "/v1/approvals", "/v1/approvals", next).await.unwrap();
    let (route, body) = ("/v1/programs/{release}/orders", json!({ "canaries": 1, "reach_s": 60 }));
    let path = "/v1/programs/agent.x86-64-unknown-linux-musl@1/orders";
    let order = caller.call("POST", route, path, body).await;
    assert_eq!(
        (&order["release"], &order["made_by"]),
        (&json!("agent.x86-64-unknown-linux-musl@1"), &json!("admin"))
    );
}

async fn models_and_rollouts(caller: &mut Caller<'_>) {
    let daemon = caller.daemon;
    model(daemon.folder.path(), 1e-3);
    let onnx = dunlin_protocol::Bytes(fs::read(daemon.path("model.onnx")).unwrap());
    let body =
        json!({ "task": "lamp", "task_type": "classification", "onnx": onnx, "labels": ["off", "on"] });
    let pushed = caller.call("POST", "/v1/models/{model}/releases", "/v1/models/lamp/releases", body).await;
    caller.raw("/v1/blobs", b"anchor".to_vec()).await;
    let policy = json!({
        "format": 1, "task": "lamp", "task_type": "classification", "metric": "accuracy", "baseline_class": 0,
        "labels": ["off", "on"],
    });
    caller.raw("/v1/policies", policy.to_string().into_bytes()).await;
    let add = vec![serde_json::from_value(pushed["target"].clone()).unwrap()];
    // The file is published before its row can fail; the next one is made from it, and the release was approved by neither.
    let first = next_targets(caller, add).await;
    caller.unlogged("POST", "/v1/approvals", first).await;
    let second = next_targets(caller, Vec::new()).await;
    caller.logged("POST", "/v1/approvals", "/v1/approvals", second).await.unwrap();
    let (_, row) = caller.send("GET", "/v1/releases/lamp@1", vec![]).await;
    assert_eq!(row["state"], "approved", "{row}");
    let (_, rows) = caller.send("GET", "/v1/audit", vec![]).await;
    let row = rows.as_array().unwrap().iter().rfind(|row| row["what"] == "model.approve").unwrap();
    let of = |side: &str| -> Value { serde_json::from_str(row[side].as_str().unwrap()).unwrap() };
    assert_eq!(
        (&of("before")["releases"]["lamp@1"], &of("after")["releases"]["lamp@1"]),
        (&json!("pending"), &json!("approved"))
    );
    programs(caller).await;
    let (route, path) = ("/v1/models/{model}/aliases/{alias}", "/v1/models/lamp/aliases/stable");
    caller.call("PUT", route, path, json!({ "version": 1 })).await;
    let definition = json!({ "task": "lamp", "labels": ["off", "on"], "retraining": {} });
    caller.call("PUT", "/v1/tasks/{task}", "/v1/tasks/lamp", definition).await;

    // The planner may end a rollout that has no devices before it is told anything, and a run ends without data.
    let limit = Instant::now() + LIMIT;
    loop {
        let made = caller.post("/v1/rollouts", json!({ "task": "lamp", "releases": ["lamp@1"] })).await;
        let id = made["plan"]["rollout"].as_str().unwrap();
        let path = format!("/v1/rollouts/{id}/orders");
        let order = json!({ "order": "abort" }).to_string().into_bytes();
        if caller.attempt("POST", "/v1/rollouts/{id}/orders", &path, order).await.is_some() {
            break;
        }
        assert!(Instant::now() < limit, "no rollout takes an order");
    }
    let made = caller.post("/v1/runs", json!({ "task": "lamp" })).await;
    let path = format!("/v1/runs/{}/orders", made["id"].as_str().unwrap());
    for order in ["cancel", "restart"].into_iter().cycle() {
        let order = json!({ "order": order }).to_string().into_bytes();
        if caller.attempt("POST", "/v1/runs/{id}/orders", &path, order).await.is_some() {
            break;
        }
        assert!(Instant::now() < limit, "the run takes no order");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
