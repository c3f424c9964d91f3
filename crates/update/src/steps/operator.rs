//! What an operator asks for.
use alloc::string::ToString;
use alloc::vec::Vec;

use dunlin_protocol::{Now, Phase, ReasonCode, ReleaseId, TaskId};

use crate::journal::TaskState;
use crate::{Command, Designation, Goal, Ignored, Line, Step, Updater, Work};

impl Updater {
    pub(crate) fn operator_rollback(&mut self, task: &TaskId, now: Now) -> Result<(), Ignored> {
        let state = self.state(task)?;
        let detail = "an operator asked for it".to_string();
        match state.step.clone() {
            Step::Probation { goal, .. } => {
                self.roll_back(task, goal, ReasonCode::Operator, detail, now);
                Ok(())
            }
            Step::Fetching { work: Work { goal, .. }, .. }
            | Step::Deferred { work: Work { goal, .. }, .. }
            | Step::Verifying { work: Work { goal, .. } }
            | Step::Proving { work: Work { goal, .. }, .. }
            | Step::Switching { goal, .. } => {
                self.order(Command::Cancel { task: task.clone() });
                let release = goal.champion.release.clone();
                self.remember_bad(&release, ReasonCode::Operator);
                // The switch may have been carried out though its answer is not here yet.
                let to = self.designation(task).clone();
                self.order(Command::RollBack { task: task.clone(), to });
                self.settle(task, goal, Phase::RolledBack, ReasonCode::Operator, detail, now);
                Ok(())
            }
            Step::Idle | Step::Refused { .. } | Step::Settled { .. } => {
                let (Designation::Line(line), Designation::Line(_)) =
                    (state.serving.clone(), state.previous.clone())
                else {
                    return Err(Ignored::NothingToReturnTo(task.clone()));
                };
                let goal = state.step.goal().cloned();
                let left = line.champion.release.clone();
                self.remember_bad(&left, ReasonCode::Operator);
                let to = self.retreat(task, &line);
                self.order(Command::RollBack { task: task.clone(), to });
                match goal {
                    Some(goal) => {
                        self.settle(task, goal, Phase::RolledBack, ReasonCode::Operator, detail, now)
                    }
                    None => {
                        self.report_release(
                            task,
                            line.generation,
                            "",
                            Some(left),
                            Phase::RolledBack,
                            ReasonCode::Operator,
                            detail,
                            now,
                        );
                        self.tidy();
                    }
                }
                Ok(())
            }
        }
    }

    pub(crate) fn retarget(&mut self, release: &ReleaseId, now: Now) -> Result<(), Ignored> {
        let before = self.journal.known_bad.len();
        self.journal.known_bad.retain(|bad| bad.release != *release);
        let forgotten = self.journal.known_bad.len() < before;
        // What failed too often beside a champion that stayed was left alone.
        let left = |goal: &Goal, line: &Line| {
            line.champion.release == goal.champion.release
                && goal.parts().any(|part| part.release == *release)
                && line.packs().all(|pack| pack.release != *release)
        };
        let wanting = |state: &TaskState| match &state.step {
            Step::Settled { goal, phase, .. }
                if (*phase != Phase::Committed && goal.champion.release == *release)
                    || (*phase == Phase::Committed
                        && state.serving.line().is_some_and(|line| left(goal, line))) =>
            {
                Some(goal.clone())
            }
            Step::Idle
            | Step::Refused { .. }
            | Step::Settled { .. }
            | Step::Fetching { .. }
            | Step::Deferred { .. }
            | Step::Verifying { .. }
            | Step::Proving { .. }
            | Step::Switching { .. }
            | Step::Probation { .. } => None,
        };
        let again: Vec<(TaskId, Goal)> = self
            .journal
            .tasks
            .iter()
            .filter_map(|(task, state)| Some((task.clone(), wanting(state)?)))
            .collect();
        // A program comes again with the next check that names it, also where its fetch was given up.
        let judged = release.model.is_program() && core::mem::take(&mut self.journal.program.judged) != 0;
        if !forgotten && again.is_empty() && !judged {
            return Err(Ignored::NotKnownBad(release.clone()));
        }
        for (task, goal) in again {
            self.begin(&task, goal, now);
        }
        Ok(())
    }
}
