//! `dunlin export`: metadata and artifacts on a medium, for devices without a network.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use dunlin_protocol::{Bundle, Bytes, Check, DeviceId, Digest, TaskId, TaskPolicy, cbor};
use dunlin_trust::{task_role, write};
use serde_json::{Value, json};

use super::{ApiClient, Exit, Output};
use crate::api::export::ExportRequest;

/// Largest metadata of one device, bytes.
const CHECK_BYTES_MAX: usize = 16 * 1024 * 1024;

/// `dunlin export`.
#[derive(Debug, Args)]
pub struct Export {
    /// For which devices.
    #[arg(required = true)]
    devices: Vec<DeviceId>,
    /// Folder to fill, on the medium; it may hold earlier exports.
    #[arg(long)]
    out: PathBuf,
    /// For how many days it may be installed.
    #[arg(long, default_value_t = 14)]
    days: u64,
}

impl Export {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        let request = ExportRequest { devices: self.devices.into_iter().collect(), days: self.days };
        let checks: BTreeMap<DeviceId, Bytes> = client.post("/v1/export", &request).await?;
        let medium = Medium { folder: self.out, client };
        for (device, bytes) in &checks {
            let check: Check = cbor::decode(bytes.as_slice(), CHECK_BYTES_MAX)?;
            for (name, digest) in files(&check)? {
                medium.target(&name, digest).await?;
            }
            // Last, so that what it leads to is there.
            medium.write(&Path::new("devices").join(format!("{device}.cbor")), bytes.as_slice())?;
        }
        let value = json!({ "folder": medium.folder, "devices": request.devices, "days": request.days });
        out.show(&value, |_| {
            format!(
                "{} is good for {} days; on each device: dunlin-agent install FOLDER",
                medium.folder.display(),
                request.days
            )
        })?;
        Ok(Exit::Ok)
    }
}

/// Manifests that the director assigns, and the policies of their tasks, by name. The owner speaks for a task before the
/// task's own signers do, as on the device.
fn files(check: &Check) -> Result<BTreeSet<(String, Digest)>> {
    let signed = |file: Option<&Bytes>| -> Result<Value> {
        Ok(write::signed_value(file.context("metadata without targets")?.as_slice())?)
    };
    let (image, director) = (signed(check.image.targets.as_ref())?, signed(check.director.targets.as_ref())?);
    let digest = |target: &Value| target["hashes"]["sha256"].as_str().and_then(|hex| hex.parse().ok());
    let assigned = director["targets"].as_object().into_iter().flatten();
    let mut files: BTreeSet<(String, Digest)> =
        assigned.filter_map(|(name, target)| Some((name.clone(), digest(target)?))).collect();
    for task in director["custom"]["tasks"].as_array().into_iter().flatten() {
        let Some(task) = task["task"].as_str().and_then(|task| task.parse::<TaskId>().ok()) else { continue };
        let name = TaskPolicy::target_name(&task);
        let own = check.image.delegated.get(&task_role(&task)).map(|file| signed(Some(file))).transpose()?;
        let mut listed = [Some(&image), own.as_ref()].into_iter().flatten();
        let policy = listed.find_map(|role| digest(&role["targets"][&name]));
        files.extend(policy.map(|digest| (name, digest)));
    }
    Ok(files)
}

struct Medium<'a> {
    folder: PathBuf,
    client: &'a ApiClient,
}

impl Medium<'_> {
    /// A manifest or policy, and the blobs it names.
    async fn target(&self, name: &str, digest: Digest) -> Result<()> {
        let content = self.fetch(digest, &format!("/v1/targets/{digest}.{name}")).await?;
        if let Ok(bundle) = serde_json::from_slice::<Bundle>(&content) {
            for blob in bundle.blobs() {
                self.fetch(blob.digest, &format!("/v1/blobs/{}", blob.digest)).await?;
            }
        }
        if let Some(bounds) =
            serde_json::from_slice::<TaskPolicy>(&content).ok().and_then(|policy| policy.retrained)
        {
            self.fetch(bounds.anchor.digest, &format!("/v1/blobs/{}", bounds.anchor.digest)).await?;
        }
        Ok(())
    }

    /// Content that lies under its digest, fetched if it is not there.
    async fn fetch(&self, digest: Digest, path: &str) -> Result<Vec<u8>> {
        let file = Path::new("blobs").join(digest.to_string());
        if let Ok(held) = fs::read(self.folder.join(&file))
            && dunlin_trust::sha256(&held) == digest
        {
            return Ok(held);
        }
        let content = self.client.download(path).await?;
        anyhow::ensure!(dunlin_trust::sha256(&content) == digest, "{path} is not what was signed");
        self.write(&file, &content)?;
        Ok(content)
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join(file);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            // A stick that is pulled out leaves no half file under the name.
            let aside = path.with_extension("part");
            fs::write(&aside, bytes)?;
            fs::File::open(&aside)?.sync_all()?;
            fs::rename(&aside, &path)
        };
        write().with_context(|| format!("could not write {}", path.display()))
    }
}
