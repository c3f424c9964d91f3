//! Retraining runs, their journals and the queue.
use std::collections::BTreeMap;

use dunlin_pipeline::{Entry, Queue, QueueRefusal, Ticket};
use dunlin_protocol::TaskId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::row::{id, json, parse, sound};
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::training::{RunRow, RunStanding, TrainingRow, Wanted};

pub(super) fn run(row: &SqliteRow) -> Result<RunRow> {
    let key: String = row.try_get("id")?;
    let time = |column| -> Result<Option<u64>> { Ok(row.try_get::<Option<i64>, _>(column)?.map(uint)) };
    Ok(RunRow {
        task: id("runs", &key, row.try_get("task")?)?,
        owner: row.try_get("owner")?,
        cause: parse("runs", &key, row.try_get("cause")?)?,
        state: row.try_get("state")?,
        definition: parse("runs", &key, row.try_get("definition")?)?,
        seed: uint(row.try_get("seed")?),
        repeats: row.try_get("repeats")?,
        created_ms: uint(row.try_get("created_ms")?),
        started_ms: time("started_ms")?,
        ended_ms: time("ended_ms")?,
        facts: parse("runs", &key, row.try_get("facts")?)?,
        id: key,
    })
}

/// What is wanted of a run, with its id and state.
pub(super) fn wanted(row: &SqliteRow) -> Result<(String, String, Wanted)> {
    let key: String = row.try_get("id")?;
    let wanted = parse("runs", &key, row.try_get("wanted")?)?;
    Ok((key, row.try_get("state")?, wanted))
}

pub(super) fn entry(row: &SqliteRow) -> Result<Entry> {
    let (run, no): (String, i64) = (row.try_get("run")?, row.try_get("no")?);
    parse("run_journal", &format!("{run} line {no}"), row.try_get("entry")?)
}

pub(super) fn queue(row: &SqliteRow) -> Result<Queue> {
    parse("run_queue", "1", row.try_get("body")?)
}

impl Store {
    /// Stores a run and puts it into the queue, or says why the queue does not take it.
    pub async fn run_add(
        tx: &mut SqliteConnection,
        row: &RunRow,
    ) -> Result<std::result::Result<(), QueueRefusal>> {
        let mut queue = queue_of(tx).await?;
        let ticket = Ticket { run: row.id.clone(), task: row.task.to_string(), owner: row.owner.clone() };
        if let Err(refusal) = queue.offer(ticket) {
            return Ok(Err(refusal));
        }
        sqlx::query("INSERT INTO runs (id, task, owner, cause, state, definition, seed, repeats, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(&row.id)
            .bind(row.task.as_str())
            .bind(&row.owner)
            .bind(json(&row.cause))
            .bind(&row.state)
            .bind(json(&row.definition))
            .bind(int(row.seed))
            .bind(&row.repeats)
            .bind(int(row.created_ms))
            .execute(&mut *tx)
            .await
            .attempt("storing a run")?;
        queue_put(tx, &queue).await?;
        Ok(Ok(()))
    }

    /// Takes the run whose turn it is out of the queue and moves it to running. One that can not be read has failed:
    /// it is the next one's turn.
    pub async fn run_next(
        &self,
        running: &BTreeMap<String, usize>,
        workers: usize,
        now_ms: u64,
    ) -> Result<Option<RunRow>> {
        loop {
            let mut tx = self.begin().await?;
            let mut queue = queue_of(&mut tx).await?;
            let Some(ticket) = queue.next(running, workers) else { return Ok(None) };
            sqlx::query("UPDATE runs SET state = 'running', started_ms = ? WHERE id = ?")
                .bind(int(now_ms))
                .bind(&ticket.run)
                .execute(&mut *tx)
                .await
                .attempt("starting a run")?;
            queue_put(&mut tx, &queue).await?;
            tx.commit().await.attempt("committing the start of a run")?;
            match self.run(&ticket.run).await {
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(%error, run = ticket.run, "a run can not be started");
                    self.run_state(&ticket.run, "failed", now_ms, true).await?;
                }
                other => return other.map(Some),
            }
        }
    }

    /// Cancels a run that waits; `false` if it does not wait any more.
    pub async fn run_unqueue(&self, key: &str, now_ms: u64) -> Result<bool> {
        let mut tx = self.begin().await?;
        let mut queue = queue_of(&mut tx).await?;
        if !queue.remove(key) {
            return Ok(false);
        }
        sqlx::query("UPDATE runs SET state = 'cancelled', ended_ms = ? WHERE id = ?")
            .bind(int(now_ms))
            .bind(key)
            .execute(&mut *tx)
            .await
            .attempt("cancelling a run")?;
        queue_put(&mut tx, &queue).await?;
        tx.commit().await.attempt("committing the end of a run")?;
        Ok(true)
    }

