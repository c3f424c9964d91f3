//! What each fact does to the step of its task.
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dunlin_protocol::{Blob, Bundle, Digest, Now, Phase, ReasonCode, ReleaseId, TaskId, TaskPolicy};

use crate::checks::{admit, passes, terms};
use crate::{
    Command, Designation, Fault, GUARD_EVERY_MS, Goal, Ignored, Item, Line, Observed, Pack, Proof, Step,
    Stop, Strikes, Tries, Updater, WRONG_MAX, Work, breach,
};

/// How often the time served on probation is made durable, milliseconds: a restart costs at most that much of it.
const CHECKPOINT_MS: u64 = 600_000;
/// A probation without a deadline ends after this many times its least duration, however few requests came.
const IDLE_FACTOR: u64 = 10;

fn not_awaited(task: &TaskId, what: &'static str) -> Ignored {
    Ignored::NotAwaited { task: task.clone(), what }
}

impl Updater {
    pub(crate) fn process_started(&mut self, stop: Stop, now: Now) {
        let tasks: Vec<TaskId> = self.journal.tasks.keys().cloned().collect();
        for task in &tasks {
            self.strike(task, stop, now);
        }
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
            | Step::Verifying { .. } => false,
        };
        if !over {
            return;
        }
        let detail = "the agent or the board went down again and again".to_string();
        match self.step(task).clone() {
            Step::Proving { work, .. } => {
                let release = work
                    .staged
                    .get(work.proofs.len())
                    .map_or(&work.goal.champion.release, |pack| &pack.release)
                    .clone();
                self.fail(task, work.goal, &release, ReasonCode::ProofCrashed, detail, now);
            }
            Step::Switching { goal, .. } => {
                let release = goal.champion.release.clone();
                self.fail(task, goal, &release, ReasonCode::CrashLoop, detail, now);
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
                let trial = previous.line().is_none_or(|old| old.champion.manifest != line.champion.manifest);
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
            let same =
                |goal: &Goal| -> Vec<Digest> { goal.parts().map(|part| part.manifest.sha256).collect() };
            if same(&old) == same(&goal) && old.policy == goal.policy {
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
        if let Some(bad) =
            goal.fallback.take_if(|part| self.journal.known_bad.iter().any(|bad| bad.release == part.release))
        {
            let (generation, detail) = (
                goal.generation,
                format!("fallback {} failed here before; going on without it", bad.release),
            );
            self.report_release(
                task,
                generation,
                &goal.correlation,
                Some(bad.release),
                Phase::Rejected,
                ReasonCode::KnownBad,
                detail,
                now,
            );
        }
        let policy = goal.policy.clone();
        let work = Work { goal, bounds: None, staged: Vec::new(), proofs: Vec::new(), damaged: 0 };
        match policy {
            Some(file) => {
                self.report(task, &work.goal, Phase::Fetching, ReasonCode::Ok, String::new(), now);
                self.fetch(task, work, Item::Policy(file));
            }
            None => {
                self.known(task).policy = None;
                self.after_policy(task, work, now);
            }
        }
    }

    fn fetch(&mut self, task: &TaskId, work: Work, item: Item) {
        self.known(task).step = Step::Fetching { work, item, tries: Tries::default() };
        self.go_on(task);
    }

    fn after_policy(&mut self, task: &TaskId, work: Work, now: Now) {
        let wanted: Vec<Digest> = work.goal.parts().map(|part| part.manifest.sha256).collect();
        let state = self.known(task);
        if let Designation::Line(line) = &mut state.serving {
            let have: Vec<Digest> = line.packs().map(|pack| pack.manifest.digest).collect();
            if have == wanted {
                line.generation = work.goal.generation;
                self.settle(
                    task,
                    work.goal,
                    Phase::Committed,
                    ReasonCode::Ok,
                    "serves it already".to_string(),
                    now,
                );
                return;
            }
        }
        if work.goal.policy.is_none() {
            self.report(task, &work.goal, Phase::Fetching, ReasonCode::Ok, String::new(), now);
        }
        self.next_part(task, work, now);
    }

    fn next_part(&mut self, task: &TaskId, work: Work, now: Now) {
        let next = work.goal.parts().nth(work.staged.len()).map(|part| part.manifest.clone());
        match next {
            Some(file) => self.fetch(task, work, Item::Manifest(file)),
            None => {
                self.report(task, &work.goal, Phase::Verifying, ReasonCode::Ok, String::new(), now);
                self.known(task).step = Step::Verifying { work };
                self.go_on(task);
            }
        }
    }

    pub(crate) fn policy_fetched(
        &mut self,
        task: &TaskId,
        file: Digest,
        policy: TaskPolicy,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { mut work, item: Item::Policy(wanted), .. } = self.state(task)?.step.clone()
        else {
            return Err(not_awaited(task, "a policy"));
        };
        if wanted.sha256 != file {
            return Err(not_awaited(task, "this policy"));
        }
        if policy.task != *task || policy.format != 1 {
            return self.file_malformed(
                task,
                file,
                format!("{} is no policy of {task} in format 1", wanted.name),
                now,
            );
        }
        let blob = Blob { digest: wanted.sha256, length: wanted.length };
        work.bounds = policy.retrained;
        let state = self.known(task);
        if state.policy != Some(blob) {
            state.policy = Some(blob);
            self.order(Command::ApplyPolicy { task: task.clone(), policy: blob });
        }
        self.after_policy(task, work, now);
        Ok(())
    }

    pub(crate) fn manifest_fetched(
        &mut self,
        task: &TaskId,
        file: Digest,
        bundle: &Bundle,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { work, item: Item::Manifest(wanted), .. } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a manifest"));
        };
        let part = work
            .goal
            .parts()
            .nth(work.staged.len())
            .filter(|part| part.manifest == wanted && wanted.sha256 == file);
        let Some(part) = part.cloned() else {
            return Err(not_awaited(task, "this manifest"));
        };
        match admit(task, &part, bundle, work.bounds.as_ref(), &self.budgets) {
            Ok(pack) => self.fetch(task, work, Item::Space(pack)),
            Err((reason, detail)) => self.fail(task, work.goal, &part.release, reason, detail, now),
        }
        Ok(())
    }

    pub(crate) fn file_malformed(
        &mut self,
        task: &TaskId,
        file: Digest,
        detail: String,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { work, item, .. } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a file"));
        };
        match &item {
            // A policy that can not be read says nothing about the release.
            Item::Policy(wanted) if wanted.sha256 == file => {
                self.settle(task, work.goal, Phase::Failed, ReasonCode::ManifestMalformed, detail, now);
                Ok(())
            }
            Item::Manifest(wanted) if wanted.sha256 == file => {
                let release = work
                    .goal
                    .parts()
                    .nth(work.staged.len())
                    .map_or(&work.goal.champion, |part| part)
                    .release
                    .clone();
                self.fail(task, work.goal, &release, ReasonCode::ManifestMalformed, detail, now);
                Ok(())
            }
            Item::Policy(_) | Item::Manifest(_) | Item::Space(_) | Item::Blob { .. } => {
                Err(not_awaited(task, "this file"))
            }
        }
    }

