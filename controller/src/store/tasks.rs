//! Tasks.
use dunlin_protocol::TaskId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::row::{Read, json, parse, read_all};
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::planner::{TaskDefinition, TaskRow};

pub(super) fn task(row: &SqliteRow) -> Result<TaskRow> {
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

impl Store {
    /// Makes a task or replaces its definition; returns the definition before.
    pub async fn task_put(
        &self,
        tx: &mut SqliteConnection,
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
        .execute(tx)
        .await
        .attempt("storing a task")?;
        Ok(before)
    }

    /// Every task that can be read.
    pub async fn tasks(&self) -> Result<Vec<TaskRow>> {
        Ok(self.tasks_read().await?.rows)
    }

    /// Every task, and the ids of those that can not be read.
    pub async fn tasks_read(&self) -> Result<Read<TaskRow>> {
        let rows = sqlx::query("SELECT * FROM tasks ORDER BY id").fetch_all(self.readers()).await;
        read_all(&rows.attempt("listing tasks")?, task, |row| Ok((row.try_get("id")?, row.try_get("id")?)))
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

    /// Lets the schedule of a task count from now where it counts from later: a clock that was ahead noted that.
    pub async fn task_schedule_from(&self, key: &TaskId, now_ms: u64) -> Result<()> {
        sqlx::query("UPDATE tasks SET schedule_ms = min(schedule_ms, ?) WHERE id = ?")
            .bind(int(now_ms))
            .bind(key.as_str())
            .execute(self.writer())
            .await
            .attempt("letting a schedule count from now")?;
        Ok(())
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
}
