//! Signing image targets with offline keys.
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use dunlin_protocol::TaskId;
use serde_json::json;

use super::key::{self, Unlock};
use super::{ApiClient, Exit, Output};
use crate::api::models::Changed;
use crate::keys::Request;

/// Where the offline keys are, and where what they sign goes.
#[derive(Debug, Args)]
pub struct OfflineKeys {
    /// Folder with the `image-targets*.pem` keys of the ceremony, or with the task's keys.
    #[arg(long)]
    keys: PathBuf,
    /// What opens them.
    #[command(flatten)]
    unlock: Unlock,
    /// Write the signed targets to this file instead of publishing them: for further signers
    /// (`dunlin key cosign`), and then `dunlin model publish`.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The same, for what signers of one task may sign as well.
#[derive(Debug, Args)]
pub struct Signing {
    /// Sign for this task alone, with the keys of its own signers (`dunlin key delegate`).
    #[arg(long)]
    pub(super) task: Option<TaskId>,
    /// With which keys.
    #[command(flatten)]
    keys: OfflineKeys,
}

impl Signing {
    /// Signs the published targets, or the file of the task, with `request` carried out, and publishes them.
    pub(super) async fn sign(&self, client: &ApiClient, out: &Output, request: &Request) -> Result<Exit> {
        self.keys.sign_for(self.task.as_ref(), client, out, request).await
    }
}

impl OfflineKeys {
    /// Signs the published targets with `request` carried out, and publishes them.
    pub(super) async fn sign(&self, client: &ApiClient, out: &Output, request: &Request) -> Result<Exit> {
        self.sign_for(None, client, out, request).await
    }

    async fn sign_for(
        &self,
        task: Option<&TaskId>,
        client: &ApiClient,
        out: &Output,
        request: &Request,
    ) -> Result<Exit> {
        let current = client.download(&approvals("/current", task)).await?;
        let signed = key::sign(task, &current, request, &self.keys, &self.unlock)?;
        if let Some(path) = &self.out {
            std::fs::write(path, &signed).with_context(|| format!("could not write {}", path.display()))?;
            out.show(&json!({ "file": path }), |_| format!("signed targets are in {}", path.display()))?;
            return Ok(Exit::Ok);
        }
        publish(client, out, signed, task).await
    }
}

/// Where the targets are, or the file of a task's own signers.
fn approvals(below: &str, task: Option<&TaskId>) -> String {
    let query = task.map(|task| format!("?task={task}")).unwrap_or_default();
    format!("/v1/approvals{below}{query}")
}

/// Hands signed targets to the controller, which judges them as a device would.
pub(super) async fn publish(
    client: &ApiClient,
    out: &Output,
    signed: Vec<u8>,
    task: Option<&TaskId>,
) -> Result<Exit> {
    let changed: Vec<Changed> = client.upload(&approvals("", task), signed).await?;
    let rows: Vec<Vec<String>> =
        changed.iter().map(|one| vec![one.release.to_string(), one.state.to_string()]).collect();
    out.table(&changed, &["release", "state"], &rows)?;
    Ok(Exit::Ok)
}
