//! Reports that tell nothing new wait in memory: what that may cost, and that the controller's count of it is right.

use super::*;
use crate::spool::hold::{NUMBERS_MAX, WAIT_MS_MAX};

const MINUTE_MS: u64 = 60_000;

/// The controller: what it holds, and what it counts as lost because it was declared and never came.
#[derive(Default)]
struct Controller {
    held: BTreeMap<(BootId, u64), Vec<u8>>,
    lost: BTreeSet<(BootId, u64)>,
}

impl Controller {
    fn take(&mut self, record: &Record) {
        let number = (record.boot, record.key.seq);
        let before = self.held.insert(number, record.body.clone());
        assert!(before.is_none_or(|body| body == record.body), "two records under one number");
        assert!(!self.lost.contains(&number), "what was declared lost came");
        if record.kind == Kind::Gap {
            let declared = reported_lost(std::slice::from_ref(record));
            self.lost.extend(declared.into_iter().filter(|number| !self.held.contains_key(number)));
        }
    }

    fn acknowledgement(&self, boot: BootId) -> AckRange {
        let known = |seq: &u64| self.held.contains_key(&(boot, *seq)) || self.lost.contains(&(boot, *seq));
        AckRange { boot, upto: (1..).take_while(known).last().unwrap_or(0) }
    }
}

/// The device, with what it made and never forgets for this test's sake.
struct Device {
    state: tempfile::TempDir,
    run: tempfile::TempDir,
    /// Away while the process is being replaced.
    spool: Option<Spool>,
    controller: Controller,
    now_ms: u64,
    every_ms: u64,
    /// Quiet ones with the time at which they were made.
    made: BTreeMap<(BootId, u64), Option<u64>>,
    /// What may be lost: by a kill, and what was reserved when the power went.
    may_be_lost: BTreeSet<(BootId, u64)>,
    power_cuts: u64,
}

impl Device {
    fn new(every_ms: u64) -> Self {
        let mut device = Self {
            state: tempfile::tempdir().unwrap(),
            run: tempfile::tempdir().unwrap(),
            spool: None,
            controller: Controller::default(),
            now_ms: 0,
            every_ms,
            made: BTreeMap::new(),
            may_be_lost: BTreeSet::new(),
            power_cuts: 0,
        };
        device.start();
        device
    }

    fn start(&mut self) {
        let note = self.run.path().join("given");
        self.spool = Some(Spool::open(self.state.path(), Some(note), ROOMY, draw_boot()).unwrap());
        self.now_ms = 0;
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    fn quiet(&mut self) {
        self.now_ms += self.every_ms;
        let body = format!("quiet {}", self.made.len()).into_bytes();
        let (now_ms, next_ms) = (self.now_ms, self.now_ms + self.every_ms);
        let seq = self.spool().append_quiet(body, now_ms, next_ms).unwrap();
        let before = self.made.insert((self.spool().boot(), seq), Some(now_ms));
        assert_eq!(before, None, "a number was given twice");
    }

    fn busy(&mut self) {
        let body = format!("busy {}", self.made.len()).into_bytes();
        let seq = self.spool().append(Kind::Window, body).unwrap();
        let before = self.made.insert((self.spool().boot(), seq), None);
        assert_eq!(before, None, "a number was given twice");
    }

    fn deliver(&mut self, count: usize) {
        let pending = self.spool.as_ref().unwrap().pending(None, count, usize::MAX).unwrap();
        assert!(pending.windows(2).all(|pair| pair[0].key < pair[1].key));
        pending.iter().for_each(|record| self.controller.take(record));
    }

    fn acknowledge(&mut self) {
        for boot in self.spool().counters().boots {
            self.spool().acknowledge(&self.controller.acknowledgement(boot.boot)).unwrap();
        }
    }

    /// The process dies, or the board: then what it wrote where nothing outlives its boot is gone as well.
    fn cut(&mut self, power: bool) {
        let boot = self.spool().boot();
        // Until the next one is due nothing is done, so this is how old what waits may become.
        let due_ms = self.now_ms + self.every_ms;
        let here = self.made.range((boot, 0)..=(boot, u64::MAX));
        let recent = here.filter(|(number, made_ms)| {
            let quiet_and_recent = matches!(made_ms, Some(made_ms) if due_ms - made_ms <= WAIT_MS_MAX);
            quiet_and_recent && !self.controller.held.contains_key(*number)
        });
        let recent: Vec<_> = recent.map(|(number, _)| *number).collect();
        self.may_be_lost.extend(recent);
        let image = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(self.state.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), image.path().join(file.file_name())).unwrap();
        }
        self.spool = None;
        self.state = image;
        if power {
            self.power_cuts += 1;
            self.run = tempfile::tempdir().unwrap();
        }
        self.start();
        assert_eq!(self.spool().found(), &Found::Sound);
    }

    fn stop(&mut self) {
        self.spool().close().unwrap();
        self.spool = None;
        self.start();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Quiet,
    Busy,
    Deliver(usize),
    Acknowledge,
    Kill,
    CutPower,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Quiet),
        2 => Just(Step::Busy),
        3 => (1usize..6).prop_map(Step::Deliver),
        3 => Just(Step::Acknowledge),
        2 => Just(Step::Kill),
        1 => Just(Step::CutPower),
        1 => Just(Step::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Lost are only quiet reports of the last quarter of an hour that the controller did not get, and it counts them all.
    /// What a killed process lost is counted exactly; with the power goes the knowledge of how many there were, so that
    /// numbers that were reserved and never given may be counted with them.
    #[test]
    fn what_is_lost_is_quiet_and_recent_and_counted(
        steps in prop::collection::vec(step(), 1..40),
        every in prop_oneof![Just(1u64), Just(5), Just(14), Just(20)],
    ) {
        let mut device = Device::new(every * MINUTE_MS);
        for step in steps {
            match step {
                Step::Quiet => device.quiet(),
                Step::Busy => device.busy(),
                Step::Deliver(count) => device.deliver(count),
                Step::Acknowledge => device.acknowledge(),
                Step::Kill => device.cut(false),
                Step::CutPower => device.cut(true),
                Step::Stop => device.stop(),
            }
            let running = device.spool().counters().boots.last().unwrap().clone();
            prop_assert!(running.appended <= running.reserved);
        }
        device.stop();
        while device.spool().counters().total().waiting() > 0 {
            device.deliver(usize::MAX);
            device.acknowledge();
        }
        let Device { controller, made, may_be_lost, power_cuts, .. } = &device;
        let gone: BTreeSet<_> =
            made.keys().filter(|number| !controller.held.contains_key(number)).copied().collect();
        prop_assert!(gone.is_subset(may_be_lost), "{gone:?} of {may_be_lost:?}");
        prop_assert!(gone.is_subset(&controller.lost), "lost in silence: {gone:?}, counted {:?}", controller.lost);
        let never_made = controller.lost.difference(&gone).count() as u64;
        prop_assert!(never_made <= power_cuts * NUMBERS_MAX, "{never_made} too many");
        // The device's own books say no less.
        prop_assert!(device.spool().counters().total().lost >= controller.lost.len() as u64);
    }
}

