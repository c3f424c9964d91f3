//! The switch, the probation after it, and the way back.
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dunlin_protocol::{Now, Phase, ReasonCode, ReleaseId, TaskId};

use super::not_awaited;
use crate::{
    Command, Designation, GUARD_EVERY_MS, Goal, Ignored, Line, Observed, Pack, Step, Strikes, Updater, breach,
};

/// How often the time served on probation is made durable, milliseconds: a restart costs at most that much of it.
const CHECKPOINT_MS: u64 = 600_000;
/// A probation without a deadline ends after this many times its least duration, however few requests or pairs came.
const IDLE_FACTOR: u64 = 10;

impl Updater {
    /// Orders every switch again that is waited for, as it would be ordered now: for a shell that let the orders lie. No state
    /// changes by it.
    pub fn switch_again(&mut self) {
        let waits = |task: &TaskId| matches!(self.step(task), Step::Switching { .. });
        let waiting: Vec<TaskId> = self.tasks().filter(|task| waits(task)).cloned().collect();
        for task in &waiting {
            self.go_on(task);
        }
        self.queue_orders();
    }

    pub(crate) fn switched(&mut self, task: &TaskId, now: Now) -> Result<(), Ignored> {
        let state = self.state(task)?;
        let Step::Switching { goal, line, .. } = state.step.clone() else {
            return Err(not_awaited(task, "a switch"));
        };
        let trial = !state.serving.has_champion_of(&line);
        let old = core::mem::replace(&mut state.serving, Designation::Line(line));
        state.crashes = 0;
        if trial {
            state.previous = old;
            state.step = Step::Probation {
                goal: goal.clone(),
                strikes: Strikes::default(),
                watched_ms: 0,
                since_ms: now.mono_ms,
                look_ms: now.mono_ms + GUARD_EVERY_MS,
            };
            self.report(task, &goal, Phase::Probation, ReasonCode::Ok, String::new(), now);
        } else {
            self.settle(task, goal, Phase::Committed, ReasonCode::Ok, "the champion stayed".to_string(), now);
        }
        Ok(())
    }

    pub(crate) fn serve_failed(
        &mut self,
        task: &TaskId,
        release: &ReleaseId,
        detail: String,
        now: Now,
    ) -> Result<(), Ignored> {
        let state = self.state(task)?;
        match state.step.clone() {
            Step::Switching { goal, line, .. } if line.packs().any(|pack| pack.release == *release) => {
                if goal.has_member(release) {
                    let at_fault = core::slice::from_ref(release);
                    self.switch_without(task, at_fault, ReasonCode::ModelFailed, &detail, now);
                } else if line.champion.release == *release && state.serving.has_champion_of(&line) {
                    // It serves; it only can not be loaded together with what is new.
                    self.settle(task, goal, Phase::Failed, ReasonCode::LineupConflict, detail, now);
                } else {
                    self.fail(task, goal, release, ReasonCode::ModelFailed, detail, now);
                }
                Ok(())
            }
            Step::Probation { goal, .. } if state.serving.release() == Some(release) => {
                self.roll_back(task, goal, ReasonCode::ModelFailed, detail, now);
                Ok(())
            }
            Step::Idle
            | Step::Refused { .. }
            | Step::Settled { .. }
            | Step::Fetching { .. }
            | Step::Deferred { .. }
            | Step::Verifying { .. }
            | Step::Proving { .. }
            | Step::Switching { .. }
            | Step::Probation { .. } => {
                let line = state.serving.line().filter(|line| line.packs().any(|p| p.release == *release));
                let Some(line) = line.cloned() else {
                    return Err(not_awaited(task, "word of this release"));
                };
                if line.champion.release == *release {
                    self.abandon(task, &line, ReasonCode::ModelFailed, detail, now);
                } else {
                    // The rest goes on. What is no longer designated does not come back with a restart.
                    state.serving = Designation::Line(line).trimmed(|pack| pack.release != *release);
                    self.tidy();
                }
                Ok(())
            }
        }
    }

    /// Leaves a line-up that was committed. Its release is not remembered as bad: a newer assignment may name it again,
    /// and an operator may have the goal it came from tried again.
    pub(super) fn abandon(
        &mut self,
        task: &TaskId,
        line: &Line,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        let to = self.retreat(task, line);
        self.order(Command::RollBack { task: task.clone(), to });
        let state = self.known(task);
        state.crashes = 0;
        let goal = state.step.goal().cloned();
        let settled = state.step.under_way().is_none();
        let left = &line.champion.release;
        match goal {
            Some(goal) if settled && goal.champion.release == *left => {
                self.settle(task, goal, Phase::RolledBack, reason, detail, now);
            }
            other => {
                let correlation = other.map(|goal| goal.correlation).unwrap_or_default();
                let release = Some(left.clone());
                self.report_release(
                    task,
                    line.generation,
                    &correlation,
                    release,
                    Phase::RolledBack,
                    reason,
                    detail,
                    now,
                );
                self.tidy();
            }
        }
    }

