//! How a set of releases reaches a fleet: wave after wave, each behind a gate that may be looked at as
//! often as one likes.
//!
//! [`plan`] is a pure function: policy, inventory and the last plan in, the next plan and a report out. A
//! plan is immutable data with a generation and a parent; whoever executes it stores it first and may run it
//! any number of times. Operators act through [`Plan::order`], which also only makes a new plan.
//!
//! The crate deliberately does not choose which candidate a device gets (`dunlin-select` does, among the
//! candidates of the rollouts a device is *open* to), sends nothing and knows no clock.
//!
//! Invariants:
//! - A device outside the opened waves is never open to a candidate, whatever the evidence says.
//! - A wave holds every device of the waves before it, and at least one device of every class.
//! - Too little evidence is [`Verdict::Wait`] with what is missing, never a pass.
//! - Silence past its deadline counts as a failure.
//! - A stopped, promoted or superseded rollout never moves again.
//!
//! ```
//! use dunlin_protocol::Now;
//! use dunlin_rollout::{Inventory, Member, Plan, Policy, Stance, plan};
//!
//! let devices = (0..24).map(|i| (format!("cam-{i}").parse().unwrap(), Member::idle("rpi-4".parse().unwrap())));
//! let inventory = Inventory { devices: devices.collect() };
//! let first = Plan::new("r-1", "meter".parse().unwrap(), ["auto.meter.mlp@2".parse().unwrap()], "drift");
//! let now = Now { mono_ms: 0, wall_ms: Some(1_000) };
//! let (next, report) = plan(&Policy::default(), &inventory, &first, now);
//! let open = inventory.devices.keys().filter(|device| next.stance(device) == Stance::Open).count();
//! assert_eq!((open, next.parent), (1, Some(first.generation)));
//! assert_eq!(report.wave, Some(0));
//! ```
#![no_std]

extern crate alloc;

mod evidence;
mod inventory;
mod order;
mod plan;
mod planner;
mod policy;
pub mod sequential;
mod wave;
mod words;

pub use evidence::{Evidence, Quality, Unit};
pub use inventory::{Inventory, Member, Paired, Progress};
pub use order::{Order, OrderError};
pub use plan::{Failure, Plan, Previous, Stance, State, StopReason};
pub use planner::{Report, Tally, Verdict, WaitingOn, plan};
pub use policy::{Policy, PolicyError, Wave, Window};
pub use wave::{members, size};
