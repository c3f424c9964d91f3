//! The agent's own program: what of it outlives the process, and what the installed program does with that at a start.
//!
//! Steps: `fetching → proving → trying`, and then it is the program of this device, or left. Two files at most are kept:
//! of the one that runs, and of the one that comes. The program that the board's image installed is the launcher of last
//! resort: every start begins with it, it counts the starts of one on trial before they are made, and where nothing else
//! can run it runs itself.
use alloc::string::{String, ToString};

use dunlin_protocol::{Blob, Digest, Now, Outcome, Phase, ReasonCode, ReleaseId};
use dunlin_trust::at_least;
use serde::{Deserialize, Serialize};

use crate::{DETAIL_CHARS_MAX, Journal, KNOWN_BAD_MAX, KnownBad, OUTBOX_MAX, Stop, Strikes, Tries};

/// A program that was signed for devices like this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The release.
    pub release: ReleaseId,
    /// The program itself.
    pub file: Blob,
    /// Release of the agent that its signers say it is.
    pub agent: String,
    /// How long it has after a start to reach its controller, milliseconds.
    pub reach_ms: u64,
    /// Generation of the assignment that named it.
    pub generation: u64,
    /// Correlation id of that assignment.
    pub correlation: String,
}

impl Program {
    /// A step of its update.
    pub(crate) fn outcome(&self, phase: Phase, reason: ReasonCode, detail: &str, now: Now) -> Outcome {
        Outcome {
            generation: self.generation,
            task: None,
            release: Some(self.release.clone()),
            correlation: self.correlation.clone(),
            phase,
            reason,
            detail: detail.to_string(),
            at_ms: now.wall_ms,
        }
    }
}

/// What is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenStep", into = "WrittenStep")]
pub enum ProgramStep {
    /// Nothing.
    #[default]
    Idle,
    /// The program is on its way to the store.
    Fetching {
        /// The program.
        program: Program,
        /// Attempts at it.
        tries: Tries,
    },
    /// It tests itself in a child process.
    Proving {
        /// The program.
        program: Program,
        /// Attempts at fetching it.
        tries: Tries,
        /// Ends of the process meanwhile.
        strikes: Strikes,
    },
    /// It runs at the next start, until it has reached its controller.
    Trying {
        /// The program.
        program: Program,
        /// Ends of the process since its first start.
        strikes: Strikes,
        /// The board's boot in which it was started last; empty before its first start.
        boot: String,
    },
}

/// A step as the journal holds it: one record for all, as readers of an enum of records would take three times the room in a
/// device's program.
#[derive(Serialize, Deserialize)]
struct WrittenStep {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    program: Option<Program>,
    tries: Tries,
    /// From its test on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strikes: Option<Strikes>,
    /// On trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

impl From<WrittenStep> for ProgramStep {
    fn from(WrittenStep { program, tries, strikes, boot }: WrittenStep) -> Self {
        match (program, strikes, boot) {
            (None, _, _) => Self::Idle,
            (Some(program), None, _) => Self::Fetching { program, tries },
            (Some(program), Some(strikes), None) => Self::Proving { program, tries, strikes },
            (Some(program), Some(strikes), Some(boot)) => Self::Trying { program, strikes, boot },
        }
    }
}

impl From<ProgramStep> for WrittenStep {
    fn from(step: ProgramStep) -> Self {
        let (program, tries, strikes, boot) = match step {
            ProgramStep::Idle => (None, Tries::default(), None, None),
            ProgramStep::Fetching { program, tries } => (Some(program), tries, None, None),
            ProgramStep::Proving { program, tries, strikes } => (Some(program), tries, Some(strikes), None),
            ProgramStep::Trying { program, strikes, boot } => {
                (Some(program), Tries::default(), Some(strikes), Some(boot))
            }
        };
        Self { program, tries, strikes, boot }
    }
}

impl ProgramStep {
    /// The program that it is about.
    pub fn program(&self) -> Option<&Program> {
        match self {
            Self::Idle => None,
            Self::Fetching { program, .. } | Self::Proving { program, .. } | Self::Trying { program, .. } => {
                Some(program)
            }
        }
    }
}

/// Where the agent's program stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramState {
    /// Generation of the last assignment whose word about the program was taken up.
    pub(crate) judged: u64,
    /// What runs; `None` for the installed one.
    pub(crate) committed: Option<Program>,
    /// What is under way.
    pub(crate) step: ProgramStep,
}

