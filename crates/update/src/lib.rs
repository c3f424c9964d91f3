//! The update machine of a device: which release of which task is fetched, proved, tried, kept or left.
//!
//! It decides and nothing else. It opens no file and no socket, reads no clock, starts no process, and checks
//! no signature: `dunlin-trust` does, and only its [`Verified`](dunlin_trust::Verified) assignments get in.
//! The shell feeds it facts ([`Event`]) and carries out its orders ([`Command`]).
//!
//! The laws, each of which is a test:
//! - Orders are drained before the next fact is told; [`Command::Persist`] is durable before any later order
//!   is carried out.
//! - A machine restored from any persisted journal gives every order again that the journal's own run gave
//!   after it: a power cut costs time, never a step, and is no failure.
//! - A fact that does not fit the state is ignored with a reason ([`Ignored`]); nothing panics.
//! - At every instant each task has a designation: a release that was proved on this device, or the constant
//!   baseline. A release is left only for one that was proved, or for its predecessor.
//! - A new champion is watched on probation, which ends by a commit or without that champion. What befalls the rest of its
//!   line-up neither ends nor skips it.
//! - By the fault of a member nothing goes but that member and what can not be without it, and it is told of that member.
//! - Tasks are independent: what happens to one changes no other.
//! - A process that dies again and again soon after its start leaves every line-up, even one that was committed: first its
//!   members, then all of it for its predecessor.
//! - What failed here by its own fault is remembered and refused until an operator retargets it.
//! - The agent's own program is replaced by one that tested itself here, and stays replaced only once the controller has
//!   acknowledged a record of it. The number of starts without that is bounded, and counted before each.
//!
//! Phases: `assigned → fetching → verifying → staged → proving → probation → committed`, and from any of them
//! `rolled_back | failed | rejected | deferred | superseded`.
//!
//! ```
//! use dunlin_protocol::{Budgets, Now};
//! use dunlin_update::{Command, Event, Journal, Setup, Stop, Updater};
//!
//! let budgets = Budgets { model_bytes_max: 1 << 20, model_ram_bytes_max: 1 << 24, latency_us_max: 5_000 };
//! let now = Now { mono_ms: 0, wall_ms: None };
//! let mut updater = Updater::restore(Journal::default(), Setup { budgets, seed: 7, program: None }, now);
//! updater.handle(Event::ProcessStarted(Stop::Orderly), now).unwrap();
//! let mut orders = std::iter::from_fn(|| updater.poll_command());
//! assert!(orders.all(|order| matches!(order, Command::Persist(_) | Command::DropBlobs { .. })));
//! ```
#![no_std]

extern crate alloc;

mod backoff;
mod checks;
mod command;
mod event;
mod goal;
mod guard;
mod journal;
mod line;
mod machine;
mod program;
mod step;
mod steps;
mod strikes;

#[cfg(test)]
mod laws;

pub use backoff::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};
pub use command::{Command, Terms};
pub use event::{Event, Fault, Ignored, Proof, Stop};
pub use goal::{FileRef, Goal, Part};
pub use guard::{Breach, Observed, PAIRED_MIN, REQUESTS_MIN, TAIL_MIN, breach};
pub use journal::{
    JOURNAL_BYTES_MAX, JOURNAL_FORMAT, Journal, JournalError, KNOWN_BAD_MAX, KnownBad, OUTBOX_MAX,
};
pub use line::{Designation, Line, Pack, Record, RecordError, Slot};
pub use machine::{DETAIL_CHARS_MAX, GUARD_EVERY_MS, Setup, Updater, WRONG_MAX};
pub use program::{Launch, Program, ProgramState, ProgramStep};
pub use step::{Item, Step, Tries, Work};
pub use strikes::{CALM_MS, CRASHES_MAX, RESETS_MAX, Strikes};
