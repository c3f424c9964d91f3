//! One row of every table, damaged: it is named, and it costs itself only.
use std::collections::BTreeMap;

use dunlin_pipeline::Cause;

use super::super::test_store;
use super::*;
use crate::damage::{ROW_DAMAGED, look};
use crate::training::RunRow;

async fn execute(store: &Store, sql: &'static str) {
    sqlx::query(sql).execute(store.writer()).await.unwrap();
}

/// A database in which rows may stand alone.
async fn loose() -> (tempfile::TempDir, Store) {
    let (dir, store) = test_store().await;
    execute(&store, "PRAGMA foreign_keys = OFF").await;
    (dir, store)
}

async fn names(sql: &'static str, table: &str, key: &str) {
    let (_dir, store) = loose().await;
    assert_eq!(store.damaged().await.unwrap(), []);
    execute(&store, sql).await;
    let damaged = store.damaged().await.unwrap();
    let [damage] = damaged.as_slice() else { panic!("{table}: {damaged:?}") };
    assert_eq!((damage.table, damage.row.as_str()), (table, key), "{damage}");
}

/// A test a table: its name, the row, and the key that must be named.
macro_rules! named {
    ($($test:ident: $table:literal, $key:literal, $sql:literal;)*) => {$(
        #[tokio::test]
        async fn $test() {
            names($sql, $table, $key).await;
        }
    )*};
}

