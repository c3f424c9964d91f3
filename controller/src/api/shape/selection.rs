use serde::Serialize;
use utoipa::ToSchema;

use super::{Arch, TaskType};

/// What each part of the utility is worth; what is left out has its default.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weights {
    /// Of the share of right answers, failures counted as wrong.
    #[serde(default)]
    accuracy: f64,
    /// Of the share of the latency limit that is used.
    #[serde(default)]
    latency: f64,
    /// Of the share of the size budget that is used.
    #[serde(default)]
    bytes: f64,
    /// Of one busy core: the proxy for energy.
    #[serde(default)]
    energy: f64,
}

/// When a better release is worth the change; what is left out has its default.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Switching {
    /// Requests over which a change has to pay for itself.
    #[serde(default)]
    horizon_requests: f64,
    /// What a change costs whatever its size, in wrong answers.
    #[serde(default)]
    cost: f64,
    /// What a MiB to download costs, in wrong answers.
    #[serde(default)]
    cost_per_mib: f64,
    /// Probability with which the gain has to exceed the cost.
    #[serde(default)]
    probability_min: f64,
    /// Least time between two changes, milliseconds.
    #[serde(default)]
    dwell_ms: u64,
}

/// A choice with its reasons.
#[derive(Serialize, ToSchema)]
pub(crate) struct Selection {
    /// The release to run; none means the constant baseline.
    chosen: Option<String>,
    /// Why.
    why: Why,
    /// One row per candidate, by release.
    rows: Vec<CandidateRow>,
}

/// Why the choice is what it is.
#[derive(Serialize, ToSchema)]
#[serde(tag = "why", rename_all = "snake_case")]
pub(crate) enum Why {
    /// No candidate is eligible: the constant baseline answers.
    NoneEligible,
    /// Nothing serves yet, so the highest score wins.
    First,
    /// What serves is not eligible any more, so the highest score wins at once.
    CurrentIneligible,
    /// A rollout tries it here.
    Trial,
    /// What serves has the highest score.
    Best,
    /// Something scores higher, but what serves has not served long enough.
    Dwell {
        /// What scores highest.
        challenger: String,
        /// How long the current release has served, milliseconds.
        served_ms: u64,
        /// How long it shall serve, milliseconds.
        dwell_ms: u64,
    },
    /// Something scores higher, but it is not sure enough that a change pays.
    NotSure {
        /// What scores highest.
        challenger: String,
        /// Probability that the change pays.
        probability: f64,
        /// What is asked for.
        needed: f64,
    },
    /// A change pays.
    Better {
        /// Probability that it does.
        probability: f64,
    },
}

/// One candidate's row.
#[derive(Serialize, ToSchema)]
pub(crate) struct CandidateRow {
    /// The release.
    release: String,
    /// What became of it.
    verdict: CandidateVerdict,
}

/// What became of a candidate.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CandidateVerdict {
    /// It could be chosen, with this score.
    Eligible(Score),
    /// Everything that keeps it out.
    Excluded(Vec<Constraint>),
}

/// A utility and what it is made of.
#[derive(Serialize, ToSchema)]
pub(crate) struct Score {
    /// What candidates are ranked by: the utility less one standard deviation.
    cautious: f64,
    /// Expected utility: the sum of the four parts.
    utility: f64,
    /// Standard deviation of the utility, from the accuracy's.
    deviation: f64,
    /// Expected share of right answers, shrunk; failures count as wrong.
    accuracy: f64,
    /// Labelled answers behind it, on the device and on the class.
    labels: (u64, u64),
    /// Earlier ones, on both.
    labels_earlier: u64,
    /// Part of the accuracy.
    accuracy_part: f64,
    /// Median latency, microseconds.
    latency_us: u64,
    /// Where that comes from.
    latency_source: LatencySource,
    /// Part of the latency, not positive.
    latency_part: f64,
    /// Part of the bundle's size, not positive.
    bytes_part: f64,
    /// Part of the energy proxy, not positive.
    energy_part: f64,
}

/// Where a latency comes from: measured in service on the device, measured while proving there, measured on its class, or
/// predicted by the bundle.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LatencySource {
    Device,
    Proof,
    Class,
    Predicted,
}

/// What keeps a release from a device, with the numbers that say so.
#[derive(Serialize, ToSchema)]
#[serde(tag = "constraint", rename_all = "snake_case")]
pub(crate) enum Constraint {
    /// Made for another kind of task.
    TaskType { needs: TaskType, has: TaskType },
    /// Not built for the architecture.
    Arch { device: Arch },
    /// Not approved for the hardware class.
    Class { device: String },
    /// Operators the agent does not run.
    Ops { missing: Vec<String> },
    /// The agent is too old.
    Agent { needs: String, has: String },
    /// Too much memory.
    Ram { bytes: u64, budget: u64 },
    /// Too large a bundle.
    Size { bytes: u64, budget: u64 },
    /// Too slow, microseconds.
    Latency { us: u64, limit: u64, source: LatencySource },
    /// Surely not accurate enough on this device.
    Accuracy { upper_ppm: u32, minimum_ppm: u32, labels: u64 },
    /// Failed on this device before.
    KnownBad,
    /// Another release is pinned.
    NotPinned,
    /// The policy excludes it.
    Excluded,
    /// Withdrawn by its signers.
    Withdrawn,
    /// Stopped by a rollout or an operator.
    Quarantined,
    /// Its rollout has not reached this device.
    NotReached,
}
