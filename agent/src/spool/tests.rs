use std::collections::{BTreeMap, BTreeSet};
use std::io;

use dunlin_protocol::{Gap, cbor};
use proptest::prelude::*;
use redb::StorageBackend;
use redb::backends::FileBackend;
use rustix::io::Errno;

use super::*;

mod quiet;

const ROOMY: u64 = 1 << 24;

fn bodies(kind: Kind, n: usize, bytes: usize) -> Vec<(Kind, Vec<u8>)> {
    (0..n).map(|i| (kind, vec![u8::try_from(i % 251).unwrap(); bytes])).collect()
}

fn everything(spool: &Spool) -> Vec<Record> {
    spool.pending(None, usize::MAX, usize::MAX).unwrap()
}

fn reported_lost(records: &[Record]) -> BTreeSet<(BootId, u64)> {
    let mut lost = BTreeSet::new();
    for record in records.iter().filter(|record| record.kind == Kind::Gap) {
        let gap: Gap = cbor::decode(&record.body, BODY_BYTES_MAX).unwrap();
        for (first, last) in gap.ranges {
            lost.extend((first..=last).map(|seq| (gap.boot, seq)));
        }
    }
    lost
}

#[test]
fn a_spool_is_held_by_one_agent_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = Spool::open(dir.path(), None, 1 << 20, draw_boot()).unwrap();
    assert!(Spool::open(dir.path(), None, 1 << 20, draw_boot()).unwrap_err().is_held());
    drop(first);
    Spool::open(dir.path(), None, 1 << 20, draw_boot()).unwrap();
}

#[test]
fn records_survive_a_restart_and_leave_on_acknowledgement_only() {
    let dir = tempfile::tempdir().unwrap();
    let first = draw_boot();
    {
        let spool = Spool::open(dir.path(), None, ROOMY, first).unwrap();
        assert_eq!(spool.append_all(&bodies(Kind::Window, 3, 10)).unwrap(), (1, 3));
        spool.close().unwrap();
    }
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    assert_eq!(spool.append(Kind::Report, vec![9]).unwrap(), 1);
    let order: Vec<_> = everything(&spool).iter().map(|r| (r.boot == first, r.key.seq)).collect();
    assert_eq!(order, [(true, 1), (true, 2), (true, 3), (false, 1)]);
    assert_eq!(spool.acknowledge(&AckRange { boot: first, upto: 2 }).unwrap(), 2);
    assert_eq!(spool.acknowledge(&AckRange { boot: first, upto: 2 }).unwrap(), 0);
    assert_eq!(spool.acknowledge(&AckRange { boot: draw_boot(), upto: 9 }).unwrap(), 0);
    assert_eq!(everything(&spool).len(), 2);
    let counters = Spool::read_counters(dir.path()).unwrap();
    assert_eq!(counters, spool.counters());
    let boot = counters.boot(&first).unwrap();
    assert_eq!((boot.appended, boot.windows, boot.acked, boot.waiting()), (3, 3, 2, 1));
}

#[test]
fn an_acknowledgement_of_the_future_deletes_nothing_that_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    spool.append(Kind::Window, vec![1]).unwrap();
    spool.acknowledge(&AckRange { boot: spool.boot(), upto: u64::MAX }).unwrap();
    spool.append(Kind::Window, vec![2]).unwrap();
    assert_eq!(everything(&spool).len(), 1);
}

#[test]
fn the_lowest_value_goes_first_and_a_gap_grows_until_it_was_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), None, 8_000, draw_boot()).unwrap();
    spool.append_all(&bodies(Kind::Report, 2, 400)).unwrap();
    spool.append_all(&bodies(Kind::Samples, 4, 400)).unwrap();
    spool.append_all(&bodies(Kind::Window, 20, 400)).unwrap();
    let records = spool.pending_gaps().unwrap();
    assert_eq!(records.len(), 1, "one gap record speaks for all");
    let kept = everything(&spool);
    assert_eq!(kept.iter().filter(|r| r.kind == Kind::Report).count(), 2);
    assert_eq!(kept.iter().filter(|r| r.kind == Kind::Samples).count(), 0);
    // It was handed out, so it may be on its way: the next loss goes into another record.
    spool.append_all(&bodies(Kind::Window, 3, 400)).unwrap();
    assert_eq!(spool.pending_gaps().unwrap().len(), 2);
    assert_eq!(spool.pending_gaps().unwrap()[0], records[0]);
}

