use alloc::collections::BTreeSet;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::ClassName;

/// Processor architectures that agents are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Arch {
    Aarch64,
    Armv7,
    X86_64,
    Riscv64,
}

/// What the device may spend on one model; hard limits of selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budgets {
    /// Largest bundle, bytes.
    pub model_bytes_max: u64,
    /// Memory for one loaded model, bytes.
    pub model_ram_bytes_max: u64,
    /// Median latency of one request, microseconds.
    pub latency_us_max: u64,
}

/// What a device is and can do. A board file is one of these plus build and test settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Hardware class.
    pub class: ClassName,
    /// Architecture the agent was built for.
    pub arch: Arch,
    /// Processor cores.
    pub cores: u32,
    /// Physical memory, bytes.
    pub ram_bytes: u64,
    /// Limits for one model.
    pub budgets: Budgets,
    /// ONNX operators this agent runs right, as `domain/Name` (`ai.onnx/Gemm`).
    #[serde(default)]
    pub ops: BTreeSet<String>,
    /// Release of the agent.
    #[serde(default)]
    pub agent: String,
}
