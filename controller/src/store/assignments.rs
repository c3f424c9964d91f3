//! What each device shall run, and why.
use std::collections::BTreeMap;

use dunlin_protocol::{Assignment, DeviceId, ReleaseId, TaskId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::row::{id, json, parse, sound};
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::planner::{AssignmentRow, Decided, Decision};

pub(super) fn assigned(row: &SqliteRow) -> Result<(DeviceId, AssignmentRow)> {
    let device: String = row.try_get("device")?;
    let assigned = AssignmentRow {
        assignment: parse("assignments", &device, row.try_get("body")?)?,
        published: row.try_get("published")?,
        made_ms: uint(row.try_get("made_ms")?),
    };
    Ok((id("assignments", &device, &device)?, assigned))
}

pub(super) fn decision(row: &SqliteRow) -> Result<Decision> {
    let (device, task): (String, String) = (row.try_get("device")?, row.try_get("task")?);
    parse("decisions", &format!("{device}/{task}"), row.try_get("body")?)
}

impl Store {
    /// What every device shall run, as far as it can be read.
    pub async fn assignments(&self) -> Result<BTreeMap<DeviceId, AssignmentRow>> {
        let rows = sqlx::query("SELECT device, body, published, made_ms FROM assignments")
            .fetch_all(self.readers())
            .await;
        Ok(sound(&rows.attempt("listing assignments")?, assigned).into_iter().collect())
    }

    /// What a device shall run, if anything was ever assigned to it.
    pub async fn assignment(&self, device: &DeviceId) -> Result<Option<Assignment>> {
        let body: Option<String> = sqlx::query_scalar("SELECT body FROM assignments WHERE device = ?")
            .bind(device.as_str())
            .fetch_optional(self.readers())
            .await
            .attempt("reading an assignment")?;
        body.map(|body| parse("assignments", device.as_str(), &body)).transpose()
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

    /// What was decided last, by device and task, as far as it can be read.
    pub async fn decided(&self) -> Result<BTreeMap<(DeviceId, TaskId), Decided>> {
        // Decisions of an earlier version tell no members.
        let rows = sqlx::query(
            "SELECT device, task, json_extract(body, '$.chosen') AS chosen, json_extract(body, '$.rollouts') AS rollouts,
                    COALESCE(json_extract(body, '$.members'), '[]') AS members, made_ms
             FROM decisions WHERE json_valid(body)",
        )
        .fetch_all(self.readers())
        .await
        .attempt("listing decisions")?;
        let read = |row: &SqliteRow| -> Result<_> {
            let (device, task): (String, String) = (row.try_get("device")?, row.try_get("task")?);
            let chosen: Option<String> = row.try_get("chosen")?;
            let decided = Decided {
                chosen: chosen.map(|text| id("decisions", &device, &text)).transpose()?,
                rollouts: parse("decisions", &device, row.try_get("rollouts")?)?,
                members: parse("decisions", &device, row.try_get("members")?)?,
                made_ms: uint(row.try_get("made_ms")?),
            };
            Ok(((id("decisions", &device, &device)?, id("decisions", &device, &task)?), decided))
        };
        Ok(sound(&rows, read).into_iter().collect())
    }

    /// Why a device runs what it runs, for one task or all.
    pub async fn decisions(&self, device: &DeviceId, task: Option<&TaskId>) -> Result<Vec<Decision>> {
        let rows = sqlx::query(
            "SELECT device, task, body FROM decisions WHERE device = ?1 AND (?2 IS NULL OR task = ?2) ORDER BY task",
        )
        .bind(device.as_str())
        .bind(task.map(TaskId::as_str))
        .fetch_all(self.readers())
        .await
        .attempt("reading decisions")?;
        rows.iter().map(decision).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::test_store;
    use super::*;

    #[tokio::test]
    async fn what_was_decided_is_read_back_with_the_members() {
        let (_dir, store) = test_store().await;
        let decision = Decision {
            device: "cam-1".parse().unwrap(),
            task: "meter".parse().unwrap(),
            chosen: Some("m@1".parse().unwrap()),
            rollouts: vec![],
            held: false,
            members: vec!["without voter v@1: it is not approved".into()],
            selection: Value::Null,
            text: String::new(),
            made_ms: 7,
        };
        store.decisions_put(std::slice::from_ref(&decision)).await.unwrap();
        let decided = store.decided().await.unwrap();
        let last = &decided[&(decision.device.clone(), decision.task.clone())];
        assert!(last.is_said_by(&decision) && last.made_ms == 7);
        assert!(!last.is_said_by(&Decision { members: vec!["with voter v@1".into()], ..decision }));
    }
}
