//! `dunlin device`.
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use dunlin_protocol::{DeviceId, GroupId, ReleaseId, TaskId};
use tokio::time::{Instant, sleep};

use super::admission::{AdmissionCommand, make};
use super::{ApiClient, ApiFailure, Exit, Output};
use crate::api::admissions::NewBatch;
use crate::api::devices::{CommandReply, DeviceCommand, DeviceDetail, NewState, SentCommand};
use crate::api::enrol::{MadeClaim, NewClaim};
use crate::store::{Claim, DeviceRow, DeviceState, RefusedRow};

/// Pause between two looks for a device's reply.
const POLL: Duration = Duration::from_millis(500);

/// Verbs of `dunlin device`.
#[derive(Debug, Subcommand)]
pub enum DeviceCommandLine {
    /// Make a claim and print its token: it admits one device, once.
    Claim {
        /// Id the device will get; it may choose if not given.
        #[arg(long)]
        device: Option<DeviceId>,
        /// Group it will belong to; may be repeated.
        #[arg(long = "group")]
        groups: Vec<GroupId>,
        /// Hours the claim is valid.
        #[arg(long, default_value_t = 24)]
        hours: u64,
        /// The device waits until `approve` lets it in.
        #[arg(long, conflicts_with = "device")]
        approve: bool,
    },
    /// Many devices at once, and those that wait.
    #[command(flatten)]
    Admission(AdmissionCommand),
    /// List claims.
    Claims,
    /// List devices.
    List,
    /// Show a device: what it runs and what happened to it.
    Show {
        /// Id.
        id: DeviceId,
    },
    /// List the messages that were refused, by device and reason; those of no device of the fleet have none.
    Refused,
    /// Say why a device runs what it runs: every candidate with its score or the constraint that removed it.
    Explain {
        /// Id.
        id: DeviceId,
    },
    /// Make the groups of a device exactly these.
    Group {
        /// Id.
        id: DeviceId,
        /// Groups; none means none.
        groups: Vec<GroupId>,
    },
    /// Tell a device to check for new metadata.
    Check {
        /// Id.
        id: DeviceId,
    },
    /// Return to the previous release of a task on one device.
    Rollback {
        /// Id.
        id: DeviceId,
        /// Task.
        #[arg(long)]
        task: TaskId,
        /// Seconds to wait for the device's reply; 0 does not wait.
        #[arg(long, default_value_t = 30)]
        timeout: u64,
    },
    /// Let a device try a release again that failed there.
    Retarget {
        /// Id.
        id: DeviceId,
        /// Release, as name@version.
        #[arg(long)]
        release: ReleaseId,
        /// Seconds to wait for the device's reply; 0 does not wait.
        #[arg(long, default_value_t = 30)]
        timeout: u64,
    },
    /// Take a device out of service; it can be reinstated.
    Retire {
        /// Id.
        id: DeviceId,
    },
    /// Put a retired device back into service.
    Reinstate {
        /// Id.
        id: DeviceId,
    },
    /// Shut a device out for good: its key counts for nothing from now on.
    Revoke {
        /// Id.
        id: DeviceId,
    },
}

impl DeviceCommandLine {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Admission(verb) => return verb.run(client, out).await,
            Self::Claim { groups, hours, approve: true, .. } => {
                let (groups, valid_s) = (groups.into_iter().collect(), Some(hours.saturating_mul(3600)));
                make(client, out, &NewBatch { groups, valid_s, waiting_max: 1, ..NewBatch::default() })
                    .await?;
            }
            Self::Claim { device, groups, hours, approve: false } => {
                let new = NewClaim {
                    device,
                    groups: groups.into_iter().collect(),
                    valid_s: Some(hours.saturating_mul(3600)),
                };
                let made: MadeClaim = client.post("/v1/claims", &new).await?;
                out.show(&made, |made| made.token.clone())?;
            }
            Self::Claims => {
                let claims: Vec<Claim> = client.get("/v1/claims").await?;
                let text = |id: &Option<DeviceId>| id.as_ref().map(ToString::to_string).unwrap_or_default();
                let rows: Vec<_> = claims
                    .iter()
                    .map(|claim| {
                        vec![
                            claim.id.clone(),
                            text(&claim.device),
                            claim.created_by.clone(),
                            text(&claim.used_by),
                        ]
                    })
                    .collect();
                out.table(&claims, &["id", "for", "by", "used by"], &rows)?;
            }
            Self::List => {
                let devices: Vec<DeviceRow> = client.get("/v1/devices").await?;
                let rows: Vec<_> = devices.iter().map(row).collect();
                out.table(&devices, &["device", "class", "state", "online", "generation", "groups"], &rows)?;
            }
            Self::Show { id } => {
                let detail: DeviceDetail = client.get(&format!("/v1/devices/{id}")).await?;
                out.show(&detail, text)?;
            }
            Self::Refused => {
                let refused: Vec<RefusedRow> = client.get("/v1/refused").await?;
                let row = |row: &RefusedRow| {
                    let (count, last) = (row.count.to_string(), row.last_ms.to_string());
                    vec![row.device.clone(), row.reason.clone(), count, last, row.detail.clone()]
                };
                let rows: Vec<_> = refused.iter().map(row).collect();
                out.table(&refused, &["device", "reason", "count", "last (ms)", "detail"], &rows)?;
            }
            Self::Explain { id } => {
                let explanation: serde_json::Value = client.get(&format!("/v1/devices/{id}/explain")).await?;
                out.show(&explanation, |value| serde_json::to_string_pretty(value).unwrap_or_default())?;
            }
            Self::Group { id, groups } => {
                let groups: BTreeSet<GroupId> = groups.into_iter().collect();
                let groups: BTreeSet<GroupId> =
                    client.put(&format!("/v1/devices/{id}/groups"), &groups).await?;
                out.show(&groups, |groups| {
                    groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
                })?;
            }
            Self::Check { id } => return command(client, out, &id, DeviceCommand::Check, 0).await,
            Self::Rollback { id, task, timeout } => {
                return command(client, out, &id, DeviceCommand::Rollback { task }, timeout).await;
            }
            Self::Retarget { id, release, timeout } => {
                return command(client, out, &id, DeviceCommand::Retarget { release }, timeout).await;
            }
            Self::Retire { id } => return set_state(client, out, &id, DeviceState::Retired).await,
            Self::Reinstate { id } => return set_state(client, out, &id, DeviceState::Active).await,
            Self::Revoke { id } => return set_state(client, out, &id, DeviceState::Revoked).await,
        }
        Ok(Exit::Ok)
    }
}

