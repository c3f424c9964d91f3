//! Tasks, rollouts with their plans, and what each device shall run.
use std::collections::BTreeMap;

use dunlin_monitor::rate::Rate;
use dunlin_protocol::{Assignment, DeviceId, ReasonCode, ReleaseId, TaskId};
use dunlin_rollout::{Plan, Policy, Report};
use dunlin_select::Measured;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Attempt, Result, Store, StoreError, int, phase_of, uint};
use crate::planner::{
    Decision, DeviceOutcome, PairedWindow, RolloutOrder, RolloutRow, RolloutStance, TaskDefinition, TaskRow,
};

/// Windows read at a time: a few MiB, whatever the backlog.
const WINDOWS_CHUNK: i64 = 2_000;

pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types have text keys only")
}

pub(super) fn parse<T: DeserializeOwned>(table: &'static str, row: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt {
        table,
        row: row.to_owned(),
        what: error.to_string(),
    })
}

fn id<T: std::str::FromStr>(table: &'static str, row: &str, text: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| StoreError::Corrupt {
        table,
        row: row.to_owned(),
        what: error.to_string(),
    })
}

fn task(row: &SqliteRow) -> Result<TaskRow> {
    let key: String = row.try_get("id")?;
    let triggers: Option<String> = row.try_get("triggers")?;
    Ok(TaskRow {
        definition: parse("tasks", &key, row.try_get("definition")?)?,
        owner: row.try_get("owner")?,
        created_ms: uint(row.try_get("created_ms")?),
        schedule_ms: uint(row.try_get("schedule_ms")?),
        triggers: triggers.map(|text| parse("tasks", &key, &text)).transpose()?,
    })
}

fn rollout(row: &SqliteRow) -> Result<RolloutRow> {
    let key: String = row.try_get("id")?;
    let report: Option<String> = row.try_get("report")?;
    Ok(RolloutRow {
        policy: parse("rollouts", &key, row.try_get("policy")?)?,
        created_by: row.try_get("created_by")?,
        created_ms: uint(row.try_get("created_ms")?),
        run: row.try_get("run")?,
        plan: parse("plans", &key, row.try_get("body")?)?,
        report: report.map(|text| parse("rollouts", &key, &text)).transpose()?,
    })
}

/// Rows that can be read; a damaged one costs itself only.
fn sound<T>(rows: &[SqliteRow], read: impl Fn(&SqliteRow) -> Result<T>) -> Vec<T> {
    let log = |error: &StoreError| tracing::error!(%error, "a row is left out");
    rows.iter().filter_map(|row| read(row).inspect_err(log).ok()).collect()
}

const ROLLOUTS: &str = "SELECT r.*, p.body AS body FROM rollouts r JOIN plans p ON p.rollout = r.id AND p.generation = r.generation";

impl Store {
    /// Makes a task or replaces its definition; returns the definition before.
    pub async fn task_put(
        &self,
        definition: &TaskDefinition,
        owner: &str,
        now_ms: u64,
    ) -> Result<Option<TaskDefinition>> {
        let before = match self.task(&definition.task).await {
            Ok(row) => Some(row.definition),
            Err(StoreError::NotFound { .. }) => None,
            Err(
                error @ (StoreError::Sql { .. }
                | StoreError::Migrate(_)
                | StoreError::Corrupt { .. }
                | StoreError::Conflict(_)),
            ) => return Err(error),
        };
        sqlx::query(
            "INSERT INTO tasks (id, definition, owner, created_ms, updated_ms, schedule_ms) VALUES (?1, ?2, ?3, ?4, ?4, ?4)
             ON CONFLICT (id) DO UPDATE SET definition = ?2, owner = ?3, updated_ms = ?4",
        )
        .bind(definition.task.as_str())
        .bind(json(definition))
        .bind(owner)
        .bind(int(now_ms))
        .execute(self.writer())
        .await
        .attempt("storing a task")?;
        Ok(before)
    }