#[test]
fn what_is_acknowledged_while_it_waits_never_touches_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    let kept = || std::fs::read(dir.path().join("spool.redb")).unwrap();
    let before = kept();
    for minute in [5, 10, 15, 20] {
        let seq = spool.append_quiet(vec![9], minute * MINUTE_MS, (minute + 5) * MINUTE_MS).unwrap();
        let pending = everything(&spool);
        assert_eq!(pending.iter().map(|record| record.key.seq).collect::<Vec<_>>(), [seq]);
        assert_eq!(spool.acknowledge(&AckRange { boot: spool.boot(), upto: seq }).unwrap(), 1);
    }
    assert!(kept() == before);
    let shown = spool.counters().total();
    assert_eq!((shown.appended, shown.acked, shown.waiting()), (4, 4, 0));
    // The next has no number reserved: a commit takes the books along, and it waits as well.
    assert_eq!(spool.append_quiet(vec![9], 25 * MINUTE_MS, 30 * MINUTE_MS).unwrap(), 5);
    assert!(kept() != before);
    let shown = Spool::read_counters(dir.path()).unwrap().total();
    assert_eq!((shown.appended, shown.acked, shown.waiting()), (4, 4, 0));
    assert_eq!(spool.counters().total().waiting(), 1);
}

#[test]
fn an_orderly_end_keeps_what_waits_and_declares_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    let first = spool.boot();
    spool.append_quiet(vec![9], 0, 5 * MINUTE_MS).unwrap();
    spool.close().unwrap();
    drop(spool);
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    let kept: Vec<_> = everything(&spool).into_iter().map(|record| (record.boot, record.kind)).collect();
    assert_eq!(kept, [(first, Kind::Report)]);
    assert_eq!(spool.counters().total().lost, 0);
}

#[test]
fn a_commit_of_others_takes_along_what_waits_and_keeps_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), None, ROOMY, draw_boot()).unwrap();
    spool.append_quiet(vec![1], 0, 5 * MINUTE_MS).unwrap();
    assert!(spool.pending(None, 0, usize::MAX).unwrap().is_empty());
    assert_eq!(spool.append(Kind::Window, vec![2]).unwrap(), 2);
    spool.append_quiet(vec![3], 0, 5 * MINUTE_MS).unwrap();
    let bodies = |records: Vec<Record>| records.into_iter().map(|r| r.body[0]).collect::<Vec<_>>();
    assert_eq!(bodies(everything(&spool)), [1, 2, 3]);
    // What waits comes after all on disk, also where that is not handed out at once.
    assert_eq!(bodies(spool.pending(None, 1, usize::MAX).unwrap()), [1]);
    assert_eq!(bodies(spool.pending(None, 9, 1).unwrap()), [1]);
    // An acknowledgement of what is on disk commits what it does not speak of.
    assert_eq!(spool.acknowledge(&AckRange { boot: spool.boot(), upto: 2 }).unwrap(), 2);
    assert_eq!(Spool::read_counters(dir.path()).unwrap().total().waiting(), 1);
    assert_eq!(bodies(everything(&spool)), [3]);
}
