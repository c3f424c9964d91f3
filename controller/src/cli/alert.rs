//! `dunlin alert`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};
use crate::store::Alert;

/// Verbs of `dunlin alert`.
#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    /// List alerts, the newest first.
    List {
        /// Also those that are over.
        #[arg(long)]
        all: bool,
    },
}

impl AlertCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::List { all } => {
                let alerts: Vec<Alert> = client.get(&format!("/v1/alerts?open={}", !all)).await?;
                let row = |alert: &Alert| {
                    let state = if alert.cleared_ms.is_some() { "over" } else { "open" };
                    vec![alert.kind.clone(), state.to_owned(), alert.subject.clone(), alert.detail.clone()]
                };
                let rows: Vec<_> = alerts.iter().map(row).collect();
                out.table(&alerts, &["kind", "state", "subject", "detail"], &rows)?;
            }
        }
        Ok(Exit::Ok)
    }
}
