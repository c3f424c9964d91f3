use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{Arch, ClassName, Counts, DType, Digest, ModelName, ReleaseId, TaskId, TensorSpec};

/// The kind of inference a task asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum TaskType {
    Classification,
    Regression,
    Clustering,
    Recommendation,
}

/// A content-addressed file of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Length in bytes.
    pub length: u64,
}

/// What one input feature means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureMeta {
    /// Name.
    pub name: String,
    /// Unit (UCUM), empty if there is none.
    #[serde(default)]
    pub unit: String,
}

/// Inputs and outputs of a model and what they mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSignature {
    /// Inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs. For classification the last one holds the scores, classes in the last dimension.
    pub outputs: Vec<TensorSpec>,
    /// Features of the first input, in order.
    pub features: Vec<FeatureMeta>,
    /// Class names by index (classification).
    #[serde(default)]
    pub labels: Vec<String>,
}

impl ModelSignature {
    /// What it takes: names, types and shapes but for the batch, which each release chooses for itself.
    pub fn takes(&self) -> impl Iterator<Item = (&str, DType, &[i64])> {
        let ports = self.inputs.iter();
        ports.map(|spec| (spec.name.as_str(), spec.datatype, spec.shape.get(1..).unwrap_or_default()))
    }

    /// Whether it takes what the meta-model of a line-up is given: from each of `heard` models the scores of every class, in
    /// one `FP32` input.
    pub fn takes_scores(&self, heard: usize) -> bool {
        let width = i64::try_from(heard * self.labels.len()).unwrap_or(i64::MAX);
        matches!(self.inputs.as_slice(), [spec] if spec.datatype == DType::Fp32 && spec.shape.get(1..) == Some(&[width]))
    }
}

/// Hard constraints of a release. They are part of offline-signed metadata, so that a device can refuse
/// before it fetches anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hard {
    /// Architectures; empty means any.
    #[serde(default)]
    pub arch: BTreeSet<Arch>,
    /// Hardware classes it is approved for; empty means any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub classes: BTreeSet<ClassName>,
    /// Operators the graph needs.
    pub ops: BTreeSet<String>,
    /// Bytes of all blobs together.
    pub bundle_bytes: u64,
    /// Memory the loaded model needs, bytes.
    pub ram_bytes: u64,
    /// Oldest agent release that runs it, empty means any.
    #[serde(default)]
    pub min_agent: String,
}

impl Hard {
    /// Whether these are the constraints of a manifest, as its signers put their names to them: the same, or for fewer
    /// hardware classes.
    pub fn approves(&self, manifest: &Self) -> bool {
        let fewer = !self.classes.is_empty()
            && (manifest.classes.is_empty() || self.classes.is_subset(&manifest.classes));
        let alike = Self { classes: manifest.classes.clone(), ..self.clone() } == *manifest;
        alike && (fewer || self.classes == manifest.classes)
    }
}

/// How a release came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The training run, or `import`.
    pub run: String,
    /// Digest of the dataset snapshot, if it was trained here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Digest>,
    /// Release of the trainer.
    #[serde(default)]
    pub code: String,
    /// Seed of the run.
    #[serde(default)]
    pub seed: u64,
}

/// The manifest of a bundle: the TUF target. JSON without floats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Format of this file, 1.
    pub format: u32,
    /// The release.
    pub release: ReleaseId,
    /// The task it was made for.
    pub task: TaskId,
    /// The kind of task.
    pub task_type: TaskType,
    /// Model family: `logistic`, `gbdt`, `mlp`, `imported`, ...
    pub family: String,
    /// The ONNX graph.
    pub model: Blob,
    /// Golden vectors, a CBOR [`crate::GoldenSet`].
    pub golden: Blob,
    /// Drift bins, a CBOR [`ReferenceProfile`]; none for imported models without training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Blob>,
    /// Inputs and outputs.
    pub signature: ModelSignature,
    /// Hard constraints; the same as in the TUF metadata.
    pub hard: Hard,
    /// Predicted median latency of one row, microseconds, where the bundle was made.
    pub latency_us: u64,
    /// Validation metrics in parts per million (`accuracy_ppm`), and `n`, the rows they stand on.
    #[serde(default)]
    pub metrics: BTreeMap<String, i64>,
    /// Where it comes from.
    pub lineage: Lineage,
    /// SPDX licence expression of the model.
    #[serde(default)]
    pub licence: String,
}

impl Bundle {
    /// The blobs a device needs, in the order in which they are fetched.
    pub fn blobs(&self) -> impl Iterator<Item = Blob> {
        [Some(self.golden), self.profile, Some(self.model)].into_iter().flatten()
    }
}