    /// Where the runs of a task stand, the newest first. A damaged row counts like any other.
    pub async fn runs_standing(&self, task: &TaskId) -> Result<Vec<RunStanding>> {
        let rows = sqlx::query(
            "SELECT id, state, created_ms, ended_ms FROM runs WHERE task = ? ORDER BY created_ms DESC, id",
        )
        .bind(task.as_str())
        .fetch_all(self.readers())
        .await;
        let read = |row: &SqliteRow| -> Result<RunStanding> {
            Ok(RunStanding {
                id: row.try_get("id")?,
                state: row.try_get("state")?,
                created_ms: uint(row.try_get("created_ms")?),
                ended_ms: row.try_get::<Option<i64>, _>("ended_ms")?.map(uint),
            })
        };
        rows.attempt("reading where runs stand")?.iter().map(read).collect()
    }

    /// Every run that can be read, the newest first.
    pub async fn runs(&self, task: Option<&TaskId>) -> Result<Vec<RunRow>> {
        let rows =
            sqlx::query("SELECT * FROM runs WHERE ?1 IS NULL OR task = ?1 ORDER BY created_ms DESC, id")
                .bind(task.map(TaskId::as_str))
                .fetch_all(self.readers())
                .await
                .attempt("listing runs")?;
        Ok(sound(&rows, run))
    }

    /// Runs that are neither waiting nor ended and can be read: those to take up after a restart.
    pub async fn runs_open(&self) -> Result<Vec<RunRow>> {
        let rows = sqlx::query("SELECT * FROM runs WHERE state = 'running' ORDER BY created_ms, id")
            .fetch_all(self.readers())
            .await;
        Ok(sound(&rows.attempt("listing open runs")?, run))
    }

    /// One run.
    pub async fn run(&self, key: &str) -> Result<RunRow> {
        let row =
            sqlx::query("SELECT * FROM runs WHERE id = ?").bind(key).fetch_optional(self.readers()).await;
        run(&row
            .attempt("reading a run")?
            .ok_or_else(|| StoreError::NotFound { what: "run", key: key.to_owned() })?)
    }

    /// Moves a run to a state.
    pub async fn run_state(&self, key: &str, state: &str, now_ms: u64, ended: bool) -> Result<()> {
        sqlx::query("UPDATE runs SET state = ?1, started_ms = coalesce(started_ms, ?2), ended_ms = CASE WHEN ?3 THEN ?2 END WHERE id = ?4")
            .bind(state)
            .bind(int(now_ms))
            .bind(ended)
            .bind(key)
            .execute(self.writer())
            .await
            .attempt("moving a run on")?;
        Ok(())
    }

    /// Notes what an operator wants of a run, for the supervisor to see to.
    pub async fn run_want(tx: &mut SqliteConnection, key: &str, wanted: &Wanted) -> Result<()> {
        sqlx::query("UPDATE runs SET wanted = ? WHERE id = ?")
            .bind(json(wanted))
            .bind(key)
            .execute(tx)
            .await
            .attempt("noting what is wanted of a run")?;
        Ok(())
    }

    /// Notes that what was wanted of a run is seen to.
    pub async fn run_seen_to(&self, key: &str) -> Result<()> {
        sqlx::query("UPDATE runs SET wanted = NULL WHERE id = ?")
            .bind(key)
            .execute(self.writer())
            .await
            .attempt("noting that a wish is seen to")?;
        Ok(())
    }

    /// Runs of which something is wanted, as far as that can be read.
    pub async fn runs_wanted(&self) -> Result<Vec<(String, String, Wanted)>> {
        let rows = sqlx::query("SELECT id, state, wanted FROM runs WHERE wanted IS NOT NULL")
            .fetch_all(self.readers())
            .await;
        Ok(sound(&rows.attempt("listing runs of which something is wanted")?, wanted))
    }

    /// Adds facts to a run; those of the same name are replaced.
    pub async fn run_facts(&self, key: &str, facts: &serde_json::Value) -> Result<()> {
        sqlx::query("UPDATE runs SET facts = json_patch(facts, ?) WHERE id = ?")
            .bind(facts.to_string())
            .bind(key)
            .execute(self.writer())
            .await
            .attempt("noting facts of a run")?;
        Ok(())
    }

    /// The journal of a run.
    pub async fn journal(&self, key: &str) -> Result<Vec<Entry>> {
        let rows = sqlx::query("SELECT run, no, entry FROM run_journal WHERE run = ? ORDER BY no")
            .bind(key)
            .fetch_all(self.readers())
            .await;
        rows.attempt("reading a journal")?.iter().map(entry).collect()
    }

