//! What is left of work that was cut.
use std::ops::RangeBounds;
use std::time::Duration;

use anyhow::Context;
use sqlx::{Row, SqlitePool};

use super::{Claim, holds};
use crate::agent::Agent;
use crate::controller::Controller;
use crate::process::wait_for;

/// A download resumes at a whole chunk of this size, as the agent's own bound says.
const CHUNK_BYTES: u64 = dunlin_agent::update::CHUNK_BYTES;

/// A download that was cut off.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Digest of the file.
    pub digest: String,
    /// Bytes of it on the disk when the agent died.
    pub bytes: u64,
    /// Length of the agent's log at that moment.
    pub log: usize,
}

/// The agent's next request for the file that was cut asks for what is missing, not for all of it.
pub async fn resumed(agent: &Agent, cut: &Cut, limit: Duration) -> Claim {
    let kept = cut.bytes - cut.bytes % CHUNK_BYTES;
    let from = wait_for("the agent to take its download up again", limit, async || {
        let log = std::fs::read_to_string(agent.folder.join("agent.log"))?;
        let line = log
            .get(cut.log..)
            .context("a log does not shrink")?
            .lines()
            .find(|line| line.contains("downloading") && line.contains(&cut.digest));
        let from = line.and_then(|line| line.split("from=").nth(1)?.split_whitespace().next()?.parse().ok());
        Ok(from.map(|from: u64| from))
    })
    .await?;
    holds(from > 0 && from >= kept, format!("{} bytes on the disk, asked from byte {from} on", cut.bytes))
}

/// A device commits to one of these releases within `limit`.
pub async fn committed(database: &SqlitePool, device: &str, releases: &[String], limit: Duration) -> Claim {
    wait_for(&format!("{device} to commit"), limit, async || {
        let row = sqlx::query("SELECT release FROM installed WHERE device = ? AND phase = 'committed'")
            .bind(device)
            .fetch_optional(database)
            .await?;
        Ok(row.and_then(|row| row.get::<Option<String>, _>(0)).filter(|release| releases.contains(release)))
    })
    .await
}

/// None of these releases counts as failed on the device.
pub async fn not_blamed(database: &SqlitePool, device: &str, releases: &[String]) -> Claim {
    let rows =
        sqlx::query("SELECT release FROM outcomes WHERE device = ? AND phase IN ('failed', 'rolled_back')")
            .bind(device)
            .fetch_all(database)
            .await?;
    let blamed = rows
        .iter()
        .filter_map(|row| row.get::<Option<String>, _>(0))
        .filter(|release| releases.contains(release))
        .count();
    holds(blamed == 0, format!("{blamed} failures"))
}

/// Within `limit` the schedule has started so many runs.
pub async fn schedule_fired(database: &SqlitePool, times: impl RangeBounds<usize>, limit: Duration) -> Claim {
    let mut runs: Vec<String> = Vec::new();
    let fired = wait_for("the schedule to start runs by itself", limit, async || {
        let query =
            "SELECT id || ' because ' || cause FROM runs WHERE json_extract(cause, '$.cause') = 'cron'";
        runs = sqlx::query_scalar(query).fetch_all(database).await?;
        Ok(times.contains(&runs.len()).then_some(()))
    })
    .await;
    holds(fired.is_ok(), format!("{} runs: {}", runs.len(), runs.join(", ")))
}

/// No row of the audit log was changed.
pub async fn audit_whole(controller: &Controller) -> Claim {
    let data = controller.data.display().to_string();
    let ended = controller.try_run(&["audit", "verify", "--data", &data]).await?;
    let told = format!("{}{}", ended.stdout.trim(), ended.stderr.trim());
    holds(ended.code == 0, format!("exit code {}: {told}", ended.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_schedule_that_fired_twice_did_not_fire_once() {
        let database = sqlx::sqlite::SqlitePoolOptions::new()
            .max_connections(1)
            .connect("sqlite::memory:")
            .await
            .unwrap();
        sqlx::query("CREATE TABLE runs (id TEXT, cause TEXT)").execute(&database).await.unwrap();
        for (id, cause, once) in [("a", "drift", false), ("b", "cron", true), ("c", "cron", false)] {
            let insert = "INSERT INTO runs VALUES (?1, json_object('cause', ?2))";
            sqlx::query(insert).bind(id).bind(cause).execute(&database).await.unwrap();
            assert_eq!(schedule_fired(&database, 1..=1, Duration::ZERO).await.is_ok(), once, "{id}");
        }
    }
}