async fn set_state(client: &ApiClient, out: &Output, id: &DeviceId, state: DeviceState) -> Result<Exit> {
    let new: NewState = client.put(&format!("/v1/devices/{id}/state"), &NewState { state }).await?;
    out.show(&new, |new| format!("{id} is {}", new.state.as_str()))?;
    Ok(Exit::Ok)
}

async fn command(
    client: &ApiClient,
    out: &Output,
    id: &DeviceId,
    command: DeviceCommand,
    timeout_s: u64,
) -> Result<Exit> {
    let sent: SentCommand = client.post(&format!("/v1/devices/{id}/commands"), &command).await?;
    if timeout_s == 0 {
        out.show(&sent, |sent| format!("sent {}", sent.command))?;
        return Ok(Exit::Ok);
    }
    let end = Instant::now() + Duration::from_secs(timeout_s);
    while Instant::now() < end {
        match client.get::<CommandReply>(&format!("/v1/devices/{id}/replies/{}", sent.command)).await {
            Ok(reply) => {
                out.show(&reply, |reply| format!("{}: {} {}", id, reply.reason, reply.detail))?;
                return Ok(if reply.reason == "ok" { Exit::Ok } else { Exit::Refused });
            }
            Err(error) if error.downcast_ref::<ApiFailure>().is_some_and(|failure| failure.status == 404) => {
                sleep(POLL).await
            }
            Err(error) => return Err(error),
        }
    }
    out.show(&sent, |sent| format!("no reply of {id} to {} within {timeout_s} s; the device may be away, and carries it out when it is back", sent.command))?;
    Ok(Exit::TimedOut)
}

fn row(device: &DeviceRow) -> Vec<String> {
    let groups: Vec<&str> = device.groups.iter().map(GroupId::as_str).collect();
    vec![
        device.id.to_string(),
        device.profile.class.to_string(),
        device.state.as_str().to_owned(),
        if device.online { "yes" } else { "no" }.to_owned(),
        device.generation.to_string(),
        groups.join(","),
    ]
}

/// Enough of a boot's number for people.
fn short(boot: &str) -> &str {
    boot.get(..8).unwrap_or(boot)
}

fn text(detail: &DeviceDetail) -> String {
    let device = &detail.device;
    let mut text = format!(
        "{} ({}, {}), agent {}, generation {}, {}\n",
        device.id,
        device.profile.class,
        device.state.as_str(),
        if device.agent.is_empty() { "unknown" } else { &device.agent },
        device.generation,
        if device.online { "online" } else { "offline" },
    );
    for (task, installed) in &detail.installed {
        let release = installed
            .release
            .as_ref()
            .map_or_else(|| "the constant baseline".to_owned(), ToString::to_string);
        text.push_str(&format!("  {task}: {release} ({})\n", crate::store::phase_text(installed.phase)));
    }
    for boot in &detail.boots {
        text.push_str(&format!(
            "  boot {}: {} windows closed, {} stored, {} records lost, {} repeated\n",
            short(&boot.boot),
            boot.windows_closed,
            boot.windows_stored,
            boot.records_lost,
            boot.repeated
        ));
        for (first, last) in &boot.missing {
            text.push_str(&format!("    records {first} to {last} have not come\n"));
        }
    }
    for gap in &detail.gaps {
        let boot = short(&gap.boot);
        text.push_str(&format!("  gap: records {} to {} of boot {boot} are lost\n", gap.first, gap.last));
    }
    for refused in &detail.refused {
        text.push_str(&format!("  refused: {} x {}: {}\n", refused.count, refused.reason, refused.detail));
    }
    if let Some(certificate) = detail.certificates.first() {
        text.push_str(&format!("  certificate {} until {} ms\n", certificate.serial, certificate.until_ms));
    }
    for happening in &detail.happenings {
        let of = happening.release.as_deref().or(happening.task.as_deref()).unwrap_or("");
        text.push_str(&format!(
            "  {} {} {of} {} {}\n",
            happening.received_ms, happening.phase, happening.reason, happening.detail
        ));
    }
    text
}
