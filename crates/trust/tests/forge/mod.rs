//! A repository of two root keys, two targets keys and online keys, whose every file can be bent.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use dunlin_protocol::{Arch, Bytes, DeviceProfile, Digest, Hard, Now, RepoFiles, TargetCustom};
use dunlin_trust::write::{self, DelegationSpec, RoleSpec, RootSpec, TargetSpec};
use dunlin_trust::{Ed25519Signer, RepoKind, Signer, TrustedRepo, sha256};
use serde_json::{Value, json};

pub(crate) const NOW_MS: u64 = 1_800_000_000_000;
pub(crate) const LATER_MS: u64 = NOW_MS + 1_000_000;

pub(crate) fn now() -> Now {
    Now { mono_ms: 5, wall_ms: Some(NOW_MS) }
}

pub(crate) fn key() -> Ed25519Signer {
    Ed25519Signer::from_pkcs8(&Ed25519Signer::generate_pkcs8().unwrap()).unwrap()
}

pub(crate) fn role(keys: &[&Ed25519Signer], threshold: u32) -> RoleSpec {
    RoleSpec { keys: keys.iter().map(|key| key.key().clone()).collect(), threshold }
}

pub(crate) struct Forge {
    pub(crate) kind: RepoKind,
    pub(crate) root: Vec<Ed25519Signer>,
    pub(crate) targets: Vec<Ed25519Signer>,
    pub(crate) timestamp: Ed25519Signer,
    pub(crate) snapshot: Ed25519Signer,
    pub(crate) retrained: Ed25519Signer,
    pub(crate) terminating: bool,
    pub(crate) delegate: bool,
    pub(crate) expires: BTreeMap<&'static str, u64>,
    /// root, timestamp, snapshot, targets, retrained
    pub(crate) versions: [u64; 5],
    pub(crate) listed: BTreeMap<String, TargetSpec>,
    pub(crate) retrained_listed: BTreeMap<String, TargetSpec>,
    pub(crate) custom: Value,
    pub(crate) roots: Vec<Vec<u8>>,
}

impl Forge {
    pub(crate) fn new(kind: RepoKind) -> Self {
        let mut forge = Self {
            kind,
            root: vec![key(), key()],
            targets: vec![key(), key()],
            timestamp: key(),
            snapshot: key(),
            retrained: key(),
            terminating: true,
            delegate: kind == RepoKind::Image,
            expires: BTreeMap::new(),
            versions: [1; 5],
            listed: BTreeMap::new(),
            retrained_listed: BTreeMap::new(),
            custom: Value::Null,
            roots: Vec::new(),
        };
        let root = forge.root_file();
        forge.roots.push(root);
        forge
    }

    fn expiry(&self, role: &str) -> u64 {
        self.expires.get(role).copied().unwrap_or(LATER_MS)
    }

    pub(crate) fn root_spec(&self) -> RootSpec {
        RootSpec {
            root: role(&self.root.iter().collect::<Vec<_>>(), 2),
            timestamp: role(&[&self.timestamp], 1),
            snapshot: role(&[&self.snapshot], 1),
            targets: role(&self.targets.iter().collect::<Vec<_>>(), 2),
        }
    }

    pub(crate) fn root_file(&self) -> Vec<u8> {
        let value = write::root(self.versions[0], self.expiry("root"), &self.root_spec()).unwrap();
        sign(&value, &self.root.iter().collect::<Vec<_>>())
    }

    /// Publishes the next root, signed by the present keys and by `old` ones.
    pub(crate) fn rotate(&mut self, old: &[&Ed25519Signer]) {
        self.versions[0] += 1;
        let value = write::root(self.versions[0], self.expiry("root"), &self.root_spec()).unwrap();
        let signers: Vec<_> = self.root.iter().chain(old.iter().copied()).collect();
        let file = sign(&value, &signers);
        self.roots.push(file);
    }

