//! The laws of the crate, held against a world that answers orders well, badly, late, twice or not at all.
#![allow(clippy::wildcard_enum_match_arm, reason = "the world answers some orders and lets the rest pass")]

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{
    Blob, Budgets, Bundle, Digest, Hard, Lineage, ModelSignature, Now, Phase, Probation, ReasonCode,
    ReleaseId, RetrainedBounds, TaskId, TaskPolicy, TaskType,
};
use proptest::prelude::*;

use crate::{
    CRASHES_MAX, Command, Designation, Event, Fault, FileRef, Goal, Item, Journal, Observed, Part, Proof,
    Setup, Step, Stop, Updater,
};

fn task(name: &str) -> TaskId {
    name.parse().unwrap()
}

fn release(text: &str) -> ReleaseId {
    text.parse().unwrap()
}

/// A digest that stands for a text; files of the same name have the same one.
fn digest(of: &str) -> Digest {
    let mut bytes = [0u8; 32];
    for (i, byte) in of.bytes().enumerate() {
        bytes[i % 32] = bytes[i % 32].wrapping_mul(31) ^ byte;
    }
    Digest(bytes)
}

fn hard() -> Hard {
    Hard {
        arch: BTreeSet::new(),
        ops: BTreeSet::new(),
        bundle_bytes: 300,
        ram_bytes: 10,
        min_agent: String::new(),
    }
}

fn bundle(release: &ReleaseId, task: &TaskId) -> Bundle {
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
        signature: ModelSignature { inputs: vec![], outputs: vec![], features: vec![], labels: vec![] },
        hard: hard(),
        latency_us: 10,
        metrics: BTreeMap::new(),
        lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
        licence: String::new(),
    }
}

fn policy(task: &TaskId) -> TaskPolicy {
    let bounds = RetrainedBounds {
        inputs: vec![],
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
        labels: vec![],
        retrained: Some(bounds),
        samples: None,
    }
}

fn part(release: &ReleaseId) -> Part {
    let name = release.target_name();
    let manifest = FileRef { sha256: digest(&name), length: 50, name };
    Part { release: release.clone(), manifest, hard: hard(), retrained: release.model.is_retrained() }
}

fn goal(generation: u64, champion: &str, fallback: Option<&str>) -> Goal {
    let probation = Probation {
        ms_min: 5_000,
        requests_min: 10,
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
        policy: Some(policy),
        probation,
        deadline_ms: None,
    }
}

fn setup() -> Setup {
    Setup {
        budgets: Budgets { model_bytes_max: 1_000, model_ram_bytes_max: 1_000, latency_us_max: 100 },
        seed: 1,
    }
}