named! {
    a_damaged_device_is_named: "devices", "cam", "INSERT INTO devices (id, spki, key_id, certificate_pem, profile, class, enrolled_ms) VALUES ('cam', x'', '', '', '{', 'c', 1)";
    a_damaged_group_is_named: "groups", "a b", "INSERT INTO groups VALUES ('a b', 1)";
    a_damaged_member_of_a_group_is_named: "device_groups", "cam", "INSERT INTO device_groups VALUES ('cam', 'a b')";
    a_damaged_token_is_named: "tokens", "t", "INSERT INTO tokens (id, name, hash, scopes, created_ms) VALUES ('t', 't', x'', 'emperor', 1)";
    a_damaged_claim_is_named: "claims", "c", "INSERT INTO claims (id, secret_hash, groups, created_by, created_ms, expires_ms) VALUES ('c', x'', '{', 'ann', 1, 2)";
    a_damaged_batch_is_named: "batches", "b", "INSERT INTO batches VALUES ('b', x'', '{', 1, 'ann', 1, 2)";
    a_damaged_line_of_a_serial_list_is_named: "expected", "s-1", "INSERT INTO expected (batch, serial, device, groups) VALUES ('b', 's-1', 'cam', '{')";
    a_damaged_admission_is_named: "admissions", "a", "INSERT INTO admissions (id, batch, key_id, device, groups, class, address, state, asked_ms) VALUES ('a', 'b', 'k', 'cam', '{', 'c', '', 'waiting', 1)";
    a_damaged_certificate_is_named: "certificates", "05", "INSERT INTO certificates (serial, device, key_id, issued_ms, until_ms) VALUES ('05', 'a b', 'k', 1, 2)";
    a_damaged_model_is_named: "models", "a b", "INSERT INTO models VALUES ('a b', 'meter', 1)";
    a_damaged_release_is_named: "releases", "ab", "INSERT INTO releases (model, version, task, family, manifest, sha256, onnx, created_by, created_ms) VALUES ('m', 1, 'meter', 'mlp', x'7b', 'ab', 'cd', 'ann', 1)";
    a_damaged_alias_is_named: "aliases", "a b", "INSERT INTO aliases VALUES ('a b', 'best', 1, 1)";
    a_damaged_policy_is_named: "policies", "ab", "INSERT INTO policies (sha256, task, body, created_by, created_ms) VALUES ('ab', 'meter', x'7b', 'ann', 1)";
    a_damaged_task_is_named: "tasks", "meter", "INSERT INTO tasks (id, definition, owner, created_ms, updated_ms, schedule_ms) VALUES ('meter', '{', 'ann', 1, 1, 1)";
    a_damaged_rollout_is_named: "rollouts", "r-1", "INSERT INTO rollouts (id, task, policy, cause, created_by, created_ms, generation, state, updated_ms) VALUES ('r-1', 'meter', '{', '', 'ann', 1, 1, 'open', 1)";
    a_damaged_plan_is_named: "plans", "r-1 generation 2", "INSERT INTO plans VALUES ('r-1', 2, 1, '{', 1)";
    a_damaged_order_is_named: "orders", "cam", "INSERT INTO orders VALUES ('r-1', 'cam', 'no release', 1, 1)";
    a_damaged_program_is_named: "programs", "agent.x@1", "INSERT INTO programs VALUES ('agent.x', 1, 'ab', 1, '{', 'ann', 1)";
    a_damaged_order_for_a_program_is_named: "program_orders", "agent.x@1", "INSERT INTO program_orders VALUES ('agent.x', 'a b', 1, 1, 1, 'ann', 1)";
    a_damaged_pardon_is_named: "forgiven", "cam", "INSERT INTO forgiven VALUES ('cam', 'no release', 1)";
    a_damaged_assignment_is_named: "assignments", "cam", "INSERT INTO assignments VALUES ('cam', 1, '{', 1, 1)";
    a_damaged_decision_is_named: "decisions", "cam/meter", "INSERT INTO decisions VALUES ('cam', 'meter', '{', 1)";
    a_damaged_installed_model_is_named: "installed", "cam/meter", "INSERT INTO installed (device, task, phase, generation, updated_ms) VALUES ('cam', 'meter', 'asleep', 1, 1)";
    a_damaged_run_is_named: "runs", "run-1", "INSERT INTO runs (id, task, owner, cause, state, definition, seed, created_ms) VALUES ('run-1', 'meter', 'ann', '{', 'failed', '{}', 1, 1)";
    a_damaged_line_of_a_journal_is_named: "run_journal", "run-1 line 3", "INSERT INTO run_journal VALUES ('run-1', 3, '{', 1)";
    a_damaged_queue_is_named: "run_queue", "1", "INSERT INTO run_queue VALUES (1, '{')";
    a_damaged_alert_is_named: "alerts", "7", "INSERT INTO alerts (id, kind, subject, detail, facts, raised_ms) VALUES (7, 'drift', 'task:meter', '', '{', 1)";
    a_damaged_boot_is_named: "boots", "4", "INSERT INTO boots (no, device, boot, ahead, first_ms, last_ms) VALUES (4, 'cam', x'', x'ffff', 1, 1)";
    a_damaged_window_is_named: "windows", "9", "INSERT INTO windows VALUES (9, 4, 1, 'cam', 'meter', NULL, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, x'ff00')";
    a_damaged_outcome_is_named: "outcomes", "5", "INSERT INTO outcomes (id, device, generation, correlation, phase, reason, detail, received_ms) VALUES (5, 'cam', 1, '', 'asleep', 'ok', '', 1)";
    a_damaged_indicator_is_named: "indicators", "5", "INSERT INTO indicators (id, device, reason, detail, count, received_ms) VALUES (5, 'a b', 'ok', '', 1, 1)";
    a_damaged_gap_is_named: "gaps", "5", "INSERT INTO gaps VALUES (5, 'a b', x'', 1, 2, 1)";
    a_damaged_command_is_named: "commands", "q", "INSERT INTO commands VALUES ('cam', 'q', '{', 1)";
    a_damaged_reply_is_named: "replies", "q", "INSERT INTO replies VALUES ('q', 'a b', 'ok', '', 1)";
    a_damaged_sample_is_named: "samples", "6", "INSERT INTO samples (id, task, device, request, release, x, predicted, kind, inclusion_ppm, received_ms) VALUES (6, 'meter', 'cam', 'q', 'm@1', x'', 1, 'odd', 1, 1)";
    a_damaged_count_of_refusals_is_named: "refused", "too_large", "INSERT INTO refused VALUES ('a b', 'too_large', 1, 1, '')";
}