#[test]
fn a_damaged_database_is_set_aside_and_what_it_held_is_declared_lost() {
    let dir = tempfile::tempdir().unwrap();
    let first = draw_boot();
    {
        let spool = Spool::open(dir.path(), None, ROOMY, first).unwrap();
        spool.append_all(&bodies(Kind::Window, 5, 10)).unwrap();
        spool.acknowledge(&AckRange { boot: first, upto: 2 }).unwrap();
        assert_eq!(spool.next_epoch().unwrap(), 1);
        spool.close().unwrap();
    }
    let path = dir.path().join("spool.redb");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::write(&path, vec![0xA5; usize::try_from(length).unwrap()]).unwrap();
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    assert!(matches!(spool.found(), Found::Damaged(aside) if aside.exists()));
    let lost = reported_lost(&everything(&spool));
    assert_eq!(lost, (3..=5).map(|seq| (first, seq)).collect());
    assert_eq!(spool.next_epoch().unwrap(), 2, "the epoch never falls back");
}

/// The database on a medium that does not give back what lies beyond its first page.
#[derive(Debug)]
struct Failing {
    file: FileBackend,
    error: Errno,
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset > 0 { Err(self.error.into()) } else { self.file.read(offset, out) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}

#[test]
fn a_bad_sector_sets_the_database_aside_and_a_wrong_owner_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let first = draw_boot();
    {
        let spool = Spool::open(dir.path(), None, ROOMY, first).unwrap();
        spool.append_all(&bodies(Kind::Window, 3, 10)).unwrap();
        spool.close().unwrap();
    }
    let opened = |error: Errno| {
        let open = move |path: &Path| {
            let file = std::fs::File::options().read(true).write(true).open(path)?;
            let file = FileBackend::new(file)?;
            database::take_up(redb::Database::builder().create_with_backend(Failing { file, error })?)
        };
        Store::open_with(dir.path(), ROOMY, draw_boot(), Note(None), open)
    };
    let refused = opened(Errno::ACCESS).err();
    assert!(matches!(refused, Some(SpoolError::Database { .. })), "{refused:?}");
    assert_eq!(everything(&Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap()).len(), 3);

    let (store, found) = opened(Errno::IO).unwrap();
    assert!(matches!(found, Found::Damaged(aside) if aside.exists()));
    drop(store);
    let mut lost = reported_lost(&everything(&Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap()));
    // Boots without an orderly end lost numbers of their own.
    lost.retain(|(boot, _)| *boot == first);
    assert_eq!(lost, (1..=3).map(|seq| (first, seq)).collect());
}

#[test]
fn a_second_process_can_not_open_the_spool_but_reads_its_counters() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    spool.append(Kind::Window, vec![1]).unwrap();
    assert!(matches!(Spool::open(dir.path(), None, ROOMY, draw_boot()), Err(SpoolError::Database { .. })));
    assert_eq!(Spool::read_counters(dir.path()).unwrap().total().windows, 1);
}

