use serde::{Deserialize, Serialize};

/// A step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Freezes the labelled samples as a dataset snapshot.
    Pull,
    /// Refuses a snapshot that can not give a model: too few rows, a class missing.
    Validate,
    /// Splits, preprocesses and searches, in a worker process that keeps finished trials over a restart.
    Search,
    /// Checks what the worker wrote as hostile input.
    Verify,
    /// New models against the incumbents on rows that none of the new ones saw.
    Compare,
    /// Makes releases of the models that passed, and signs them with the confined key.
    Register,
    /// Creates the rollout.
    RollOut,
}

impl StepKind {
    /// The name, as in the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Validate => "validate",
            Self::Search => "search",
            Self::Verify => "verify",
            Self::Compare => "compare",
            Self::Register => "register",
            Self::RollOut => "roll_out",
        }
    }
}

/// A node of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// Steps that must be done before.
    pub needs: &'static [StepKind],
    /// Tries in all. Steps on our own disk and database fail for reasons that pass; a worker that dies three
    /// times will die a fourth.
    pub attempts_max: u32,
    /// Wait before the second try, milliseconds; doubled for each further one.
    pub backoff_ms: u64,
}

/// The graph of a retraining run, in an order that respects it.
pub const STEPS: &[Step] = &[
    Step { kind: StepKind::Pull, needs: &[], attempts_max: 5, backoff_ms: 1_000 },
    Step { kind: StepKind::Validate, needs: &[StepKind::Pull], attempts_max: 2, backoff_ms: 1_000 },
    Step { kind: StepKind::Search, needs: &[StepKind::Validate], attempts_max: 3, backoff_ms: 2_000 },
    Step { kind: StepKind::Verify, needs: &[StepKind::Search], attempts_max: 2, backoff_ms: 1_000 },
    Step { kind: StepKind::Compare, needs: &[StepKind::Verify], attempts_max: 3, backoff_ms: 1_000 },
    Step { kind: StepKind::Register, needs: &[StepKind::Compare], attempts_max: 5, backoff_ms: 1_000 },
    Step { kind: StepKind::RollOut, needs: &[StepKind::Register], attempts_max: 5, backoff_ms: 1_000 },
];

impl StepKind {
    /// Its node.
    pub fn step(self) -> &'static Step {
        STEPS.iter().find(|step| step.kind == self).expect("the graph holds every kind of step")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_comes_after_what_it_needs() {
        for (place, step) in STEPS.iter().enumerate() {
            for need in step.needs {
                assert!(STEPS[..place].iter().any(|before| before.kind == *need), "{:?}", step.kind);
            }
            assert!(step.attempts_max > 0);
            assert_eq!(serde_json::to_value(step.kind).unwrap(), step.kind.as_str());
        }
    }
}