    /// Every task that can be read.
    pub async fn tasks(&self) -> Result<Vec<TaskRow>> {
        let rows = sqlx::query("SELECT * FROM tasks ORDER BY id")
            .fetch_all(self.readers())
            .await
            .attempt("listing tasks")?;
        Ok(sound(&rows, task))
    }

    /// One task.
    pub async fn task(&self, key: &TaskId) -> Result<TaskRow> {
        let row = sqlx::query("SELECT * FROM tasks WHERE id = ?")
            .bind(key.as_str())
            .fetch_optional(self.readers())
            .await;
        task(
            &row.attempt("reading a task")?
                .ok_or_else(|| StoreError::NotFound { what: "task", key: key.to_string() })?,
        )
    }

    /// Notes how the triggers of a task were weighed and, if its schedule fired, when.
    pub async fn task_weighed(
        &self,
        key: &TaskId,
        decision: &dunlin_pipeline::Decision,
        fired_ms: Option<u64>,
    ) -> Result<()> {
        sqlx::query("UPDATE tasks SET triggers = ?, schedule_ms = max(schedule_ms, ?) WHERE id = ?")
            .bind(json(decision))
            .bind(int(fired_ms.unwrap_or(0)))
            .bind(key.as_str())
            .execute(self.writer())
            .await
            .attempt("noting the triggers of a task")?;
        Ok(())
    }

    /// Stores a new rollout; one that a run made before is left as it is. Returns whether it is new.
    pub async fn rollout_add(
        &self,
        plan: &Plan,
        policy: &Policy,
        by: &str,
        run: Option<&str>,
        now_ms: u64,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        let added = sqlx::query(
            "INSERT INTO rollouts (id, task, policy, cause, created_by, created_ms, run, generation, state, updated_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?6) ON CONFLICT DO NOTHING",
        )
        .bind(&plan.rollout)
        .bind(plan.task.as_str())
        .bind(json(policy))
        .bind(&plan.cause)
        .bind(by)
        .bind(int(now_ms))
        .bind(run)
        .bind(int(plan.generation))
        .bind(plan.state.name())
        .execute(&mut *tx)
        .await
        .attempt("storing a rollout")?;
        if added.rows_affected() == 0 {
            return Ok(false);
        }
        plan_insert(&mut tx, plan, now_ms).await?;
        tx.commit().await.attempt("committing a rollout")?;
        Ok(true)
    }

    /// Stores the next plan of a rollout. It is refused if the rollout has moved on from the plan's parent.
    pub async fn plan_add(&self, plan: &Plan, now_ms: u64) -> Result<()> {
        let mut tx = self.begin().await?;
        let moved = sqlx::query(
            "UPDATE rollouts SET generation = ?, state = ?, updated_ms = ? WHERE id = ? AND generation = ?",
        )
        .bind(int(plan.generation))
        .bind(plan.state.name())
        .bind(int(now_ms))
        .bind(&plan.rollout)
        .bind(plan.parent.map(int))
        .execute(&mut *tx)
        .await
        .attempt("moving a rollout on")?;
        if moved.rows_affected() == 0 {
            return Err(StoreError::Conflict(format!(
                "rollout {} has moved on in the meantime; look again",
                plan.rollout
            )));
        }
        plan_insert(&mut tx, plan, now_ms).await?;
        tx.commit().await.attempt("committing a plan")
    }

    /// Keeps the last report of a rollout.
    pub async fn rollout_report(&self, rollout: &str, report: &Report) -> Result<()> {
        sqlx::query("UPDATE rollouts SET report = ? WHERE id = ?")
            .bind(json(report))
            .bind(rollout)
            .execute(self.writer())
            .await
            .attempt("noting a report")?;
        Ok(())
    }