/// Orders and facts, with every law checked between them.
struct World {
    updater: Updater,
    now: Now,
    /// Orders that wait for an answer.
    open: Vec<Command>,
    /// Everything ever ordered.
    log: Vec<Command>,
    /// Releases that passed a proof here.
    proved: BTreeSet<ReleaseId>,
    disk: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let now = Now { mono_ms: 1_000, wall_ms: Some(1_000_000) };
        let updater = Updater::restore(Journal::default(), setup(), now);
        let mut world = Self {
            updater,
            now,
            open: vec![],
            log: vec![],
            proved: BTreeSet::new(),
            disk: Journal::default().encode(),
        };
        world.tell(Event::ProcessStarted(Stop::Orderly));
        world
    }

    /// Tells a fact and drains the orders, as the laws ask for.
    fn tell(&mut self, event: Event) -> bool {
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
    fn cut(&self, given: &[Command]) {
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
                Command::Cancel { .. } | Command::Remove { .. } | Command::ReadGuard { .. } => true,
                // A later order to drop may keep less.
                Command::DropBlobs { keep } => orders.iter().any(|order| matches!(order, Command::DropBlobs { keep: again } if again.is_subset(keep))),
                other => orders.contains(other),
            };
            assert!(comes_again, "{command:?} is lost by a power cut; given again: {orders:?}");
        }
    }

    /// What a task needs to serve, or to go on, is not dropped.
    fn keeps(&self, keep: &BTreeSet<Digest>) {
        for task in self.updater.tasks() {
            let line = self.updater.designation(task).line();
            let files = line.into_iter().flat_map(|line| line.packs()).flat_map(|pack| pack.files());
            assert!(files.chain(self.updater.step(task).files()).all(|file| keep.contains(&file.digest)));
        }
    }

    /// What serves was proved here, or is the baseline.
    fn check(&self) {
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

    fn restart(&mut self, stop: Stop) {
        self.now.mono_ms = 3;
        self.open.clear();
        self.updater = Updater::restore(Journal::decode(&self.disk).unwrap(), setup(), self.now);
        self.tell(Event::ProcessStarted(stop));
    }

    fn wait(&mut self) {
        if let Some(due) = self.updater.poll_timeout() {
            let step = due.saturating_sub(self.now.mono_ms);
            self.now =
                Now { mono_ms: self.now.mono_ms + step, wall_ms: self.now.wall_ms.map(|wall| wall + step) };
            self.tell(Event::TimePassed);
        }
    }

    /// The right answer to an order.
    fn obey(&mut self, command: Command) {
        let event = match command {
            Command::FetchPolicy { task, file } => {
                Event::PolicyFetched { file: file.sha256, policy: Box::new(policy(&task)), task }
            }
            Command::FetchManifest { task, file } => {
                let release = ReleaseId::from_target_name(&file.name).unwrap();
                Event::ManifestFetched { file: file.sha256, bundle: Box::new(bundle(&release, &task)), task }
            }
            Command::CheckSpace { task, .. } => {
                Event::SpaceChecked { task, enough: true, detail: String::new() }
            }
            Command::FetchBlob { task, blob } => Event::BlobStored { task, digest: blob.digest },
            Command::Verify { task, .. } => Event::StagedVerified { task },
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
                    proof: Proof { latency_us: 20, peak_bytes: 5, anchor_ppm: 1_000_000 },
                }
            }
            Command::SwitchTo { task, .. } => Event::Switched { task },
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
            | Command::Report { .. } => return,
        };
        self.tell(event);
    }

    /// A wrong answer to an order.
    fn fail(&mut self, command: Command, kind: u8) {
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
                Event::ServeFailed { task, release: line.champion.release, detail: String::new() }
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
            | Command::Report { .. } => return,
        };
        self.tell(event);
    }

    fn assign(&mut self, generation: u64, goals: Vec<(&str, Goal)>) -> bool {
        let verdicts = goals.into_iter().map(|(name, goal)| (task(name), Ok(goal))).collect();
        let result = self.updater.assign(generation, "c", verdicts, self.now);
        // The rest of `handle`, which only takes verified assignments.
        let taken = result.is_ok();
        let _ = self.tell(Event::TimePassed);
        taken
    }

    /// Answers every order rightly until nothing more happens.
    fn settle(&mut self) {
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

    fn until(&mut self, phase: Phase) {
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

    fn phases(&self) -> Vec<(Phase, ReasonCode)> {
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

    fn serving(&self, name: &str) -> Option<String> {
        self.updater.designation(&task(name)).release().map(ToString::to_string)
    }
}

/// Whether an order takes the place of an open one of its task.
fn replaces(new: &Command, open: &Command) -> bool {
    let of = |command: &Command| match command {
        Command::FetchPolicy { task, .. }
        | Command::FetchManifest { task, .. }
        | Command::CheckSpace { task, .. }
        | Command::FetchBlob { task, .. }
        | Command::Verify { task, .. }
        | Command::Prove { task, .. }
        | Command::SwitchTo { task, .. }
        | Command::Cancel { task } => Some(task.clone()),
        Command::Persist(_)
        | Command::ApplyPolicy { .. }
        | Command::Restore { .. }
        | Command::Commit { .. }
        | Command::RollBack { .. }
        | Command::Remove { .. }
        | Command::DropBlobs { .. }
        | Command::ReadGuard { .. }
        | Command::Report { .. } => None,
    };
    of(new).is_some() && of(new) == of(open)
}

#[test]
fn a_good_release_goes_all_the_way() {
    let mut world = World::new();
    assert!(world.assign(1, vec![("meter", goal(1, "m@1", Some("base@1")))]));
    world.settle();
    let phases: Vec<Phase> = world.phases().into_iter().map(|(phase, _)| phase).collect();
    let expected = [
        Phase::Assigned,
        Phase::Fetching,
        Phase::Verifying,
        Phase::Staged,
        Phase::Proving,
        Phase::Probation,
        Phase::Committed,
    ];
    assert_eq!(phases, expected);
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.updater.installed()[&task("meter")].phase, Phase::Committed);
}

#[test]
fn what_serves_already_is_committed_without_a_download() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.log.clear();
    world.assign(2, vec![("meter", goal(2, "m@1", None))]);
    world.settle();
    assert!(!world.log.iter().any(|command| matches!(
        command,
        Command::FetchManifest { .. } | Command::FetchBlob { .. } | Command::SwitchTo { .. }
    )));
    assert_eq!(world.phases().last(), Some(&(Phase::Committed, ReasonCode::Ok)));
    assert!(
        !world.assign(2, vec![("meter", goal(2, "m@1", None))]),
        "the same generation again is nothing new"
    );
    assert!(!world.assign(1, vec![("meter", goal(1, "m@9", None))]), "an older one is refused");
}

