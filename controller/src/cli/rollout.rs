//! `dunlin rollout`.
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Subcommand;
use dunlin_protocol::{ReleaseId, TaskId};
use dunlin_rollout::{Plan, Policy, State, Verdict};

use super::{ApiClient, Exit, Output};
use crate::api::rollouts::{NewRollout, RolloutCommand as Order};
use crate::planner::RolloutRow;

/// Time between two looks while watching.
const LOOK: Duration = Duration::from_secs(1);

/// Verbs of `dunlin rollout`.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Roll approved releases out.
    Create {
        /// The task.
        #[arg(long)]
        task: TaskId,
        /// Releases, `name@version`; selection decides which of them a device gets.
        #[arg(required = true)]
        releases: Vec<ReleaseId>,
        /// Rules, TOML; otherwise those of the task.
        #[arg(long)]
        policy: Option<PathBuf>,
        /// Why, for people.
        #[arg(long, default_value = "")]
        cause: String,
    },
    /// List rollouts.
    List,
    /// Show where a rollout stands and what it waits for.
    Status {
        /// The rollout.
        id: String,
    },
    /// List the plans of a rollout, the first one first: a generation for each change.
    Plans {
        /// The rollout.
        id: String,
    },
    /// Wait for the end: exit code 0 if promoted, 10 if stopped or superseded, 11 if the time is over.
    Watch {
        /// The rollout.
        id: String,
        /// How long, such as 90s, 10m or 2h.
        #[arg(long, default_value = "1h", value_parser = duration)]
        timeout: Duration,
    },
    /// Open no further wave.
    Pause {
        /// The rollout.
        id: String,
    },
    /// Go on.
    Resume {
        /// The rollout.
        id: String,
    },
    /// Stop, and send the devices back to what they ran.
    Abort {
        /// The rollout.
        id: String,
    },
    /// Open it to every device at once, past all gates.
    Promote {
        /// The rollout.
        id: String,
    },
    /// Let a wave open that the policy holds for approval.
    Approve {
        /// The rollout.
        id: String,
        /// Index of the wave, from 0.
        wave: usize,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(format!("{unit:?} is no unit of time; use s, m, h or d")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is no length of time; write 90s, 10m or 2h"))?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "that is too long".to_owned())
}

/// One line about a rollout.
fn line(row: &RolloutRow) -> String {
    let wave = row
        .report
        .as_ref()
        .and_then(|report| report.wave)
        .map(|wave| format!(" wave {wave}"))
        .unwrap_or_default();
    let tally = row.report.as_ref().map(|report| &report.tally);
    let devices = tally.map(|tally| {
        let uncompared = match tally.uncompared {
            0 => String::new(),
            n => format!(" ({n} with nothing to compare)"),
        };
        format!(
            ", {} devices: {} committed{uncompared}, {} on their way, {} failed",
            tally.members,
            tally.committed,
            tally.ordered,
            tally.failed.len()
        )
    });
    let verdict = row.report.as_ref().map(|report| match &report.verdict {
        Verdict::Wait(on) => format!("; waits on {}", serde_json::to_string(on).expect("a report is JSON")),
        Verdict::Stop(reason) => format!("; {}", serde_json::to_string(reason).expect("a report is JSON")),
        Verdict::Open { evidence: Some(evidence), .. } | Verdict::Promote { evidence: Some(evidence) } => {
            format!("; it passed: {evidence}")
        }
        Verdict::Open { evidence: None, .. } | Verdict::Promote { evidence: None } | Verdict::Ended => {
            String::new()
        }
    });
    let hint = row.report.as_ref().and_then(|report| report.hint.as_ref());
    let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    let (devices, verdict) = (devices.unwrap_or_default(), verdict.unwrap_or_default());
    format!("{} {}{wave}{devices}{verdict}{hint}", row.plan.rollout, row.plan.state.name())
}

/// A plan's row of a table.
fn generation(plan: &Plan) -> Vec<String> {
    let wave = match plan.state {
        State::Open { wave, .. } | State::Paused { wave, .. } => Some(wave),
        State::Created | State::Promoted { .. } | State::Stopped { .. } | State::Superseded { .. } => None,
    };
    let releases = plan.candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    vec![
        plan.generation.to_string(),
        plan.state.name().to_owned(),
        wave.map(|wave| wave.to_string()).unwrap_or_default(),
        plan.members.len().to_string(),
        releases,
    ]
}

fn exit(row: &RolloutRow) -> Option<Exit> {
    match row.plan.state {
        State::Promoted { .. } => Some(Exit::Ok),
        State::Stopped { .. } | State::Superseded { .. } => Some(Exit::Stopped),
        State::Created | State::Open { .. } | State::Paused { .. } => None,
    }
}

async fn order(client: &ApiClient, out: &Output, id: &str, order: &Order) -> Result<Exit> {
    let row: RolloutRow = client.post(&format!("/v1/rollouts/{id}/orders"), order).await?;
    out.show(&row, line)?;
    Ok(Exit::Ok)
}

impl RolloutCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Create { task, releases, policy, cause } => {
                let read = |path: PathBuf| -> Result<Policy> {
                    let text = std::fs::read_to_string(&path)
                        .with_context(|| format!("could not read {}", path.display()))?;
                    toml::from_str(&text).with_context(|| format!("{} is no rollout policy", path.display()))
                };
                let policy = policy.map(read).transpose()?;
                let new = NewRollout { task, releases: releases.into_iter().collect(), policy, cause };
                let row: RolloutRow = client.post("/v1/rollouts", &new).await?;
                out.show(&row, line)?;
            }
            Self::List => {
                let rows: Vec<RolloutRow> = client.get("/v1/rollouts").await?;
                let cells = |row: &RolloutRow| {
                    let releases =
                        row.plan.candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                    vec![
                        row.plan.rollout.clone(),
                        row.plan.task.to_string(),
                        row.plan.state.name().to_owned(),
                        releases,
                        row.plan.cause.clone(),
                    ]
                };
                let cells: Vec<_> = rows.iter().map(cells).collect();
                out.table(&rows, &["rollout", "task", "state", "releases", "cause"], &cells)?;
            }
            Self::Status { id } => {
                let row: RolloutRow = client.get(&format!("/v1/rollouts/{id}")).await?;
                out.show(&row, line)?;
            }
            Self::Plans { id } => {
                let plans: Vec<Plan> = client.get(&format!("/v1/rollouts/{id}/plans")).await?;
                let rows: Vec<_> = plans.iter().map(generation).collect();
                out.table(&plans, &["generation", "state", "wave", "devices", "releases"], &rows)?;
            }
            Self::Watch { id, timeout } => {
                let start = Instant::now();
                let mut said = String::new();
                loop {
                    let row: RolloutRow = client.get(&format!("/v1/rollouts/{id}")).await?;
                    if let Some(exit) = exit(&row) {
                        out.show(&row, line)?;
                        return Ok(exit);
                    }
                    if start.elapsed() >= timeout {
                        out.show(&row, line)?;
                        return Ok(Exit::TimedOut);
                    }
                    let text = line(&row);
                    if text != said {
                        out.note(&text);
                        said = text;
                    }
                    tokio::time::sleep(LOOK.min(timeout.saturating_sub(start.elapsed()))).await;
                }
            }
            Self::Pause { id } => return order(client, out, &id, &Order::Pause).await,
            Self::Resume { id } => return order(client, out, &id, &Order::Resume).await,
            Self::Abort { id } => return order(client, out, &id, &Order::Abort).await,
            Self::Promote { id } => return order(client, out, &id, &Order::Promote).await,
            Self::Approve { id, wave } => return order(client, out, &id, &Order::Approve { wave }).await,
        }
        Ok(Exit::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_read_as_people_write_them() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert!(duration("10 minutes").is_err() && duration("m").is_err() && duration("").is_err());
    }
}
