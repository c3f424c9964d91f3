//! A world that answers orders well, badly, late, twice or not at all, and checks every law between them.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{
    Blob, Budgets, Bundle, Conduct, DType, Digest, Hard, Lineage, Member, ModelSignature, Now, Phase,
    Probation, ReasonCode, ReleaseId, RetrainedBounds, Role, Rule, TaskId, TaskPolicy, TaskType, TensorSpec,
};

use dunlin_trust::CountedBy;

use crate::machine::Verdict;
use crate::{
    Command, Designation, Event, Fault, FileRef, Goal, Journal, Observed, Part, Proof, Setup, Stop, Updater,
};

/// An operator asks for a release again while signers allow every version.
pub(super) fn retarget(text: &str) -> Event {
    Event::Retarget { release: release(text), floors: BTreeMap::new() }
}

pub(super) fn task(name: &str) -> TaskId {
    name.parse().unwrap()
}

pub(super) fn release(text: &str) -> ReleaseId {
    text.parse().unwrap()
}

/// What every proof that passes measures, microseconds.
const PROVED_US: u64 = 20;

/// A digest that stands for a text; files of the same name have the same one.
pub(super) fn digest(of: &str) -> Digest {
    let mut bytes = [0u8; 32];
    for (i, byte) in of.bytes().enumerate() {
        bytes[i % 32] = bytes[i % 32].wrapping_mul(31) ^ byte;
    }
    Digest(bytes)
}

pub(super) fn hard() -> Hard {
    Hard {
        arch: BTreeSet::new(),
        classes: Default::default(),
        ops: BTreeSet::new(),
        bundle_bytes: 300,
        ram_bytes: 10,
        min_agent: String::new(),
    }
}

