//! What each fact does to the step of its task.
mod assignment;
mod fetching;
mod members;
mod operator;
mod program;
mod proving;
mod serving;
mod start;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dunlin_protocol::{IntoTree, Now, Phase, ReasonCode, ReleaseId, TaskId};

use crate::checks::terms;
use crate::{Command, Designation, GUARD_EVERY_MS, Goal, Ignored, Item, Pack, Part, Step, Updater, Work};

fn not_awaited(task: &TaskId, what: &'static str) -> Ignored {
    Ignored::NotAwaited { task: task.clone(), what }
}

impl Updater {
    /// Gives the order that the step waits on.
    pub(crate) fn go_on(&mut self, task: &TaskId) {
        let id = task.clone();
        let command = match self.step(task) {
            Step::Idle
            | Step::Refused { .. }
            | Step::Settled { .. }
            | Step::Deferred { .. }
            | Step::Probation { .. } => return,
            Step::Fetching { item, .. } => match item {
                Item::Policy(file) => Command::FetchPolicy { task: id, file: file.clone() },
                Item::Manifest(file) => Command::FetchManifest { task: id, file: file.clone() },
                Item::Space(pack) => Command::CheckSpace { task: id, blobs: pack.blobs.clone() },
                Item::Blob { pack, index } => match pack.blobs.get(*index) {
                    Some(blob) => Command::FetchBlob { task: id, blob: *blob },
                    None => return,
                },
            },
            Step::Verifying { work } => {
                Command::Verify { task: id, files: work.staged.iter().flat_map(Pack::files).collect() }
            }
            Step::Proving { work, .. } => {
                let next = work.proofs.len();
                match (work.staged.get(next), work.goal.parts().nth(next)) {
                    (Some(pack), Some(part)) => {
                        let terms = terms(part, work.bounds.as_ref(), &self.budgets);
                        Command::Prove { task: id, pack: pack.clone(), terms }
                    }
                    (None, _) | (_, None) => return,
                }
            }
            Step::Switching { line, .. } => {
                let previous = self.designation(task).clone();
                let trial = !previous.has_champion_of(line);
                Command::SwitchTo { task: id, line: line.clone(), previous, trial }
            }
        };
        self.order(command);
    }

    /// Sets out for a goal from wherever the task stands.
    pub(crate) fn aim(&mut self, task: &TaskId, goal: Goal, now: Now) {
        self.known(task);
        if let Step::Probation { goal: old, strikes, watched_ms, since_ms, look_ms } = self.step(task).clone()
        {
            let line = self.designation(task).line();
            let rest = self.rest_of(&goal, &old);
            if line.is_some_and(|line| line.is(&rest)) && old.policy == goal.policy {
                let goal = rest;
                if let Designation::Line(line) = &mut self.known(task).serving {
                    line.generation = goal.generation;
                }
                self.known(task).step =
                    Step::Probation { goal: goal.clone(), strikes, watched_ms, since_ms, look_ms };
                let detail = "goes on from the generation before".to_string();
                self.report(task, &goal, Phase::Probation, ReasonCode::Ok, detail, now);
                return;
            }
        }
        self.supersede(task, now);
        self.begin(task, goal, now);
    }

    fn begin(&mut self, task: &TaskId, goal: Goal, now: Now) {
        let mut goal = goal;
        self.report(task, &goal, Phase::Assigned, ReasonCode::Ok, String::new(), now);
        if let Some(reason) = self.bad(&goal.champion.release) {
            let detail = format!("{} failed here before ({reason})", goal.champion.release);
            self.settle(task, goal, Phase::Rejected, ReasonCode::KnownBad, detail, now);
            return;
        }
        // What only goes with those that failed did not fail.
        let is_bad = |release: &ReleaseId| self.bad(release).is_some();
        let left_out: Vec<ReleaseId> = goal.parts().map(|part| part.release.clone()).filter(is_bad).collect();
        for release in left_out {
            self.leave_out(task, &goal, &release, ReasonCode::KnownBad, "failed here before", now);
        }
        goal = self.without_bad(&goal);
        let policy = goal.policy.clone();
        let work = Work::new(goal);
        match policy {
            Some(file) => {
                self.report(task, &work.goal, Phase::Fetching, ReasonCode::Ok, String::new(), now);
                self.fetch(task, work, Item::Policy(file));
            }
            None => {
                self.known(task).policy = None;
                self.hold_to_policy(task, &work, now);
                self.after_policy(task, work, now);
            }
        }
    }

    /// A goal without the fallback and the members that failed here before.
    pub(crate) fn without_bad(&self, goal: &Goal) -> Goal {
        let mut goal = goal.clone();
        let good = |part: &Part| self.bad(&part.release).is_none();
        goal.fallback = goal.fallback.filter(good);
        goal.retain_members(good);
        goal
    }