impl ProgramState {
    /// Whether no assignment ever named a program.
    pub(crate) fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// What runs, if it is not the installed program.
    pub fn committed(&self) -> Option<&Program> {
        self.committed.as_ref()
    }

    /// What is under way.
    pub fn step(&self) -> &ProgramStep {
        &self.step
    }

    /// Files that must stay in the store.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Blob> {
        self.committed.iter().chain(self.step.program()).map(|program| &program.file)
    }
}

/// A program to be started in the installed one's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The program.
    pub program: Program,
    /// Whether it has yet to reach its controller.
    pub trial: bool,
}

impl Journal {
    /// Where the agent's program stands.
    pub fn program(&self) -> &ProgramState {
        &self.program
    }

    /// Which program is to run: asked by the installed one at its start, with the id of the board's boot and its own release.
    /// A start of a program on trial is counted here, so that the journal has to be durable before it is made. A trial does not
    /// begin where updates are to `hold`, nor beside a model's probation: two things that change at one time would be two causes
    /// of one failure.
    pub fn launch(&mut self, boot: &str, own: &str, hold: bool, now: Now) -> Option<Launch> {
        let held = hold || self.tasks.values().any(|state| state.step.phase() == Phase::Probation);
        if let ProgramStep::Trying { program, strikes, boot: last } = &mut self.program.step
            && !(held && last.is_empty())
        {
            let stop = match last.as_str() {
                "" => Stop::Orderly,
                same if same == boot => Stop::Crashed,
                _ => Stop::PowerLost,
            };
            let over = strikes.add(stop);
            *last = boot.to_string();
            if over {
                self.leave_program(
                    ReasonCode::CrashLoop,
                    "it ended again and again before it was heard",
                    now,
                );
            } else if at_least(&program.agent, own) {
                return Some(Launch { program: program.clone(), trial: true });
            } else {
                self.leave_program(ReasonCode::ProgramOlder, "", now);
            }
        }
        let program = self.program.committed.clone()?;
        if !at_least(&program.agent, own) {
            // The board's image brought a newer one.
            self.program.committed = None;
            self.tell(program.outcome(Phase::RolledBack, ReasonCode::ProgramOlder, "", now));
            return None;
        }
        Some(Launch { program, trial: false })
    }

    /// A program that [`Journal::launch`] named could not be started; it is left for what ran before. One that was committed did
    /// nothing wrong, so that the next check may have it fetched and tried again.
    pub fn launch_failed(&mut self, launch: &Launch, reason: ReasonCode, detail: &str, now: Now) {
        if launch.trial {
            self.leave_program(reason, detail, now);
        } else {
            (self.program.committed, self.program.judged) = (None, 0);
            self.tell(launch.program.outcome(Phase::RolledBack, reason, detail, now));
        }
    }

    /// The time of a program on trial is over, and it did not end itself. False if it is not on trial any more.
    pub fn overdue(&mut self, file: Digest, now: Now) -> bool {
        let tried =
            matches!(&self.program.step, ProgramStep::Trying { program, .. } if program.file.digest == file);
        if tried {
            self.leave_program(ReasonCode::ControllerUnreached, "it hung until its time was over", now);
        }
        tried
    }

    /// Leaves the program that is under way by its own fault.
    pub(crate) fn leave_program(&mut self, reason: ReasonCode, detail: &str, now: Now) {
        let step = core::mem::take(&mut self.program.step);
        let phase = match &step {
            ProgramStep::Trying { .. } => Phase::RolledBack,
            ProgramStep::Idle | ProgramStep::Fetching { .. } | ProgramStep::Proving { .. } => Phase::Failed,
        };
        if let Some(program) = step.program() {
            self.remember_bad(&program.release, reason);
            self.tell(program.outcome(phase, reason, detail, now));
        }
    }

    /// Puts an outcome into the outbox.
    pub(crate) fn tell(&mut self, mut outcome: Outcome) {
        outcome.detail = outcome.detail.chars().take(DETAIL_CHARS_MAX).collect();
        if self.outbox.len() >= OUTBOX_MAX {
            self.outbox.pop_front();
        }
        self.outbox.push_back((self.next_seq, outcome));
        self.next_seq += 1;
    }

    pub(crate) fn remember_bad(&mut self, release: &ReleaseId, reason: ReasonCode) {
        self.known_bad.retain(|bad| bad.release != *release);
        if self.known_bad.len() >= KNOWN_BAD_MAX {
            self.known_bad.pop_front();
        }
        self.known_bad.push_back(KnownBad { release: release.clone(), reason });
    }
}
