use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

/// Processor architectures that agents are built for.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Arch {
    Aarch64,
    Armv7,
    X86_64,
    Riscv64,
}

/// The kind of inference a task asks for.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TaskType {
    Classification,
    Regression,
    Clustering,
    Recommendation,
}

/// A content-addressed file.
#[derive(Serialize, ToSchema)]
pub(crate) struct Blob {
    /// SHA-256 of the content, hex.
    digest: String,
    /// Length in bytes.
    length: u64,
}

/// The manifest of a release.
#[derive(Serialize, ToSchema)]
pub(crate) struct Bundle {
    /// Format of this file, 1.
    format: u32,
    /// The release, `name@version`.
    release: String,
    /// The task it was made for.
    task: String,
    /// The kind of task.
    task_type: TaskType,
    /// Model family: `logistic`, `gbdt`, `mlp`, `imported`, ...
    family: String,
    /// The ONNX graph.
    model: Blob,
    /// Golden vectors.
    golden: Blob,
    /// Drift bins; none for imported models without training data.
    profile: Option<Blob>,
    /// Inputs and outputs.
    signature: ModelSignature,
    /// Hard constraints; the same as in the TUF metadata.
    hard: Hard,
    /// Predicted median latency of one row, microseconds.
    latency_us: u64,
    /// Validation metrics in parts per million (`accuracy_ppm`), and `n`, the rows they stand on.
    #[serde(default)]
    metrics: BTreeMap<String, i64>,
    /// Where it comes from.
    lineage: Lineage,
    /// SPDX licence expression of the model.
    #[serde(default)]
    licence: String,
}

/// Inputs and outputs of a model and what they mean.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelSignature {
    /// Inputs.
    inputs: Vec<TensorSpec>,
    /// Outputs. For classification the last one holds the scores.
    outputs: Vec<TensorSpec>,
    /// Features of the first input, in order.
    features: Vec<FeatureMeta>,
    /// Class names by index.
    #[serde(default)]
    labels: Vec<String>,
}

/// Name, type and shape of an input or output.
#[derive(Serialize, ToSchema)]
pub(crate) struct TensorSpec {
    /// Name in the graph.
    name: String,
    /// Element type.
    datatype: DType,
    /// Shape, batch first; -1 is a dimension that the request chooses.
    shape: Vec<i64>,
}

/// Tensor element types, by their Open Inference Protocol names.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

/// What one input feature means.
#[derive(Serialize, ToSchema)]
pub(crate) struct FeatureMeta {
    /// Name.
    name: String,
    /// Unit (UCUM), empty if there is none.
    #[serde(default)]
    unit: String,
}

/// Hard constraints of a release.
#[derive(Serialize, ToSchema)]
pub(crate) struct Hard {
    /// Architectures; empty means any.
    #[serde(default)]
    arch: Vec<Arch>,
    /// Hardware classes it is approved for; empty means any.
    #[serde(default)]
    classes: Vec<String>,
    /// Operators the graph needs.
    ops: Vec<String>,
    /// Bytes of all blobs together.
    bundle_bytes: u64,
    /// Memory the loaded model needs, bytes.
    ram_bytes: u64,
    /// Oldest agent release that runs it, empty means any.
    #[serde(default)]
    min_agent: String,
}

/// How a release came to be.
#[derive(Serialize, ToSchema)]
pub(crate) struct Lineage {
    /// The training run, or `import`.
    run: String,
    /// Digest of the dataset snapshot, if it was trained here.
    dataset: Option<String>,
    /// Release of the trainer.
    #[serde(default)]
    code: String,
    /// Seed of the run.
    #[serde(default)]
    seed: u64,
}

/// The offline-signed rules of a task.
#[derive(Serialize, ToSchema)]
pub(crate) struct TaskPolicy {
    /// Format of this file, 1.
    format: u32,
    /// The task.
    task: String,
    /// Its kind.
    task_type: TaskType,
    /// The metric every decision about this task names.
    metric: String,
    /// Class that is answered when no model can.
    baseline_class: u32,
    /// Rules that come before that class, the first that holds.
    #[serde(default)]
    baseline_rules: Vec<BaselineRule>,
    /// Class names by index.
    labels: Vec<String>,
    /// Whether and within which bounds retrained models may run; absent means never.
    retrained: Option<RetrainedBounds>,
    /// Whether samples may leave the device; absent means never.
    samples: Option<SamplePolicy>,
}

/// A class for inputs of which one feature lies in a range.
#[derive(Serialize, ToSchema)]
pub(crate) struct BaselineRule {
    /// Index of the feature within a row of the first input.
    feature: u32,
    /// Least value, millionths; absent means none.
    from_micro: Option<i64>,
    /// Values from this one on are beyond it, millionths; absent means none.
    below_micro: Option<i64>,
    /// The class.
    class: u32,
}