/// `custom` of a manifest's entry in image targets metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetCustom {
    /// The task the release is for.
    pub task: TaskId,
    /// Hard constraints.
    pub hard: Hard,
}

/// `custom` of the top-level image targets role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetsCustom {
    /// Release floors by model line: versions below are withdrawn for ever.
    #[serde(default)]
    pub floors: BTreeMap<ModelName, u32>,
}

/// What a retrained model must satisfy on the device before it may serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrainedBounds {
    /// Inputs it must take, exactly.
    pub inputs: Vec<TensorSpec>,
    /// Outputs it must give, exactly.
    pub outputs: Vec<TensorSpec>,
    /// Operators it may use.
    pub ops: BTreeSet<String>,
    /// Largest bundle, bytes.
    pub bundle_bytes_max: u64,
    /// Most memory, bytes.
    pub ram_bytes_max: u64,
    /// Longest median latency while proving, microseconds.
    pub latency_us_max: u64,
    /// Labelled inputs, a CBOR [`crate::GoldenSet`] with labels.
    pub anchor: Blob,
    /// Least share of the anchor set it must get right, parts per million.
    pub anchor_score_ppm_min: u32,
}

/// Which inputs may leave the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplePolicy {
    /// Bytes a day.
    pub bytes_per_day_max: u64,
    /// Least share drawn uniformly, parts per million.
    pub random_ppm_min: u32,
}

/// The offline-signed rules of a task: target `policy.{task}.json`. JSON without floats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPolicy {
    /// Format of this file, 1.
    pub format: u32,
    /// The task.
    pub task: TaskId,
    /// Its kind.
    pub task_type: TaskType,
    /// The metric every decision about this task names.
    pub metric: String,
    /// Class that is answered when no model can (classification).
    pub baseline_class: u32,
    /// Rules that come before that class, the first that holds; agents that do not know of them answer the class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baseline_rules: Vec<BaselineRule>,
    /// Class names by index; what the baseline's answer is shaped by.
    pub labels: Vec<String>,
    /// Whether and within which bounds retrained models may run; absent means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrained: Option<RetrainedBounds>,
    /// Whether samples may leave the device; absent means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<SamplePolicy>,
}

/// A class for inputs of which one feature lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineRule {
    /// Index of the feature within a row of the first input.
    pub feature: u32,
    /// Least value, millionths; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_micro: Option<i64>,
    /// Values from this one on are beyond it, millionths; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below_micro: Option<i64>,
    /// The class.
    pub class: u32,
}

impl BaselineRule {
    /// Whether a row lies in the range. A value that is no number lies in none.
    pub fn holds(&self, row: &[f32]) -> bool {
        let Some(&value) = row.get(self.feature as usize) else { return false };
        let micro = f64::from(value) * 1e6;
        !micro.is_nan()
            && self.from_micro.is_none_or(|from| micro >= from as f64)
            && self.below_micro.is_none_or(|below| micro < below as f64)
    }
}

impl TaskPolicy {
    /// The TUF target that holds the policy of `task`.
    pub fn target_name(task: &TaskId) -> String {
        alloc::format!("policy.{task}.json")
    }
}

/// Bins of one numeric feature. Bin order on the wire: underflow, the inner bins, overflow, each atom, NaN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceFeature {
    /// Name.
    pub name: String,
    /// Rising edges `e0 < e1 < ...`: inner bin `i` counts `e_i <= x < e_(i+1)`, the last one closed above.
    pub edges: Vec<f32>,
    /// Values that carry more than one bin's worth of mass; they are counted here and nowhere else.
    #[serde(default)]
    pub atoms: Vec<f32>,
    /// Reference counts in bin order.
    pub counts: Counts,
    /// Mean of the reference.
    pub mean: f64,
    /// Standard deviation of the reference.
    pub sd: f64,
}

impl ReferenceFeature {
    /// Number of bins on the wire.
    pub fn bins(&self) -> usize {
        self.edges.len().saturating_sub(1) + self.atoms.len() + 3
    }
}

/// What the training data looked like: CBOR, shipped in the bundle, so that device and controller count on
/// the same bins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceProfile {
    /// Format of this file, 1.
    pub format: u32,
    /// Rows it was made from.
    pub n: u64,
    /// Features in input order.
    pub features: Vec<ReferenceFeature>,
    /// Reference counts of the predicted classes.
    #[serde(default)]
    pub classes: Counts,
}
