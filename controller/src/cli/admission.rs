//! Verbs of `dunlin device` for many devices at once and for those that wait.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use dunlin_protocol::{DeviceId, GroupId};
use serde::Deserialize;
use serde_json::Value;

use super::{ApiClient, Exit, Output};
use crate::api::admissions::{Approval, NewBatch};
use crate::api::enrol::MadeClaim;
use crate::store::{Admission, Batch, Expected};

/// Verbs on batches and admissions.
#[derive(Debug, Subcommand)]
pub enum AdmissionCommand {
    /// Make a token for many devices: those on a list are admitted, others wait for approval.
    Batch {
        /// CSV file with a heading: serial, device, and if wanted groups (separated by spaces) and key (SHA-256 of the
        /// public key, hex).
        #[arg(long)]
        list: Option<PathBuf>,
        /// Devices beside those listed that may wait for approval.
        #[arg(long, default_value_t = 0)]
        waiting: u64,
        /// Group of every device; may be repeated.
        #[arg(long = "group")]
        groups: Vec<GroupId>,
        /// Hours the token is valid.
        #[arg(long, default_value_t = 24)]
        hours: u64,
    },
    /// List batches.
    Batches,
    /// End a batch: its token admits nobody any more.
    EndBatch {
        /// Id, as `batches` shows it.
        id: String,
    },
    /// List the devices that wait for approval, with the key that each of them shows.
    Pending {
        /// Those that were decided as well.
        #[arg(long)]
        all: bool,
    },
    /// Let a device in that waits; compare its key first.
    Approve {
        /// Id, as `pending` shows it.
        id: String,
        /// Id the device gets instead of the one it asks for.
        #[arg(long)]
        device: Option<DeviceId>,
    },
    /// Turn a device away that waits.
    Reject {
        /// Id, as `pending` shows it.
        id: String,
    },
}

/// A row of a list file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    serial: String,
    device: DeviceId,
    #[serde(default)]
    groups: String,
    #[serde(default)]
    key: String,
}

fn read(path: &Path) -> Result<Vec<Expected>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(path)
        .with_context(|| format!("could not read {}", path.display()))?;
    let mut list = Vec::new();
    for row in reader.deserialize() {
        let row: Row = row.with_context(|| format!("{} is no serial list", path.display()))?;
        let groups: Result<BTreeSet<GroupId>, _> = row.groups.split_whitespace().map(str::parse).collect();
        list.push(Expected {
            groups: groups.with_context(|| format!("the groups of serial {}", row.serial))?,
            serial: row.serial,
            device: row.device,
            key_id: Some(row.key.to_ascii_lowercase()).filter(|key| !key.is_empty()),
        });
    }
    Ok(list)
}

/// A token under which devices in `groups` wait for approval, `waiting` of them.
pub(super) async fn make(client: &ApiClient, out: &Output, new: &NewBatch) -> Result<()> {
    let made: MadeClaim = client.post("/v1/batches", new).await?;
    out.show(&made, |made| made.token.clone())
}

fn row(admission: &Admission) -> Vec<String> {
    vec![
        admission.id.clone(),
        admission.device.to_string(),
        admission.serial.clone().unwrap_or_default(),
        admission.class.clone(),
        admission.address.clone(),
        admission.state.as_str().to_owned(),
        admission.key_id.clone(),
    ]
}

impl AdmissionCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Batch { list, waiting, groups, hours } => {
                let new = NewBatch {
                    groups: groups.into_iter().collect(),
                    list: list.as_deref().map(read).transpose()?.unwrap_or_default(),
                    waiting_max: waiting,
                    valid_s: Some(hours.saturating_mul(3600)),
                };
                make(client, out, &new).await?;
            }
            Self::Batches => {
                let batches: Vec<Batch> = client.get("/v1/batches").await?;
                let row = |batch: &Batch| {
                    let until = batch.expires_ms.to_string();
                    vec![batch.id.clone(), batch.waiting_max.to_string(), batch.created_by.clone(), until]
                };
                let rows: Vec<_> = batches.iter().map(row).collect();
                out.table(&batches, &["id", "may wait", "by", "until (ms)"], &rows)?;
            }
            Self::EndBatch { id } => {
                let done: Value = client.delete(&format!("/v1/batches/{id}")).await?;
                out.show(&done, |_| format!("ended {id}"))?;
            }
            Self::Pending { all } => {
                let admissions: Vec<Admission> = client.get(&format!("/v1/admissions?all={all}")).await?;
                let rows: Vec<_> = admissions.iter().map(row).collect();
                let headings = ["id", "device", "serial", "class", "from", "state", "key"];
                out.table(&admissions, &headings, &rows)?;
            }
            Self::Approve { id, device } => {
                let path = format!("/v1/admissions/{id}/approve");
                let done: Admission = client.post(&path, &Approval { device }).await?;
                out.show(&done, |done| {
                    format!("{} is approved; it gets its certificate when it asks again", done.device)
                })?;
            }
            Self::Reject { id } => {
                let done: Admission =
                    client.post(&format!("/v1/admissions/{id}/reject"), &Value::Null).await?;
                out.show(&done, |done| format!("{} is rejected", done.device))?;
            }
        }
        Ok(Exit::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_with_and_without_its_optional_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        std::fs::write(&path, "serial,device\n10000000abcd, pole-1\n").unwrap();
        assert_eq!(read(&path).unwrap()[0].device.as_str(), "pole-1");
        std::fs::write(&path, "serial,device,groups,key\ns1,pole-1,north roof,AB\ns2,pole-2,,\n").unwrap();
        let list = read(&path).unwrap();
        assert_eq!((list[0].groups.len(), list[0].key_id.as_deref()), (2, Some("ab")));
        assert_eq!((list[1].groups.len(), list[1].key_id.as_deref()), (0, None));
        for bad in ["serial\ns1\n", "serial,device,colour\ns,pole-1,red\n", "serial,device\ns,Pole/1\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(read(&path).is_err(), "{bad}");
        }
    }
}
