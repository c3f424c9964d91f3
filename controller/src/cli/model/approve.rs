//! `dunlin model approve`.
use anyhow::{Context, Result, bail};
use dunlin_protocol::{ClassName, ReleaseId, TargetCustom, TaskId};

use super::super::signing::Signing;
use super::super::{ApiClient, Exit, Output};
use crate::keys::{self, Addition, Request};

/// Tasks that have signers of their own, by what the published targets say.
async fn delegated(client: &ApiClient) -> Result<Vec<TaskId>> {
    let targets = dunlin_trust::write::signed_value(&client.download("/v1/approvals/current").await?)?;
    let roles = targets["delegations"]["roles"].as_array().into_iter().flatten();
    let tasks = roles.filter_map(|role| dunlin_trust::task_of(role["name"].as_str()?)?.parse().ok());
    Ok(tasks.collect())
}

pub(super) async fn approve(
    client: &ApiClient,
    out: &Output,
    releases: &[ReleaseId],
    classes: &[ClassName],
    signing: &Signing,
) -> Result<Exit> {
    let pending: Vec<Addition> = client.get("/v1/approvals/pending").await?;
    let names: Vec<String> = releases.iter().map(ReleaseId::target_name).collect();
    if let Some(missing) =
        names.iter().position(|name| !pending.iter().any(|addition| addition.name == *name))
    {
        bail!("{} does not wait for approval; see `dunlin model pending`", releases[missing]);
    }
    // What waits for others is left to them, unless it is asked for by name.
    let others = if signing.task.is_none() { delegated(client).await? } else { vec![] };
    let is_ours = |addition: &Addition| match &signing.task {
        Some(task) => keys::is_of(task, &addition.name, &addition.custom),
        None => !others.iter().any(|task| keys::is_of(task, &addition.name, &addition.custom)),
    };
    let is_meant = |addition: &Addition| {
        if names.is_empty() { is_ours(addition) } else { names.contains(&addition.name) }
    };
    let mut add: Vec<Addition> = pending.into_iter().filter(is_meant).collect();
    if add.is_empty() {
        out.note("nothing waits for approval");
        return Ok(Exit::Ok);
    }
    // What is signed is what its bytes say, not what the controller says about them.
    for addition in &add {
        check(client, addition).await?;
    }
    add.iter_mut().try_for_each(|addition| narrow(addition, classes))?;
    for addition in &add {
        out.note(&format!("signing {} ({} bytes, {})", addition.name, addition.length, addition.sha256));
    }
    signing.sign(client, out, &Request { add, ..Request::default() }).await
}

/// Approves a release for fewer hardware classes than its manifest names.
fn narrow(addition: &mut Addition, classes: &[ClassName]) -> Result<()> {
    if classes.is_empty() || ReleaseId::from_target_name(&addition.name).is_none() {
        return Ok(());
    }
    let mut custom: TargetCustom = serde_json::from_value(addition.custom.clone())?;
    let manifest = custom.hard.clone();
    custom.hard.classes = classes.iter().cloned().collect();
    if !custom.hard.approves(&manifest) {
        bail!("{} is made for other hardware classes than these", addition.name);
    }
    addition.custom = serde_json::to_value(custom)?;
    Ok(())
}

/// Fetches what a target stands for and compares it with its description.
async fn check(client: &ApiClient, addition: &Addition) -> Result<()> {
    let content = client.download(&format!("/v1/targets/{}.{}", addition.sha256, addition.name)).await?;
    if dunlin_trust::sha256(&content) != addition.sha256 || content.len() as u64 != addition.length {
        bail!("the controller describes {} otherwise than it is; do not sign", addition.name);
    }
    if ReleaseId::from_target_name(&addition.name).is_some() {
        let bundle: dunlin_protocol::Bundle =
            serde_json::from_slice(&content).with_context(|| format!("{} is no manifest", addition.name))?;
        let custom: TargetCustom = serde_json::from_value(addition.custom.clone())?;
        if bundle.release.target_name() != addition.name
            || custom.task != bundle.task
            || custom.hard != bundle.hard
        {
            bail!("the controller's constraints for {} are not its manifest's; do not sign", addition.name);
        }
    }
    Ok(())
}
