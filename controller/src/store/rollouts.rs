//! Rollouts with their plans, and what devices made of their orders.
use std::collections::BTreeMap;

use dunlin_protocol::{DeviceId, Now, ReasonCode, ReleaseId, TaskId};
use dunlin_rollout::{Order, OrderError, Plan, Policy, Report};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::row::{Read, id, json, parse, read_all, sound};
use super::{Attempt, Result, Store, StoreError, int, phase_of, uint};
use crate::planner::{DeviceOutcome, PairedWindow, RolloutOrder, RolloutRow};

/// Windows read at a time: a few MiB, whatever the backlog.
const WINDOWS_CHUNK: i64 = 2_000;
/// Ends of updates read of one device and release: the last one decides, those before it only tell since when it serves.
const ENDS_MAX: i64 = 16;

pub(super) fn rollout(row: &SqliteRow) -> Result<RolloutRow> {
    let key: String = row.try_get("id")?;
    let report: Option<String> = row.try_get("report")?;
    let body: Option<String> = row.try_get("body")?;
    let lost = |key: &str| StoreError::Corrupt {
        table: "rollouts",
        row: key.to_owned(),
        what: "its newest plan is not there".into(),
    };
    Ok(RolloutRow {
        policy: parse("rollouts", &key, row.try_get("policy")?)?,
        created_by: row.try_get("created_by")?,
        created_ms: uint(row.try_get("created_ms")?),
        run: row.try_get("run")?,
        plan: parse("plans", &key, &body.ok_or_else(|| lost(&key))?)?,
        report: report.map(|text| parse("rollouts", &key, &text)).transpose()?,
    })
}

pub(super) fn a_plan(row: &SqliteRow) -> Result<Plan> {
    let (rollout, generation): (String, i64) = (row.try_get("rollout")?, row.try_get("generation")?);
    parse("plans", &format!("{rollout} generation {generation}"), row.try_get("body")?)
}

pub(super) fn order(row: &SqliteRow) -> Result<(DeviceId, RolloutOrder)> {
    let device: String = row.try_get("device")?;
    let release = id("orders", &device, row.try_get("release")?)?;
    let order = RolloutOrder {
        release,
        generation: uint(row.try_get("generation")?),
        since_ms: uint(row.try_get("since_ms")?),
    };
    Ok((id("orders", &device, &device)?, order))
}

/// The end of an update to a release.
fn outcome(row: &SqliteRow) -> Result<DeviceOutcome> {
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
        received_ms: uint(row.try_get("received_ms")?),
        device: id("outcomes", &device, &device)?,
    })
}

/// Every rollout with its newest plan, also those that lack it.
pub(super) const ROLLOUTS: &str = "SELECT r.*, p.body AS body FROM rollouts r LEFT JOIN plans p ON p.rollout = r.id AND p.generation = r.generation";

impl Store {
    /// Stores a new rollout; one that a run made before is left as it is. Returns whether it is new.
    pub async fn rollout_add(
        tx: &mut SqliteConnection,
        plan: &Plan,
        policy: &Policy,
        by: &str,
        run: Option<&str>,
        now_ms: u64,
    ) -> Result<bool> {
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
        plan_insert(tx, plan, now_ms).await?;
        Ok(true)
    }

    /// Stores the next plan of a rollout. It is refused if the rollout has moved on from the plan's parent.
    pub async fn plan_add(tx: &mut SqliteConnection, plan: &Plan, now_ms: u64) -> Result<()> {
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
        plan_insert(tx, plan, now_ms).await
    }

    /// Gives an order to a rollout as it stands; returns how it stood. The planner does not move it meanwhile, because the
    /// transaction is the only one that writes.
    ///
    /// # Errors
    /// The outer one is of the database. The inner one says that such a rollout can not be told so.
    pub async fn rollout_order(
        &self,
        tx: &mut SqliteConnection,
        rollout: &str,
        order: &Order,
        now: Now,
    ) -> Result<std::result::Result<RolloutRow, OrderError>> {
        let row = self.rollout(rollout).await?;
        let next = match row.plan.order(order.clone(), now) {
            Ok(next) => next,
            Err(error) => return Ok(Err(error)),
        };
        Self::plan_add(tx, &next, now.wall_ms.unwrap_or_default()).await?;
        Ok(Ok(row))
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

    /// Every rollout that can be read, the oldest first.
    pub async fn rollouts(&self) -> Result<Vec<RolloutRow>> {
        Ok(self.rollouts_read().await?.rows)
    }

    /// Every rollout, the oldest first, and the ids of those that can not be read.
    pub async fn rollouts_read(&self) -> Result<Read<RolloutRow>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{ROLLOUTS} ORDER BY r.created_ms, r.id")))
            .fetch_all(self.readers())
            .await;
        let about = |row: &SqliteRow| Ok((row.try_get("id")?, row.try_get("task")?));
        read_all(&rows.attempt("listing rollouts")?, rollout, about)
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
        let rows =
            sqlx::query("SELECT rollout, generation, body FROM plans WHERE rollout = ? ORDER BY generation")
                .bind(rollout)
                .fetch_all(self.readers())
                .await;
        rows.attempt("listing plans")?.iter().map(a_plan).collect()
    }

    /// Orders of a rollout by device.
    pub async fn orders(&self, rollout: &str) -> Result<BTreeMap<DeviceId, RolloutOrder>> {
        let rows = sqlx::query("SELECT * FROM orders WHERE rollout = ?")
            .bind(rollout)
            .fetch_all(self.readers())
            .await;
        Ok(sound(&rows.attempt("listing orders")?, order).into_iter().collect())
    }

    /// Lets the failures of a release on a device count no more.
    pub async fn forgive(
        tx: &mut SqliteConnection,
        device: &DeviceId,
        release: &ReleaseId,
        now_ms: u64,
    ) -> Result<()> {
        sqlx::query("INSERT INTO forgiven (device, release, at_ms) VALUES (?1, ?2, ?3) ON CONFLICT (device, release) DO UPDATE SET at_ms = ?3")
            .bind(device.as_str())
            .bind(release.to_string())
            .bind(int(now_ms))
            .execute(tx)
            .await
            .attempt("forgiving a release")?;
        Ok(())
    }

    /// Ends of updates to a release of `releases`, oldest first, without those that are forgiven; the last ones of
    /// each device and release. Those of programs are of no task.
    pub async fn outcomes_of(
        &self,
        task: Option<&TaskId>,
        releases: &[&ReleaseId],
    ) -> Result<Vec<DeviceOutcome>> {
        let list = json(&releases);
        let rows = sqlx::query(
            "SELECT * FROM (
                 SELECT o.id, o.device, o.release, o.generation, o.phase, o.reason, o.received_ms,
                     row_number() OVER (PARTITION BY o.device, o.release ORDER BY o.id DESC) AS age
                 FROM outcomes o LEFT JOIN forgiven f ON f.device = o.device AND f.release = o.release
                 WHERE o.release IN (SELECT value FROM json_each(?1)) AND o.task IS ?2
                     AND o.phase IN ('committed', 'rolled_back', 'failed', 'rejected') AND o.reason <> 'superseded'
                     AND (f.at_ms IS NULL OR o.received_ms > f.at_ms))
             WHERE age <= ?3 ORDER BY id",
        )
        .bind(list)
        .bind(task.map(TaskId::as_str))
        .bind(ENDS_MAX)
        .fetch_all(self.readers())
        .await
        .attempt("reading outcomes")?;
        Ok(sound(&rows, outcome))
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