    /// Reports that a goal goes on without one of its releases.
    fn leave_out(
        &mut self,
        task: &TaskId,
        goal: &Goal,
        release: &ReleaseId,
        reason: ReasonCode,
        why: &str,
        now: Now,
    ) {
        let part = match &goal.fallback {
            Some(part) if part.release == *release => "fallback",
            Some(_) | None => "member",
        };
        let detail = format!("{part} {release} {why}; going on without it");
        let (generation, correlation) = (goal.generation, goal.correlation.clone());
        let release = Some(release.clone());
        self.report_release(task, generation, &correlation, release, Phase::Rejected, reason, detail, now);
    }

    /// Ends a goal by the fault of `release`, or goes on without it if it is a member; gives back what goes on, unless what is
    /// left of it serves already.
    pub(crate) fn blame(
        &mut self,
        task: &TaskId,
        mut work: Work,
        release: &ReleaseId,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) -> Option<Work> {
        if !work.drop_member(release) {
            self.fail(task, work.goal, release, reason, detail, now);
            return None;
        }
        self.remember_bad(release, reason);
        // A retrained one may serve already and be held to a new policy; then it may not go on.
        let keep = |pack: &Pack| !pack.retrained || pack.release != *release;
        self.leave(task, keep, reason, "does not keep to the policy", now);
        self.leave_out(task, &work.goal, release, reason, &detail, now);
        (!self.settle_if_served(task, &work.goal, now)).then_some(work)
    }

    pub(crate) fn time_passed(&mut self, now: Now) {
        if self.calm_ms.is_some_and(|calm_ms| now.mono_ms >= calm_ms) {
            self.calm_ms = None;
            self.journal.tasks.values_mut().for_each(|state| state.crashes = 0);
        }
        self.program_time_passed(now);
        let tasks: BTreeSet<TaskId> = self.journal.tasks.keys().cloned().into_tree();
        for task in tasks {
            match self.step(&task).clone() {
                Step::Deferred { work, item, tries, wait_ms, since_ms, .. } => {
                    if now.mono_ms >= since_ms.saturating_add(wait_ms) {
                        self.known(&task).step = Step::Fetching { work, item, tries };
                        self.go_on(&task);
                    }
                }
                Step::Probation { goal, strikes, watched_ms, since_ms, look_ms } => {
                    if now.mono_ms >= look_ms {
                        let look_ms = now.mono_ms + GUARD_EVERY_MS;
                        self.known(&task).step =
                            Step::Probation { goal, strikes, watched_ms, since_ms, look_ms };
                        self.order(Command::ReadGuard { task });
                    }
                }
                Step::Idle
                | Step::Refused { .. }
                | Step::Settled { .. }
                | Step::Fetching { .. }
                | Step::Verifying { .. }
                | Step::Proving { .. }
                | Step::Switching { .. } => {}
            }
        }
    }

    /// Ends what is under way for something newer. What was on probation is not trusted yet, so its predecessor
    /// serves in the meantime.
    pub(crate) fn supersede(&mut self, task: &TaskId, now: Now) {
        let step = self.step(task);
        let Some(goal) = step.under_way().cloned() else { return };
        let (on_probation, switching) = match step {
            Step::Probation { .. } => (true, false),
            Step::Switching { .. } => (false, true),
            Step::Idle
            | Step::Refused { .. }
            | Step::Settled { .. }
            | Step::Fetching { .. }
            | Step::Deferred { .. }
            | Step::Verifying { .. }
            | Step::Proving { .. } => (false, false),
        };
        self.order(Command::Cancel { task: task.clone() });
        if on_probation && let Some(line) = self.designation(task).line().cloned() {
            let to = self.retreat(task, &line);
            self.order(Command::RollBack { task: task.clone(), to });
        } else if switching {
            let to = self.designation(task).clone();
            self.order(Command::RollBack { task: task.clone(), to });
        }
        self.report(task, &goal, Phase::Superseded, ReasonCode::Superseded, String::new(), now);
        self.known(task).step =
            Step::Settled { goal, phase: Phase::Superseded, reason: ReasonCode::Superseded };
    }

    /// Ends a goal by the fault of `release`.
    fn fail(
        &mut self,
        task: &TaskId,
        goal: Goal,
        release: &ReleaseId,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        self.remember_bad(release, reason);
        // A retrained one may serve already and be held to a new policy; then it may not go on.
        let keep = |pack: &Pack| !pack.retrained || pack.release != *release;
        self.leave(task, keep, reason, "does not keep to the policy", now);
        let detail =
            if *release == goal.champion.release { detail } else { format!("fallback {release}: {detail}") };
        self.settle(task, goal, Phase::Failed, reason, detail, now);
    }

    fn settle(
        &mut self,
        task: &TaskId,
        goal: Goal,
        phase: Phase,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        self.report(task, &goal, phase, reason, detail, now);
        self.known(task).step = Step::Settled { goal, phase, reason };
        self.tidy();
    }
}
