//! The machine of one run.
use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::Now;
use serde::{Deserialize, Serialize};

use crate::{STEPS, StepKind};

/// A line of the journal: a fact that is durable before anything follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// A step was started.
    Started {
        /// The step.
        step: StepKind,
        /// Its try, from 1.
        attempt: u32,
    },
    /// A step was done.
    Done {
        /// The step.
        step: StepKind,
        /// What later steps need of it; at most some KiB, the rest lies in the run's folder.
        output: String,
    },
    /// A try failed.
    Failed {
        /// The step.
        step: StepKind,
        /// Its try.
        attempt: u32,
        /// Why.
        error: String,
        /// Whether no other try can succeed.
        fatal: bool,
    },
    /// A step found that there is nothing to deploy.
    NoGain {
        /// The step.
        step: StepKind,
        /// The numbers.
        output: String,
    },
    /// Somebody cancelled the run.
    Cancelled {
        /// Who.
        by: String,
    },
    /// Somebody gave the failed step its tries back.
    Restarted {
        /// Who.
        by: String,
    },
}

/// A fact the shell reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step did its work.
    StepDone {
        /// The step.
        step: StepKind,
        /// The try that did.
        attempt: u32,
        /// What later steps need of it.
        output: String,
    },
    /// A step found nothing to deploy: a good end.
    StepFoundNoGain {
        /// The step.
        step: StepKind,
        /// The try that did.
        attempt: u32,
        /// The numbers.
        output: String,
    },
    /// A try failed.
    StepFailed {
        /// The step.
        step: StepKind,
        /// The try.
        attempt: u32,
        /// Why.
        error: String,
        /// Whether no other try can succeed.
        fatal: bool,
    },
    /// The time of [`Run::poll_timeout`] came.
    TimePassed,
    /// Somebody cancelled the run.
    Cancelled {
        /// Who.
        by: String,
    },
    /// Somebody wants the failed step tried again.
    RestartOrdered {
        /// Who.
        by: String,
    },
}

/// An order to the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make this line durable before anything else.
    Persist(Entry),
    /// Run a step. After a restart the same try may be ordered again: whatever is left of it is ended first.
    Start {
        /// The step.
        step: StepKind,
        /// The try.
        attempt: u32,
    },
    /// End whatever runs.
    Stop,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Steps are left.
    Running,
    /// Every step is done.
    Succeeded,
    /// Nothing worth deploying came out.
    NoGain {
        /// The numbers.
        output: String,
    },
    /// A step used up its tries.
    Failed {
        /// The step.
        step: StepKind,
        /// Its last error.
        error: String,
    },
    /// Cancelled.
    Cancelled {
        /// By whom.
        by: String,
    },
}

impl RunState {
    /// One word for lists and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::NoGain { .. } => "no_gain",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }
}

/// Why an event was ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// The run has ended.
    #[error("the run has ended")]
    Ended,
    /// Another try runs, or none.
    #[error("that try of the step is not running")]
    NotRunning,
    /// Only a failed run is restarted.
    #[error("the run has not failed")]
    NotFailed,
}

/// How a step stands. No entry: not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Running { attempt: u32 },
    Waiting { attempts: u32, until_mono_ms: u64 },
    Done { output: String },
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    steps: BTreeMap<StepKind, Standing>,
    state: RunState,
    commands: VecDeque<Command>,
}

impl Run {
    /// Takes a run up where its journal ends; an empty journal begins it. A step whose end is not in the
    /// journal is ordered again as the same try: a cut never counts as a failure.
    pub fn restore(journal: &[Entry], now: Now) -> Self {
        let mut run = Self { steps: BTreeMap::new(), state: RunState::Running, commands: VecDeque::new() };
        for entry in journal {
            run.apply(entry, now);
        }
        if run.state == RunState::Running {
            let running = STEPS.iter().filter_map(|step| match run.steps.get(&step.kind) {
                Some(Standing::Running { attempt }) => {
                    Some(Command::Start { step: step.kind, attempt: *attempt })
                }
                Some(Standing::Waiting { .. } | Standing::Done { .. }) | None => None,
            });
            run.commands = running.collect();
        }
        run.advance(now);
        run
    }

