//! What becomes of the update journal and the generation record on the disk, as the driver finds them at its start.
use std::fs;
use std::path::{Path, PathBuf};

use dunlin_protocol::{
    Blob, Conduct, DeviceId, Digest, GoldenSet, Member, Probation, RepoVersions, Role, Rule, cbor,
};
use dunlin_update::{Designation, FileRef, Goal, Journal, Line, Pack, Part, Proof, Record, Step, Stop};
use serde_cbor::Value;

use super::*;
use crate::serve::onnx::{IDENTITY, linear, resident};
use crate::serve::{AnsweredBy, Limits, STRIKES_MAX};
use crate::update::trusted::tests::{World, profile, take};
use crate::update::twin::Twin;

/// The journal and the record that stands in for it, each with the copy of the write before.
const FILES: [&str; 4] = ["journal.a", "journal.b", "slots.a", "slots.b"];
/// Of the newest journal; that of the copy before is one less.
const GENERATION: u64 = 8;
/// What the task's policy is.
const POLICY: Blob = Blob { digest: Digest([7; 32]), length: 10 };

fn task() -> TaskId {
    "meter".parse().unwrap()
}

fn record(generation: u64) -> Record {
    let baseline = || Designation::Baseline;
    let slot = Slot { policy: Some(POLICY), serving: baseline(), previous: baseline() };
    Record { format: 1, generation, tasks: [(task(), slot)].into() }
}

/// A folder as the last two writes of each leave it.
fn written(dir: &Path) {
    let (mut journal, _) = Twin::open(dir, "journal").unwrap();
    let (mut slots, _) = Twin::open(dir, "slots").unwrap();
    for generation in [GENERATION - 1, GENERATION] {
        // A journal that adopts a record is one generation behind it.
        journal.save(&Journal::adopt(record(generation + 1)).encode()).unwrap();
        slots.save(&record(generation).encode()).unwrap();
    }
}

/// What an agent takes up, and the reasons that it tells.
struct TakenUp {
    generation: u64,
    policy: Option<Blob>,
    floor: u64,
    told: Vec<ReasonCode>,
}

/// Starts on a state folder of a device that was assigned the newest generation.
fn start(state: &Path) -> TakenUp {
    let driver = restored(state, &assigned());
    let told = driver.pending.iter().filter_map(|notice| match notice {
        Notice::Indicator(indicator) => Some(indicator.reason),
        Notice::Outcome(_) | Notice::Installed(..) | Notice::StartAnew => None,
    });
    let floor = driver.trusted.lock().unwrap().floors().generation;
    TakenUp {
        generation: driver.updater.generation(),
        policy: driver.updater.record().tasks.get(&task()).and_then(|slot| slot.policy),
        floor,
        told: told.collect(),
    }
}

/// Where the newest generation is assigned.
fn assigned() -> World {
    let mut world = World::new();
    world.assign(GENERATION);
    world
}

/// The driver on a state folder of a device that took what this world offers.
fn restored(state: &Path, world: &World) -> Driver {
    restored_with(state, world, None)
}

fn restored_with(state: &Path, world: &World, inhibit_file: Option<PathBuf>) -> Driver {
    let mut trusted = world.open(&state.join("trust"));
    assert_eq!(take(&mut trusted, &world.check()), Ok(GENERATION));
    let trusted = Arc::new(Mutex::new(trusted));
    let config = UpdateConfig {
        slots_dir: state.join("slots"),
        profile: profile(),
        exe: PathBuf::from("/nonexistent"),
        check: Duration::from_secs(1),
        retry_min: Duration::from_secs(1),
        retry_max: Duration::from_secs(1),
        inhibit_file,
        reserve_bytes: 0,
    };
    let fetcher = Fetcher::plain("http://127.0.0.1:1".to_owned());
    let ((_, orders), (notices, _)) = (mpsc::channel(1), mpsc::channel(1));
    let serving = Serving::new(Limits::default());
    let (driver, _) = Driver::restore(config, 1, trusted, fetcher, serving, orders, notices).unwrap();
    driver
}

/// Bends the files of a folder that was written, and starts on it.
fn start_after(bend: impl FnOnce(&Path)) -> TakenUp {
    let state = tempfile::tempdir().unwrap();
    let slots = state.path().join("slots");
    fs::create_dir(&slots).unwrap();
    written(&slots);
    bend(&slots);
    start(state.path())
}

