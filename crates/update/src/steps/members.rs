//! What becomes of a task when members of its line-up go: champion, fallback and the other members go on.
use alloc::string::{String, ToString};

use dunlin_protocol::{Now, Phase, ReasonCode, ReleaseId, TaskId};

use crate::{Command, Designation, Goal, Line, Pack, Part, Step, Strikes, Updater, Work};

impl Updater {
    /// What is left of a goal: without what failed here before, and without what `before`, a goal that asked for the same,
    /// was let go of.
    pub(crate) fn rest_of(&self, goal: &Goal, before: &Goal) -> Goal {
        let mut rest = self.without_bad(goal);
        let gone = rest.retain_members(|part| !before.let_go.contains(&part.release));
        rest.let_go.extend(gone);
        rest
    }

    /// Goes on without a member that is not to blame beyond this goal, and is not remembered as bad. By the same of champion
    /// or fallback, which `release` may be as well, the goal ends.
    pub(super) fn forgo(
        &mut self,
        task: &TaskId,
        work: Work,
        release: &ReleaseId,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        let mut work = work;
        if !work.drop_member(release) {
            self.settle(task, work.goal, Phase::Failed, reason, detail, now);
            return;
        }
        work.goal.let_go.insert(release.clone());
        self.leave_out(task, &work.goal, release, reason, &detail, now);
        if !self.settle_if_served(task, &work.goal, now) {
            self.next_part(task, work, now);
        }
    }

    /// Goes on with what is under way without the members that `keep` refuses, and without such a fallback of a champion on
    /// probation. What serves was left before, see [`Updater::leave`].
    pub(crate) fn go_on_without(
        &mut self,
        task: &TaskId,
        keep: &impl Fn(&ReleaseId) -> bool,
        reason: ReasonCode,
        why: &str,
        now: Now,
    ) {
        let step = self.step(task).clone();
        let Some(goal) = step.under_way().filter(|goal| goal.parts().any(|part| !keep(&part.release))) else {
            return;
        };
        // What is on probation serves, and was told of when it was left.
        for (_, part) in goal.members.iter().filter(|_| step.phase() != Phase::Probation) {
            if !keep(&part.release) {
                self.leave_out(task, goal, &part.release, reason, why, now);
            }
        }
        let of_part = |part: &Part| keep(&part.release);
        match step {
            Step::Idle | Step::Refused { .. } | Step::Settled { .. } => {}
            Step::Fetching { mut work, item, tries } => {
                let awaited = work.awaited().cloned();
                work.retain_members(of_part);
                if work.awaited() == awaited.as_ref() {
                    self.known(task).step = Step::Fetching { work, item, tries };
                } else {
                    self.order(Command::Cancel { task: task.clone() });
                    self.next_part(task, work, now);
                }
            }
            Step::Deferred { mut work, item, tries, reason, wait_ms, since_ms } => {
                let awaited = work.awaited().cloned();
                work.retain_members(of_part);
                if work.awaited() == awaited.as_ref() {
                    self.known(task).step = Step::Deferred { work, item, tries, reason, wait_ms, since_ms };
                } else {
                    self.next_part(task, work, now);
                }
            }
            Step::Verifying { mut work } => {
                work.retain_members(of_part);
                self.known(task).step = Step::Verifying { work };
                self.go_on(task);
            }
            Step::Proving { mut work, strikes } => {
                let proving = |work: &Work| work.staged.get(work.proofs.len()).cloned();
                let before = proving(&work);
                work.retain_members(of_part);
                if proving(&work) == before {
                    self.known(task).step = Step::Proving { work, strikes };
                } else {
                    self.order(Command::Cancel { task: task.clone() });
                    self.prove_next(task, work, now);
                }
            }
            Step::Switching { mut goal, line, strikes } => {
                goal.retain_members(of_part);
                let line = line.with_members(|pack: &Pack| keep(&pack.release));
                // The switch may have been carried out though its answer is not here yet.
                let to = self.designation(task).clone();
                self.order(Command::RollBack { task: task.clone(), to });
                self.known(task).step = Step::Switching { goal, line, strikes };
                self.go_on(task);
            }
            Step::Probation { mut goal, strikes, watched_ms, since_ms, look_ms } => {
                goal.retain_members(of_part);
                goal.fallback = goal.fallback.filter(of_part);
                self.known(task).step = Step::Probation { goal, strikes, watched_ms, since_ms, look_ms };
            }
        }
    }

    /// Switches without the releases by whose fault a switch failed. They come new, and none is the champion.
    pub(super) fn switch_without(
        &mut self,
        task: &TaskId,
        at_fault: &[ReleaseId],
        reason: ReasonCode,
        why: &str,
        now: Now,
    ) {
        let Step::Switching { mut goal, line, .. } = self.step(task).clone() else { return };
        for release in at_fault {
            self.remember_bad(release, reason);
            self.leave_out(task, &goal, release, reason, why, now);
        }
        let of_part = |part: &Part| !at_fault.contains(&part.release);
        let of_pack = |pack: &Pack| !at_fault.contains(&pack.release);
        goal.retain_members(of_part);
        goal.fallback = goal.fallback.filter(of_part);
        let mut line = line.with_members(of_pack);
        line.fallback = line.fallback.filter(of_pack);
        if !self.settle_if_served(task, &goal, now) {
            self.known(task).step = Step::Switching { goal, line, strikes: Strikes::default() };
            self.go_on(task);
        }
    }

    /// Leaves the members of a line-up that was committed, for its champion alone. Like a champion that is left so, they are
    /// not remembered as bad: a newer assignment may name them again.
    pub(super) fn leave_members(
        &mut self,
        task: &TaskId,
        line: &Line,
        reason: ReasonCode,
        detail: &str,
        now: Now,
    ) {
        let to = Designation::Line(line.clone().with_members(|_| false));
        let state = self.known(task);
        state.serving = to.clone();
        state.crashes = 0;
        let correlation = state.step.goal().map(|goal| goal.correlation.clone()).unwrap_or_default();
        self.order(Command::RollBack { task: task.clone(), to });
        for (member, _) in &line.members {
            let (release, detail) = (Some(member.release.clone()), detail.to_string());
            let (generation, phase) = (line.generation, Phase::RolledBack);
            self.report_release(task, generation, &correlation, release, phase, reason, detail, now);
        }
        self.tidy();
    }
}
