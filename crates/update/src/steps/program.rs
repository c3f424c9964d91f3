//! What facts do to the agent's own program.
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use dunlin_protocol::{Digest, ModelName, Now, Outcome, Phase, ReasonCode, ReleaseId};
use dunlin_trust::{ApprovedProgram, Refusal};

use crate::machine::WITHDRAWN;
use crate::{Command, Fault, Ignored, Program, ProgramStep, Stop, Strikes, Tries, Updater, WRONG_MAX};

/// How long after a start a trial waits that could not begin with it: whatever held it back is not asked for more often.
const HELD_MS: u64 = 60_000;

impl Updater {
    /// After a start: one on trial has its time to reach the controller. If another program runs in its place, it could not be
    /// started, unless its trial is yet to begin.
    pub(crate) fn program_started(&mut self, stop: Stop, now: Now) {
        match &mut self.journal.program.step {
            ProgramStep::Idle | ProgramStep::Fetching { .. } => {}
            ProgramStep::Proving { strikes, .. } => {
                if strikes.add(stop) {
                    let detail = "the agent or the board went down again and again during its test";
                    self.leave_program(ReasonCode::ProofCrashed, detail, now);
                }
            }
            ProgramStep::Trying { boot, .. } if boot.is_empty() => {
                self.program_due_ms = Some(now.mono_ms.saturating_add(HELD_MS));
            }
            ProgramStep::Trying { program, .. } if self.runs == Some(program.file.digest) => {
                self.program_due_ms = Some(now.mono_ms.saturating_add(program.reach_ms));
            }
            ProgramStep::Trying { .. } => {
                self.leave_program(ReasonCode::ProofCrashed, "another program was started in its place", now);
            }
        }
    }

    /// Gives the order that the step waits on.
    pub(crate) fn go_on_with_program(&mut self) {
        match &self.journal.program.step {
            ProgramStep::Fetching { program, .. } => {
                let file = program.file;
                self.order(Command::FetchProgram { file });
            }
            ProgramStep::Proving { program, .. } => {
                let file = program.file;
                self.order(Command::ProveProgram { file });
            }
            ProgramStep::Idle | ProgramStep::Trying { .. } => {}
        }
    }

    /// Takes up what a verified assignment says about the program, once.
    pub(crate) fn assign_program(
        &mut self,
        generation: u64,
        correlation: &str,
        release: &ReleaseId,
        verdict: Result<ApprovedProgram, Refusal>,
        now: Now,
    ) {
        if self.journal.program.judged == generation {
            return;
        }
        self.journal.program.judged = generation;
        let correlation = correlation.to_string();
        let ApprovedProgram { release, file, agent, reach_ms } = match verdict {
            Ok(approved) => approved,
            Err(Refusal { reason, detail }) => {
                self.supersede_program(Phase::Superseded, ReasonCode::Superseded, "", now);
                let (release, phase, at_ms) = (Some(release.clone()), Phase::Rejected, now.wall_ms);
                self.journal.tell(Outcome {
                    generation,
                    task: None,
                    release,
                    correlation,
                    phase,
                    reason,
                    detail,
                    at_ms,
                });
                return self.report_last();
            }
        };
        if self.journal.program.step.program().is_some_and(|coming| coming.release == release) {
            return;
        }
        self.supersede_program(Phase::Superseded, ReasonCode::Superseded, "", now);
        let program = Program { release, file, agent, reach_ms, generation, correlation };
        let serves = self.journal.program.committed.as_ref();
        if serves.is_some_and(|serves| serves.release == program.release) {
            self.report_program(&program, Phase::Committed, ReasonCode::Ok, "runs already", now);
        } else if self.bad(&program.release).is_some() {
            self.report_program(&program, Phase::Rejected, ReasonCode::KnownBad, "failed here before", now);
        } else {
            self.report_program(&program, Phase::Fetching, ReasonCode::Ok, "", now);
            self.journal.program.step = ProgramStep::Fetching { program, tries: Tries::default() };
            self.go_on_with_program();
        }
    }

    pub(crate) fn program_stored(&mut self, file: Digest, now: Now) -> Result<(), Ignored> {
        let ProgramStep::Fetching { program, tries } = self.journal.program.step.clone() else {
            return Err(Ignored::NoProgram("a fetch"));
        };
        if program.file.digest != file {
            return Err(Ignored::NoProgram("this fetch"));
        }
        self.report_program(&program, Phase::Proving, ReasonCode::Ok, "", now);
        self.journal.program.step = ProgramStep::Proving { program, tries, strikes: Strikes::default() };
        self.go_on_with_program();
        Ok(())
    }

    pub(crate) fn program_proved(&mut self, file: Digest, now: Now) -> Result<(), Ignored> {
        let ProgramStep::Proving { program, .. } = self.journal.program.step.clone() else {
            return Err(Ignored::NoProgram("a proof"));
        };
        if program.file.digest != file {
            return Err(Ignored::NoProgram("this proof"));
        }
        self.report_program(&program, Phase::Probation, ReasonCode::Ok, "", now);
        let (strikes, boot) = (Strikes::default(), String::new());
        self.journal.program.step = ProgramStep::Trying { program, strikes, boot };
        self.order(Command::StartAnew);
        Ok(())
    }