/// Every table of the database has its check. The audit log has one of its own.
#[tokio::test]
async fn no_table_is_left_out() {
    let (_dir, store) = test_store().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT IN ('audit', '_sqlx_migrations')",
    )
    .fetch_all(store.readers())
    .await
    .unwrap();
    for table in tables {
        assert!(DECIDING.iter().chain(GROWING).any(|check| check.table == table), "{table} is not examined");
    }
}

#[tokio::test]
async fn a_damaged_row_raises_an_alert_that_is_over_when_it_is_repaired() {
    let (_dir, store) = loose().await;
    execute(&store, "INSERT INTO assignments VALUES ('cam', 1, '{', 1, 1)").await;
    look(&store, 10).await.unwrap();
    look(&store, 11).await.unwrap();
    let alerts = store.alerts(true, 10).await.unwrap();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!((alerts[0].kind.as_str(), alerts[0].subject.as_str()), (ROW_DAMAGED, "row:assignments/cam"));
    execute(&store, "DELETE FROM assignments").await;
    look(&store, 12).await.unwrap();
    assert_eq!(store.alerts(true, 10).await.unwrap(), []);
}

fn run(id: &str, task: &str) -> RunRow {
    RunRow {
        id: id.into(),
        task: task.parse().unwrap(),
        owner: "ann".into(),
        cause: Cause::Operator { by: "ann".into() },
        state: "waiting".into(),
        definition: toml::from_str(&format!("task = {task:?}\nlabels = [\"a\", \"b\"]")).unwrap(),
        seed: 1,
        repeats: None,
        created_ms: 1,
        started_ms: None,
        ended_ms: None,
        facts: serde_json::json!({}),
    }
}

/// A database with the runs `bad` and `good`, which wait.
async fn two_runs() -> (tempfile::TempDir, Store) {
    let (dir, store) = loose().await;
    for (id, task) in [("bad", "meter"), ("good", "valve")] {
        let mut tx = store.begin().await.unwrap();
        Store::run_add(&mut tx, &run(id, task)).await.unwrap().unwrap();
        tx.commit().await.unwrap();
    }
    (dir, store)
}

#[tokio::test]
async fn a_damaged_run_is_left_out_of_the_list_and_still_counts_for_its_task() {
    let (_dir, store) = two_runs().await;
    execute(&store, "UPDATE runs SET facts = '{' WHERE id = 'bad'").await;
    let listed: Vec<String> = store.runs(None).await.unwrap().into_iter().map(|run| run.id).collect();
    assert_eq!(listed, ["good"]);
    let standing = store.runs_standing(&"meter".parse().unwrap()).await.unwrap();
    assert_eq!((standing.len(), standing[0].state.as_str()), (1, "waiting"));
    execute(&store, "UPDATE runs SET state = 'running'").await;
    let open: Vec<String> = store.runs_open().await.unwrap().into_iter().map(|run| run.id).collect();
    assert_eq!(open, ["good"]);
}

#[tokio::test]
async fn a_damaged_run_whose_turn_it_is_fails_and_the_next_one_starts() {
    let (_dir, store) = two_runs().await;
    execute(&store, "UPDATE runs SET cause = '{' WHERE id = 'bad'").await;
    let next = store.run_next(&BTreeMap::new(), 1, 5).await.unwrap().unwrap();
    assert_eq!(next.id, "good");
    let standing = store.runs_standing(&"meter".parse().unwrap()).await.unwrap();
    assert_eq!((standing[0].state.as_str(), standing[0].ended_ms), ("failed", Some(5)));
}

