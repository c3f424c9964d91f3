//! When to retrain, whose turn it is, what a run does next, and whether its result is worth deploying.
//!
//! - [`consider`] weighs the triggers of a task: threshold, drift, schedule, new labels, operator.
//! - [`Queue`] holds waiting runs under a cap and shares the workers fairly among owners.
//! - [`Run`] is the machine of one run: a graph of steps as data, resumed from its journal.
//! - [`compare`] is the last gate: no significant gain, no deployment.
//!
//! The crate deliberately trains nothing, starts no process and reads no clock; every "no" is a value that
//! says why.
//!
//! Invariants:
//! - Replaying a run's journal at any cut reaches the same next command.
//! - A failed step restarts alone, up to its bound; steps that are done are never done again.
//! - Commands are drained before the next event, and [`Command::Persist`] is durable before any later one.
//!
//! ```
//! use dunlin_pipeline::{Compared, Gain, compare};
//! let gate = Gain { alpha_ppm: 50_000, gain_ppm_min: 10_000, rows_min: 50 };
//! let verdict = compare(&gate, &Compared { both_right: 150, only_new: 30, only_old: 4, both_wrong: 16 });
//! assert!(verdict.deploys());
//! assert!(!compare(&gate, &Compared { both_right: 190, only_new: 5, only_old: 4, both_wrong: 1 }).deploys());
//! ```

mod cron;
mod gate;
mod queue;
mod run;
mod step;
mod trigger;

pub use cron::{Schedule, ScheduleError};
pub use gate::{Compared, Gain, GainVerdict, NoGain, Numbers, compare};
pub use queue::{Queue, QueueRefusal, Ticket, WAITING_MAX};
pub use run::{Command, Entry, Event, Ignored, Run, RunState};
pub use step::{STEPS, Step, StepKind};
pub use trigger::{
    AccuracyLimit, Cause, Decision, DriftFact, Facts, Hold, Outcome, Quiet, Row, Triggers, Verdict, consider,
};