    /// A fetch is tried again as a model's is; a test is not. A file that rotted before its test is fetched again.
    pub(crate) fn program_failed(&mut self, file: Digest, fault: Fault, now: Now) -> Result<(), Ignored> {
        let step = self.journal.program.step.clone();
        if step.program().is_none_or(|program| program.file.digest != file) {
            return Err(Ignored::NoProgram("this file"));
        }
        let (wrong, reason, detail, asked_ms) = match fault {
            Fault::Passing { reason, detail, retry_after_ms } => (0, reason, detail, retry_after_ms),
            Fault::Wrong { reason, detail } => (1, reason, detail, None),
        };
        match step {
            ProgramStep::Idle | ProgramStep::Trying { .. } => return Err(Ignored::NoProgram("a failure")),
            ProgramStep::Proving { .. } if reason != ReasonCode::DigestMismatch => {
                self.leave_program(reason, &detail, now);
            }
            ProgramStep::Fetching { program, mut tries }
            | ProgramStep::Proving { program, mut tries, .. } => {
                tries.wrong += wrong;
                if tries.wrong >= WRONG_MAX {
                    // Nothing speaks against the program itself, so that the next generation may name it again.
                    self.journal.program.step = ProgramStep::Idle;
                    self.report_program(&program, Phase::Failed, reason, &detail, now);
                    self.tidy();
                    return Ok(());
                }
                let wait_ms = self.backoff.wait_ms(tries.passing.saturating_add(tries.wrong), asked_ms);
                if tries.passing == 0 || wrong > 0 {
                    self.report_program(&program, Phase::Deferred, reason, &detail, now);
                }
                tries.passing = tries.passing.saturating_add(1);
                self.program_due_ms = Some(now.mono_ms.saturating_add(wait_ms));
                self.journal.program.step = ProgramStep::Fetching { program, tries };
            }
        }
        Ok(())
    }

    /// The controller has acknowledged a record of this very process: the program on trial is the device's.
    pub(crate) fn controller_reached(&mut self, now: Now) -> Result<(), Ignored> {
        match self.journal.program.step.clone() {
            ProgramStep::Trying { program, .. } if self.runs == Some(program.file.digest) => {
                self.report_program(&program, Phase::Committed, ReasonCode::Ok, "", now);
                self.journal.program.committed = Some(program);
                self.journal.program.step = ProgramStep::Idle;
                self.program_due_ms = None;
                self.tidy();
                Ok(())
            }
            ProgramStep::Idle
            | ProgramStep::Fetching { .. }
            | ProgramStep::Proving { .. }
            | ProgramStep::Trying { .. } => Err(Ignored::NoProgram("the controller")),
        }
    }

    pub(crate) fn program_time_passed(&mut self, now: Now) {
        if self.program_due_ms.is_none_or(|due_ms| now.mono_ms < due_ms) {
            return;
        }
        self.program_due_ms = None;
        match &self.journal.program.step {
            ProgramStep::Trying { boot, .. } if boot.is_empty() => self.order(Command::StartAnew),
            ProgramStep::Trying { .. } => {
                self.leave_program(ReasonCode::ControllerUnreached, "no record of it was acknowledged", now);
                self.order(Command::StartAnew);
            }
            ProgramStep::Idle | ProgramStep::Fetching { .. } | ProgramStep::Proving { .. } => {
                self.go_on_with_program();
            }
        }
    }

    /// Leaves what signers withdrew.
    pub(crate) fn withdraw_program(&mut self, floors: &BTreeMap<ModelName, u32>, now: Now) {
        let below = |program: &Program| {
            floors.get(&program.release.model).is_some_and(|floor| program.release.version < *floor)
        };
        let reason = ReasonCode::BelowReleaseFloor;
        if self.journal.program.step.program().is_some_and(below) {
            self.supersede_program(Phase::Rejected, reason, WITHDRAWN, now);
        }
        if let Some(program) = self.journal.program.committed.take_if(|program| below(program)) {
            self.report_program(&program, Phase::RolledBack, reason, WITHDRAWN, now);
            // One that is on trial in its place goes on.
            if self.runs == Some(program.file.digest) {
                self.order(Command::StartAnew);
            }
        }
    }

    /// Ends what is under way for another reason than its own fault. What is on trial may run at this moment.
    fn supersede_program(&mut self, phase: Phase, reason: ReasonCode, detail: &str, now: Now) {
        let (program, phase) = match core::mem::take(&mut self.journal.program.step) {
            ProgramStep::Idle => return,
            ProgramStep::Fetching { program, .. } | ProgramStep::Proving { program, .. } => (program, phase),
            ProgramStep::Trying { program, boot, .. } if boot.is_empty() => (program, phase),
            ProgramStep::Trying { program, .. } => {
                self.order(Command::StartAnew);
                (program, Phase::RolledBack)
            }
        };
        self.program_due_ms = None;
        self.report_program(&program, phase, reason, detail, now);
        self.tidy();
    }

    fn leave_program(&mut self, reason: ReasonCode, detail: &str, now: Now) {
        self.journal.leave_program(reason, detail, now);
        self.report_last();
        self.program_due_ms = None;
        self.tidy();
    }

    fn report_program(
        &mut self,
        program: &Program,
        phase: Phase,
        reason: ReasonCode,
        detail: &str,
        now: Now,
    ) {
        self.journal.tell(program.outcome(phase, reason, detail, now));
        self.report_last();
    }
}
