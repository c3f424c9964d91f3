//! From stored windows to what decisions stand on: sums per device and release, paired evidence for roll-out gates,
//! drift verdicts for triggers, and the evidence that selection weighs.
//!
//! One [`Ledger`] per task folds windows in the order of their arrival. Its state is a function of the rows, the
//! roster and the reference profiles alone: after a restart it is rebuilt by reading the same rows again.
//! A row that can not be read, or whose counts contradict one another, is skipped, counted and reported.
mod alert;
mod choice;
mod config;
mod drift;
mod ledger;
mod ledgers;
mod read;
mod subject;

pub use alert::{DRIFT, SENSOR_SUSPECT, WINDOW_SKIPPED, alert};
pub use choice::{Measures, predicted};
pub use config::EvidenceConfig;
pub use drift::{Drift, Finding};
pub use ledger::{Filter, Ledger, Row, Skipped, SkippedCount};
pub use ledgers::{Fleet, Ledgers};
pub use subject::{Place, Roster, Subject};

#[cfg(test)]
mod tests;
