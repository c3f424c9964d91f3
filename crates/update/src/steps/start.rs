//! What a start of the process does to every task.
use alloc::string::ToString;
use alloc::vec::Vec;

use dunlin_protocol::{Now, Phase, ReasonCode, ReleaseId, TaskId};

use crate::{CALM_MS, CRASHES_MAX, Command, Pack, Step, Stop, Updater};

/// What is reported of a crash loop.
const DETAIL: &str = "the agent or the board went down again and again";

impl Updater {
    pub(crate) fn process_started(&mut self, stop: Stop, now: Now) {
        let tasks: Vec<TaskId> = self.journal.tasks.keys().cloned().collect();
        for task in &tasks {
            self.strike(task, stop, now);
        }
        if self.journal.tasks.values().any(|state| state.crashes > 0) {
            self.calm_ms = Some(now.mono_ms + CALM_MS);
        }
        self.program_started(stop, now);
        // What follows covers the orders that strikes gave.
        self.drop_orders();
        for task in &tasks {
            let state = self.known(task);
            let (serving, previous) = (state.serving.clone(), state.previous.clone());
            let (policy, trial) = (state.policy, state.step.phase() == Phase::Probation);
            if let Some(policy) = policy {
                self.order(Command::ApplyPolicy { task: task.clone(), policy });
            }
            self.order(Command::Restore { task: task.clone(), serving, previous, trial });
        }
        for (seq, outcome) in self.journal.outbox.clone() {
            self.order(Command::Report { seq, outcome });
        }
        self.tidy();
        for task in &tasks {
            self.go_on(task);
        }
        self.go_on_with_program();
    }

    fn strike(&mut self, task: &TaskId, stop: Stop, now: Now) {
        let over = match &mut self.known(task).step {
            Step::Proving { strikes, .. }
            | Step::Switching { strikes, .. }
            | Step::Probation { strikes, .. } => strikes.add(stop),
            Step::Idle
            | Step::Refused { .. }
            | Step::Settled { .. }
            | Step::Fetching { .. }
            | Step::Deferred { .. }
            | Step::Verifying { .. } => return self.strike_committed(task, stop, now),
        };
        if !over {
            return;
        }
        let detail = DETAIL.to_string();
        match self.step(task).clone() {
            Step::Proving { work, .. } => {
                let release = work
                    .staged
                    .get(work.proofs.len())
                    .map_or(&work.goal.champion.release, |pack| &pack.release)
                    .clone();
                self.failed_proof(task, work, &release, ReasonCode::ProofCrashed, detail, now);
            }
            Step::Switching { goal, line, .. } => {
                let before = self.designation(task);
                if !before.has_champion_of(&line) {
                    let release = goal.champion.release.clone();
                    self.fail(task, goal, &release, ReasonCode::CrashLoop, detail, now);
                    return;
                }
                // The champion serves without it, so it is what comes new.
                let served = |pack: &Pack| before.line().is_some_and(|old| old.holds(pack));
                let new = line.packs().filter(|pack| !served(pack));
                let new: Vec<ReleaseId> = new.map(|pack| pack.release.clone()).collect();
                if new.is_empty() {
                    self.settle(task, goal, Phase::Failed, ReasonCode::LineupConflict, detail, now);
                } else {
                    self.switch_without(task, &new, ReasonCode::CrashLoop, DETAIL, now);
                }
            }
            Step::Probation { goal, .. } => self.roll_back(task, goal, ReasonCode::CrashLoop, detail, now),
            Step::Idle
            | Step::Refused { .. }
            | Step::Settled { .. }
            | Step::Fetching { .. }
            | Step::Deferred { .. }
            | Step::Verifying { .. } => {}
        }
    }

    /// A death of the process while nothing is on trial. Whose doing it was is not known, so every task counts it; power
    /// cuts are nobody's.
    fn strike_committed(&mut self, task: &TaskId, stop: Stop, now: Now) {
        let state = self.known(task);
        let Some(line) = state.serving.line().filter(|_| stop == Stop::Crashed).cloned() else { return };
        state.crashes += 1;
        if state.crashes < CRASHES_MAX {
            return;
        }
        // The champion was on probation, its members may have come later: they go first.
        if line.members.is_empty() {
            self.abandon(task, &line, ReasonCode::CrashLoop, DETAIL.to_string(), now);
        } else {
            self.leave_members(task, &line, ReasonCode::CrashLoop, DETAIL, now);
        }
    }
}
