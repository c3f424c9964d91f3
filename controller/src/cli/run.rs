//! `dunlin run`.
use anyhow::Result;
use clap::Subcommand;
use dunlin_protocol::TaskId;

use super::{ApiClient, Exit, Output};
use crate::api::runs::{NewRun, RunOrder};
use crate::training::{RunDetail, RunRow};

/// Verbs of `dunlin run`.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Retrain a task now.
    Start {
        /// The task.
        task: TaskId,
    },
    /// Run it again with the same data, seed and rules; nothing is rolled out.
    Repeat {
        /// The run.
        id: String,
    },
    /// List runs.
    List {
        /// Of this task only.
        #[arg(long)]
        task: Option<TaskId>,
    },
    /// Show a run with its journal.
    Show {
        /// The run.
        id: String,
    },
    /// End a run.
    Cancel {
        /// The run.
        id: String,
    },
    /// Try the step that a run failed on again.
    Restart {
        /// The run.
        id: String,
    },
}

fn line(row: &RunRow) -> String {
    format!("{} of {}: {}", row.id, row.task, row.state)
}

impl RunCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Start { task } => {
                let row: RunRow = client.post("/v1/runs", &NewRun { task, repeat: None }).await?;
                out.show(&row, line)?;
            }
            Self::Repeat { id } => {
                let first: RunDetail = client.get(&format!("/v1/runs/{id}")).await?;
                let row: RunRow =
                    client.post("/v1/runs", &NewRun { task: first.run.task, repeat: Some(id) }).await?;
                out.show(&row, line)?;
            }
            Self::List { task } => {
                let query = task.map(|task| format!("?task={task}")).unwrap_or_default();
                let runs: Vec<RunRow> = client.get(&format!("/v1/runs{query}")).await?;
                let cells = |row: &RunRow| {
                    let cause = serde_json::to_string(&row.cause).expect("a cause is JSON");
                    vec![row.id.clone(), row.task.to_string(), row.state.clone(), cause]
                };
                let cells: Vec<_> = runs.iter().map(cells).collect();
                out.table(&runs, &["run", "task", "state", "cause"], &cells)?;
            }
            Self::Show { id } => {
                let detail: RunDetail = client.get(&format!("/v1/runs/{id}")).await?;
                out.show(&detail, |detail| {
                    serde_json::to_string_pretty(detail).expect("what was JSON is JSON")
                })?;
            }
            Self::Cancel { id } => {
                let row: RunRow = client.post(&format!("/v1/runs/{id}/orders"), &RunOrder::Cancel).await?;
                out.show(&row, line)?;
            }
            Self::Restart { id } => {
                let row: RunRow = client.post(&format!("/v1/runs/{id}/orders"), &RunOrder::Restart).await?;
                out.show(&row, line)?;
            }
        }
        Ok(Exit::Ok)
    }
}
