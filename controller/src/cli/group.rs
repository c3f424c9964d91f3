//! `dunlin group`.
use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;
use dunlin_protocol::GroupId;

use super::{ApiClient, Exit, Output};

/// Verbs of `dunlin group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// List groups with their devices.
    List,
    /// Make an empty group.
    Create {
        /// Id.
        id: GroupId,
    },
    /// Remove a group; its devices stay.
    Remove {
        /// Id.
        id: GroupId,
    },
}

impl GroupCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::List => {
                let groups: BTreeMap<String, Vec<String>> = client.get("/v1/groups").await?;
                let rows: Vec<_> = groups
                    .iter()
                    .map(|(group, devices)| vec![group.clone(), devices.len().to_string(), devices.join(" ")])
                    .collect();
                out.table(&groups, &["group", "n", "devices"], &rows)?;
            }
            Self::Create { id } => {
                let done: serde_json::Value = client.put(&format!("/v1/groups/{id}"), &()).await?;
                out.show(&done, |_| format!("made {id}"))?;
            }
            Self::Remove { id } => {
                let done: serde_json::Value = client.delete(&format!("/v1/groups/{id}")).await?;
                out.show(&done, |_| format!("removed {id}"))?;
            }
        }
        Ok(Exit::Ok)
    }
}