fn bent(path: &Path, to: Option<usize>) {
    match to {
        Some(bytes) => {
            let whole = fs::read(path).unwrap();
            fs::write(path, &whole[..bytes.min(whole.len())]).unwrap();
        }
        None => fs::remove_file(path).unwrap(),
    }
}

#[tokio::test]
async fn one_file_emptied_cut_lost_or_two_swapped_cost_at_most_the_last_write() {
    let whole = start_after(|_| ());
    assert_eq!((whole.generation, whole.policy), (GENERATION, Some(POLICY)));
    assert!(whole.told.is_empty(), "{:?}", whole.told);
    let keeps = |taken: &TakenUp, what: &str| {
        assert!((GENERATION - 1..=GENERATION).contains(&taken.generation), "{what}: {}", taken.generation);
        assert_eq!((taken.policy, taken.floor), (Some(POLICY), GENERATION), "{what}");
    };
    for name in FILES {
        for to in [Some(0), Some(40), None] {
            let taken = start_after(|slots| bent(&slots.join(name), to));
            keeps(&taken, &format!("{name} bent to {to:?} bytes"));
            assert_eq!(
                taken.told,
                vec![ReasonCode::StateRecovered; usize::from(to.is_some())],
                "{name} {to:?}"
            );
        }
        for other in FILES.iter().filter(|other| **other != name) {
            let taken = start_after(|slots| {
                let aside = slots.join("aside");
                fs::rename(slots.join(name), &aside).unwrap();
                fs::rename(slots.join(other), slots.join(name)).unwrap();
                fs::rename(&aside, slots.join(other)).unwrap();
            });
            keeps(&taken, &format!("{name} and {other} swapped"));
        }
    }
}

#[tokio::test]
async fn without_one_of_the_two_records_the_other_says_what_serves() {
    for to in [Some(0), Some(40), None] {
        for lost in [["journal.a", "journal.b"], ["slots.a", "slots.b"]] {
            let taken = start_after(|slots| lost.iter().for_each(|name| bent(&slots.join(name), to)));
            assert_eq!(taken.policy, Some(POLICY), "{lost:?} bent to {to:?} bytes");
            assert!(taken.generation >= GENERATION - 1 && taken.floor == GENERATION, "{lost:?} {to:?}");
        }
    }
}

#[tokio::test]
async fn without_either_record_nothing_older_is_taken_up() {
    for to in [Some(0), Some(40), None] {
        let taken = start_after(|slots| FILES.iter().for_each(|name| bent(&slots.join(name), to)));
        assert_eq!((taken.generation, taken.policy, taken.floor), (0, None, GENERATION), "{to:?}");
        assert_eq!(taken.told.is_empty(), to.is_none(), "{:?}", taken.told);
    }
}

