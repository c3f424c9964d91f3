use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::{
    Blob, Budgets, Digest, Installed, IntoTree, Now, Outcome, Phase, ReasonCode, ReleaseId, TaskId,
};
use dunlin_trust::CountedBy;

use crate::backoff::Backoff;
use crate::journal::TaskState;
use crate::{Command, Designation, Event, Goal, Ignored, Journal, KnownBad, Line, Pack, Record, Slot, Step};

/// How often the counters of a release on probation are read, milliseconds: a bad model is left within a second
/// of enough evidence, and reading costs microseconds.
pub const GUARD_EVERY_MS: u64 = 1_000;
/// Wrong answers to one item, or damaged read-backs of one goal, before it fails. A cache on the way may be stale
/// once; what stays wrong is wrong.
pub const WRONG_MAX: u32 = 3;

/// Longest detail of an outcome, characters: what a server answered may be part of it, and a report has to fit a message.
pub const DETAIL_CHARS_MAX: usize = 300;

/// What is said of a release that signers withdrew.
pub(crate) const WITHDRAWN: &str = "was withdrawn";

/// What a machine needs to know about its device.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Limits for one model.
    pub budgets: Budgets,
    /// Differs between devices, so that their retries do.
    pub seed: u64,
    /// Digest of the program that runs, if it is not the installed one.
    pub program: Option<Digest>,
}

/// A verdict of the trust core on one task: a goal, or why there is none.
pub(crate) type Verdict = Result<Goal, (ReasonCode, String)>;

/// The update machine of one device.
#[derive(Debug)]
pub struct Updater {
    pub(crate) journal: Journal,
    pub(crate) budgets: Budgets,
    pub(crate) backoff: Backoff,
    /// Digest of the program that runs, if it is not the installed one.
    pub(crate) runs: Option<Digest>,
    /// When a program on trial has had its time, or one that could not be fetched is fetched again, on this process's clock.
    pub(crate) program_due_ms: Option<u64>,
    persisted: Vec<u8>,
    started: bool,
    /// When the deaths of earlier processes are forgotten, on this process's clock; `None` if there were none.
    pub(crate) calm_ms: Option<u64>,
    /// Orders of the event at hand; they are queued behind the journal that they follow from.
    pub(crate) orders: Vec<Command>,
    /// Whether files may have become useless by the event at hand.
    untidy: bool,
    queue: VecDeque<Command>,
}