#[test]
fn many_restarts_without_network_stay_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let boots = store::BOOTS_WAITING_MAX + 5;
    for _ in 0..boots {
        Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap().append(Kind::Report, vec![1]).unwrap();
    }
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    let counters = spool.counters();
    assert!(
        counters.boots.len() <= store::BOOTS_WAITING_MAX + counters::BOOTS_MAX + 1,
        "{}",
        counters.boots.len()
    );
    assert!(!reported_lost(&everything(&spool)).is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<(u8, usize)>),
    Reopen,
    Crash,
    HandOut,
    Acknowledge(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((0u8..3, 1usize..600), 1..6).prop_map(Step::Append),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        1 => Just(Step::HandOut),
        2 => (1u64..12).prop_map(Step::Acknowledge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every number that was given is at every moment acknowledged, waiting, or reported as a gap; none is given
    /// twice; the bound holds. A crash is the files as they lie on disk while the spool is open, opened anew.
    #[test]
    fn nothing_is_lost_and_nothing_is_given_twice(steps in prop::collection::vec(step(), 1..30)) {
        const BOUND: u64 = 6_000;
        let mut dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), None, BOUND, draw_boot()).unwrap();
        let mut acked: BTreeMap<BootId, u64> = BTreeMap::new();
        let mut told: BTreeMap<Key, Record> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Append(records) => {
                    let before = spool.counters().boot(&spool.boot()).unwrap().appended;
                    let records: Vec<_> = records.into_iter().map(|(kind, bytes)| {
                        ([Kind::Samples, Kind::Window, Kind::Report][usize::from(kind)], vec![kind; bytes])
                    }).collect();
                    let (first, last) = spool.append_all(&records).unwrap();
                    prop_assert_eq!((first, last), (before + 1, before + records.len() as u64));
                }
                Step::Reopen => {
                    drop(spool);
                    spool = Spool::open(dir.path(), None, BOUND, draw_boot()).unwrap();
                }
                Step::Crash => {
                    let image = tempfile::tempdir().unwrap();
                    for file in std::fs::read_dir(dir.path()).unwrap() {
                        let file = file.unwrap();
                        std::fs::copy(file.path(), image.path().join(file.file_name())).unwrap();
                    }
                    drop(spool);
                    dir = image;
                    spool = Spool::open(dir.path(), None, BOUND, draw_boot()).unwrap();
                    prop_assert_eq!(spool.found(), &Found::Sound);
                }
                Step::HandOut => {
                    for record in everything(&spool) {
                        if let Some(earlier) = told.get(&record.key) {
                            prop_assert_eq!(earlier, &record, "a record changed after it was handed out");
                        }
                        told.insert(record.key, record);
                    }
                }
                Step::Acknowledge(n) => {
                    // The controller acknowledges what it was sent, no further.
                    if let Some(record) = told.values().nth(usize::try_from(n).unwrap() % told.len().max(1)) {
                        let range = AckRange { boot: record.boot, upto: record.key.seq };
                        spool.acknowledge(&range).unwrap();
                        let upto = acked.entry(record.boot).or_default();
                        *upto = (*upto).max(record.key.seq);
                    }
                }
            }
            prop_assert!(spool.counters().bytes <= BOUND);
        }
        let waiting = everything(&spool);
        prop_assert!(waiting.windows(2).all(|pair| pair[0].key < pair[1].key));
        let mut lost = reported_lost(&waiting);
        lost.extend(reported_lost(&told.values().cloned().collect::<Vec<_>>()));
        let held: BTreeSet<_> = waiting.iter().map(|r| (r.boot, r.key.seq)).collect();
        for boot in spool.counters().boots {
            prop_assert_eq!(boot.waiting(), held.iter().filter(|(id, _)| *id == boot.boot).count() as u64);
            for seq in 1..=boot.appended {
                let upto = acked.get(&boot.boot).copied().unwrap_or(0);
                prop_assert!(
                    seq <= upto || held.contains(&(boot.boot, seq)) || lost.contains(&(boot.boot, seq)),
                    "{} {} is neither acknowledged nor held nor reported", boot.boot, seq
                );
            }
        }
    }
}

/// What this release keeps is read for ever: a format, a kind, a body; and the books beside them.
#[test]
fn records_and_books_are_read_and_written_as_ever() {
    let kinds = [
        (Kind::Status, 0),
        (Kind::Window, 1),
        (Kind::Report, 2),
        (Kind::Samples, 3),
        (Kind::Gap, 4),
        (Kind::Reply, 5),
        (Kind::Desired, 6),
        (Kind::Cmd, 7),
        (Kind::Ack, 8),
    ];
    for (kind, code) in kinds {
        let kept = [1, code, 0xa0];
        assert_eq!(books::encode(kind, &[0xa0]), kept);
        assert_eq!(books::decode(&kept), Some((kind, &[0xa0][..])));
    }
    let kept = include_str!("golden/counters.json");
    let counters: Counters = serde_json::from_str(kept).unwrap();
    let boot = BootCounters {
        boot: BootId([1; 16]),
        ordinal: 2,
        appended: 10,
        windows: 7,
        acked: 6,
        evicted: 1,
        windows_evicted: 1,
        acked_upto: 6,
        ..BootCounters::default()
    };
    let earlier = BootCounters { appended: 5, acked: 5, ..BootCounters::default() };
    assert_eq!(counters, Counters { epoch: 4, bytes: 300, disk_full: 1, earlier, boots: vec![boot] });
    assert_eq!(serde_json::to_string_pretty(&counters).unwrap(), kept.trim_end());
}
