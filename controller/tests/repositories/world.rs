//! A controller on real files, and a device that asks it.
use std::collections::BTreeSet;

use dunlin_controller::identity::Issued;
use dunlin_controller::keys::{self, Addition, CeremonyOptions, Request};
use dunlin_controller::repo::{Offline, RepoError, Repos};
use dunlin_controller::serve::Controller;
use dunlin_controller::store::{Claim, NewDevice, Store};
use dunlin_protocol::{
    Assignment, Check, DeviceId, DeviceProfile, Digest, Now, RepoVersions, TargetCustom, cbor,
};
use dunlin_trust::{
    Approved, Floors, RepoKind, TrustError, TrustedRepo, Verified, approve, held_roles, update_both,
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const START_MS: u64 = 1_800_000_000_000;
pub(crate) const HOUR_MS: u64 = 3_600_000;
pub(crate) const DAY_MS: u64 = 24 * HOUR_MS;

/// A controller's data folder and, beside it, what the ceremony left in the safe.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) repos: Repos,
}

pub(crate) fn data(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("data")
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(1, 2)
    }

    pub(crate) fn with(threshold: u32, n: u32) -> Self {
        Self::at(START_MS, threshold, n)
    }

    pub(crate) fn at(now_ms: u64, threshold: u32, n: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let online = keys::create_online(&data(&folder)).unwrap();
        let options = CeremonyOptions { threshold, root_threshold: threshold, n, now_ms };
        let made = keys::ceremony(&folder.path().join("safe"), &online, options).unwrap();
        let repos = Repos::open(&data(&folder)).unwrap();
        repos.import(&folder.path().join("safe/public"), now_ms).unwrap();
        assert_eq!(repos.pin(RepoKind::Image).unwrap(), made.image_root);
        assert_eq!(repos.pin(RepoKind::Director).unwrap(), made.director_root);
        Self { folder, repos }
    }

    /// One approved release, and a device to which it is assigned.
    pub(crate) fn with_device() -> (Self, Device) {
        let world = Self::new();
        let add = vec![world.release("meter.1.json", b"1")];
        world.approve(&Request { add, ..Request::default() }, START_MS).unwrap();
        world.repos.publish_assignment(&assignment("pole-1", 1, "meter@1"), START_MS).unwrap();
        let device = Device::enrol(&world, "pole-1");
        (world, device)
    }

    pub(crate) fn safe(&self) -> std::path::PathBuf {
        self.folder.path().join("safe/private")
    }

    pub(crate) fn current_targets(&self) -> Vec<u8> {
        self.repos.image().unwrap().stored().targets.unwrap().0
    }

    pub(crate) fn approve(&self, request: &Request, now_ms: u64) -> Result<RepoVersions, RepoError> {
        let signed = keys::sign_targets(&self.current_targets(), request, &self.safe(), now_ms).unwrap();
        self.repos.publish_targets(&signed, now_ms)
    }

    pub(crate) fn release(&self, name: &str, content: &[u8]) -> Addition {
        let sha256 = self.repos.put_target(name, content).unwrap();
        Addition { name: name.to_owned(), length: content.len() as u64, sha256, custom: custom() }
    }

    pub(crate) fn reopen(&mut self) {
        self.repos = Repos::open(&data(&self.folder)).unwrap();
    }

    /// The newest root of a repository.
    pub(crate) fn root(&self, kind: RepoKind) -> Vec<u8> {
        let folder = data(&self.folder).join(match kind {
            RepoKind::Image => "repo/image",
            RepoKind::Director => "repo/director",
        });
        let newest = (1..).take_while(|n| folder.join(format!("{n}.root.json")).exists()).last().unwrap();
        std::fs::read(folder.join(format!("{newest}.root.json"))).unwrap()
    }

    /// Publishes what was signed offline, as with a controller that was stopped for it.
    pub(crate) fn publish(&mut self, offline: &Offline, now_ms: u64) -> Result<(), RepoError> {
        Repos::publish_offline(&data(&self.folder), offline, now_ms)?;
        self.reopen();
        Ok(())
    }
}

