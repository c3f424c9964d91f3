//! What an approved assignment, and floors that signers raised, do to all tasks.
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{IntoTree, ModelName, Now, Phase, ReasonCode, ReleaseId, TaskId};
use dunlin_trust::{Approved, ApprovedFile, ApprovedRelease, ApprovedTask, CountedBy};

use crate::machine::{Verdict, WITHDRAWN};
use crate::{Command, FileRef, Goal, Ignored, Pack, Part, Step, Updater};

impl Updater {
    /// Takes up the trust core's verdicts on an assignment.
    pub(crate) fn approved(&mut self, approved: Approved, now: Now) -> Result<(), Ignored> {
        let Approved { assignment, tasks, program, floors } = approved;
        // Generations of other keys begin anew.
        if self.journal.counted_by != floors.counted_by {
            self.journal.program.judged = 0;
        }
        if let (Some(named), Some(verdict)) = (&assignment.program, program) {
            let (generation, correlation) = (assignment.generation, &assignment.correlation);
            self.assign_program(generation, correlation, &named.release, verdict, now);
        }
        let verdict = |verdict: Result<ApprovedTask, dunlin_trust::Refusal>| match verdict {
            Ok(task) => Ok(goal(task, assignment.generation, &assignment.correlation)),
            Err(refusal) => Err((refusal.reason, refusal.detail)),
        };
        let verdicts = tasks.into_iter().map(|(task, given)| (task, verdict(given))).collect();
        self.assign(assignment.generation, floors.counted_by, &assignment.correlation, verdicts, now)
    }

    /// Takes up what a verified assignment says.
    pub(crate) fn assign(
        &mut self,
        generation: u64,
        counted_by: Option<CountedBy>,
        correlation: &str,
        verdicts: Vec<(TaskId, Verdict)>,
        now: Now,
    ) -> Result<(), Ignored> {
        // As the trust core has it: what other keys counted does not stand above what these count.
        let before = self.journal.counted_by;
        let other_keys = before.is_some() && before != counted_by;
        let held = if other_keys { 0 } else { self.journal.generation };
        let again = generation == held;
        let same = |(task, verdict): &(TaskId, Verdict)| match (verdict, self.step(task)) {
            (Ok(goal), step) => step.goal().is_some_and(|own| own == goal || *own == self.rest_of(goal, own)),
            (Err((reason, _)), Step::Refused { generation: refused, reason: known }) => {
                *refused == generation && known == reason
            }
            // What was withdrawn since was let go when the floors rose. The rest was approved and goes on to its end.
            (Err((ReasonCode::BelowReleaseFloor, _)), step)
                if step.under_way().is_some_and(|own| own.generation == generation) =>
            {
                true
            }
            (Err(_), _) => false,
        };
        if (generation < held && !weaken::off(Defence::Generation))
            || (again && verdicts.iter().all(same) && verdicts.len() == self.journal.tasks.len())
        {
            return Err(Ignored::StaleGeneration { given: generation, held });
        }
        let changed: BTreeSet<TaskId> = verdicts
            .iter()
            .filter(|verdict| !again || !same(verdict))
            .map(|(task, _)| task.clone())
            .into_tree();
        (self.journal.generation, self.journal.counted_by) = (generation, counted_by);
        let named: BTreeSet<&TaskId> = verdicts.iter().map(|(task, _)| task).into_tree();
        let gone: Vec<TaskId> =
            self.journal.tasks.keys().filter(|task| !named.contains(task)).cloned().collect();
        for task in gone {
            self.supersede(&task, now);
            self.journal.tasks.remove(&task);
            self.order(Command::Remove { task });
        }
        for (task, verdict) in verdicts.into_iter().filter(|(task, _)| changed.contains(task)) {
            match verdict {
                Ok(goal) => self.aim(&task, goal, now),
                Err((reason, detail)) => {
                    self.known(&task);
                    self.supersede(&task, now);
                    self.known(&task).step = Step::Refused { generation, reason };
                    self.report_release(
                        &task,
                        generation,
                        correlation,
                        None,
                        Phase::Rejected,
                        reason,
                        detail,
                        now,
                    );
                }
            }
        }
        self.tidy();
        Ok(())
    }

    /// Leaves releases that signers withdrew, wherever they are held.
    pub(crate) fn withdraw(&mut self, floors: &BTreeMap<ModelName, u32>, now: Now) {
        let below =
            |release: &ReleaseId| floors.get(&release.model).is_some_and(|floor| release.version < *floor);
        let keep = |pack: &Pack| !below(&pack.release);
        let tasks: Vec<TaskId> = self.journal.tasks.keys().cloned().collect();
        for task in tasks {
            let step = self.step(&task);
            let on_probation = step.phase() == Phase::Probation;
            let ends = |goal: &&Goal| {
                // On probation it is the champion that is tried, and its fallback may go like a member.
                let fallback = goal.fallback.as_ref().filter(|_| !on_probation);
                below(&goal.champion.release) || fallback.is_some_and(|part| below(&part.release))
            };
            if let Some(goal) = step.under_way().filter(ends).cloned() {
                self.order(Command::Cancel { task: task.clone() });
                let gone = goal.parts().find(|part| below(&part.release)).unwrap_or(&goal.champion);
                let detail = format!("{} {WITHDRAWN}", gone.release);
                self.known(&task).step = Step::Settled {
                    goal: goal.clone(),
                    phase: Phase::Rejected,
                    reason: ReasonCode::BelowReleaseFloor,
                };
                self.report(&task, &goal, Phase::Rejected, ReasonCode::BelowReleaseFloor, detail, now);
            }
            self.leave(&task, keep, ReasonCode::BelowReleaseFloor, WITHDRAWN, now);
            let stays = |release: &ReleaseId| !below(release);
            self.go_on_without(&task, &stays, ReasonCode::BelowReleaseFloor, WITHDRAWN, now);
        }
        self.withdraw_program(floors, now);
        if !self.orders.is_empty() {
            self.tidy();
        }
    }
}

fn goal(task: ApprovedTask, generation: u64, correlation: &str) -> Goal {
    let file = |file: ApprovedFile| FileRef { name: file.name, length: file.length, sha256: file.sha256 };
    let part = |release: ApprovedRelease| Part {
        release: release.release,
        manifest: file(release.manifest),
        hard: release.custom.hard,
        retrained: release.retrained,
    };
    let lineup = task.task.lineup;
    Goal {
        generation,
        correlation: correlation.into(),
        champion: part(task.champion),
        fallback: task.fallback.map(part),
        members: lineup.members.into_iter().zip(task.members.into_iter().map(part)).collect(),
        conduct: lineup.conduct,
        let_go: BTreeSet::new(),
        policy: task.policy.map(file),
        probation: task.task.probation,
        deadline_ms: task.task.deadline_ms,
    }
}
