use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{BootId, Bytes, DeviceProfile, Digest, ReasonCode, ReleaseId, TaskId};

/// Body of `up/status`, retained; the will is the same message with `online` false.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the session with this epoch is up.
    pub online: bool,
    /// Number of the session, rising with each connect and kept on disk: a late will of an older session is
    /// told from the present one by it.
    pub epoch: u64,
    /// Release of the agent.
    pub agent: String,
}

/// Where an update of one task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Named by a verified assignment.
    Assigned,
    /// Manifest and blobs are on their way.
    Fetching,
    /// Lengths and digests are being checked.
    Verifying,
    /// Whole and durable in the blob store.
    Staged,
    /// Golden vectors are being replayed in a child process.
    Proving,
    /// Serving, with the previous release warm beside it.
    Probation,
    /// The release of this task until further notice.
    Committed,
    /// The previous release serves again.
    RolledBack,
    /// Could not be completed; the previous release was never left.
    Failed,
    /// Refused before anything was fetched.
    Rejected,
    /// Not now: will be tried again.
    Deferred,
    /// A newer assignment took its place.
    Superseded,
}

/// A step of an update, reported once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Generation of the assignment.
    pub generation: u64,
    /// The task, unless the whole assignment is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The release, unless the whole assignment is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Echo of the assignment's correlation id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub correlation: String,
    /// Where it stands.
    pub phase: Phase,
    /// Why.
    pub reason: ReasonCode,
    /// The same for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Wall time in Unix milliseconds, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

/// Something that was refused or went wrong outside an update: a forged message, a full disk, a stepped clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indicator {
    /// What it was.
    pub reason: ReasonCode,
    /// The same for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How often since the last report.
    pub count: u64,
    /// Wall time of the last one in Unix milliseconds, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

/// What one task runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The serving release; `None` while the constant baseline answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Digest of its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Where it stands.
    pub phase: Phase,
    /// Latency measured while proving, median in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_us: Option<u64>,
    /// Memory the proof needed, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_bytes: Option<u64>,
}

/// Windows that were closed since the report before, so that a controller's copy of them can be compared with what the
/// device counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowsDigest {
    /// How many.
    pub n: u64,
    /// Beginning with 32 zero bytes, the SHA-256 of the digest so far and the next window's body, in their order.
    pub sha256: Digest,
}

/// Body of `up/report`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Generation of the last verified assignment.
    pub generation: u64,
    /// By task.
    pub installed: BTreeMap<TaskId, Installed>,
    /// Steps since the last report.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<Outcome>,
    /// Refusals and faults since the last report.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub indicators: Vec<Indicator>,
    /// What the device is; sent at the first report of a boot and when it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<DeviceProfile>,
    /// Windows closed and spooled in this boot, so that the controller can prove that it holds them all.
    pub windows_closed: u64,
    /// Those since the last report; absent if there were none, and in reports of agents before this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows_digest: Option<WindowsDigest>,
}

/// Why a sample was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleKind {
    /// Drawn uniformly: usable for unbiased audits.
    Random,
    /// Small margin between the two best classes.
    Uncertain,
    /// A user said that the answer was wrong.
    Flagged,
}

/// One input with what the model made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Request id.
    pub id: String,
    /// Wall time in Unix milliseconds, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// The features, f32 little-endian.
    pub x: Bytes,
    /// The predicted class.
    pub predicted: u32,
    /// The true class, if it was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<u32>,
    /// Why it was chosen.
    pub kind: SampleKind,
    /// Probability with which it was chosen, in parts per million.
    pub inclusion_ppm: u32,
}

/// Body of `up/samples`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// The task.
    pub task: TaskId,
    /// The release that predicted.
    pub release: ReleaseId,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// Body of a spooled record that stands for others which a bound forced out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Boot of the evicted records.
    pub boot: BootId,
    /// Numbers of the evicted records, as inclusive ranges in rising order.
    pub ranges: Vec<(u64, u64)>,
}

/// Body of `up/reply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Id of the command.
    pub id: String,
    /// Whether it was carried out.
    pub reason: ReasonCode,
    /// The same for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
