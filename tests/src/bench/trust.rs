//! What trust costs: bytes of metadata for one deployment, and the time to verify all of it from the pinned roots.
use std::collections::BTreeMap;

use anyhow::Result;
use dunlin_protocol::{Bytes, Check, DeviceProfile, Now, RepoFiles, cbor};
use dunlin_trust::write::{self, DelegationSpec, RoleSpec, RootSpec, TargetSpec};
use dunlin_trust::{Ed25519Signer, Floors, RepoKind, Signer, TrustedRepo, approve, sha256, update_both};
use serde_json::{Value, json};

use crate::report::{Bar, Section};
use crate::timing::Times;

/// Most bytes of metadata for one deployment.
const DEPLOYMENT_KIB_MAX: f64 = 20.0;
/// Most milliseconds of one processor for a full refresh.
const REFRESH_MS_MAX: f64 = 5.0;
/// Releases that the image repository lists, and tasks they are for.
const RELEASES: usize = 32;
const TASKS: usize = 4;
/// Holders of the offline keys, and how many of them sign.
const HOLDERS: usize = 3;
const THRESHOLD: u32 = 2;
/// Refreshes that are timed.
const REPEAT: usize = 500;
const NOW_MS: u64 = 1_800_000_000_000;
const LATER_MS: u64 = NOW_MS + 86_400_000;

pub(crate) fn measure(section: &mut Section) -> Result<()> {
    let (image, director) = (repository(RepoKind::Image)?, repository(RepoKind::Director)?);
    let check = Check { image: image.files, director: director.files };
    let what = format!("{TASKS} tasks of {RELEASES} releases, {THRESHOLD} of {HOLDERS} offline signatures");
    section.hold(
        format!("metadata of one deployment, {what}"),
        cbor::encode(&check).len() as f64 / 1024.0,
        "KiB",
        Bar::AtMost(DEPLOYMENT_KIB_MAX),
    );
    let (device, profile) = ("pole-1".parse()?, profile()?);
    let now = Now { mono_ms: 0, wall_ms: Some(NOW_MS) };
    let times = Times::of(REPEAT, |_| {
        let mut known = TrustedRepo::pinned(RepoKind::Image, &image.root)?;
        let mut told = TrustedRepo::pinned(RepoKind::Director, &director.root)?;
        update_both(&mut known, &mut told, &check, now)?;
        let approved = approve(&known, &told, &device, &profile, &Floors::default())?;
        anyhow::ensure!(approved.tasks.iter().all(|(_, verdict)| verdict.is_ok()), "a release is refused");
        Ok(())
    })?;
    // One thread and nothing to wait for: the time is the processor's.
    section.hold(
        "full refresh from the pinned roots, median",
        times.quantile_us(0.5) / 1e3,
        "ms",
        Bar::AtMost(REFRESH_MS_MAX),
    );
    section.add("the same, 99th percentile", times.quantile_us(0.99) / 1e3, "ms");
    Ok(())
}

struct Repository {
    root: Vec<u8>,
    files: RepoFiles,
}

fn keys(n: usize) -> Result<Vec<Ed25519Signer>> {
    (0..n).map(|_| Ok(Ed25519Signer::from_pkcs8(&Ed25519Signer::generate_pkcs8()?)?)).collect()
}

fn role(keys: &[Ed25519Signer], threshold: u32) -> RoleSpec {
    RoleSpec { keys: keys.iter().map(|key| key.key().clone()).collect(), threshold }
}

fn sign(value: &Value, keys: &[Ed25519Signer]) -> Result<Vec<u8>> {
    let signers: Vec<&dyn Signer> = keys.iter().map(|key| key as &dyn Signer).collect();
    Ok(write::sign(value, &signers)?)
}

fn repository(kind: RepoKind) -> Result<Repository> {
    let image = kind == RepoKind::Image;
    let (holders, online) = (keys(HOLDERS)?, keys(1)?);
    let signing = &holders[..THRESHOLD as usize];
    let offline = role(&holders, THRESHOLD);
    let (targets_role, targets_keys) =
        if image { (offline.clone(), signing) } else { (role(&online, 1), &online[..]) };
    let spec = RootSpec {
        root: offline,
        timestamp: role(&online, 1),
        snapshot: role(&online, 1),
        targets: targets_role,
    };
    let delegation = DelegationSpec {
        name: "retrained".to_owned(),
        role: role(&online, 1),
        paths: vec!["auto.*".to_owned()],
        terminating: true,
    };
    let mut listed = BTreeMap::new();
    for i in 0..if image { RELEASES } else { TASKS } {
        let custom = if image { custom(i % TASKS) } else { Value::Null };
        listed.insert(
            format!("model-{}.{}.json", i % TASKS, 1 + i / TASKS),
            TargetSpec { length: 900, sha256: sha256(&[i as u8]), custom },
        );
    }
    let (delegations, about) =
        if image { (vec![delegation], json!({ "floors": {} })) } else { (vec![], assignment()) };
    let roles: &[&str] = if image { &["targets", "retrained"] } else { &["targets"] };
    let snapshot = write::snapshot(1, LATER_MS, &roles.iter().map(|name| ((*name).to_owned(), 1)).collect())?;
    let retrained = write::targets(1, LATER_MS, &BTreeMap::new(), &[], Value::Null)?;
    let files = RepoFiles {
        roots: vec![],
        timestamp: Bytes(sign(&write::timestamp(1, LATER_MS, 1)?, &online)?),
        snapshot: Some(Bytes(sign(&snapshot, &online)?)),
        targets: Some(Bytes(sign(
            &write::targets(1, LATER_MS, &listed, &delegations, about)?,
            targets_keys,
        )?)),
        delegated: if image {
            [("retrained".to_owned(), Bytes(sign(&retrained, &online)?))].into()
        } else {
            BTreeMap::new()
        },
    };
    Ok(Repository { root: sign(&write::root(1, LATER_MS, &spec)?, signing)?, files })
}

fn custom(task: usize) -> Value {
    let ops = ["ai.onnx/Gemm", "ai.onnx/Relu", "ai.onnx/Softmax"];
    let hard = json!({ "arch": ["aarch64"], "ops": ops, "bundle_bytes": 100_000, "ram_bytes": 1_000_000, "min_agent": "0.1.0" });
    json!({ "task": format!("task-{task}"), "hard": hard })
}

fn assignment() -> Value {
    let probation = json!({
        "ms_min": 60_000, "requests_min": 100, "error_ppm_max": 10_000, "latency_percent_max": 200, "rss_bytes_max": 0, "disagree_ppm_max": 100_000
    });
    let task = |i| json!({ "task": format!("task-{i}"), "lineup": { "champion": format!("model-{i}@1") }, "probation": probation });
    let tasks: Vec<Value> = (0..TASKS).map(task).collect();
    json!({ "device": "pole-1", "generation": 1, "correlation": "a-rollout-of-some-name", "tasks": tasks })
}

fn profile() -> Result<DeviceProfile> {
    Ok(serde_json::from_value(json!({
        "class": "pi", "arch": "aarch64", "cores": 4, "ram_bytes": 1_000_000_000u64, "agent": "0.1.0",
        "ops": ["ai.onnx/Gemm", "ai.onnx/Relu", "ai.onnx/Softmax"],
        "budgets": { "model_bytes_max": 1_000_000, "model_ram_bytes_max": 10_000_000, "latency_us_max": 10_000 },
    }))?)
}