impl Updater {
    /// A machine as it was when `journal` was persisted. It gives no orders before [`Event::ProcessStarted`].
    pub fn restore(journal: Journal, setup: Setup, now: Now) -> Self {
        let mut journal = journal;
        let persisted = journal.encode();
        for state in journal.tasks.values_mut() {
            match &mut state.step {
                Step::Deferred { since_ms, .. } => *since_ms = now.mono_ms,
                Step::Probation { since_ms, look_ms, .. } => {
                    (*since_ms, *look_ms) = (now.mono_ms, now.mono_ms + GUARD_EVERY_MS)
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
        let backoff = Backoff::new(setup.seed);
        Self {
            journal,
            budgets: setup.budgets,
            backoff,
            runs: setup.program,
            program_due_ms: None,
            persisted,
            started: false,
            calm_ms: None,
            orders: Vec::new(),
            untidy: false,
            queue: VecDeque::new(),
        }
    }

    /// Takes a fact. Orders that follow from it wait in [`Updater::poll_command`].
    ///
    /// # Errors
    /// The fact does not fit the state; nothing changed.
    pub fn handle(&mut self, event: Event, now: Now) -> Result<(), Ignored> {
        if self.started == matches!(event, Event::ProcessStarted(_)) {
            return Err(Ignored::NotStarted);
        }
        self.started = true;
        // An outcome that the spool took leaves the journal with the next change: sending one twice after a
        // power cut is cheaper than a write for each.
        let lazy = matches!(event, Event::Reported { .. });
        let taken = self.take(event, now);
        if !lazy {
            self.flush();
        }
        taken
    }

    /// The next order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.queue.pop_front()
    }

    /// When [`Event::TimePassed`] is due, on the clock of [`Now::mono_ms`].
    pub fn poll_timeout(&self) -> Option<u64> {
        let steps = self.journal.tasks.values().filter_map(|state| due_ms(&state.step));
        steps.chain(self.calm_ms).chain(self.program_due_ms).min()
    }

    /// The journal as it stands.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Generation of the last assignment that was taken up.
    pub fn generation(&self) -> u64 {
        self.journal.generation
    }

    /// The keys that counted it.
    pub fn counted_by(&self) -> Option<CountedBy> {
        self.journal.counted_by
    }

    /// The tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskId> {
        self.journal.tasks.keys()
    }

    /// What answers the requests of a task; the baseline for one that is not assigned.
    pub fn designation(&self, task: &TaskId) -> &Designation {
        self.journal.tasks.get(task).map_or(&Designation::Baseline, |state| &state.serving)
    }

    /// Where a task stands.
    pub fn step(&self, task: &TaskId) -> &Step {
        self.journal.tasks.get(task).map_or(&Step::Idle, |state| &state.step)
    }

    /// Releases that failed here and are not tried again.
    pub fn known_bad(&self) -> impl Iterator<Item = &KnownBad> {
        self.journal.known_bad.iter()
    }

    /// The generation record as it should lie on disk.
    pub fn record(&self) -> Record {
        let slot = |state: &TaskState| Slot {
            policy: state.policy,
            serving: state.serving.clone(),
            previous: state.previous.clone(),
        };
        let tasks = self.journal.tasks.iter().map(|(task, state)| (task.clone(), slot(state))).into_tree();
        Record { format: 1, generation: self.journal.generation, tasks }
    }

    /// What every task runs, as reports say it: the phase is that of the serving release, or of the work towards
    /// a first one.
    pub fn installed(&self) -> BTreeMap<TaskId, Installed> {
        let installed = |state: &TaskState| {
            let line = state.serving.line();
            let on_probation = state.step.phase() == Phase::Probation;
            let phase = if on_probation || line.is_none() { state.step.phase() } else { Phase::Committed };
            Installed {
                release: line.map(|line| line.champion.release.clone()),
                manifest: line.map(|line| line.champion.manifest.digest),
                phase,
                proof_us: line.map(|line| line.proof.latency_us),
                proof_bytes: line.map(|line| line.proof.peak_bytes),
            }
        };
        self.journal.tasks.iter().map(|(task, state)| (task.clone(), installed(state))).into_tree()
    }

    fn take(&mut self, event: Event, now: Now) -> Result<(), Ignored> {
        match event {
            Event::ProcessStarted(stop) => {
                self.process_started(stop, now);
                Ok(())
            }
            Event::AssignmentApproved(approved) => self.approved(approved.into_inner(), now),
            Event::FloorsRaised(floors) => {
                self.withdraw(&floors, now);
                Ok(())
            }
            Event::PolicyFetched { task, file, policy } => self.policy_fetched(&task, file, *policy, now),
            Event::ManifestFetched { task, file, bundle } => self.manifest_fetched(&task, file, &bundle, now),
            Event::FileMalformed { task, file, detail } => self.file_malformed(&task, file, detail, now),
            Event::SpaceChecked { task, enough, detail } => self.space_checked(&task, enough, detail, now),
            Event::BlobStored { task, digest } => self.blob_stored(&task, digest, now),
            Event::FetchFailed { task, digest, fault } => self.fetch_failed(&task, digest, fault, now),
            Event::StagedVerified { task, files } => self.staged_verified(&task, &files, now),
            Event::StagedDamaged { task, digest } => self.staged_damaged(&task, digest, now),
            Event::Proved { task, manifest, proof } => self.proved(&task, manifest, proof, now),
            Event::ProofFailed { task, manifest, reason, detail } => {
                self.proof_failed(&task, manifest, reason, detail, now)
            }
            Event::Switched { task } => self.switched(&task, now),
            Event::ServeFailed { task, release, detail } => self.serve_failed(&task, &release, detail, now),
            Event::GuardObserved { task, seen } => self.guard_observed(&task, &seen, now),
            Event::OperatorRollback { task } => self.operator_rollback(&task, now),
            Event::Retarget { release, floors } => {
                self.retarget(&release, now)?;
                self.withdraw(&floors, now);
                Ok(())
            }
            Event::ProgramStored { file } => self.program_stored(file, now),
            Event::ProgramFailed { file, fault } => self.program_failed(file, fault, now),
            Event::ProgramProved { file } => self.program_proved(file, now),
            Event::ControllerReached => self.controller_reached(now),
            Event::Reported { seq } => {
                self.journal.outbox.retain(|(number, _)| *number != seq);
                Ok(())
            }
            Event::TimePassed => {
                self.time_passed(now);
                Ok(())
            }
        }
    }

    /// Queues the journal, if it changed, and behind it the orders that follow from it.
    fn flush(&mut self) {
        let bytes = self.journal.encode();
        if bytes != self.persisted {
            self.persisted.clone_from(&bytes);
            self.queue.push_back(Command::Persist(bytes));
        }
        // What serves changes first, then files go, then files come.
        let (serving, rest): (Vec<_>, Vec<_>) =
            core::mem::take(&mut self.orders).into_iter().partition(Command::concerns_serving);
        self.queue.extend(serving);
        if core::mem::take(&mut self.untidy) {
            let mut keep: BTreeSet<Digest> =
                self.journal.tasks.values().flat_map(kept).map(|blob| blob.digest).into_tree();
            keep.extend(self.journal.program.files().map(|file| file.digest));
            self.queue.push_back(Command::DropBlobs { keep });
        }
        self.queue.extend(rest);
    }

    /// Queues the orders of no event, which follow from the journal as it was persisted.
    pub(crate) fn queue_orders(&mut self) {
        self.queue.extend(core::mem::take(&mut self.orders));
    }

    pub(crate) fn order(&mut self, command: Command) {
        // A cancellation is queued ahead of the rest, so it would miss what the same event ordered before it.
        if let Command::Cancel { task } = &command {
            self.orders.retain(|order| order.awaited_by() != Some(task));
        }
        self.orders.push(command);
    }

    /// Takes back the orders of the event at hand.
    pub(crate) fn drop_orders(&mut self) {
        self.orders.clear();
    }

    pub(crate) fn state(&mut self, task: &TaskId) -> Result<&mut TaskState, Ignored> {
        self.journal.tasks.get_mut(task).ok_or_else(|| Ignored::UnknownTask(task.clone()))
    }

    /// The state of a task that is known to be there.
    pub(crate) fn known(&mut self, task: &TaskId) -> &mut TaskState {
        self.journal.tasks.entry(task.clone()).or_insert_with(TaskState::new)
    }

    pub(crate) fn report(
        &mut self,
        task: &TaskId,
        goal: &Goal,
        phase: Phase,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        self.report_release(
            task,
            goal.generation,
            &goal.correlation,
            Some(goal.champion.release.clone()),
            phase,
            reason,
            detail,
            now,
        );
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message, built in one place")]
    pub(crate) fn report_release(
        &mut self,
        task: &TaskId,
        generation: u64,
        correlation: &str,
        release: Option<ReleaseId>,
        phase: Phase,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        self.journal.tell(Outcome {
            generation,
            task: Some(task.clone()),
            release,
            correlation: correlation.into(),
            phase,
            reason,
            detail,
            at_ms: now.wall_ms,
        });
        self.report_last();
    }

    /// Orders the newest outcome of the outbox to be spooled.
    pub(crate) fn report_last(&mut self) {
        if let Some((seq, outcome)) = self.journal.outbox.back().cloned() {
            self.order(Command::Report { seq, outcome });
        }
    }

    pub(crate) fn remember_bad(&mut self, release: &ReleaseId, reason: ReasonCode) {
        self.journal.remember_bad(release, reason);
    }

    pub(crate) fn bad(&self, release: &ReleaseId) -> Option<ReasonCode> {
        self.journal.known_bad.iter().find(|bad| bad.release == *release).map(|bad| bad.reason)
    }

    /// Orders the store to drop what no task needs, once this event is over.
    pub(crate) fn tidy(&mut self) {
        self.untidy = true;
    }
}

/// Every file a task needs.
fn kept(state: &TaskState) -> Vec<Blob> {
    let lines = [state.serving.line(), state.previous.line()].into_iter().flatten();
    let mut files: Vec<Blob> = lines.flat_map(Line::packs).flat_map(Pack::files).collect();
    files.extend(state.policy);
    files.extend(state.step.files());
    files
}

fn due_ms(step: &Step) -> Option<u64> {
    match step {
        Step::Deferred { wait_ms, since_ms, .. } => Some(since_ms.saturating_add(*wait_ms)),
        Step::Probation { look_ms, .. } => Some(*look_ms),
        Step::Idle
        | Step::Refused { .. }
        | Step::Settled { .. }
        | Step::Fetching { .. }
        | Step::Verifying { .. }
        | Step::Proving { .. }
        | Step::Switching { .. } => None,
    }
}