#[test]
fn a_bad_release_is_left_remembered_and_tried_again_only_when_retargeted() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.until(Phase::Probation);
    assert_eq!(world.serving("meter").unwrap(), "m@2");
    let errors = Observed { requests: 50, errors: 40, ..Observed::default() };
    assert!(world.tell(Event::GuardObserved { task: task("meter"), seen: errors }));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.phases().last(), Some(&(Phase::RolledBack, ReasonCode::GuardErrors)));

    world.settle();
    world.assign(3, vec![("meter", goal(3, "m@2", None))]);
    assert_eq!(world.phases().last(), Some(&(Phase::Rejected, ReasonCode::KnownBad)));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(world.tell(Event::Retarget { release: release("m@2") }));
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@2");
}

#[test]
fn three_crashes_on_probation_return_to_the_old_release_and_power_cuts_do_not() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.until(Phase::Probation);
    for _ in 0..5 {
        world.restart(Stop::PowerLost);
        world.restart(Stop::Orderly);
    }
    for strike in 0..CRASHES_MAX {
        assert_eq!(world.serving("meter").unwrap(), "m@2", "strike {strike}");
        world.restart(Stop::Crashed);
    }
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.updater.known_bad().next().unwrap().reason, ReasonCode::CrashLoop);
    let restored = world.open.iter().find_map(|command| {
        if let Command::Restore { serving, .. } = command { Some(serving) } else { None }
    });
    assert_eq!(
        restored.unwrap().release().unwrap().to_string(),
        "m@1",
        "the bad release is not even loaded again"
    );
}

#[test]
fn crashes_while_fetching_are_never_a_failure() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    for _ in 0..50 {
        world.restart(Stop::Crashed);
        world.restart(Stop::PowerLost);
    }
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@1");
}

#[test]
fn a_bad_task_does_not_block_another() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None)), ("valve", goal(1, "v@1", None))]);
    for _ in 0..200 {
        let Some(at) = world.open.iter().position(
            |command| !matches!(command, Command::FetchManifest { task, .. } if task.as_str() == "meter"),
        ) else {
            if world.serving("valve").is_some()
                && matches!(world.updater.step(&task("valve")), Step::Settled { .. })
            {
                break;
            }
            world.wait();
            continue;
        };
        let command = world.open.remove(at);
        world.obey(command);
    }
    assert_eq!(world.serving("valve").unwrap(), "v@1");
    assert!(matches!(world.updater.step(&task("meter")), Step::Fetching { item: Item::Manifest(_), .. }));
}

#[test]
fn an_operator_returns_to_the_previous_release_once() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    assert!(!world.tell(Event::OperatorRollback { task: task("meter") }), "nothing to return to");
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.settle();
    assert!(world.tell(Event::OperatorRollback { task: task("meter") }));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(!world.tell(Event::OperatorRollback { task: task("meter") }));
}

#[test]
fn a_withdrawn_release_is_left_for_its_predecessor_then_its_fallback_then_the_baseline() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", Some("base@1")))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", Some("base@1")))]);
    world.settle();
    let floors = |model: &str, floor| Event::FloorsRaised([(model.parse().unwrap(), floor)].into());
    let mut world_at = |event| {
        world.tell(event);
        world.serving("meter")
    };
    assert_eq!(
        world_at(floors("m", 2)).unwrap(),
        "m@2",
        "withdrawing an older one changes nothing that serves"
    );
    assert_eq!(world_at(floors("m", 3)).unwrap(), "base@1");
    assert_eq!(world_at(floors("base", 2)), None);
}

