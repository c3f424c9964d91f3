//! Operators: every route with every role, tokens that end, and the audit log of what they do.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use dunlin_controller::api::access::{Access, ROUTES};
use dunlin_controller::api::auth::Scope;
use dunlin_controller::init::DATABASE;
use dunlin_controller::store::Store;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{Device, World, world};
use crate::document::DOCUMENT;

const ROLES: [Scope; 4] = [Scope::Viewer, Scope::Operator, Scope::Releaser, Scope::Admin];

impl World {
    /// A token's id and secret.
    async fn token(&self, name: &str, scopes: &[Scope], valid_s: Option<u64>) -> (String, String) {
        let body = json!({ "name": name, "scopes": scopes, "valid_s": valid_s });
        let (status, made) = self.post("/v1/tokens", body).await;
        assert_eq!(status, 200, "{made}");
        (made["id"].as_str().unwrap().into(), made["token"].as_str().unwrap().into())
    }

    async fn status(&self, method: &str, path: &str, token: &str, device: Option<&Device>) -> u16 {
        let url = format!("https://{}{path}", self.controller.api);
        let request = self.https(device).request(method.parse().unwrap(), url);
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        // No handler takes this body, so nothing is changed by those who are let through.
        let body = if method == "GET" { "" } else { "\u{0}" };
        let request = request.header("content-type", "application/json").body(body);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        DOCUMENT.assert_answer(method, path, status, &body);
        status
    }
}

