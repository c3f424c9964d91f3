use dunlin_monitor::{drift, scope};
use serde::{Deserialize, Serialize};

/// How windows become evidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvidenceConfig {
    /// Length of the merged windows that drift is judged on, milliseconds; also the grain of what is kept of quality.
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
    /// How far back accuracy, errors and latency are kept at most, milliseconds; a task whose choices look back less
    /// far keeps less.
    pub quality_ms: u64,
    /// How far back paired evidence is kept, milliseconds: longer than any roll-out.
    pub pairs_ms: u64,
}

impl EvidenceConfig {
    /// For how long a judgement of inputs says something about the present, milliseconds: twice the memory of the
    /// votes.
    pub fn drift_memory_ms(&self) -> u64 {
        2 * u64::from(self.votes_of.max(1)) * self.window_ms + self.lateness_ms
    }
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
