//! From proven parts to an immutable release.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_engine::Inspection;
use dunlin_engine::prove::Proof;
use dunlin_protocol::{
    Blob, Bundle, ClassName, Digest, FeatureMeta, GoldenSet, Hard, Lineage, ModelName, ModelSignature,
    ReferenceProfile, ReleaseId, TaskId, TaskType, cbor,
};
use serde_json::{Value, json};

use super::{Registry, RegistryError};
use crate::clock;
use crate::store::{ReleaseRow, Store};

/// Memory a loaded model needs beyond its weights, bytes: measured at 3 to 7 MiB over small models.
const RAM_BASE: u64 = 4 << 20;
/// Times a model's file size it needs at most while loaded: the parsed graph, the optimised one, packed
/// weights and activations (measured on perceptrons, trees and MobileNetV2).
const RAM_FACTOR: u64 = 4;

/// Everything a release is made of.
pub(super) struct Parts {
    pub(super) model: ModelName,
    pub(super) task: TaskId,
    pub(super) task_type: TaskType,
    pub(super) family: String,
    pub(super) onnx: Vec<u8>,
    pub(super) inspection: Inspection,
    pub(super) golden: GoldenSet,
    pub(super) profile: Option<ReferenceProfile>,
    pub(super) features: Vec<FeatureMeta>,
    pub(super) labels: Vec<String>,
    pub(super) proof: Proof,
    pub(super) metrics: BTreeMap<String, i64>,
    pub(super) lineage: Lineage,
    pub(super) licence: String,
    /// Hardware classes it is for; none means any.
    pub(super) classes: BTreeSet<ClassName>,
}

impl Registry {
    /// Stores blobs, manifest and row with the line `what` of the audit log; the release is pending afterwards. Files without
    /// a row, left where this is cut short, are no release: nothing names them, and the same push is taken again.
    pub(super) async fn release(
        &self,
        parts: Parts,
        what: &str,
        (by, signed): (&str, &str),
    ) -> Result<ReleaseRow, RegistryError> {
        let length = parts.onnx.len() as u64;
        let model = self.blobs.put(parts.onnx).await?;
        let golden = self.blobs.put(cbor::encode(&parts.golden)).await?;
        let profile = match &parts.profile {
            Some(profile) => Some(self.blobs.put(cbor::encode(profile)).await?),
            None => None,
        };
        let bundle_bytes =
            [Some(model), Some(golden), profile].into_iter().flatten().map(|blob: Blob| blob.length).sum();
        let hard = Hard {
            arch: Default::default(),
            classes: parts.classes,
            ops: parts.inspection.ops,
            bundle_bytes,
            ram_bytes: (RAM_BASE + RAM_FACTOR * length).min(parts.proof.peak_bytes.max(RAM_BASE)),
            min_agent: String::new(),
        };
        let signature = ModelSignature {
            inputs: parts.inspection.inputs,
            outputs: parts.inspection.outputs,
            features: parts.features,
            labels: parts.labels,
        };
        let (task, line) = (parts.task.clone(), parts.model.clone());
        let seal = |release: ReleaseId| -> (Bundle, Vec<u8>, Digest) {
            let bundle = Bundle {
                format: 1,
                release,
                task: parts.task,
                task_type: parts.task_type,
                family: parts.family,
                model,
                golden,
                profile,
                signature,
                hard,
                latency_us: parts.proof.latency_us_p50,
                metrics: parts.metrics,
                lineage: parts.lineage,
                licence: parts.licence,
            };
            let manifest = serde_json::to_vec(&bundle).expect("a manifest is plain data");
            let sha256 = dunlin_trust::sha256(&manifest);
            (bundle, manifest, sha256)
        };
        let mut change = self.audit.begin().await?;
        let row =
            Store::release_add(change.tx(), &line, &task, &model.digest, by, clock::wall_ms(), seal).await?;
        let (name, manifest) = (row.bundle.release.target_name(), row.manifest.clone());
        self.on_repos(move |repos| repos.put_target(&name, &manifest)).await?;
        let after =
            json!({ "release": row.bundle.release, "manifest": row.sha256, "run": row.bundle.lineage.run });
        change.commit(signed, what, Value::Null, after).await?;
        tracing::info!(release = %row.bundle.release, task = %task, by, "a model was taken in");
        Ok(row)
    }
}
