//! Which release a device should run, and why not the others.
//!
//! Hard limits first, then a utility with stated weights on what is known: measured on this device, else on its
//! class, else predicted by the bundle, each shrunk towards the next so that a few samples do not swing a choice.
//! A change has to pay for itself with high probability ([`Switching`]), so that noise never makes a device flap.
//!
//! It deliberately sends nothing, learns nothing and explores nothing: new releases are tried in the waves of a
//! rollout, whose gates judge them ([`Standing::Trial`]).
//!
//! Invariants:
//! - Same input, same bytes out; the order of the candidates does not matter and ties go to the smaller id.
//! - A release that no limit admits changes nothing about the choice among the others.
//! - Tightening a limit never makes a release eligible.
//! - Every candidate leaves a row: its score in parts, or every constraint that removed it.
//!
//! ```
//! use dunlin_protocol::{Arch, Budgets, DeviceProfile, Hard, TaskType};
//! use dunlin_select::{Candidate, Device, Evidence, Policy, Predicted, Standing, select};
//!
//! let profile = DeviceProfile {
//!     class: "rpi-4".parse().unwrap(), arch: Arch::Aarch64, cores: 4, ram_bytes: 1 << 30, agent: "0.1.0".into(),
//!     budgets: Budgets { model_bytes_max: 1 << 20, model_ram_bytes_max: 1 << 25, latency_us_max: 5_000 },
//!     ops: Default::default(),
//! };
//! let candidate = |release: &str, accuracy_ppm, bundle_bytes| Candidate {
//!     release: release.parse().unwrap(), task_type: TaskType::Classification, standing: Standing::Approved,
//!     hard: Hard { arch: Default::default(), classes: Default::default(), ops: Default::default(), bundle_bytes, ram_bytes: 1 << 20, min_agent: String::new() },
//!     evidence: Evidence { predicted: Predicted { accuracy_ppm: Some(accuracy_ppm), rows: 500, latency_us: 300 }, ..Evidence::default() },
//! };
//! let candidates = [candidate("small@1", 900_000, 1 << 15), candidate("huge@1", 990_000, 1 << 30)];
//! let device = Device { profile: &profile, known_bad: &Default::default(), served_ms: None };
//! let selection = select(&device, &candidates, None, &Policy::new(TaskType::Classification));
//! assert_eq!(selection.chosen, Some("small@1".parse().unwrap()));
//! assert!(selection.explain().contains("huge@1: excluded: the bundle of 1073741824 bytes is over the budget of 1048576"));
//! ```
#![no_std]

extern crate alloc;

mod choose;
mod constraint;
mod explain;
mod policy;
mod score;

pub use choose::{Candidate, Device};
pub use choose::{Row, Selection, Standing, Verdict, Why, select};
pub use constraint::Constraint;
pub use policy::{Policy, Switching, Weights};
pub use score::{Earlier, Evidence, LatencySource, Measured, Predicted, Score};