/// What a release takes: the line `odd` takes twice as much as every other, the line `meta` the scores of two in three
/// classes, and the line `jury` those of three. The batch is the release's own affair.
pub(super) fn input(release: &ReleaseId) -> TensorSpec {
    let width = match release.model.as_str() {
        "odd" => 8,
        "meta" => 6,
        "jury" => 9,
        _ => 4,
    };
    TensorSpec { name: "x".into(), datatype: DType::Fp32, shape: vec![i64::from(release.version), width] }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

pub(super) fn bundle(release: &ReleaseId, task: &TaskId) -> Bundle {
    let blob = |part: &str| Blob { digest: digest(&alloc::format!("{part} {release}")), length: 100 };
    Bundle {
        format: 1,
        release: release.clone(),
        task: task.clone(),
        task_type: TaskType::Classification,
        family: "mlp".into(),
        model: blob("model"),
        golden: blob("golden"),
        profile: None,
        signature: ModelSignature {
            inputs: vec![input(release)],
            outputs: vec![],
            features: vec![],
            labels: if release.model.as_str() == "foreign" {
                strings(&["a", "b"])
            } else {
                strings(&["a", "b", "c"])
            },
        },
        hard: hard(),
        latency_us: 10,
        metrics: BTreeMap::new(),
        lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
        licence: String::new(),
    }
}

pub(super) fn policy(task: &TaskId) -> TaskPolicy {
    let bounds = RetrainedBounds {
        inputs: vec![input(&release("auto.meter.mlp@1"))],
        outputs: vec![],
        ops: BTreeSet::new(),
        bundle_bytes_max: 300,
        ram_bytes_max: 10,
        latency_us_max: 50,
        anchor: Blob { digest: digest("anchor"), length: 10 },
        anchor_score_ppm_min: 900_000,
    };
    TaskPolicy {
        format: 1,
        task: task.clone(),
        task_type: TaskType::Classification,
        metric: "accuracy".into(),
        baseline_class: 0,
        baseline_rules: vec![],
        labels: vec![],
        retrained: Some(bounds),
        samples: None,
    }
}

/// The content of a policy file, by its name.
fn policy_of(file: &FileRef, task: &TaskId) -> TaskPolicy {
    let policy = policy(task);
    let bounds = |latency_us_max| policy.retrained.clone().map(|b| RetrainedBounds { latency_us_max, ..b });
    let retrained = match file.name.as_str() {
        "closed" => None,
        "strict" => bounds(PROVED_US - 1),
        _ => policy.retrained.clone(),
    };
    TaskPolicy { retrained, ..policy }
}

/// A goal under another policy.
pub(super) fn under(policy: &str, goal: Goal) -> Goal {
    let file = FileRef { name: policy.into(), length: 10, sha256: digest(policy) };
    Goal { policy: Some(file), ..goal }
}

pub(super) fn part(release: &ReleaseId) -> Part {
    let name = release.target_name();
    let manifest = FileRef { sha256: digest(&name), length: 50, name };
    Part { release: release.clone(), manifest, hard: hard(), retrained: release.model.is_retrained() }
}

pub(super) fn goal(generation: u64, champion: &str, fallback: Option<&str>) -> Goal {
    let probation = Probation {
        ms_min: 5_000,
        requests_min: 10,
        pairs_min: 0,
        error_ppm_max: 50_000,
        latency_percent_max: 200,
        rss_bytes_max: 0,
        disagree_ppm_max: 200_000,
    };
    let policy = FileRef { name: "policy".into(), length: 10, sha256: digest("policy") };
    Goal {
        generation,
        correlation: alloc::format!("c{generation}"),
        champion: part(&release(champion)),
        fallback: fallback.map(|text| part(&release(text))),
        members: vec![],
        conduct: Conduct::default(),
        let_go: BTreeSet::new(),
        policy: Some(policy),
        probation,
        deadline_ms: None,
    }
}

/// A goal with further members.
pub(super) fn with(goal: Goal, rule: Rule, members: &[(&str, Role)]) -> Goal {
    let member = |&(text, role): &(&str, Role)| {
        let release = release(text);
        let part = part(&release);
        (Member { release, role, limit_us: None }, part)
    };
    let conduct = Conduct { rule, context: vec![] };
    Goal { members: members.iter().map(member).collect(), conduct, ..goal }
}

pub(super) fn setup() -> Setup {
    Setup {
        budgets: Budgets { model_bytes_max: 1_000, model_ram_bytes_max: 1_000, latency_us_max: 100 },
        seed: 1,
        program: None,
    }
}

/// Orders and facts, with every law checked between them.
pub(super) struct World {
    pub(super) updater: Updater,
    pub(super) now: Now,
    /// Whose assignments come.
    pub(super) counted_by: Option<CountedBy>,
    /// Orders that wait for an answer.
    pub(super) open: Vec<Command>,
    /// Everything ever ordered.
    pub(super) log: Vec<Command>,
    /// Releases that passed a proof here.
    pub(super) proved: BTreeSet<ReleaseId>,
    pub(super) disk: Vec<u8>,
}

impl World {
    pub(super) fn new() -> Self {
        let now = Now { mono_ms: 1_000, wall_ms: Some(1_000_000) };
        let updater = Updater::restore(Journal::default(), setup(), now);
        let mut world = Self {
            updater,
            now,
            counted_by: None,
            open: vec![],
            log: vec![],
            proved: BTreeSet::new(),
            disk: Journal::default().encode(),
        };
        world.tell(Event::ProcessStarted(Stop::Orderly));
        world
    }

    /// Tells a fact and drains the orders, as the laws ask for.
    pub(super) fn tell(&mut self, event: Event) -> bool {
        let on_trial = self.on_trial();
        let taken = self.updater.handle(event, self.now).is_ok();
        let mut after_persist = Vec::new();
        while let Some(command) = self.updater.poll_command() {
            self.log.push(command.clone());
            match command {
                Command::Persist(bytes) => {
                    assert!(
                        after_persist.is_empty(),
                        "the journal comes before the orders that follow from it"
                    );
                    self.disk = bytes;
                }
                other => after_persist.push(other),
            }
        }
        self.cut(&after_persist);
        self.ends_fairly(&on_trial, &after_persist);
        for command in after_persist {
            if let Command::DropBlobs { keep } = &command {
                self.keeps(keep);
            }
            if let Command::Report { seq, .. } = command {
                assert!(self.updater.handle(Event::Reported { seq }, self.now).is_ok());
                assert!(self.updater.poll_command().is_none());
            } else {
                self.open.retain(|open| !replaces(&command, open));
                self.open.push(command);
            }
        }
        self.check();
        taken
    }

    /// The power goes right after the last persisted journal: every order that follows it comes again.
    pub(super) fn cut(&self, given: &[Command]) {
        let journal = Journal::decode(&self.disk).unwrap();
        assert_eq!(journal.encode(), self.disk, "the journal reads back as it was written");
        let mut again = Updater::restore(journal, setup(), Now { mono_ms: 5, wall_ms: None });
        again.handle(Event::ProcessStarted(Stop::Orderly), Now { mono_ms: 5, wall_ms: None }).unwrap();
        let orders: Vec<Command> = core::iter::from_fn(|| again.poll_command()).collect();
        for command in given {
            let comes_again = match command {
                Command::Commit { task } => orders.iter().any(|order| matches!(order, Command::Restore { task: of, trial: false, .. } if of == task)),
                Command::RollBack { task, to } => {
                    orders.iter().any(|order| matches!(order, Command::Restore { task: of, serving, trial: false, .. } if of == task && serving == to))
                        || !self.updater.tasks().any(|known| known == task)
                }
                // No process survives a cut, so nothing needs cancelling or removing, and counters start anew.
                Command::Cancel { .. }
                | Command::Remove { .. }
                | Command::ReadGuard { .. }
                | Command::StartAnew => true,
                // A later order to drop may keep less.
                Command::DropBlobs { keep } => orders.iter().any(|order| matches!(order, Command::DropBlobs { keep: again } if again.is_subset(keep))),
                other => orders.contains(other),
            };
            assert!(comes_again, "{command:?} is lost by a power cut; given again: {orders:?}");
        }
    }

    /// What a task needs to serve, or to go on, is not dropped.
    pub(super) fn keeps(&self, keep: &BTreeSet<Digest>) {
        for task in self.updater.tasks() {
            let line = self.updater.designation(task).line();
            let files = line.into_iter().flat_map(|line| line.packs()).flat_map(|pack| pack.files());
            assert!(files.chain(self.updater.step(task).files()).all(|file| keep.contains(&file.digest)));
        }
    }

    /// Champions on probation.
    fn on_trial(&self) -> Vec<(TaskId, ReleaseId)> {
        let on_trial = |task: &TaskId| {
            let champion = self.updater.designation(task).release()?.clone();
            (self.updater.step(task).phase() == Phase::Probation).then(|| (task.clone(), champion))
        };
        self.updater.tasks().filter_map(on_trial).collect()
    }

    /// A probation ends by an order to commit, or without its champion.
    fn ends_fairly(&self, on_trial: &[(TaskId, ReleaseId)], given: &[Command]) {
        for (task, champion) in on_trial {
            let commits = |command: &Command| matches!(command, Command::Commit { task: of } if of == task);
            assert!(
                self.updater.step(task).phase() == Phase::Probation
                    || given.iter().any(commits)
                    || self.updater.designation(task).release() != Some(champion),
                "{champion} stays without the end of its probation: {:?}",
                self.updater.step(task)
            );
        }
    }

    /// What serves was proved here, or is the baseline.
    pub(super) fn check(&self) {
        for task in self.updater.tasks() {
            if let Designation::Line(line) = self.updater.designation(task) {
                assert!(
                    line.packs().all(|pack| self.proved.contains(&pack.release)),
                    "{line:?} was never proved"
                );
            }
        }
        assert!(self.updater.known_bad().count() <= crate::KNOWN_BAD_MAX);
    }

    pub(super) fn restart(&mut self, stop: Stop) {
        self.now.mono_ms = 3;
        self.open.clear();
        self.updater = Updater::restore(Journal::decode(&self.disk).unwrap(), setup(), self.now);
        self.tell(Event::ProcessStarted(stop));
    }

    pub(super) fn wait(&mut self) {
        if let Some(due) = self.updater.poll_timeout() {
            let step = due.saturating_sub(self.now.mono_ms);
            self.now =
                Now { mono_ms: self.now.mono_ms + step, wall_ms: self.now.wall_ms.map(|wall| wall + step) };
            self.tell(Event::TimePassed);
        }
    }

    /// The right answer to an order.
    pub(super) fn obey(&mut self, command: Command) {
        let event = match command {
            Command::FetchPolicy { task, file } => {
                Event::PolicyFetched { file: file.sha256, policy: Box::new(policy_of(&file, &task)), task }
            }
            Command::FetchManifest { task, file } => {
                let release = ReleaseId::from_target_name(&file.name).unwrap();
                Event::ManifestFetched { file: file.sha256, bundle: Box::new(bundle(&release, &task)), task }
            }
            Command::CheckSpace { task, .. } => {
                Event::SpaceChecked { task, enough: true, detail: String::new() }
            }
            Command::FetchBlob { task, blob } => Event::BlobStored { task, digest: blob.digest },
            Command::Verify { task, files } => Event::StagedVerified { task, files },
            Command::Prove { task, pack, terms } => {
                assert_eq!(
                    terms.anchor.is_some(),
                    pack.release.model.is_retrained(),
                    "a retrained release is held to the anchor set, and no other"
                );
                self.proved.insert(pack.release.clone());
                Event::Proved {
                    task,
                    manifest: pack.manifest.digest,
                    proof: Proof { latency_us: PROVED_US, peak_bytes: 5, anchor_ppm: 1_000_000 },
                }
            }
            Command::SwitchTo { task, .. } => Event::Switched { task },
            Command::FetchProgram { file } => Event::ProgramStored { file: file.digest },
            Command::ProveProgram { file } => Event::ProgramProved { file: file.digest },
            Command::ReadGuard { task } => {
                let seen = Observed {
                    requests: 1_000,
                    paired: 500,
                    p99_us: 30,
                    previous_p99_us: Some(30),
                    ..Observed::default()
                };
                Event::GuardObserved { task, seen }
            }
            Command::Persist(_)
            | Command::ApplyPolicy { .. }
            | Command::Cancel { .. }
            | Command::Restore { .. }
            | Command::Commit { .. }
            | Command::RollBack { .. }
            | Command::Remove { .. }
            | Command::DropBlobs { .. }
            | Command::StartAnew
            | Command::Report { .. } => return,
        };
        self.tell(event);
    }

    /// A wrong answer to an order.
    pub(super) fn fail(&mut self, command: Command, kind: u8) {
        let fault = if kind.is_multiple_of(2) {
            Fault::Passing { reason: ReasonCode::FetchFailed, detail: String::new(), retry_after_ms: None }
        } else {
            Fault::Wrong { reason: ReasonCode::DigestMismatch, detail: String::new() }
        };
        let event = match command {
            Command::FetchPolicy { task, file } | Command::FetchManifest { task, file }
                if kind.is_multiple_of(5) =>
            {
                Event::FileMalformed { task, file: file.sha256, detail: String::new() }
            }
            Command::FetchPolicy { task, file } | Command::FetchManifest { task, file } => {
                Event::FetchFailed { task, digest: file.sha256, fault }
            }
            Command::CheckSpace { task, .. } => {
                Event::SpaceChecked { task, enough: false, detail: String::new() }
            }
            Command::FetchBlob { task, blob } => Event::FetchFailed { task, digest: blob.digest, fault },
            Command::Verify { task, files } => Event::StagedDamaged { task, digest: files[0].digest },
            Command::Prove { task, pack, .. } if kind.is_multiple_of(2) => Event::ProofFailed {
                task,
                manifest: pack.manifest.digest,
                reason: ReasonCode::GoldenMismatch,
                detail: String::new(),
            },
            Command::Prove { task, pack, .. } => Event::Proved {
                task,
                manifest: pack.manifest.digest,
                proof: Proof { latency_us: 101, peak_bytes: 5, anchor_ppm: 0 },
            },
            Command::SwitchTo { task, line, .. } => {
                // Whatever can not be loaded is told, also of what a shell would go without.
                let pack = if kind.is_multiple_of(3) { line.packs().last() } else { None };
                let release = pack.unwrap_or(&line.champion).release.clone();
                Event::ServeFailed { task, release, detail: String::new() }
            }
            Command::FetchProgram { file } | Command::ProveProgram { file } => {
                Event::ProgramFailed { file: file.digest, fault }
            }
            Command::Restore { task, serving: Designation::Line(line), .. } => {
                Event::ServeFailed { task, release: line.champion.release, detail: String::new() }
            }
            Command::ReadGuard { task } => Event::GuardObserved {
                task,
                seen: Observed { requests: 100, errors: 100, ..Observed::default() },
            },
            Command::Persist(_)
            | Command::ApplyPolicy { .. }
            | Command::Cancel { .. }
            | Command::Restore { .. }
            | Command::Commit { .. }
            | Command::RollBack { .. }
            | Command::Remove { .. }
            | Command::DropBlobs { .. }
            | Command::StartAnew
            | Command::Report { .. } => return,
        };
        self.tell(event);
    }

    pub(super) fn assign(&mut self, generation: u64, goals: Vec<(&str, Goal)>) -> bool {
        self.judged(generation, goals.into_iter().map(|(name, goal)| (task(name), Ok(goal))).collect())
    }

    /// An assignment of which some tasks may have been refused.
    pub(super) fn judged(&mut self, generation: u64, verdicts: Vec<(TaskId, Verdict)>) -> bool {
        let on_trial = self.on_trial();
        let result = self.updater.assign(generation, self.counted_by, "c", verdicts, self.now);
        self.ends_fairly(&on_trial, &[]);
        // The rest of `handle`, which only takes verified assignments.
        let taken = result.is_ok();
        let _ = self.tell(Event::TimePassed);
        taken
    }

    /// Answers every order rightly until nothing more happens.
    pub(super) fn settle(&mut self) {
        for _ in 0..400 {
            if self.open.is_empty() {
                if self.updater.poll_timeout().is_none() {
                    return;
                }
                self.wait();
            } else {
                let command = self.open.remove(0);
                self.obey(command);
            }
        }
        panic!("no rest after 400 answers: {:?}", self.updater);
    }

    pub(super) fn until(&mut self, phase: Phase) {
        let meter = task("meter");
        for _ in 0..100 {
            if self.updater.step(&meter).phase() == phase {
                return;
            }
            if self.open.is_empty() {
                self.wait();
            } else {
                let command = self.open.remove(0);
                self.obey(command);
            }
        }
        panic!("{phase:?} is never reached: {:?}", self.updater.step(&meter));
    }

    pub(super) fn phases(&self) -> Vec<(Phase, ReasonCode)> {
        self.log
            .iter()
            .filter_map(|command| {
                if let Command::Report { outcome, .. } = command {
                    Some((outcome.phase, outcome.reason))
                } else {
                    None
                }
            })
            .collect()
    }

    pub(super) fn serving(&self, name: &str) -> Option<String> {
        self.updater.designation(&task(name)).release().map(ToString::to_string)
    }
}

/// Whether an order takes the place of an open one of its task.
pub(super) fn replaces(new: &Command, open: &Command) -> bool {
    let of = |command: &Command| match command {
        Command::Cancel { task } => Some(task.clone()),
        other => other.awaited_by().cloned(),
    };
    of(new).is_some() && of(new) == of(open)
}
