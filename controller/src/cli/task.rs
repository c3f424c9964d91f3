//! `dunlin task`.
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use dunlin_protocol::TaskId;

use super::{ApiClient, Exit, Output};
use crate::planner::{TaskDefinition, TaskRow};

/// Verbs of `dunlin task`.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// Make a task or replace its definition.
    Apply {
        /// Definition, TOML, or JSON if its name ends so.
        file: PathBuf,
    },
    /// List tasks.
    List,
    /// Answer every row of a file with one release of a task, here: the release is fetched and answers in a child process.
    Batch(super::batch::Batch),
    /// Show a task with its definition and how its retraining triggers stand.
    Show {
        /// The task.
        task: TaskId,
    },
}

impl TaskCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Apply { file } => {
                let text = std::fs::read_to_string(&file)
                    .with_context(|| format!("could not read {}", file.display()))?;
                let is_json = file.extension().is_some_and(|extension| extension == "json");
                let parsed: Result<TaskDefinition> = if is_json {
                    serde_json::from_str(&text).map_err(Into::into)
                } else {
                    toml::from_str(&text).map_err(Into::into)
                };
                let definition =
                    parsed.with_context(|| format!("{} is no task definition", file.display()))?;
                let row: TaskRow = client.put(&format!("/v1/tasks/{}", definition.task), &definition).await?;
                out.show(&row, |row| format!("task {} is defined", row.definition.task))?;
            }
            Self::Batch(batch) => return batch.run(client, out).await,
            Self::List => {
                let tasks: Vec<TaskRow> = client.get("/v1/tasks").await?;
                let row = |row: &TaskRow| {
                    let task = &row.definition;
                    let retraining = if task.retraining.is_some() { "yes" } else { "no" };
                    vec![
                        task.task.to_string(),
                        row.owner.clone(),
                        task.pool.len().to_string(),
                        retraining.to_owned(),
                    ]
                };
                let rows: Vec<_> = tasks.iter().map(row).collect();
                out.table(&tasks, &["task", "owner", "pool", "retrained"], &rows)?;
            }
            Self::Show { task } => {
                let row: TaskRow = client.get(&format!("/v1/tasks/{task}")).await?;
                out.show(&row, |row| serde_json::to_string_pretty(row).expect("what was JSON is JSON"))?;
            }
        }
        Ok(Exit::Ok)
    }
}
