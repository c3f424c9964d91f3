//! The agent's own program, as far as the driver has to do with it: when this process leaves for another one.
use dunlin_protocol::{Phase, TaskId};
use dunlin_update::ProgramStep;

use super::{Driver, Notice};

impl Driver {
    /// Asks for this process to begin anew, if it is to and the moment is right.
    pub(super) fn leave_for_program(&mut self) {
        if self.start_anew && !self.holds_trial() {
            self.start_anew = false;
            self.notice(Notice::StartAnew);
        }
    }

    /// Whether this is not the moment to leave for a program on trial: updates are held back, or a model is on probation, and
    /// two things that change at one time would be two causes of one failure. To return from one every moment is right.
    fn holds_trial(&mut self) -> bool {
        let on_probation = |task: &TaskId| self.updater.step(task).phase() == Phase::Probation;
        let probation = self.updater.tasks().any(on_probation);
        let trial = matches!(self.updater.journal().program().step(), ProgramStep::Trying { .. });
        trial && (probation || self.inhibit())
    }
}