/// What a retrained model must satisfy on the device before it may serve.
#[derive(Serialize, ToSchema)]
pub(crate) struct RetrainedBounds {
    /// Inputs it must take, exactly.
    inputs: Vec<TensorSpec>,
    /// Outputs it must give, exactly.
    outputs: Vec<TensorSpec>,
    /// Operators it may use.
    ops: Vec<String>,
    /// Largest bundle, bytes.
    bundle_bytes_max: u64,
    /// Most memory, bytes.
    ram_bytes_max: u64,
    /// Longest median latency while proving, microseconds.
    latency_us_max: u64,
    /// Labelled inputs.
    anchor: Blob,
    /// Least share of the anchor set it must get right, parts per million.
    anchor_score_ppm_min: u32,
}

/// Which inputs may leave the device.
#[derive(Serialize, ToSchema)]
pub(crate) struct SamplePolicy {
    /// Bytes a day.
    bytes_per_day_max: u64,
    /// Least share drawn uniformly, parts per million.
    random_ppm_min: u32,
}

/// Inputs with the answers they must give.
#[derive(Serialize, ToSchema)]
pub(crate) struct GoldenSet {
    /// Format of this file, 1.
    format: u32,
    /// Inputs, batch first.
    inputs: Vec<TensorData>,
    /// Expected outputs; empty in an anchor set.
    #[serde(default)]
    outputs: Vec<TensorData>,
    /// Largest accepted `|a-b| / max(1, |b|)`, parts per million.
    tolerance_ppm: u32,
    /// True classes by row; empty in golden vectors.
    #[serde(default)]
    labels: Vec<u32>,
}

/// A tensor as bytes.
#[derive(Serialize, ToSchema)]
pub(crate) struct TensorData {
    /// Name in the graph.
    name: String,
    /// Element type.
    datatype: DType,
    /// Shape, batch first.
    shape: Vec<u64>,
    /// Row-major, little-endian; base64.
    data: String,
}

/// What signers say of a target beside its name, length and digest; nothing of a policy.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Custom {
    /// Of the manifest of a release.
    Release(TargetCustom),
    /// Of a program.
    Program(ProgramCustom),
}

/// What is said of a release, for its signers to sign.
#[derive(Serialize, ToSchema)]
pub(crate) struct TargetCustom {
    /// The task the release is for.
    task: String,
    /// Hard constraints.
    hard: Hard,
}

/// What is said of a program of the agent, for its signers to sign.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProgramCustom {
    /// Target triple that it was built for.
    triple: String,
    /// Architecture of that triple.
    arch: Arch,
    /// Hardware classes it is approved for; empty means any.
    #[serde(default)]
    classes: Vec<String>,
    /// Release of the agent that it is.
    agent: String,
    /// Versions of the message schemas that it speaks.
    schemas: Vec<u32>,
}

/// What a further model of a line-up is for.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Answers when those before it can not.
    Fallback,
    /// Answers a share of the requests in the champion's place.
    Challenger {
        /// The share, parts per million.
        share_ppm: u32,
    },
    /// Answers the champion's inputs after it, for the record only.
    Shadow {
        /// Share of one core's time it may take, parts per million.
        cpu_ppm: u32,
        /// Least memory that must be available on the device, bytes.
        ram_bytes: u64,
        /// Least charge of the battery, parts per million.
        battery_ppm_min: u32,
    },
    /// Votes beside the champion, or is one of those that a meta-model hears.
    Voter {
        /// Its weight in a weighted vote; the champion's is a million.
        weight_ppm: u32,
    },
    /// Asked when the one before it in a cascade is unsure.
    Bigger,
    /// Answers in the champion's place while a context rule holds.
    Smaller,
    /// Makes one answer of the scores of champion and voters.
    Meta,
}

/// Whose answer is given.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rule {
    /// The first that can: champion, then the fallbacks.
    First,
    /// The champion's if it is sure, else that of the next bigger member that is.
    Cascade {
        /// Least margin between the two best scores of every row, parts per million.
        margin_ppm: u32,
    },
    /// The class that most of champion and voters name.
    HardVote,
    /// The mean of the scores of champion and voters.
    SoftVote,
    /// The same, weighted.
    WeightedVote,
    /// What the meta-model makes of the scores of champion and voters.
    Stack,
}

/// When a task moves to a smaller member, and back.
#[derive(Serialize, ToSchema)]
pub(crate) struct ContextRule {
    /// What is looked at.
    signal: Signal,
    /// The rule begins to hold at this value or a worse one.
    enter: i64,
    /// It ends at this value or a better one.
    leave: i64,
    /// How long either must last before it counts, milliseconds.
    dwell_ms: u64,
}

/// What a context rule looks at.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Signal {
    BatteryPpm,
    TemperatureMc,
    AvailableBytes,
    LoadPpm,
    Link,
}
