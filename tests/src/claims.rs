//! What the demonstration claims, one function for each claim: `Ok` with the evidence, or why it does not hold.
//!
//! The demonstration and the end-to-end tests call these, and `tests/tests/e2e/controls.rs` calls the same ones with the defence behind
//! each switched off, where they must not hold.

mod attacks;
mod books;
mod cuts;
mod fleet;
mod learning;
mod rollout;
mod samples;
mod signed;

pub use attacks::{
    every_device_serves, last_indicator, never_answered, no_model_moved, refused, serving, tampering_refused,
};
pub use books::{accounted_for, delivered};
pub use cuts::{Cut, audit_whole, committed, not_blamed, resumed, schedule_fired};
pub use fleet::{explained, families, kept_out, own_key_and_signed_model};
pub use learning::{
    Measured, confined, drift_seen, gained, no_drift_seen, not_retrained_stayed, recovered, show,
    started_by_itself, total,
};
pub use rollout::{
    Canary, by_class, canary, choice_differs, in_waves, only_the_canary_ran, promoted, reached_all_by_itself,
    returned, stopped, taken_up, told_to_pipelines, went_on,
};
pub use samples::{labelled, learnt_from_devices};

/// The evidence for a claim, or why it does not hold.
pub type Claim = anyhow::Result<String>;

fn holds(held: bool, evidence: String) -> Claim {
    if held { Ok(evidence) } else { Err(anyhow::Error::msg(evidence)) }
}