/// One impostor is told once, until the controller itself answered; that it could not be reached in between says nothing.
#[tokio::test]
async fn an_impostor_is_told_once_until_the_controller_answered_itself() {
    let state = tempfile::tempdir().unwrap();
    fs::create_dir(state.path().join("slots")).unwrap();
    let mut driver = restored(state.path(), &assigned());
    let url = || "https://controller".to_owned();
    let broken = async || {
        let (device, none): (DeviceId, _) = ("pole-1".parse().unwrap(), RepoVersions::default());
        match Fetcher::plain("no address".to_owned()).check(&device, none, none, "").await {
            Err(FetchError::Link { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    };
    let answers = [
        (FetchError::Untrusted { url: url(), source: broken().await }, 1),
        (FetchError::Untrusted { url: url(), source: broken().await }, 1),
        (FetchError::Link { url: url(), source: broken().await }, 1),
        (FetchError::Slow { url: url() }, 1),
        (FetchError::Untrusted { url: url(), source: broken().await }, 1),
        (FetchError::Status { url: url(), status: 503, retry_after_ms: None }, 1),
        (FetchError::Untrusted { url: url(), source: broken().await }, 2),
        (FetchError::Answer { url: url(), problem: "no metadata".to_owned() }, 2),
        (FetchError::Untrusted { url: url(), source: broken().await }, 3),
        (FetchError::Endless { url: url() }, 3),
        (FetchError::Untrusted { url: url(), source: broken().await }, 4),
    ];
    for (error, expected) in answers {
        let what = error.to_string();
        driver.checked(Err(error)).await;
        let untrusted = driver.pending.iter().filter(|notice| match notice {
            Notice::Indicator(indicator) => indicator.reason == ReasonCode::ServerUntrusted,
            Notice::Outcome(_) | Notice::Installed(..) | Notice::StartAnew => false,
        });
        assert_eq!(untrusted.count(), expected, "{what}");
    }
}

/// Puts a file into the store of a state folder.
fn stored(blobs: &Path, content: &[u8]) -> Blob {
    let blob = Blob { digest: dunlin_trust::sha256(content), length: content.len() as u64 };
    fs::write(blobs.join(blob.digest.to_string()), content).unwrap();
    blob
}

/// Puts a release of this model file into the store of a state folder, proved with `row`.
fn released(blobs: &Path, release: &str, onnx: &[u8], row: [f32; 3]) -> Pack {
    let mut bundle = resident(release, &task(), onnx, 3).bundle.as_ref().clone();
    bundle.model = stored(blobs, onnx);
    let inputs = vec![dunlin_engine::of_floats("x", &[1, 3], &row)];
    let golden = GoldenSet { format: 1, inputs, outputs: vec![], tolerance_ppm: 0, labels: vec![] };
    bundle.golden = stored(blobs, &cbor::encode(&golden));
    let manifest = stored(blobs, &serde_json::to_vec(&bundle).unwrap());
    Pack { release: bundle.release, manifest, blobs: vec![bundle.model], retrained: false }
}

/// The journal with another step of its task.
fn journal_at(step: &Step, journal: &Journal) -> Vec<u8> {
    let value = |bytes: &[u8]| serde_cbor::from_slice::<Value>(bytes).unwrap();
    let mut whole = value(&journal.encode());
    let mut at = &mut whole;
    for key in ["tasks", "meter", "step"] {
        let Value::Map(map) = at else { panic!("{key} is in no map") };
        at = map.get_mut(&Value::Text(key.to_owned())).unwrap();
    }
    *at = value(&cbor::encode(step));
    cbor::encode(&whole)
}

/// The file was laid while the release was on its way: it goes as far as that the switch is due, also over a restart.
#[tokio::test]
async fn a_switch_that_is_due_waits_for_the_inhibit_file_to_go_also_over_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let blobs = state.path().join("slots/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let row = [1.0, 2.0, 3.0];
    let line = |generation, release| Line {
        generation,
        champion: released(&blobs, release, &linear(3, 3, &IDENTITY, false), row),
        fallback: None,
        members: vec![],
        conduct: Conduct::default(),
        proof: Proof::default(),
        policy: None,
    };
    let (serving, next) = (line(GENERATION, "m@1"), line(GENERATION + 1, "m@2"));
    let Pack { release, manifest, .. } = next.champion.clone();
    let hard = resident("m@2", &task(), &linear(3, 3, &IDENTITY, false), 3).bundle.hard.clone();
    let manifest = FileRef { name: release.target_name(), length: manifest.length, sha256: manifest.digest };
    let goal = Goal {
        generation: GENERATION + 1,
        correlation: "c".to_owned(),
        champion: Part { release, manifest, hard, retrained: false },
        fallback: None,
        members: vec![],
        conduct: Conduct::default(),
        let_go: Default::default(),
        policy: None,
        probation: Probation {
            ms_min: 60_000,
            requests_min: 1_000,
            pairs_min: 0,
            error_ppm_max: 1_000_000,
            latency_percent_max: 1_000,
            rss_bytes_max: 0,
            disagree_ppm_max: 1_000_000,
        },
        deadline_ms: None,
    };
    let slot = Slot { policy: None, serving: Designation::Line(serving), previous: Designation::Baseline };
    // A journal that adopts a record is one generation behind it. Nothing newer than this one is assigned.
    let record = Record { format: 1, generation: GENERATION + 2, tasks: [(task(), slot)].into() };
    let step = Step::Switching { goal, line: next, strikes: Default::default() };
    let (mut journal, _) = Twin::open(&state.path().join("slots"), "journal").unwrap();
    journal.save(&journal_at(&step, &Journal::adopt(record))).unwrap();
    let inhibit = state.path().join("inhibit");
    fs::write(&inhibit, b"").unwrap();
    let ask = |serving: &Serving| {
        let x = [dunlin_engine::of_floats("x", &[1, 3], &row)];
        serving.infer(&task(), "a", &x, Now { mono_ms: 1, wall_ms: None }).unwrap().generation
    };

    for _start in 0..2 {
        let mut driver = restored_with(state.path(), &assigned(), Some(inhibit.clone()));
        driver.tell(Event::ProcessStarted(Stop::Orderly)).await;
        let (stop, stopping) = watch::channel(false);
        let served = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stop.send_replace(true);
        };
        tokio::join!(driver.run(stopping), served);
        assert_eq!((ask(&driver.hands.serving()), driver.inhibited), (GENERATION, true));
        assert_eq!(driver.updater.step(&task()), &step);
    }

    let mut driver = restored_with(state.path(), &assigned(), Some(inhibit.clone()));
    driver.tell(Event::ProcessStarted(Stop::Orderly)).await;
    fs::remove_file(&inhibit).unwrap();
    let serving = driver.hands.serving();
    let (stop, stopping) = watch::channel(false);
    let switched = async {
        while ask(&serving) == GENERATION {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.send_replace(true);
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(driver.run(stopping), switched);
    });
    ended.await.expect("the switch is ordered again");
    assert_eq!((ask(&serving), driver.inhibited), (GENERATION + 1, false));
    assert_eq!(driver.updater.step(&task()).phase(), Phase::Probation);
}

/// A stack is nothing without one of its voters: the meta-model and the other voter go with it.
#[tokio::test]
async fn what_a_member_that_failed_too_often_takes_with_it_leaves_memory_at_once() {
    let state = tempfile::tempdir().unwrap();
    let blobs = state.path().join("slots/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let (fine, bad) = ([1.0, 2.0, 3.0], [-1.0, 1.0, 2.0]);
    let champion = released(&blobs, "m@1", &linear(3, 3, &IDENTITY, false), fine);
    let voter = Role::Voter { weight_ppm: 1_000_000 };
    let members = [
        ("bad@1", voter, linear(3, 3, &IDENTITY, true), bad),
        ("good@1", voter, linear(3, 3, &[1.0; 9], false), fine),
        ("meta@1", Role::Meta, linear(9, 3, &[1.0; 27], false), fine),
    ];
    let members = members.map(|(release, role, onnx, row)| {
        let pack = released(&blobs, release, &onnx, row);
        (Member { release: pack.release.clone(), role, limit_us: None }, pack)
    });
    let line = Line {
        generation: GENERATION,
        champion,
        fallback: None,
        members: members.into(),
        conduct: Conduct { rule: Rule::Stack, context: vec![] },
        proof: Proof::default(),
        policy: None,
    };
    let slot = Slot { policy: None, serving: Designation::Line(line), previous: Designation::Baseline };
    let record = Record { format: 1, generation: GENERATION, tasks: [(task(), slot)].into() };
    let (mut journal, _) = Twin::open(&state.path().join("slots"), "journal").unwrap();
    journal.save(&Journal::adopt(record).encode()).unwrap();
    let mut driver = restored(state.path(), &assigned());
    driver.tell(Event::ProcessStarted(Stop::Orderly)).await;

    let serving = driver.hands.serving();
    let loaded: Vec<_> = serving.residents().iter().map(|one| Arc::downgrade(&one.model)).collect();
    let ask = |row: [f32; 3]| {
        let x = [dunlin_engine::of_floats("x", &[1, 3], &row)];
        serving.infer(&task(), "a", &x, Now { mono_ms: 1, wall_ms: None }).unwrap()
    };
    assert_eq!((loaded.len(), ask(fine).by), (4, AnsweredBy::Stack));
    (0..STRIKES_MAX).for_each(|_| drop(ask(bad)));
    let (stop, stopping) = watch::channel(false);
    let freed = async {
        while loaded[1..].iter().any(|model| model.upgrade().is_some()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.send_replace(true);
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(driver.run(stopping), freed);
    });
    ended.await.expect("voters and meta-model leave memory");
    let answer = ask(fine);
    assert_eq!((answer.by, answer.generation), (AnsweredBy::Champion, GENERATION));
    assert!(loaded[0].upgrade().is_some() && driver.updater.designation(&task()).line().is_some());
}
