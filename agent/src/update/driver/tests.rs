//! What becomes of the update journal and the generation record on the disk, as the driver finds them at its start.
use std::fs;

use dunlin_protocol::{Blob, Digest};
use dunlin_update::Designation;

use super::*;
use crate::serve::Limits;
use crate::update::trusted::tests::{World, profile, take};

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
    let mut world = World::new();
    world.assign(GENERATION);
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
        inhibit_file: None,
        reserve_bytes: 0,
    };
    let fetcher = Fetcher::plain("http://127.0.0.1:1".to_owned());
    let ((_, orders), (notices, _)) = (mpsc::channel(1), mpsc::channel(1));
    let serving = Serving::new(Limits::default());
    let (driver, _) = Driver::restore(config, 1, trusted.clone(), fetcher, serving, orders, notices).unwrap();
    let told = driver.pending.iter().filter_map(|notice| match notice {
        Notice::Indicator(indicator) => Some(indicator.reason),
        Notice::Outcome(_) | Notice::Installed(..) => None,
    });
    let floor = trusted.lock().unwrap().floors().generation;
    TakenUp {
        generation: driver.updater.generation(),
        policy: driver.updater.record().tasks.get(&task()).and_then(|slot| slot.policy),
        floor,
        told: told.collect(),
    }
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