    /// Appends a line to the journal of a run; durable when it returns.
    pub async fn journal_append(&self, key: &str, entry: &Entry, now_ms: u64) -> Result<()> {
        sqlx::query("INSERT INTO run_journal (run, no, entry, at_ms) SELECT ?1, coalesce(max(no), 0) + 1, ?2, ?3 FROM run_journal WHERE run = ?1")
            .bind(key)
            .bind(json(entry))
            .bind(int(now_ms))
            .execute(self.writer())
            .await
            .attempt("appending to a journal")?;
        Ok(())
    }

    /// Labelled samples of a task, the newest `limit` not older than `since_ms`, oldest first; without those of
    /// devices in the groups `exclude`.
    pub async fn training_rows(
        &self,
        task: &TaskId,
        since_ms: u64,
        exclude: &[&str],
        limit: u64,
    ) -> Result<Vec<TrainingRow>> {
        let rows = sqlx::query(
            "SELECT x, label, coalesce(at_ms, received_ms) AS at_ms, device, request FROM samples
             WHERE task = ? AND label IS NOT NULL AND coalesce(at_ms, received_ms) >= ? AND device NOT IN
               (SELECT device FROM device_groups WHERE grp IN (SELECT value FROM json_each(?)))
             ORDER BY coalesce(at_ms, received_ms) DESC, device, request LIMIT ?",
        )
        .bind(task.as_str())
        .bind(int(since_ms))
        .bind(json(&exclude))
        .bind(int(limit))
        .fetch_all(self.readers())
        .await
        .attempt("reading samples to learn from")?;
        let read = |row: &SqliteRow| -> Result<TrainingRow> {
            let x: Vec<u8> = row.try_get("x")?;
            let label: i64 = row.try_get("label")?;
            Ok(TrainingRow {
                x: x.chunks_exact(4)
                    .map(|four| f32::from_le_bytes(four.try_into().expect("chunks of four")))
                    .collect(),
                label: u32::try_from(label).unwrap_or(u32::MAX),
                at_ms: uint(row.try_get("at_ms")?),
            })
        };
        let mut rows: Vec<TrainingRow> = rows.iter().map(read).collect::<Result<_>>()?;
        rows.reverse();
        Ok(rows)
    }

    /// Labelled samples of a task stored after `since_ms`.
    pub async fn labels_since(&self, task: &TaskId, since_ms: u64) -> Result<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM samples WHERE task = ? AND label IS NOT NULL AND received_ms > ?",
        )
        .bind(task.as_str())
        .bind(int(since_ms))
        .fetch_one(self.readers())
        .await
        .attempt("counting new labels")?;
        Ok(uint(count))
    }

    /// Labelled and correct answers in windows of a task stored after `since_ms`, without devices in the groups
    /// `exclude`.
    pub async fn labelled_since(&self, task: &TaskId, since_ms: u64, exclude: &[&str]) -> Result<(u64, u64)> {
        let row = sqlx::query(
            "SELECT coalesce(sum(labelled), 0) AS labelled, coalesce(sum(correct), 0) AS correct FROM windows
             WHERE task = ? AND received_ms > ? AND device NOT IN
               (SELECT device FROM device_groups WHERE grp IN (SELECT value FROM json_each(?)))",
        )
        .bind(task.as_str())
        .bind(int(since_ms))
        .bind(json(&exclude))
        .fetch_one(self.readers())
        .await
        .attempt("summing labelled answers")?;
        Ok((uint(row.try_get("labelled")?), uint(row.try_get("correct")?)))
    }
}

/// The queue; one that can not be read is made anew of the runs that wait.
async fn queue_of(tx: &mut SqliteConnection) -> Result<Queue> {
    let text: Option<String> = sqlx::query_scalar("SELECT body FROM run_queue WHERE id = 1")
        .fetch_optional(&mut *tx)
        .await
        .attempt("reading the queue")?;
    let Some(text) = text else { return Ok(Queue::default()) };
    let error = match parse::<Queue>("run_queue", "1", &text) {
        Ok(queue) => return Ok(queue),
        Err(error) => error,
    };
    tracing::error!(%error, "the queue is made anew");
    let rows =
        sqlx::query("SELECT id, task, owner FROM runs WHERE state = 'waiting' ORDER BY created_ms, id")
            .fetch_all(tx)
            .await
            .attempt("listing runs that wait")?;
    let mut queue = Queue::default();
    for row in rows {
        let ticket =
            Ticket { run: row.try_get("id")?, task: row.try_get("task")?, owner: row.try_get("owner")? };
        if let Err(refusal) = queue.offer(ticket) {
            tracing::error!(%refusal, "a run that waited is not in the queue");
        }
    }
    Ok(queue)
}

async fn queue_put(tx: &mut SqliteConnection, queue: &Queue) -> Result<()> {
    sqlx::query("INSERT INTO run_queue (id, body) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET body = ?1")
        .bind(json(queue))
        .execute(tx)
        .await
        .attempt("storing the queue")?;
    Ok(())
}
