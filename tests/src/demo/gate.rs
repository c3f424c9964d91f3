//! Following a rollout: each step of its gates as the audit log has it, with what it stands on.
use std::time::Duration;

use anyhow::Result;
use dunlin_rollout::{Evidence, Verdict};
use dunlin_tests::process::wait_for;
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use crate::report::Report;
use crate::world::World;

/// Follows a rollout to its end, telling each change.
pub(crate) async fn follow(
    world: &mut World,
    report: &mut Report,
    rollout: &str,
    limit: Duration,
) -> Result<()> {
    let database = world.database().await?;
    let mut told = 0;
    wait_for("the rollout to end", limit, async || {
        // What a plan stands on is written down right after it.
        let ended = tell(&database, report, rollout, &mut told).await?;
        let state: String = sqlx::query_scalar("SELECT state FROM rollouts WHERE id = ?")
            .bind(rollout)
            .fetch_one(&database)
            .await?;
        Ok((ended || state == "superseded").then_some(()))
    })
    .await
}

/// Tells what the planner did to the rollout since it was last told; whether that ended it.
async fn tell(database: &SqlitePool, report: &mut Report, rollout: &str, told: &mut i64) -> Result<bool> {
    let rows = sqlx::query(
        "SELECT no, after FROM audit WHERE no > ?1 AND who = 'planner' AND what LIKE 'rollout.%' AND json_extract(after, '$.rollout') = ?2 ORDER BY no",
    )
    .bind(*told)
    .bind(rollout)
    .fetch_all(database)
    .await?;
    let mut ended = false;
    for row in rows {
        *told = row.get(0);
        let after: Value = serde_json::from_str(row.get(1))?;
        let verdict: Verdict = serde_json::from_value(after["verdict"].clone())?;
        ended |= matches!(verdict, Verdict::Promote { .. } | Verdict::Stop(_));
        report.say(&format!("rollout {rollout}, plan {}: {}", after["generation"], step(&verdict)));
    }
    Ok(ended)
}

fn step(verdict: &Verdict) -> String {
    let stands_on = |evidence: &Option<Evidence>| match evidence {
        Some(evidence) => format!("; {evidence}"),
        None => String::new(),
    };
    match verdict {
        Verdict::Open { wave, evidence } => format!("wave {wave} opens{}", stands_on(evidence)),
        Verdict::Promote { evidence } => format!("promoted{}", stands_on(evidence)),
        Verdict::Stop(reason) => format!("stopped, as {reason}"),
        Verdict::Wait(_) | Verdict::Ended => "nothing changed".to_owned(),
    }
}
