//! What is made of the image repository by who stole its online keys, with or without some of the offline ones.
use std::path::Path;

use anyhow::{Context, Result};
use dunlin_controller::keys::{Keyring, OfflineRole, OnlineRole, RoleChange, change_role, role_key_ids};
use dunlin_protocol::{Bundle, Bytes, Check, DeviceId, Digest, RepoFiles, cbor};
use dunlin_trust::write::{self, TargetSpec};
use dunlin_trust::{RETRAINED, Signer, sha256};
use serde_json::json;

use super::{Attacker, ahead, find, listing};

impl Attacker {
    /// Image files in which these stand in for what is served, under a snapshot and a timestamp that the stolen keys
    /// signed: far newer versions.
    pub fn forge_image(&self, targets: Option<Vec<u8>>, retrained: Option<Vec<u8>>) -> Result<RepoFiles> {
        let (keys, leap) = (self.online()?, self.leap());
        let mut files = self.image_files()?;
        let mut snapshot = write::signed_value(files.snapshot.context("a snapshot")?.as_slice())?;
        for (role, file) in [("targets", &targets), (RETRAINED, &retrained)] {
            if let Some(file) = file {
                let version = write::signed_value(file)?["version"].clone();
                snapshot["meta"][format!("{role}.json")] = json!({ "version": version });
            }
        }
        let mut timestamp = write::signed_value(files.timestamp.as_slice())?;
        timestamp["meta"]["snapshot.json"] = json!({ "version": ahead(&mut snapshot, leap)? });
        ahead(&mut timestamp, leap)?;
        files.targets = targets.map(Bytes).or(files.targets);
        files.delegated.extend(retrained.map(|file| (RETRAINED.to_owned(), Bytes(file))));
        files.snapshot = Some(Bytes(write::sign(&snapshot, &[keys.of(OnlineRole::ImageSnapshot)])?));
        files.timestamp = Bytes(write::sign(&timestamp, &[keys.of(OnlineRole::ImageTimestamp)])?);
        Ok(files)
    }

    /// The list of retrained releases with these on it, signed with the stolen key of that role.
    pub fn forge_retrained(&self, bundles: &[&Bundle]) -> Result<Vec<u8>> {
        let keys = self.online()?;
        let served = self.image_files()?.delegated.remove(RETRAINED).context("retrained releases")?;
        self.list(served.as_slice(), bundles, &[keys.of(OnlineRole::Retrained)])
    }

    /// The image targets with these on it, signed with every key for them in a folder: by the owner's signers, or by who
    /// stole from one of them.
    pub fn sign_targets(&self, bundles: &[&Bundle], offline: &Path) -> Result<Vec<u8>> {
        let signers = Keyring::from(offline).signers(OfflineRole::ImageTargets.prefix())?;
        let signers: Vec<&dyn Signer> = signers.iter().map(|signer| signer as &dyn Signer).collect();
        let served = self.image_files()?.targets.context("image targets")?;
        self.list(served.as_slice(), bundles, &signers)
    }

    fn list(&self, served: &[u8], bundles: &[&Bundle], signers: &[&dyn Signer]) -> Result<Vec<u8>> {
        let mut signed = write::signed_value(served)?;
        ahead(&mut signed, self.leap())?;
        for bundle in bundles {
            let manifest = serde_json::to_vec(bundle)?;
            let custom = json!({ "task": bundle.task, "hard": bundle.hard });
            let spec = TargetSpec { length: manifest.len() as u64, sha256: sha256(&manifest), custom };
            signed["targets"][bundle.release.target_name()] = write::target(&spec);
        }
        Ok(write::sign(&signed, signers)?)
    }

    /// The next image root as who holds the root keys in this folder would like it: the targets are signed by a key of
    /// theirs alone.
    pub fn forge_root(&self, stolen: &Path, now_ms: u64) -> Result<RepoFiles> {
        let mut files = self.image_files()?;
        let current = std::fs::read(self.data.join("repo/image/1.root.json"))?;
        let signers = Keyring::from(stolen).signers(OfflineRole::ImageRoot.prefix())?;
        let own = signers.first().context("a stolen root key")?;
        let targets = OfflineRole::ImageTargets;
        let change = RoleChange {
            add: vec![own.key().clone()],
            drop: role_key_ids(targets, &current)?,
            threshold: Some(1),
        };
        files.roots = vec![Bytes(change_role(targets, &current, &change, &[own], now_ms)?)];
        Ok(files)
    }

    /// A medium like one of `dunlin export`: this metadata for a device, these manifests, and whatever they, the metadata
    /// and `also` name and the controller has.
    pub fn medium(
        &self,
        folder: &Path,
        device: &DeviceId,
        check: &Check,
        bundles: &[&Bundle],
        also: &[Digest],
    ) -> Result<()> {
        let (devices, blobs) = (folder.join("devices"), folder.join("blobs"));
        std::fs::create_dir_all(&devices)?;
        std::fs::create_dir_all(&blobs)?;
        std::fs::write(devices.join(format!("{device}.cbor")), cbor::encode(check))?;
        for bundle in bundles {
            let manifest = serde_json::to_vec(bundle)?;
            std::fs::write(blobs.join(sha256(&manifest).to_string()), manifest)?;
        }
        let listed = listing(&check.image)?;
        let listed =
            listed.values().filter_map(|entry| entry["hashes"]["sha256"].as_str()).map(str::to_owned);
        let named = bundles.iter().flat_map(|bundle| bundle.blobs()).map(|blob| blob.digest);
        for digest in named.chain(also.iter().copied()).map(|digest| digest.to_string()).chain(listed) {
            if let Some(path) = find(&self.data, &digest)? {
                std::fs::copy(path, blobs.join(digest))?;
            }
        }
        Ok(())
    }
}