#[tokio::test]
async fn a_damaged_wish_does_not_hide_the_others() {
    let (_dir, store) = two_runs().await;
    let cancel = crate::training::Wanted::Cancel { by: "ann".into() };
    for id in ["bad", "good"] {
        let mut tx = store.begin().await.unwrap();
        Store::run_want(&mut tx, id, &cancel).await.unwrap();
        tx.commit().await.unwrap();
    }
    execute(&store, "UPDATE runs SET wanted = '{' WHERE id = 'bad'").await;
    let wanted = store.runs_wanted().await.unwrap();
    assert_eq!(wanted, [("good".to_owned(), "waiting".to_owned(), cancel)]);
}

#[tokio::test]
async fn a_damaged_queue_is_made_anew_of_the_runs_that_wait() {
    let (_dir, store) = two_runs().await;
    execute(&store, "UPDATE run_queue SET body = '{'").await;
    assert_eq!(store.run_next(&BTreeMap::new(), 1, 5).await.unwrap().unwrap().id, "bad");
    assert_eq!(store.run_next(&BTreeMap::new(), 1, 5).await.unwrap().unwrap().id, "good");
    assert_eq!(store.damaged().await.unwrap(), []);
}

#[tokio::test]
async fn a_damaged_decision_does_not_stop_the_planner_from_reading_the_others() {
    let (_dir, store) = loose().await;
    execute(&store, "INSERT INTO decisions VALUES ('cam-1', 'meter', '{', 1)").await;
    execute(
        &store,
        "INSERT INTO decisions VALUES ('cam-2', 'meter', '{\"chosen\":\"m@1\",\"rollouts\":[]}', 1)",
    )
    .await;
    let decided = store.decided().await.unwrap();
    assert_eq!(decided.keys().map(|(device, _)| device.as_str()).collect::<Vec<_>>(), ["cam-2"]);
}

#[tokio::test]
async fn a_damaged_alert_does_not_hide_the_others() {
    let (_dir, store) = loose().await;
    for subject in ["task:meter", "task:valve"] {
        store.alert_raise("drift", subject, "", &serde_json::json!({}), 1).await.unwrap();
    }
    execute(&store, "UPDATE alerts SET facts = '{' WHERE subject = 'task:meter'").await;
    assert_eq!(store.alerts(true, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn lists_leave_out_what_is_damaged() {
    let (_dir, store) = loose().await;
    for sql in [
        "INSERT INTO claims (id, secret_hash, groups, created_by, created_ms, expires_ms) VALUES ('c', x'01', '{', 'ann', 1, 2), ('d', x'02', '[]', 'ann', 1, 2)",
        "INSERT INTO batches VALUES ('b', x'01', '{', 1, 'ann', 1, 2), ('e', x'02', '[]', 1, 'ann', 1, 2)",
        "INSERT INTO tokens (id, name, hash, scopes, created_ms) VALUES ('t', 't', x'01', 'emperor', 1), ('u', 'u', x'02', 'viewer', 1)",
    ] {
        execute(&store, sql).await;
    }
    assert_eq!(store.claims().await.unwrap().len(), 1);
    assert_eq!(store.batches().await.unwrap().len(), 1);
    assert_eq!(store.tokens().await.unwrap().len(), 1);
}

/// SQLite ends a transaction by itself when it finds no room.
#[tokio::test]
async fn a_writer_that_found_no_room_writes_again_when_there_is_some() {
    let (_dir, store) = test_store().await;
    let fill = "INSERT INTO groups VALUES (hex(zeroblob(1048576)), 1)";
    let mut tx = store.begin().await.unwrap();
    sqlx::query("PRAGMA max_page_count = 1").execute(&mut *tx).await.unwrap();
    let full = sqlx::query(fill).execute(&mut *tx).await.unwrap_err();
    assert!(full.to_string().contains("full"), "{full}");
    drop(tx);
    let mut tx = store.begin().await.unwrap();
    sqlx::query(fill).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}