    /// Takes note of a fact. One that does not fit changes nothing.
    pub fn handle(&mut self, event: Event, now: Now) -> Result<(), Ignored> {
        match event {
            Event::StepDone { step, attempt, output } => {
                self.expect_running(step, attempt)?;
                self.note(Entry::Done { step, output }, now);
            }
            Event::StepFoundNoGain { step, attempt, output } => {
                self.expect_running(step, attempt)?;
                self.note(Entry::NoGain { step, output }, now);
            }
            Event::StepFailed { step, attempt, error, fatal } => {
                self.expect_running(step, attempt)?;
                self.note(Entry::Failed { step, attempt, error, fatal }, now);
            }
            Event::TimePassed => {}
            Event::Cancelled { by } => {
                if self.state != RunState::Running {
                    return Err(Ignored::Ended);
                }
                self.note(Entry::Cancelled { by }, now);
                self.commands.push_back(Command::Stop);
            }
            Event::RestartOrdered { by } => match self.state {
                RunState::Failed { .. } => self.note(Entry::Restarted { by }, now),
                RunState::Running
                | RunState::Succeeded
                | RunState::NoGain { .. }
                | RunState::Cancelled { .. } => {
                    return Err(Ignored::NotFailed);
                }
            },
        }
        self.advance(now);
        Ok(())
    }

    /// The next order. Drain them before the next event.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Monotonic milliseconds at which [`Event::TimePassed`] is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        let waits = self.steps.values().filter_map(|standing| match standing {
            Standing::Waiting { until_mono_ms, .. } => Some(*until_mono_ms),
            Standing::Running { .. } | Standing::Done { .. } => None,
        });
        waits.min().filter(|_| self.state == RunState::Running)
    }

    /// Where it stands.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// What a step that is done left for later ones.
    pub fn output(&self, step: StepKind) -> Option<&str> {
        match self.steps.get(&step) {
            Some(Standing::Done { output }) => Some(output),
            Some(Standing::Running { .. } | Standing::Waiting { .. }) | None => None,
        }
    }

    fn expect_running(&self, step: StepKind, attempt: u32) -> Result<(), Ignored> {
        if self.state != RunState::Running {
            return Err(Ignored::Ended);
        }
        let fits = self.steps.get(&step) == Some(&Standing::Running { attempt });
        if fits { Ok(()) } else { Err(Ignored::NotRunning) }
    }

    fn note(&mut self, entry: Entry, now: Now) {
        self.apply(&entry, now);
        self.commands.push_back(Command::Persist(entry));
    }

    fn apply(&mut self, entry: &Entry, now: Now) {
        match entry {
            Entry::Started { step, attempt } => {
                self.steps.insert(*step, Standing::Running { attempt: *attempt });
            }
            Entry::Done { step, output } => {
                self.steps.insert(*step, Standing::Done { output: output.clone() });
                if STEPS.iter().all(|step| matches!(self.steps.get(&step.kind), Some(Standing::Done { .. })))
                {
                    self.state = RunState::Succeeded;
                }
            }
            Entry::Failed { step, attempt, error, fatal } => {
                let rules = step.step();
                if *fatal || *attempt >= rules.attempts_max {
                    self.state = RunState::Failed { step: *step, error: error.clone() };
                }
                let wait_ms = rules.backoff_ms.saturating_mul(1 << attempt.saturating_sub(1).min(16));
                let until_mono_ms = now.mono_ms.saturating_add(wait_ms);
                self.steps.insert(*step, Standing::Waiting { attempts: *attempt, until_mono_ms });
            }
            Entry::NoGain { step, output } => {
                self.steps.insert(*step, Standing::Done { output: output.clone() });
                self.state = RunState::NoGain { output: output.clone() };
            }
            Entry::Cancelled { by } => self.state = RunState::Cancelled { by: by.clone() },
            Entry::Restarted { .. } => {
                self.state = RunState::Running;
                self.steps.retain(|_, standing| match standing {
                    Standing::Waiting { .. } => false,
                    Standing::Running { .. } | Standing::Done { .. } => true,
                });
            }
        }
    }

    /// Starts every step that can.
    fn advance(&mut self, now: Now) {
        if self.state != RunState::Running {
            return;
        }
        for step in STEPS {
            let attempt = match self.steps.get(&step.kind) {
                None => 1,
                Some(Standing::Waiting { attempts, until_mono_ms }) if now.mono_ms >= *until_mono_ms => {
                    attempts + 1
                }
                Some(Standing::Waiting { .. } | Standing::Running { .. } | Standing::Done { .. }) => continue,
            };
            let ready =
                step.needs.iter().all(|need| matches!(self.steps.get(need), Some(Standing::Done { .. })));
            if ready {
                self.note(Entry::Started { step: step.kind, attempt }, now);
                self.commands.push_back(Command::Start { step: step.kind, attempt });
            }
        }
    }
}

#[cfg(test)]
mod tests;