pub(crate) fn offline(kind: RepoKind, root: Vec<u8>) -> Offline {
    match kind {
        RepoKind::Image => Offline { image_root: Some(root), ..Offline::default() },
        RepoKind::Director => Offline { director_root: Some(root), ..Offline::default() },
    }
}

pub(crate) fn custom() -> Value {
    let hard = json!({ "arch": [], "ops": [], "bundle_bytes": 10, "ram_bytes": 10, "min_agent": "" });
    let custom: TargetCustom = serde_json::from_value(json!({ "task": "meter", "hard": hard })).unwrap();
    json!(custom)
}

pub(crate) fn assignment(device: &str, generation: u64, champion: &str) -> Assignment {
    let probation = json!({
        "ms_min": 1, "requests_min": 1, "error_ppm_max": 1, "latency_percent_max": 200, "rss_bytes_max": 0, "disagree_ppm_max": 1
    });
    let task = json!({ "task": "meter", "lineup": { "champion": champion }, "probation": probation });
    serde_json::from_value(
        json!({ "device": device, "generation": generation, "correlation": "c", "tasks": [task] }),
    )
    .unwrap()
}

pub(crate) fn profile() -> DeviceProfile {
    serde_json::from_value(json!({
        "class": "pi", "arch": "aarch64", "cores": 4, "ram_bytes": 1_000_000, "agent": "0.1.0",
        "budgets": { "model_bytes_max": 1000, "model_ram_bytes_max": 2000, "latency_us_max": 1000 },
    }))
    .unwrap()
}

/// A device that is there, as far as the controller's paths ask.
pub(crate) async fn enrol(controller: &Controller, device: &str) {
    let claim = Claim {
        id: "c".into(),
        device: None,
        groups: BTreeSet::new(),
        created_by: "test".into(),
        created_ms: 0,
        expires_ms: u64::MAX >> 1,
        used_ms: None,
        used_by: None,
    };
    let issued =
        Issued { pem: String::new(), spki: vec![1], serial: "1".into(), from_ms: 0, until_ms: u64::MAX >> 1 };
    let (store, new) = (&controller.state.store, NewDevice { issued: &issued, profile: &profile() });
    let mut tx = store.begin().await.unwrap();
    Store::claim_add(&mut tx, &claim, &Digest([1; 32])).await.unwrap();
    Store::enrol(&mut tx, &claim, &device.parse().unwrap(), &new, 1).await.unwrap();
    tx.commit().await.unwrap();
}

/// What an agent keeps.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) image: TrustedRepo,
    pub(crate) director: TrustedRepo,
    pub(crate) floors: Floors,
}

impl Device {
    pub(crate) fn enrol(world: &World, id: &str) -> Self {
        let pinned =
            |kind| TrustedRepo::pinned(kind, world.repos.first_root(kind).unwrap().as_slice()).unwrap();
        let (image, director) = (pinned(RepoKind::Image), pinned(RepoKind::Director));
        Self { id: id.parse().unwrap(), image, director, floors: Floors::default() }
    }

    pub(crate) fn ask(&self, world: &World, now_ms: u64) -> Check {
        let (image, director) = (self.image.versions(), self.director.versions());
        let roles = held_roles(&self.image, &self.director);
        world.repos.check(&self.id, image, director, Some(&roles), now_ms).unwrap()
    }

    pub(crate) fn check(&mut self, world: &World, now_ms: u64) -> Result<Verified<Approved>, TrustError> {
        let check: Check = cbor::decode(&cbor::encode(&self.ask(world, now_ms)), 1 << 20).unwrap();
        update_both(&mut self.image, &mut self.director, &check, Now { mono_ms: 0, wall_ms: Some(now_ms) })?;
        let approved = approve(&self.image, &self.director, &self.id, &profile(), &self.floors)?;
        self.floors = approved.floors.clone();
        Ok(approved)
    }
}
