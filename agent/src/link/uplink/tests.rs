use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;

use dunlin_protocol::{AckBody, AckRange, Envelope, Gap};
use dunlin_trust::EcdsaP256Signer;

use super::*;
use crate::spool::draw_boot;

/// A broker with a controller behind it, in memory: it forgets sessions, loses messages and cuts connections
/// as its script says, keeps what it was sent and acknowledges unbroken runs.
#[derive(Default)]
struct World {
    /// Whether somebody else answers each coming connect; nobody does when it has run out.
    strangers: VecDeque<bool>,
    /// Whether each coming message is lost; none are when it has run out.
    losses: VecDeque<bool>,
    /// After how many messages the connection is cut; for ever up when it has run out.
    cuts: VecDeque<usize>,
    resumes: bool,
    stored: BTreeMap<BootId, BTreeSet<u64>>,
    declared: BTreeMap<BootId, BTreeSet<u64>>,
    statuses: Vec<(bool, u64)>,
    subscriptions: usize,
    events: VecDeque<LinkEvent>,
    rung: Arc<Notify>,
    /// Larger messages are not taken.
    bytes_max: Option<usize>,
    until_cut: Option<usize>,
    down_seq: u64,
}

#[derive(Clone)]
struct Memory(Arc<Mutex<World>>);

impl World {
    fn take(&mut self, payload: &[u8]) {
        let header = Envelope::decode(payload).unwrap().header().unwrap();
        if header.kind == Kind::Status {
            let status: Status = cbor::decode(header.body.as_slice(), 1 << 20).unwrap();
            assert_eq!(status.epoch, header.seq);
            self.statuses.push((status.online, status.epoch));
            return;
        }
        if self.losses.pop_front().unwrap_or(false) {
            return;
        }
        self.stored.entry(header.boot).or_default().insert(header.seq);
        if header.kind == Kind::Gap {
            let gap: Gap = cbor::decode(header.body.as_slice(), 1 << 20).unwrap();
            let declared = self.declared.entry(gap.boot).or_default();
            gap.ranges.iter().for_each(|(first, last)| declared.extend(*first..=*last));
        }
        let none = BTreeSet::new();
        let boots: BTreeSet<_> = self.stored.keys().chain(self.declared.keys()).copied().collect();
        let ranges = boots.into_iter().map(|boot| {
            let (stored, declared) =
                (self.stored.get(&boot).unwrap_or(&none), self.declared.get(&boot).unwrap_or(&none));
            let upto =
                (1..).take_while(|seq| stored.contains(seq) || declared.contains(seq)).last().unwrap_or(0);
            AckRange { boot, upto }
        });
        let body = cbor::encode(&AckBody { ranges: ranges.collect() });
        self.down_seq += 1;
        let header = Header { kind: Kind::Ack, seq: self.down_seq, body: Bytes(body), ..header };
        let payload = Envelope { p: Bytes(header.encode()), k: String::new(), s: Bytes(vec![]) }.encode();
        self.events.push_back(LinkEvent::Received { topic: "dunlin/v1/d/pole-17/down/ack".into(), payload });
    }
}

struct MemorySession(Memory, bool);

impl Link for Memory {
    type Session = MemorySession;

    async fn open(&mut self, _opening: Opening) -> Result<MemorySession, LinkError> {
        let mut world = self.0.lock().unwrap();
        if world.strangers.pop_front().unwrap_or(false) {
            let (broker, detail) = ("broker:8883".into(), "another authority".into());
            return Err(LinkError::Untrusted { broker, detail });
        }
        world.events.clear();
        world.until_cut = world.cuts.pop_front();
        Ok(MemorySession(self.clone(), world.resumes))
    }
}

impl Session for MemorySession {
    fn resumed(&self) -> bool {
        self.1
    }

    async fn next(&mut self) -> LinkEvent {
        loop {
            let rung = {
                let mut world = self.0.0.lock().unwrap();
                if let Some(event) = world.events.pop_front() {
                    return event;
                }
                world.rung.clone()
            };
            rung.notified().await;
        }
    }

    fn publish(&mut self, _topic: &Topic, payload: Vec<u8>, _retain: bool) -> Result<(), LinkError> {
        let mut world = self.0.0.lock().unwrap();
        if let Some(max) = world.bytes_max.filter(|max| payload.len() > *max) {
            return Err(LinkError::TooLarge { bytes: payload.len(), max });
        }
        match &mut world.until_cut {
            Some(0) => {
                world.events.clear();
                world.events.push_back(LinkEvent::Lost { taken_over: false, detail: "cut".into() });
            }
            Some(left) => {
                *left -= 1;
                world.take(&payload);
            }
            None => world.take(&payload),
        }
        world.rung.notify_one();
        Ok(())
    }

    fn subscribe(&mut self, _filter: &str) -> Result<(), LinkError> {
        self.0.0.lock().unwrap().subscriptions += 1;
        Ok(())
    }

    async fn close(self) {}
}