    pub(crate) fn timestamp_file(&self) -> Vec<u8> {
        let value = write::timestamp(self.versions[1], self.expiry("timestamp"), self.versions[2]).unwrap();
        sign(&value, &[&self.timestamp])
    }

    pub(crate) fn snapshot_file(&self) -> Vec<u8> {
        let mut roles = BTreeMap::from([("targets".to_owned(), self.versions[3])]);
        if self.delegate {
            roles.insert("retrained".to_owned(), self.versions[4]);
        }
        sign(&write::snapshot(self.versions[2], self.expiry("snapshot"), &roles).unwrap(), &[&self.snapshot])
    }

    pub(crate) fn targets_value(&self) -> Value {
        let delegation = DelegationSpec {
            name: "retrained".to_owned(),
            role: role(&[&self.retrained], 1),
            paths: vec!["auto.*".to_owned()],
            terminating: self.terminating,
        };
        let delegations = if self.delegate { vec![delegation] } else { vec![] };
        write::targets(
            self.versions[3],
            self.expiry("targets"),
            &self.listed,
            &delegations,
            self.custom.clone(),
        )
        .unwrap()
    }

    pub(crate) fn targets_file(&self) -> Vec<u8> {
        sign(&self.targets_value(), &self.targets.iter().collect::<Vec<_>>())
    }

    pub(crate) fn retrained_file(&self) -> Vec<u8> {
        let value = write::targets(
            self.versions[4],
            self.expiry("retrained"),
            &self.retrained_listed,
            &[],
            Value::Null,
        )
        .unwrap();
        sign(&value, &[&self.retrained])
    }

    /// Every file, as a client without any is answered.
    pub(crate) fn files(&self) -> RepoFiles {
        RepoFiles {
            roots: self.roots[1..].iter().cloned().map(Bytes).collect(),
            timestamp: Bytes(self.timestamp_file()),
            snapshot: Some(Bytes(self.snapshot_file())),
            targets: Some(Bytes(self.targets_file())),
            delegated: if self.delegate {
                BTreeMap::from([("retrained".to_owned(), Bytes(self.retrained_file()))])
            } else {
                BTreeMap::new()
            },
        }
    }

    pub(crate) fn pinned(&self) -> TrustedRepo {
        TrustedRepo::pinned(self.kind, &self.roots[0]).unwrap()
    }

    pub(crate) fn trusted(&self) -> TrustedRepo {
        let mut repo = self.pinned();
        repo.update(&self.files(), now()).unwrap();
        repo
    }

    /// New versions of everything below the root.
    pub(crate) fn bump(&mut self) {
        for version in &mut self.versions[1..] {
            *version += 1;
        }
    }
}

pub(crate) fn sign(value: &Value, signers: &[&Ed25519Signer]) -> Vec<u8> {
    let signers: Vec<&dyn Signer> = signers.iter().map(|signer| *signer as &dyn Signer).collect();
    write::sign(value, &signers).unwrap()
}

pub(crate) fn target(content: &[u8], custom: Value) -> TargetSpec {
    TargetSpec { length: content.len() as u64, sha256: sha256(content), custom }
}

pub(crate) fn hard() -> Hard {
    Hard {
        arch: [Arch::Aarch64].into(),
        classes: Default::default(),
        ops: ["ai.onnx/Gemm".to_owned()].into(),
        bundle_bytes: 1000,
        ram_bytes: 2000,
        min_agent: "0.1.0".to_owned(),
    }
}

pub(crate) fn custom(task: &str) -> Value {
    json!(TargetCustom { task: task.parse().unwrap(), hard: hard() })
}

pub(crate) fn profile() -> DeviceProfile {
    serde_json::from_value(json!({
        "class": "pi", "arch": "aarch64", "cores": 4, "ram_bytes": 1_000_000,
        "budgets": { "model_bytes_max": 1000, "model_ram_bytes_max": 2000, "latency_us_max": 1000 },
        "ops": ["ai.onnx/Gemm", "ai.onnx/Relu"], "agent": "0.1.0",
    }))
    .unwrap()
}

pub(crate) fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}