#[test]
fn a_retrained_release_must_reach_the_anchor_score() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "auto.meter.mlp@1", None))]);
    world.until(Phase::Proving);
    let Some(Command::Prove { task, pack, .. }) = world.open.pop() else { panic!("a proof is due") };
    assert!(
        pack.blobs.iter().any(|blob| blob.digest == digest("anchor")),
        "the anchor set is fetched with it"
    );
    world.tell(Event::Proved {
        task,
        manifest: pack.manifest.digest,
        proof: Proof { latency_us: 10, peak_bytes: 1, anchor_ppm: 899_999 },
    });
    assert_eq!(world.phases().last(), Some(&(Phase::Failed, ReasonCode::AnchorScore)));
    assert_eq!(world.serving("meter"), None);
}

#[test]
fn room_is_made_by_letting_go_of_the_predecessor_first() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.settle();
    world.assign(3, vec![("meter", goal(3, "m@3", None))]);
    while !world.open.iter().any(|command| matches!(command, Command::CheckSpace { .. })) {
        let command = world.open.remove(0);
        world.obey(command);
    }
    let full = || Event::SpaceChecked { task: task("meter"), enough: false, detail: String::new() };
    assert!(world.tell(full()));
    assert!(world.open.iter().any(|command| matches!(command, Command::CheckSpace { .. })), "asks again");
    assert!(world.tell(full()));
    assert_eq!(world.phases().last(), Some(&(Phase::Deferred, ReasonCode::NoSpace)));
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@3");
}

#[test]
fn a_journal_of_a_newer_format_is_refused_by_name() {
    let journal = Journal { format: 2, ..Journal::default() };
    assert_eq!(
        Journal::decode(&journal.encode()).unwrap_err().to_string(),
        "update journal has format 2; this agent reads format 1"
    );
}

#[test]
fn without_a_journal_the_record_says_what_serves() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    let record = crate::Record::decode(&world.updater.record().encode()).unwrap();
    world.disk = Journal::adopt(record).encode();
    world.restart(Stop::PowerLost);
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(world.assign(1, vec![("meter", goal(1, "m@1", None))]), "the assignment is taken up anew");
    world.settle();
    assert_eq!(world.phases().last(), Some(&(Phase::Committed, ReasonCode::Ok)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Storms of right, wrong, stale and repeated facts, restarts and new assignments. The laws are checked at every
    /// turn; and when the storm is over, what is assigned comes to rest.
    #[test]
    fn no_storm_breaks_a_law(storm in proptest::collection::vec((0u8..24, any::<u8>(), any::<u8>()), 1..120)) {
        let mut world = World::new();
        let mut generation = 0;
        let names = ["m@1", "m@2", "m@3", "auto.meter.mlp@1", "base@1"];
        for (action, which, kind) in storm {
            let pick = usize::from(which);
            match action {
                0..=9 if !world.open.is_empty() => {
                    let command = world.open.remove(pick % world.open.len());
                    world.obey(command);
                }
                10..=13 if !world.open.is_empty() => {
                    let command = world.open.remove(pick % world.open.len());
                    world.fail(command, kind);
                }
                14 if !world.log.is_empty() => {
                    // An answer to an order of long ago. Proofs are only told where they happened.
                    let command = world.log[pick * 7 % world.log.len()].clone();
                    if !matches!(command, Command::Persist(_)) {
                        world.obey(command);
                    }
                }
                15 => world.restart(Stop::Crashed),
                16 => world.restart(Stop::PowerLost),
                17 => { world.tell(Event::OperatorRollback { task: task(["meter", "valve"][pick % 2]) }); }
                18 => { world.tell(Event::Retarget { release: release(names[pick % 5]) }); }
                19 => { world.tell(Event::FloorsRaised([("m".parse().unwrap(), u32::from(kind % 4))].into())); }
                20 | 21 => {
                    generation += 1;
                    let fallback = (kind % 3 == 0).then_some("base@1");
                    let mut goals = vec![("meter", goal(generation, names[pick % 4], fallback))];
                    if kind % 2 == 0 {
                        goals.push(("valve", goal(generation, names[usize::from(kind) % 3], None)));
                    }
                    world.assign(generation, goals);
                }
                _ => world.wait(),
            }
        }
        world.settle();
        for task in world.updater.tasks() {
            prop_assert!(world.updater.step(task).under_way().is_none(), "{:?}", world.updater.step(task));
        }
    }
}