/// A path of the document with something in place of its parameters.
fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "x1" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_open_to_its_roles_and_to_nobody_else() {
    let world = world().await;
    let device = world.enrolled("a").await;
    let mut tokens = BTreeMap::new();
    for role in ROLES {
        tokens.insert(role, world.token(role.as_str(), &[role], None).await.1);
    }
    let mut judged = 0;
    for (method, path, access) in ROUTES {
        let url = filled(path);
        for role in ROLES {
            let status = world.status(method, &url, &tokens[&role], None).await;
            let allowed = match access {
                Access::Everybody | Access::DeviceOrViewer => true,
                Access::Role(scopes) => {
                    role == Scope::Admin || scopes.contains(&role) || scopes.contains(&Scope::Viewer)
                }
            };
            let refused = [401, 403].contains(&status);
            let own_secret = ["/v1/enrol", "/v1/renew"].contains(path);
            assert!(allowed != refused || own_secret, "{method} {path} as {role}: {status}");
            assert!(allowed || status == 403, "{method} {path} as {role}: {status}");
            judged += 1;
        }
        let (nobody, a_device) =
            (world.status(method, &url, "", None).await, world.status(method, &url, "", Some(&device)).await);
        match access {
            Access::Everybody => assert_ne!((nobody, a_device), (401, 401), "{method} {path}"),
            Access::DeviceOrViewer => {
                assert_eq!(nobody, 401, "{method} {path} as nobody");
                assert_ne!(a_device, 401, "{method} {path} as a device");
            }
            Access::Role(_) => {
                assert_eq!((nobody, a_device), (401, 401), "{method} {path} as nobody and as a device");
            }
        }
        assert_eq!(world.status("PATCH", &url, &tokens[&Scope::Admin], None).await, 405, "{path}");
    }
    assert_eq!(judged, ROUTES.len() * ROLES.len());
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_stops_a_rollout_and_a_releaser_moves_it() {
    let world = world().await;
    let orders = [
        (json!({ "order": "pause" }), true),
        (json!({ "order": "abort" }), true),
        (json!({ "order": "resume" }), false),
        (json!({ "order": "promote" }), false),
        (json!({ "order": "approve", "wave": 0 }), false),
    ];
    for role in ROLES {
        let (_, token) = world.token(role.as_str(), &[role], None).await;
        for (order, is_a_stop) in &orders {
            let may = match role {
                Scope::Viewer => false,
                Scope::Operator => *is_a_stop,
                Scope::Releaser | Scope::Admin => true,
            };
            let path = "/v1/rollouts/none/orders";
            let (status, answer) = world.call(Method::POST, &token, path, order.clone()).await;
            // Who may is told that there is no such rollout.
            assert_eq!(status, if may { 404 } else { 403 }, "{order} as {role}: {answer}");
        }
    }
    let log = world.get("/v1/audit").await.1;
    let told = log.as_array().unwrap().iter().filter(|row| row["what"] == "rollout.order").count();
    assert_eq!(told, 0, "what is refused leaves no row");
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_by_time_and_by_word_and_the_last_administrator_stays() {
    let world = world().await;
    let (id, long) = world.token("long", &[Scope::Viewer], None).await;
    let (_, short) = world.token("short", &[Scope::Viewer], Some(4)).await;
    let list = |token: String| async { world.status("GET", "/v1/devices", &{ token }, None).await };
    assert_eq!((list(short.clone()).await, list(long.clone()).await), (200, 200));
    tokio::time::sleep(std::time::Duration::from_millis(4200)).await;
    let revoke = |id: String| async move { format!("/v1/tokens/{id}") };
    let path = revoke(id).await;
    assert_eq!(world.call(Method::DELETE, &world.token, &path, Value::Null).await.0, 200);
    assert_eq!((list(short).await, list(long).await), (401, 401));

    let (_, all) = world.get("/v1/tokens").await;
    let text = all.to_string();
    assert!(!text.contains(&world.token), "secrets are not shown");
    let admin = all.as_array().unwrap().iter().find(|row| row["name"] == "admin").unwrap();
    let path = revoke(admin["id"].as_str().unwrap().to_owned()).await;
    let (status, answer) = world.call(Method::DELETE, &world.token, &path, Value::Null).await;
    assert_eq!(status, 409, "{answer}");
    let (_, second) = world.token("second", &[Scope::Admin], None).await;
    assert_eq!(world.call(Method::DELETE, &second, &path, Value::Null).await.0, 200);
    assert_eq!(world.get("/v1/tokens").await.0, 401);
    let rows = world.call(Method::GET, &second, "/v1/audit", Value::Null).await.1;
    let revoked: Vec<_> =
        rows.as_array().unwrap().iter().filter(|row| row["what"] == "token.revoke").collect();
    assert_eq!(revoked.len(), 2);
    assert!(revoked[1]["before"].as_str().unwrap().contains("\"admin\""), "{}", revoked[1]);
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_the_fleet_is_in_the_log_with_who_what_before_and_after() {
    let world = world().await;
    world.enrolled("a").await;
    let (id, alice) = world.token("alice", &[Scope::Operator, Scope::Releaser], None).await;
    let steps = [
        (Method::PUT, "/v1/groups/north", Value::Null, "group.create"),
        (Method::PUT, "/v1/devices/a/groups", json!(["north"]), "device.groups"),
        (Method::PUT, "/v1/devices/a/state", json!({ "state": "retired" }), "device.state"),
        (Method::PUT, "/v1/devices/a/state", json!({ "state": "active" }), "device.state"),
        (Method::POST, "/v1/devices/a/commands", json!({ "do": "report" }), "device.command"),
        (Method::POST, "/v1/claims", json!({}), "claim.create"),
        (Method::POST, "/v1/batches", json!({ "waiting_max": 1 }), "batch.create"),
        (Method::POST, "/v1/blobs", json!("anchor"), "blob.upload"),
        (Method::DELETE, "/v1/groups/north", Value::Null, "group.remove"),
    ];
    for (method, path, body, what) in steps {
        let before = world.get("/v1/audit").await.1.as_array().unwrap().len();
        let (status, answer) = world.call(method, &alice, path, body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        let rows = world.get("/v1/audit").await.1;
        let new = &rows.as_array().unwrap()[before..];
        assert_eq!(new.len(), 1, "{what}");
        assert_eq!((&new[0]["who"], &new[0]["what"]), (&json!(format!("alice ({id})")), &json!(what)));
        assert!(new[0]["before"] != new[0]["after"], "{}", new[0]);
    }
    let rows = world.get("/v1/audit").await.1;
    let removed = rows.as_array().unwrap().last().unwrap();
    assert!(removed["before"].as_str().unwrap().contains("\"a\""), "who was in the group: {removed}");
    let names: BTreeSet<_> = rows.as_array().unwrap().iter().map(|row| row["no"].as_u64().unwrap()).collect();
    assert_eq!(names.len() as u64, *names.last().unwrap(), "numbers without holes");
    world.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_called_like_a_part_of_the_controller_or_a_device() {
    let world = world().await;
    for name in ["planner", "trainer", "init", "dunlin key", "controller", "device a", "claim x", "batch x"] {
        let (status, answer) = world.post("/v1/tokens", json!({ "name": name, "scopes": ["viewer"] })).await;
        assert_eq!(status, 400, "{name}: {answer}");
    }
    assert_eq!(world.get("/v1/tokens").await.1.as_array().unwrap().len(), 1);
    world.controller.stop().await;
}

/// Runs `dunlin audit verify`: its exit code and what it says.
fn verify(data: &Path, more: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    command.args(["audit", "verify", "--json", "--data"]).arg(data).args(more);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

async fn tamper(data: &Path, sql: &'static str) {
    let store = Store::open(&data.join(DATABASE)).await.unwrap();
    for statement in ["DROP TRIGGER IF EXISTS audit_no_update", "DROP TRIGGER IF EXISTS audit_no_delete", sql]
    {
        sqlx::query(statement).execute(store.writer()).await.unwrap();
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_a_gap_and_a_cut_of_the_audit_log_are_found() {
    let world = world().await;
    for n in 0..5 {
        world.token(&format!("t{n}"), &[Scope::Viewer], None).await;
    }
    let (status, head) = world.get("/v1/audit/head").await;
    assert_eq!((status, &head["no"]), (200, &json!(6)), "{head}");
    let elsewhere = world.data.join("../head.json");
    std::fs::write(&elsewhere, head.to_string()).unwrap();
    world.token("t5", &[Scope::Viewer], None).await;
    let data = world.data.clone();
    // Nobody else has the files open while they are written over.
    world.controller.stop().await;
    // The database with what belongs to it, and the head.
    let names = [DATABASE, "dunlin.db-wal", "dunlin.db-shm", "audit.head"];
    let copies = names.map(|name| std::fs::read(data.join(name)).ok());
    let restore = || {
        for (name, copy) in names.iter().zip(&copies) {
            match copy {
                Some(bytes) => std::fs::write(data.join(name), bytes).unwrap(),
                None => drop(std::fs::remove_file(data.join(name))),
            }
        }
    };
    let kept = elsewhere.display().to_string();
    assert_eq!(verify(&data, &["--head", &kept]).0, 0, "untouched");

    for (sql, says) in [
        ("UPDATE audit SET after = 'null' WHERE no = 3", "was changed"),
        ("UPDATE audit SET who = 'bob' WHERE no = 7", "was changed"),
        ("DELETE FROM audit WHERE no = 4", "is missing"),
        ("DELETE FROM audit WHERE no = 7", "were cut off"),
        ("DELETE FROM audit WHERE no > 2", "were cut off"),
        ("DELETE FROM audit", "were cut off"),
    ] {
        tamper(&data, sql).await;
        let (code, text) = verify(&data, &[]);
        assert!(code == 4 && text.contains(says), "{sql}: {code} {text}");
        restore();
    }
    // Who also removes or rewinds the head beside the log is found by one that is kept elsewhere.
    tamper(&data, "DELETE FROM audit WHERE no > 3").await;
    std::fs::remove_file(data.join("audit.head")).unwrap();
    let (code, text) = verify(&data, &[]);
    assert!(code == 4 && text.contains("no head"), "{code} {text}");
    let mut forged = head.clone();
    forged["no"] = json!(3);
    std::fs::write(data.join("audit.head"), forged.to_string()).unwrap();
    let (code, text) = verify(&data, &[]);
    assert!(code == 4 && text.contains("not the one"), "{code} {text}");
    let (code, text) = verify(&data, &["--head", &kept]);
    assert_eq!(code, 4, "{text}");
    restore();
    forged = head.clone();
    forged["at_ms"] = json!(1);
    std::fs::write(data.join("audit.head"), forged.to_string()).unwrap();
    let (code, text) = verify(&data, &[]);
    assert!(code == 4 && text.contains("not signed"), "{code} {text}");
    std::fs::write(data.join("audit.head"), b"{").unwrap();
    assert_eq!(verify(&data, &[]).0, 4, "a torn head");
    restore();

    // A controller that starts on a cut log says so, and keeps the head that shows it.
    tamper(&data, "DELETE FROM audit WHERE no > 3").await;
    let controller = dunlin_controller::serve::Controller::start(&data).await.unwrap();
    let alerts = controller.state.store.alerts(true, 10).await.unwrap();
    assert!(alerts.iter().any(|alert| alert.kind == "audit_broken"), "{alerts:?}");
    controller.stop().await;
    assert!(data.join("audit.head.kept").is_file());
}
