use dunlin_monitor::{drift, scope};
use serde::{Deserialize, Serialize};

/// How windows become evidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvidenceConfig {
    /// Length of the merged windows that drift is judged on, milliseconds.
    pub window_ms: u64,
    /// How long after its end a merged window waits for stragglers, milliseconds.
    pub lateness_ms: u64,
    /// Drifted windows that make a verdict ...
    pub votes: u32,
    /// ... of this many.
    pub votes_of: u32,
    /// When the inputs of one window count as drifted.
    pub drift: drift::Limits,
    /// When drift of devices is drift of their group or of the fleet.
    pub scope: scope::Limits,
    /// How far back accuracy, errors and latency are kept, milliseconds.
    pub quality_ms: u64,
    /// How far back paired evidence is kept, milliseconds: longer than any roll-out.
    pub pairs_ms: u64,
}

impl Default for EvidenceConfig {
    /// Fifteen minutes, three of five windows, a day of quality, thirty days of pairs.
    fn default() -> Self {
        Self {
            window_ms: 15 * 60_000,
            lateness_ms: 2 * 60_000,
            votes: 3,
            votes_of: 5,
            drift: drift::Limits::default(),
            scope: scope::Limits::default(),
            quality_ms: 86_400_000,
            pairs_ms: 30 * 86_400_000,
        }
    }
}
