use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Digest, ReleaseId, TaskId, varint};

/// Wire form of a run of counts: varints in a byte string.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(pub Bytes);

impl Counts {
    /// Packs counts.
    pub fn pack(counts: &[u64]) -> Self {
        Self(Bytes(varint::encode(counts.iter().copied())))
    }

    /// Unpacks exactly `len` counts; `None` if there are not that many.
    pub fn unpack(&self, len: usize) -> Option<Vec<u64>> {
        varint::decode(&self.0.0, len)
    }

    /// Whether nothing is packed.
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }
}

/// Wire form of a DDSketch (Masson, Rim, Lee 2019) with relative accuracy 1 %: bin `i` counts values in
/// `(γ^(i-1), γ^i]`, `γ = 1.01/0.99`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sketch {
    /// Values that are zero or below.
    pub zero: u64,
    /// Index of the first bin.
    pub first: i32,
    /// Number of bins in `bins`.
    pub len: u32,
    /// Counts from `first` on.
    pub bins: Counts,
}

/// Confusion counts from labelled feedback, row = true class, column = predicted, both of `classes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confusion {
    /// Number of classes.
    pub classes: u32,
    /// `classes²` counts, row by row.
    pub counts: Counts,
}

/// Two releases on the very same inputs (probation with the previous release warm, or a shadow).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairCounts {
    /// The other release.
    pub other: ReleaseId,
    /// Inputs both answered.
    pub n: u64,
    /// Of those, answers that differ.
    pub disagree: u64,
    /// Labelled inputs both got right.
    pub both_right: u64,
    /// Labelled inputs only the window's release got right.
    pub only_this: u64,
    /// Labelled inputs only the other release got right.
    pub only_other: u64,
    /// Labelled inputs both got wrong.
    pub both_wrong: u64,
}

/// What the device used while the window was open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceUse {
    /// CPU time of the agent, parts per million of one core.
    pub cpu_ppm: u64,
    /// Resident memory of the agent, bytes.
    pub rss_bytes: u64,
    /// Memory available on the device, bytes.
    pub available_bytes: u64,
    /// Hottest sensor, thousandths of a degree Celsius, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_mc: Option<i64>,
    /// Free bytes where the state lies.
    pub disk_free_bytes: u64,
    /// Bytes received on all interfaces but loopback.
    pub net_rx_bytes: u64,
    /// Bytes sent on all interfaces but loopback.
    pub net_tx_bytes: u64,
}

/// One task and release over one stretch of time. Windows of the same release add up exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The task.
    pub task: TaskId,
    /// The release that answered; `None` for the constant baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Generation of the assignment in force.
    #[serde(default)]
    pub generation: u64,
    /// Start: Unix milliseconds if `wall`, else milliseconds since the agent started.
    pub start_ms: u64,
    /// End, likewise.
    pub end_ms: u64,
    /// Whether the times are wall times.
    pub wall: bool,
    /// Requests put to the release, failed ones included.
    pub n: u64,
    /// Of those, requests that failed.
    #[serde(default)]
    pub errors: u64,
    /// Whether the release was in probation.
    #[serde(default)]
    pub probation: bool,
    /// Latency of the model in microseconds.
    #[serde(default)]
    pub latency_us: Sketch,
    /// Answers by confidence in 20 equal bins of [0, 1].
    #[serde(default)]
    pub confidence: Counts,
    /// Answers by predicted class.
    #[serde(default)]
    pub classes: Counts,
    /// Labels that arrived while the window was open, whenever the answer was given.
    #[serde(default)]
    pub confusion: Confusion,
    /// Paired evidence, while there is a second release on the same inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<PairCounts>,
    /// Digest of the reference profile whose bins `features` counts on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Digest>,
    /// Counts of every feature's bins, feature after feature in the profile's order.
    #[serde(default)]
    pub features: Counts,
    /// Mean lag-1 autocorrelation of the features, parts per million: what the effective sample size is
    /// deflated by.
    #[serde(default)]
    pub autocorrelation_ppm: i64,
    /// Resources.
    #[serde(default)]
    pub resources: ResourceUse,
}