    /// Every rollout, the oldest first.
    pub async fn rollouts(&self) -> Result<Vec<RolloutRow>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{ROLLOUTS} ORDER BY r.created_ms, r.id")))
            .fetch_all(self.readers())
            .await;
        Ok(sound(&rows.attempt("listing rollouts")?, rollout))
    }

    /// One rollout.
    pub async fn rollout(&self, key: &str) -> Result<RolloutRow> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{ROLLOUTS} WHERE r.id = ?")))
            .bind(key)
            .fetch_optional(self.readers())
            .await;
        rollout(
            &row.attempt("reading a rollout")?
                .ok_or_else(|| StoreError::NotFound { what: "rollout", key: key.to_owned() })?,
        )
    }

    /// Every plan of a rollout, the first one first.
    pub async fn plans(&self, rollout: &str) -> Result<Vec<Plan>> {
        let rows = sqlx::query("SELECT body FROM plans WHERE rollout = ? ORDER BY generation")
            .bind(rollout)
            .fetch_all(self.readers())
            .await;
        rows.attempt("listing plans")?
            .iter()
            .map(|row| parse("plans", rollout, row.try_get("body")?))
            .collect()
    }

    /// Orders of a rollout by device.
    pub async fn orders(&self, rollout: &str) -> Result<BTreeMap<DeviceId, RolloutOrder>> {
        let rows = sqlx::query("SELECT * FROM orders WHERE rollout = ?")
            .bind(rollout)
            .fetch_all(self.readers())
            .await;
        let read = |row: &SqliteRow| -> Result<(DeviceId, RolloutOrder)> {
            let device: String = row.try_get("device")?;
            let release = id("orders", &device, row.try_get("release")?)?;
            let order = RolloutOrder {
                release,
                generation: uint(row.try_get("generation")?),
                since_ms: uint(row.try_get("since_ms")?),
            };
            Ok((id("orders", &device, &device)?, order))
        };
        Ok(sound(&rows.attempt("listing orders")?, read).into_iter().collect())
    }

    /// Lets the failures of a release on a device count no more.
    pub async fn forgive(&self, device: &DeviceId, release: &ReleaseId, now_ms: u64) -> Result<()> {
        sqlx::query("INSERT INTO forgiven (device, release, at_ms) VALUES (?1, ?2, ?3) ON CONFLICT (device, release) DO UPDATE SET at_ms = ?3")
            .bind(device.as_str())
            .bind(release.to_string())
            .bind(int(now_ms))
            .execute(self.writer())
            .await
            .attempt("forgiving a release")?;
        Ok(())
    }

    /// Steps of updates that concern a release of `releases`, oldest first, without those that are forgiven.
    pub async fn outcomes_of(&self, task: &TaskId, releases: &[&ReleaseId]) -> Result<Vec<DeviceOutcome>> {
        let list = json(&releases);
        let rows = sqlx::query(
            "SELECT o.device, o.release, o.generation, o.phase, o.reason FROM outcomes o
             LEFT JOIN forgiven f ON f.device = o.device AND f.release = o.release
             WHERE o.release IN (SELECT value FROM json_each(?)) AND o.task = ? AND (f.at_ms IS NULL OR o.received_ms > f.at_ms)
             ORDER BY o.id",
        )
        .bind(list)
        .bind(task.as_str())
        .fetch_all(self.readers())
        .await
        .attempt("reading outcomes")?;
        let read = |row: &SqliteRow| -> Result<DeviceOutcome> {
            let device: String = row.try_get("device")?;
            let phase: String = row.try_get("phase")?;
            let reason: String = row.try_get("reason")?;
            let bad = || StoreError::Corrupt {
                table: "outcomes",
                row: device.clone(),
                what: format!("unknown phase {phase:?}"),
            };
            Ok(DeviceOutcome {
                release: id("outcomes", &device, row.try_get("release")?)?,
                generation: uint(row.try_get("generation")?),
                phase: phase_of(&phase).ok_or_else(bad)?,
                reason: reason.parse().unwrap_or(ReasonCode::Unknown),
                device: id("outcomes", &device, &device)?,
            })
        };
        Ok(sound(&rows, read))
    }

    /// Windows after `cursor` in which a release of `releases` answered, and the new cursor.
    pub async fn windows_of(
        &self,
        task: &TaskId,
        releases: &[&ReleaseId],
        since_ms: u64,
        cursor: i64,
    ) -> Result<(Vec<PairedWindow>, i64)> {
        let rows = sqlx::query(
            "SELECT id, device, release, body FROM windows
             WHERE task = ? AND received_ms >= ? AND id > ? AND release IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?",
        )
        .bind(task.as_str())
        .bind(int(since_ms))
        .bind(cursor)
        .bind(json(&releases))
        .bind(WINDOWS_CHUNK)
        .fetch_all(self.readers())
        .await
        .attempt("reading windows")?;
        let last = rows.last().map(|row| row.try_get("id")).transpose()?.unwrap_or(cursor);
        let read = |row: &SqliteRow| -> Result<PairedWindow> {
            let device: String = row.try_get("device")?;
            let body: Vec<u8> = row.try_get("body")?;
            let window: dunlin_protocol::Window =
                dunlin_protocol::cbor::decode(&body, dunlin_protocol::PAYLOAD_BYTES_MAX).map_err(
                    |error| StoreError::Corrupt {
                        table: "windows",
                        row: device.clone(),
                        what: error.to_string(),
                    },
                )?;
            Ok(PairedWindow {
                device: id("windows", &device, &device)?,
                release: id("windows", &device, row.try_get("release")?)?,
                window,
            })
        };
        Ok((sound(&rows, read), last))
    }

    /// What every device shall run, and whether that is published.
    pub async fn assignments(&self) -> Result<BTreeMap<DeviceId, (Assignment, bool)>> {
        let rows =
            sqlx::query("SELECT device, body, published FROM assignments").fetch_all(self.readers()).await;
        let read = |row: &SqliteRow| -> Result<(DeviceId, (Assignment, bool))> {
            let device: String = row.try_get("device")?;
            Ok((
                id("assignments", &device, &device)?,
                (parse("assignments", &device, row.try_get("body")?)?, row.try_get("published")?),
            ))
        };
        Ok(sound(&rows.attempt("listing assignments")?, read).into_iter().collect())
    }

    /// Stores what a device shall run, with the orders it stands for, before any of it is published. A
    /// generation that is not above the stored one is refused.
    pub async fn assignment_put(
        &self,
        assignment: &Assignment,
        orders: &BTreeMap<String, ReleaseId>,
        now_ms: u64,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let put = sqlx::query(
            "INSERT INTO assignments (device, generation, body, published, made_ms) VALUES (?1, ?2, ?3, 0, ?4)
             ON CONFLICT (device) DO UPDATE SET generation = ?2, body = ?3, published = 0, made_ms = ?4 WHERE generation < ?2",
        )
        .bind(assignment.device.as_str())
        .bind(int(assignment.generation))
        .bind(json(assignment))
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .attempt("storing an assignment")?;
        if put.rows_affected() == 0 {
            return Err(StoreError::Conflict(format!(
                "generation {} of {} is not above the stored one",
                assignment.generation, assignment.device
            )));
        }
        for (rollout, release) in orders {
            sqlx::query(
                "INSERT INTO orders (rollout, device, release, generation, since_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (rollout, device) DO UPDATE SET release = ?3, generation = ?4, since_ms = ?5 WHERE release <> ?3",
            )
            .bind(rollout)
            .bind(assignment.device.as_str())
            .bind(release.to_string())
            .bind(int(assignment.generation))
            .bind(int(now_ms))
            .execute(&mut *tx)
            .await
            .attempt("storing an order")?;
        }
        tx.commit().await.attempt("committing an assignment")
    }

    /// Notes that a generation is published.
    pub async fn assignment_published(&self, device: &DeviceId, generation: u64) -> Result<()> {
        sqlx::query("UPDATE assignments SET published = 1 WHERE device = ? AND generation = ?")
            .bind(device.as_str())
            .bind(int(generation))
            .execute(self.writer())
            .await
            .attempt("noting a publication")?;
        Ok(())
    }

    /// Keeps why devices run what they run, all in one transaction.
    pub async fn decisions_put(&self, decisions: &[Decision]) -> Result<()> {
        if decisions.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        for decision in decisions {
            sqlx::query(
                "INSERT INTO decisions (device, task, body, made_ms) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (device, task) DO UPDATE SET body = ?3, made_ms = ?4",
            )
            .bind(decision.device.as_str())
            .bind(decision.task.as_str())
            .bind(json(decision))
            .bind(int(decision.made_ms))
            .execute(&mut *tx)
            .await
            .attempt("storing a decision")?;
        }
        tx.commit().await.attempt("committing decisions")
    }

    /// What was decided and when, by device and task.
    pub async fn decisions_chosen(
        &self,
    ) -> Result<BTreeMap<(DeviceId, TaskId), (Option<ReleaseId>, Vec<RolloutStance>, u64)>> {
        let rows = sqlx::query(
            "SELECT device, task, json_extract(body, '$.chosen') AS chosen, json_extract(body, '$.rollouts') AS rollouts, made_ms FROM decisions",
        )
        .fetch_all(self.readers())
        .await
        .attempt("listing decisions")?;
        let read = |row: &SqliteRow| -> Result<_> {
            let (device, task): (String, String) = (row.try_get("device")?, row.try_get("task")?);
            let chosen: Option<String> = row.try_get("chosen")?;
            let chosen = chosen.map(|text| id("decisions", &device, &text)).transpose()?;
            let stances = parse("decisions", &device, row.try_get("rollouts")?)?;
            Ok((
                (id("decisions", &device, &device)?, id("decisions", &device, &task)?),
                (chosen, stances, uint(row.try_get("made_ms")?)),
            ))
        };
        Ok(sound(&rows, read).into_iter().collect())
    }

    /// Labelled answers and failures of each release on each device in windows stored after `since_ms`.
    pub async fn measures(
        &self,
        task: &TaskId,
        since_ms: u64,
    ) -> Result<BTreeMap<(DeviceId, ReleaseId), Measured>> {
        let rows = sqlx::query(
            "SELECT device, release, sum(n) AS n, sum(errors) AS errors, sum(labelled) AS labelled, sum(correct) AS correct
             FROM windows WHERE task = ? AND received_ms >= ? AND release IS NOT NULL GROUP BY device, release",
        )
        .bind(task.as_str())
        .bind(int(since_ms))
        .fetch_all(self.readers())
        .await
        .attempt("summing windows")?;
        let read = |row: &SqliteRow| -> Result<_> {
            let device: String = row.try_get("device")?;
            let release = id("windows", &device, row.try_get("release")?)?;
            let count = |column| -> Result<u64> { Ok(uint(row.try_get(column)?)) };
            let measured = Measured {
                labels: Rate::new(count("correct")?, count("labelled")?),
                failures: Rate::new(count("errors")?, count("n")?.max(count("errors")?)),
                ..Measured::default()
            };
            Ok(((id("windows", &device, &device)?, release), measured))
        };
        Ok(sound(&rows, read).into_iter().collect())
    }

    /// Why a device runs what it runs, for one task or all.
    pub async fn decisions(&self, device: &DeviceId, task: Option<&TaskId>) -> Result<Vec<Decision>> {
        let rows = sqlx::query(
            "SELECT body FROM decisions WHERE device = ?1 AND (?2 IS NULL OR task = ?2) ORDER BY task",
        )
        .bind(device.as_str())
        .bind(task.map(TaskId::as_str))
        .fetch_all(self.readers())
        .await
        .attempt("reading decisions")?;
        rows.iter().map(|row| parse("decisions", device.as_str(), row.try_get("body")?)).collect()
    }
}

async fn plan_insert(tx: &mut sqlx::SqliteConnection, plan: &Plan, now_ms: u64) -> Result<()> {
    sqlx::query("INSERT INTO plans (rollout, generation, parent, body, made_ms) VALUES (?, ?, ?, ?, ?)")
        .bind(&plan.rollout)
        .bind(int(plan.generation))
        .bind(plan.parent.map(int))
        .bind(json(plan))
        .bind(int(now_ms))
        .execute(tx)
        .await
        .attempt("storing a plan")?;
    Ok(())
}