    pub(crate) fn space_checked(
        &mut self,
        task: &TaskId,
        enough: bool,
        detail: String,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { work, item: Item::Space(pack), tries } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a space check"));
        };
        if enough {
            self.fetch(task, work, Item::Blob { pack, index: 0 });
        } else if self.known(task).previous != Designation::Baseline {
            // What could be returned to gives way before an update fails for want of space.
            self.known(task).previous = Designation::Baseline;
            self.tidy();
            self.go_on(task);
        } else {
            let item = Item::Space(pack);
            self.defer(task, work, item, tries, ReasonCode::NoSpace, detail, None, now);
        }
        Ok(())
    }

    pub(crate) fn blob_stored(&mut self, task: &TaskId, digest: Digest, now: Now) -> Result<(), Ignored> {
        let Step::Fetching { mut work, item: Item::Blob { pack, index }, .. } =
            self.state(task)?.step.clone()
        else {
            return Err(not_awaited(task, "a blob"));
        };
        if pack.blobs.get(index).is_none_or(|blob| blob.digest != digest) {
            return Err(not_awaited(task, "this blob"));
        }
        if index + 1 < pack.blobs.len() {
            self.fetch(task, work, Item::Blob { pack, index: index + 1 });
        } else {
            work.staged.push(pack);
            self.next_part(task, work, now);
        }
        Ok(())
    }

    pub(crate) fn fetch_failed(
        &mut self,
        task: &TaskId,
        digest: Digest,
        fault: Fault,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { work, item, mut tries } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a fetch"));
        };
        if item.digest() != Some(digest) {
            return Err(not_awaited(task, "this fetch"));
        }
        match fault {
            Fault::Passing { reason, detail, retry_after_ms } => {
                self.defer(task, work, item, tries, reason, detail, retry_after_ms, now)
            }
            Fault::Wrong { reason, detail } => {
                tries.wrong += 1;
                if tries.wrong >= WRONG_MAX {
                    self.settle(task, work.goal, Phase::Failed, reason, detail, now);
                } else {
                    self.defer(task, work, item, tries, reason, detail, None, now);
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "all of it goes into the one step that waits")]
    fn defer(
        &mut self,
        task: &TaskId,
        work: Work,
        item: Item,
        tries: Tries,
        reason: ReasonCode,
        detail: String,
        asked_ms: Option<u64>,
        now: Now,
    ) {
        let wait_ms = self.backoff.wait_ms(tries.passing.saturating_add(tries.wrong), asked_ms);
        // The first wait of an item is news, the hundredth is not.
        if tries == Tries::default() || tries.wrong > 0 {
            self.report(task, &work.goal, Phase::Deferred, reason, detail, now);
        }
        let tries = Tries { passing: tries.passing.saturating_add(1), ..tries };
        self.known(task).step = Step::Deferred { work, item, tries, reason, wait_ms, since_ms: now.mono_ms };
    }

    pub(crate) fn staged_verified(&mut self, task: &TaskId, now: Now) -> Result<(), Ignored> {
        let Step::Verifying { work } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a verification"));
        };
        self.report(task, &work.goal, Phase::Staged, ReasonCode::Ok, String::new(), now);
        self.report(task, &work.goal, Phase::Proving, ReasonCode::Ok, String::new(), now);
        self.prove_next(task, work, now);
        Ok(())
    }

    pub(crate) fn staged_damaged(&mut self, task: &TaskId, digest: Digest, now: Now) -> Result<(), Ignored> {
        let Step::Verifying { mut work } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a verification"));
        };
        work.damaged += 1;
        if work.damaged >= WRONG_MAX {
            let detail = format!("{digest} reads back damaged again and again; is the disk failing?");
            self.settle(task, work.goal, Phase::Failed, ReasonCode::DigestMismatch, detail, now);
        } else {
            work.staged.clear();
            self.next_part(task, work, now);
        }
        Ok(())
    }

    /// Proves the next release, or switches when all are. The proof of a release that serves already stands.
    fn prove_next(&mut self, task: &TaskId, work: Work, now: Now) {
        let mut work = work;
        if let (Some(pack), Some(line)) = (work.staged.get(work.proofs.len()), self.designation(task).line())
            && pack.manifest == line.champion.manifest
            && work.proofs.is_empty()
        {
            work.proofs.push(line.proof);
        }
        if work.proofs.len() < work.staged.len() {
            self.known(task).step = Step::Proving { work, strikes: Strikes::default() };
            self.go_on(task);
            return;
        }
        let Work { goal, staged, proofs, .. } = work;
        let mut staged = staged.into_iter();
        let (Some(champion), Some(proof)) = (staged.next(), proofs.first().copied()) else {
            let detail = "nothing was staged".to_string();
            self.settle(task, goal, Phase::Failed, ReasonCode::ManifestMalformed, detail, now);
            return;
        };
        let line = Line { generation: goal.generation, champion, fallback: staged.next(), proof };
        self.known(task).step = Step::Switching { goal, line, strikes: Strikes::default() };
        self.go_on(task);
    }

    pub(crate) fn proved(
        &mut self,
        task: &TaskId,
        manifest: Digest,
        proof: Proof,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Proving { mut work, .. } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a proof"));
        };
        let next = work.proofs.len();
        let (Some(part), Some(pack)) = (
            work.goal.parts().nth(next),
            work.staged.get(next).filter(|pack| pack.manifest.digest == manifest),
        ) else {
            return Err(not_awaited(task, "this proof"));
        };
        match passes(&terms(part, work.bounds.as_ref(), &self.budgets), &proof) {
            Ok(()) => {
                work.proofs.push(proof);
                self.prove_next(task, work, now);
            }
            Err((reason, detail)) => {
                let release = pack.release.clone();
                self.fail(task, work.goal, &release, reason, detail, now);
            }
        }
        Ok(())
    }

    pub(crate) fn proof_failed(
        &mut self,
        task: &TaskId,
        manifest: Digest,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Proving { work, .. } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a proof"));
        };
        let Some(pack) = work.staged.get(work.proofs.len()).filter(|pack| pack.manifest.digest == manifest)
        else {
            return Err(not_awaited(task, "this proof"));
        };
        let release = pack.release.clone();
        self.fail(task, work.goal, &release, reason, detail, now);
        Ok(())
    }

    pub(crate) fn switched(&mut self, task: &TaskId, now: Now) -> Result<(), Ignored> {
        let state = self.state(task)?;
        let Step::Switching { goal, line, .. } = state.step.clone() else {
            return Err(not_awaited(task, "a switch"));
        };
        let trial = state.serving.line().is_none_or(|old| old.champion.manifest != line.champion.manifest);
        let old = core::mem::replace(&mut state.serving, Designation::Line(line));
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
                self.fail(task, goal, release, ReasonCode::ModelFailed, detail, now);
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
                let Some(line) =
                    state.serving.line().filter(|line| line.champion.release == *release).cloned()
                else {
                    return Err(not_awaited(task, "word of this release"));
                };
                let correlation = state.step.goal().map(|goal| goal.correlation.clone()).unwrap_or_default();
                let to = self.retreat(task, &line);
                self.order(Command::RollBack { task: task.clone(), to });
                let (generation, release) = (line.generation, Some(release.clone()));
                self.report_release(
                    task,
                    generation,
                    &correlation,
                    release,
                    Phase::RolledBack,
                    ReasonCode::ModelFailed,
                    detail,
                    now,
                );
                Ok(())
            }
        }
    }

    /// Leaves `line`: for the predecessor, else its own fallback, else the baseline.
    fn retreat(&mut self, task: &TaskId, line: &Line) -> Designation {
        let state = self.known(task);
        let to = match core::mem::replace(&mut state.previous, Designation::Baseline) {
            Designation::Line(previous) => Designation::Line(previous),
            Designation::Baseline => match line.fallback.clone() {
                Some(champion) => Designation::Line(Line { champion, fallback: None, ..line.clone() }),
                None => Designation::Baseline,
            },
        };
        state.serving = to.clone();
        to
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
        let enough = seen.requests >= goal.probation.requests_min;
        let late = match (goal.deadline_ms, now.wall_ms) {
            (Some(deadline), Some(wall)) => wall >= deadline,
            (None, _) | (_, None) => served >= goal.probation.ms_min.saturating_mul(IDLE_FACTOR),
        };
        if served >= goal.probation.ms_min && (enough || late) {
            let detail = format!(
                "{} requests, {} errors, {} of {} paired inputs differ",
                seen.requests, seen.errors, seen.disagree, seen.paired
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
        let wanting = |step: &Step| match step {
            Step::Settled { goal, phase, .. }
                if *phase != Phase::Committed && goal.champion.release == *release =>
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
            .filter_map(|(task, state)| Some((task.clone(), wanting(&state.step)?)))
            .collect();
        if !forgotten && again.is_empty() {
            return Err(Ignored::NotKnownBad(release.clone()));
        }
        for (task, goal) in again {
            self.begin(&task, goal, now);
        }
        Ok(())
    }

    pub(crate) fn time_passed(&mut self, now: Now) {
        let tasks: BTreeSet<TaskId> = self.journal.tasks.keys().cloned().collect();
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

    fn roll_back(&mut self, task: &TaskId, goal: Goal, reason: ReasonCode, detail: String, now: Now) {
        let release = goal.champion.release.clone();
        self.remember_bad(&release, reason);
        if let Some(line) = self.designation(task).line().cloned() {
            let to = self.retreat(task, &line);
            self.order(Command::RollBack { task: task.clone(), to });
        }
        self.settle(task, goal, Phase::RolledBack, reason, detail, now);
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
