use alloc::collections::BTreeSet;

use dunlin_protocol::{ReleaseId, TaskType};
use serde::{Deserialize, Serialize};

/// What each part of the utility is worth. The unit is the accuracy: with the defaults, a model that uses up the
/// whole latency budget has to be two points more accurate than one that needs no time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Of the share of right answers, failures counted as wrong.
    pub accuracy: f64,
    /// Of the share of the latency limit that is used.
    pub latency: f64,
    /// Of the share of the size budget that is used.
    pub bytes: f64,
    /// Of one busy core: the proxy for energy, as boards carry no meter.
    pub energy: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { accuracy: 1.0, latency: 0.02, bytes: 0.01, energy: 0.05 }
    }
}

/// When a better release is worth the change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switching {
    /// Requests over which a change has to pay for itself.
    pub horizon_requests: f64,
    /// What a change costs whatever its size, in wrong answers: cold caches, the risk of any change.
    pub cost: f64,
    /// What a MiB to download costs, in wrong answers.
    pub cost_per_mib: f64,
    /// Probability with which the gain has to exceed the cost.
    pub probability_min: f64,
    /// Least time between two changes, milliseconds.
    pub dwell_ms: u64,
}

impl Default for Switching {
    fn default() -> Self {
        Self {
            horizon_requests: 10_000.0,
            cost: 10.0,
            cost_per_mib: 1.0,
            probability_min: 0.9,
            dwell_ms: 600_000,
        }
    }
}

/// How releases of one task are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The kind of task.
    pub task_type: TaskType,
    /// Longest median latency, microseconds; the device's own budget applies besides.
    #[serde(default)]
    pub latency_us_max: Option<u64>,
    /// Least accuracy, parts per million; a release is out once its labels on this device say that it is surely below.
    #[serde(default)]
    pub accuracy_ppm_min: Option<u32>,
    /// The only release that may be chosen, if an operator said so.
    #[serde(default)]
    pub pinned: Option<ReleaseId>,
    /// Releases that are not to be chosen.
    #[serde(default)]
    pub excluded: BTreeSet<ReleaseId>,
    /// Requests an hour that energy is reckoned with.
    #[serde(default = "requests_per_hour")]
    pub requests_per_hour: f64,
    /// Weights of the utility.
    #[serde(default)]
    pub weights: Weights,
    /// Hysteresis.
    #[serde(default)]
    pub switching: Switching,
}

fn requests_per_hour() -> f64 {
    3600.0
}

impl Policy {
    /// Defaults for a kind of task.
    pub fn new(task_type: TaskType) -> Self {
        Self {
            task_type,
            latency_us_max: None,
            accuracy_ppm_min: None,
            pinned: None,
            excluded: BTreeSet::new(),
            requests_per_hour: requests_per_hour(),
            weights: Weights::default(),
            switching: Switching::default(),
        }
    }
}