    /// Leaves `line`: for the predecessor, else its own fallbacks, else the baseline.
    pub(super) fn retreat(&mut self, task: &TaskId, line: &Line) -> Designation {
        let state = self.known(task);
        let to = match core::mem::replace(&mut state.previous, Designation::Baseline) {
            Designation::Line(previous) => Designation::Line(previous),
            Designation::Baseline => {
                line.clone().without_champion().map_or(Designation::Baseline, Designation::Line)
            }
        };
        state.serving = to.clone();
        to
    }

    /// Leaves the releases that `keep` refuses, wherever they are held. `why` is said of those that served. A champion that
    /// stays is on probation as before, if it was.
    pub(crate) fn leave(
        &mut self,
        task: &TaskId,
        keep: impl Fn(&Pack) -> bool,
        reason: ReasonCode,
        why: &str,
        now: Now,
    ) {
        let state = self.known(task);
        let previous = core::mem::replace(&mut state.previous, Designation::Baseline).trimmed(&keep);
        let serving = core::mem::replace(&mut state.serving, Designation::Baseline);
        let served = serving.line().into_iter().flat_map(Line::packs);
        let left: Vec<Pack> = served.filter(|pack| !keep(pack)).cloned().collect();
        let champion_stays = serving.line().is_some_and(|line| keep(&line.champion));
        let trimmed = serving.clone().trimmed(&keep);
        if trimmed == serving {
            (state.serving, state.previous) = (serving, previous);
            return;
        }
        // What was proved as a whole before comes ahead of what was proved as a stand-in.
        let next = match (champion_stays, previous, trimmed) {
            (true, previous, serving) => {
                state.previous = previous;
                serving
            }
            (false, Designation::Line(line), Designation::Line(_) | Designation::Baseline) => {
                Designation::Line(line)
            }
            (false, Designation::Baseline, serving) => serving,
        };
        state.serving = next.clone();
        let command = if champion_stays && state.step.phase() == Phase::Probation {
            let (task, previous) = (task.clone(), state.previous.clone());
            Command::Restore { task, serving: next, previous, trial: true }
        } else {
            Command::RollBack { task: task.clone(), to: next }
        };
        self.order(command);
        for left in left {
            let (generation, detail) = (self.journal.generation, format!("{} {why}", left.release));
            let phase = Phase::RolledBack;
            self.report_release(task, generation, "", Some(left.release), phase, reason, detail, now);
        }
    }

    pub(crate) fn guard_observed(&mut self, task: &TaskId, seen: &Observed, now: Now) -> Result<(), Ignored> {
        let Step::Probation { goal, strikes, watched_ms, since_ms, .. } = self.state(task)?.step.clone()
        else {
            return Err(not_awaited(task, "counters"));
        };
        if let Some(breach) = breach(&goal.probation, seen) {
            self.roll_back(task, goal, breach.reason, breach.detail, now);
            return Ok(());
        }
        let stretch = now.mono_ms.saturating_sub(since_ms);
        let served = watched_ms.saturating_add(stretch);
        // Without a predecessor there is nothing to compare with, and nothing is waited for.
        let compared = seen.paired >= goal.probation.pairs_min || self.known(task).previous.line().is_none();
        let enough = seen.requests >= goal.probation.requests_min && compared;
        let late = match (goal.deadline_ms, now.wall_ms) {
            (Some(deadline), Some(wall)) => wall >= deadline,
            (None, _) | (_, None) => served >= goal.probation.ms_min.saturating_mul(IDLE_FACTOR),
        };
        if served >= goal.probation.ms_min && (enough || late) {
            // How much it rests on is part of what is told: a device that was never asked commits too, on nothing.
            let detail = format!(
                "{} requests, {} errors, pairs: {}, of which {} differ",
                seen.requests, seen.errors, seen.paired, seen.disagree
            );
            self.order(Command::Commit { task: task.clone() });
            self.settle(task, goal, Phase::Committed, ReasonCode::Ok, detail, now);
            return Ok(());
        }
        let look_ms = now.mono_ms + GUARD_EVERY_MS;
        let (watched_ms, since_ms) =
            if stretch >= CHECKPOINT_MS { (served, now.mono_ms) } else { (watched_ms, since_ms) };
        self.known(task).step = Step::Probation { goal, strikes, watched_ms, since_ms, look_ms };
        Ok(())
    }

    pub(super) fn roll_back(
        &mut self,
        task: &TaskId,
        goal: Goal,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        let release = goal.champion.release.clone();
        self.remember_bad(&release, reason);
        if let Some(line) = self.designation(task).line().cloned() {
            let to = self.retreat(task, &line);
            self.order(Command::RollBack { task: task.clone(), to });
        }
        self.settle(task, goal, Phase::RolledBack, reason, detail, now);
    }
}