struct Running {
    world: Arc<Mutex<World>>,
    spool: Arc<Spool>,
    wake: Arc<Notify>,
    stop: watch::Sender<bool>,
    news: mpsc::Receiver<News>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn start(world: World, bytes_max: u64) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(dir.path(), None, bytes_max, draw_boot()).unwrap());
    let (world, wake) = (Arc::new(Mutex::new(world)), Arc::new(Notify::new()));
    let (stop, stopped) = watch::channel(false);
    let (sender, news) = mpsc::channel(64);
    let signer = EcdsaP256Signer::from_pkcs8(&EcdsaP256Signer::generate_pkcs8().unwrap()).unwrap();
    let context = UplinkContext {
        device: "pole-17".parse().unwrap(),
        signer: Arc::new(signer),
        // Whom to believe is tested where envelopes are opened; here the world is the only sender.
        open: Arc::new(|envelope| envelope.header().map_err(|_| ReasonCode::EnvelopeMalformed)),
        spool: spool.clone(),
        wake: wake.clone(),
        news: sender,
        stop: stopped,
    };
    let task = tokio::spawn(Uplink::new(Memory(world.clone()), context).run());
    Running { world, spool, wake, stop, news, task, _dir: dir }
}

impl Running {
    /// Paused time runs on by itself while all tasks wait; blocking work on the disk does not wait for it.
    async fn until_drained(&mut self) {
        for _ in 0..20_000 {
            while self.news.try_recv().is_ok() {}
            if self.spool.counters().total().waiting() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("records still wait: {:?}", self.spool.counters());
    }

    async fn end(mut self) -> Arc<Mutex<World>> {
        self.stop.send(true).unwrap();
        while self.news.recv().await.is_some() {}
        self.task.await.unwrap();
        self.world
    }
}

fn windows(n: u8) -> Vec<(Kind, Vec<u8>)> {
    (0..n).map(|i| (Kind::Window, vec![i; 100])).collect()
}

#[tokio::test(start_paused = true)]
async fn losses_and_cuts_are_made_good_until_the_controller_holds_every_record() {
    let world = World {
        losses: [true, false, false, true, true, false].into(),
        cuts: [5, 0, 30].into(),
        ..World::default()
    };
    let mut running = start(world, 1 << 24);
    running.spool.append_all(&windows(200)).unwrap();
    running.wake.notify_one();
    running.until_drained().await;
    let boot = running.spool.boot();
    let world = running.end().await;
    let world = world.lock().unwrap();
    assert_eq!(world.stored[&boot], (1..=200).collect());
    assert!(world.subscriptions >= 8, "a lost session is subscribed again: {}", world.subscriptions);
    let epochs: BTreeSet<_> =
        world.statuses.iter().filter(|(online, _)| *online).map(|(_, epoch)| *epoch).collect();
    assert!(epochs.len() >= 3, "each session has its own epoch: {epochs:?}");
    assert!(!world.statuses.last().unwrap().0, "the last word is offline");
}

#[tokio::test(start_paused = true)]
async fn a_hole_of_more_than_a_window_does_not_block_what_comes_after() {
    let mut running = start(World::default(), 20_000);
    for _ in 0..5 {
        running.spool.append_all(&windows(100)).unwrap();
    }
    running.wake.notify_one();
    running.until_drained().await;
    let counters = running.spool.counters();
    assert!(counters.total().evicted > 300, "{counters:?}");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_the_broker_does_not_take_holds_up_none_behind_it() {
    let mut running = start(World { bytes_max: Some(2_000), ..World::default() }, 1 << 24);
    running.spool.append_all(&windows(3)).unwrap();
    running.spool.append(Kind::Report, vec![7; 5_000]).unwrap();
    running.spool.append_all(&windows(100)).unwrap();
    running.wake.notify_one();
    running.until_drained().await;
    let boot = running.spool.boot();
    assert_eq!(running.spool.counters().total().evicted, 1);
    let world = running.end().await;
    assert_eq!(world.lock().unwrap().declared[&boot], [4].into());
}

#[tokio::test(start_paused = true)]
async fn a_resumed_session_is_subscribed_once_per_process() {
    let world = World { cuts: [1, 1].into(), resumes: true, ..World::default() };
    let mut running = start(world, 1 << 20);
    running.spool.append_all(&windows(3)).unwrap();
    running.wake.notify_one();
    running.until_drained().await;
    let world = running.end().await;
    assert_eq!(world.lock().unwrap().subscriptions, 2);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_in_the_brokers_place_is_told_once_until_the_broker_was_reached_again() {
    let strangers = [true, true, false, true, true].into();
    let mut running = start(World { strangers, cuts: [0].into(), ..World::default() }, 1 << 20);
    let (mut sessions, mut told) = (0, Vec::new());
    while sessions < 2 {
        match running.news.recv().await.unwrap() {
            News::Up { .. } => sessions += 1,
            News::Refused(refusal) => told.push((refusal.reason, sessions)),
            News::Down { .. } | News::Order(_) => {}
        }
    }
    assert_eq!(told, [(ReasonCode::ServerUntrusted, 0), (ReasonCode::ServerUntrusted, 1)]);
    running.end().await;
}
