use dunlin_protocol::weaken::{self, Defence};
use serde::{Deserialize, Serialize};

use crate::Stop;

/// Deaths of the process that end a trial. One can be chance; three in one trial are its doing.
pub const CRASHES_MAX: u32 = 3;
/// Resets of the whole board that end a trial. Power cuts are no fault of a model, so the bound is loose; but a
/// model that hangs the board looks just like them and must not do so for ever.
pub const RESETS_MAX: u32 = 10;

/// A process that has lived so long, milliseconds, is in no crash loop: deaths before its start are forgotten.
pub const CALM_MS: u64 = 600_000;

/// How often the agent ended while a release was proved, switched to or on probation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strikes {
    /// Deaths of the process.
    pub crashes: u32,
    /// Resets or power cuts.
    pub resets: u32,
}

impl Strikes {
    /// Counts one more end of the process; whether that was one too many.
    pub(crate) fn add(&mut self, stop: Stop) -> bool {
        match stop {
            Stop::Orderly => {}
            Stop::Crashed => self.crashes += 1,
            Stop::PowerLost => self.resets += 1,
        }
        let unforgiven = stop != Stop::Orderly && weaken::off(Defence::Strikes);
        self.crashes >= CRASHES_MAX || self.resets >= RESETS_MAX || unforgiven
    }
}
