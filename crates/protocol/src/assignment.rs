use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{ClassName, DeviceId, LineUp, ProgramAssignment, TaskId};

/// How long a release is watched beside the one it replaces, and what ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// Least time, milliseconds.
    pub ms_min: u64,
    /// Least number of requests, unless fewer come until the deadline.
    pub requests_min: u64,
    /// Least number of inputs that both releases answered, unless fewer are there at the deadline; asked for only where
    /// there is a release to compare with. Zero asks for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pairs_min: u64,
    /// Most errors among the requests, parts per million.
    pub error_ppm_max: u32,
    /// Largest factor by which p99 latency may exceed the previous release's, percent.
    pub latency_percent_max: u32,
    /// Most resident memory of the agent, bytes; zero means no limit.
    pub rss_bytes_max: u64,
    /// Most disagreement with the previous release, parts per million; a million means no limit.
    pub disagree_ppm_max: u32,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What one task shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAssignment {
    /// The task.
    pub task: TaskId,
    /// Its models.
    pub lineup: LineUp,
    /// How a change is watched.
    pub probation: Probation,
    /// Wall time in Unix milliseconds by which it should be committed, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// `custom` of a director's targets role: what this device shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The device it is meant for; named even if `tasks` is empty.
    pub device: DeviceId,
    /// The hardware class it was chosen for; absent in assignments of controllers before this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ClassName>,
    /// Strictly rising per device.
    pub generation: u64,
    /// Echoed in every report about it.
    #[serde(default)]
    pub correlation: String,
    /// One entry per task.
    pub tasks: Vec<TaskAssignment>,
    /// The program that the device is to run as its agent; absent means whichever it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramAssignment>,
}
