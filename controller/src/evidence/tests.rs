use std::collections::{BTreeMap, BTreeSet};

use dunlin_monitor::profile;
use dunlin_monitor::rate::Rate;
use dunlin_monitor::scope::Scope;
use dunlin_monitor::window::{Accumulator, Observation};
use dunlin_protocol::{
    DeviceId, Digest, Installed, Now, Phase, ReferenceProfile, ReleaseId, ResourceUse, TaskId, Window, cbor,
};
use dunlin_select::{LatencySource, Predicted};

use super::*;

mod alerts;

const MINUTE: u64 = 60_000;
const QUARTER: u64 = 15 * MINUTE;
const PROFILE: Digest = Digest([9; 32]);

fn task() -> TaskId {
    "meter".parse().unwrap()
}

fn release(version: u32) -> ReleaseId {
    format!("meter@{version}").parse().unwrap()
}

fn device(i: usize) -> DeviceId {
    format!("cam-{i}").parse().unwrap()
}

fn reference() -> ReferenceProfile {
    let names = ["a", "b"].map(String::from);
    profile::build(
        &names,
        &[(0..1000).map(|i| i as f32).collect(), (0..1000).map(|i| -(i as f32)).collect()],
        profile::BINS,
    )
}

/// `n` requests in scattered order over the range of the reference, moved by `shift`; nine of ten labels right.
fn window(version: u32, end_ms: u64, n: u32, shift: f32) -> Window {
    let reference = reference();
    let start = Now { mono_ms: 0, wall_ms: None };
    let mut open =
        Accumulator::new(task(), Some(release(version)), 1, 2, false, Some((&reference, PROFILE)), start);
    for i in 0..n {
        // A step coprime to the range visits all of it without lag-1 correlation to speak of.
        let x = (i * 619 % 1000) as f32 + shift;
        open.observe(&Observation {
            latency_us: 300,
            failed: i % 50 == 7,
            class: Some(0),
            confidence: 0.9,
            features: &[x, -x],
        });
        if i % 10 == 0 {
            open.label(u32::from(i % 100 == 0), 0);
            open.pair_label(&release(version + 1), i % 100 != 0, true);
        }
    }
    open.close(Now { mono_ms: MINUTE, wall_ms: Some(end_ms) }, ResourceUse::default())
}

fn roster(devices: usize) -> Roster {
    let place = |i: usize| Place {
        class: "rpi-4".parse().unwrap(),
        groups: BTreeSet::from([if i.is_multiple_of(2) { "even" } else { "odd" }.parse().unwrap()]),
    };
    (0..devices).map(|i| (device(i), place(i))).collect()
}

struct Feed {
    ledger: Ledger,
    rows: Vec<Row>,
}

impl Feed {
    fn new(devices: usize) -> Self {
        let mut ledger = Ledger::new(task(), EvidenceConfig::default());
        ledger.set_roster(roster(devices));
        ledger.set_profile(release(1), PROFILE, reference());
        Self { ledger, rows: Vec::new() }
    }

    fn send(&mut self, device: DeviceId, window: &Window) {
        self.send_at(device, window.end_ms + 1000, cbor::encode(window));
    }

    fn send_at(&mut self, device: DeviceId, received_ms: u64, body: Vec<u8>) {
        let row = Row { id: self.rows.len() as u64 + 1, device, received_ms, body };
        self.ledger.fold(&row);
        self.rows.push(row);
    }

    /// `quarters` quarter-hours in which device `i` sends `n` requests moved by `shift(i)`.
    fn run(&mut self, devices: usize, quarters: u64, n: u32, shift: impl Fn(usize) -> f32) -> Drift {
        for quarter in 100..100 + quarters {
            for i in 0..devices {
                self.send(device(i), &window(1, quarter * QUARTER + 7 * MINUTE, n, shift(i)));
            }
        }
        self.ledger.advance((100 + quarters) * QUARTER + 5 * MINUTE);
        self.ledger.drift(&release(1))
    }
}

#[test]
fn sums_are_taken_by_device_class_and_release() {
    let mut feed = Feed::new(3);
    for i in 0..3 {
        feed.send(device(i), &window(1, 100 * QUARTER, 100, 0.0));
    }
    feed.send(device(0), &window(2, 101 * QUARTER, 50, 0.0));
    let all = feed.ledger.summary(Filter::default());
    assert_eq!((all.windows, all.n, all.accuracy()), (4, 350, Rate { hits: 31, n: 35 }));
    let first = release(1);
    let two = BTreeSet::from([device(0), device(2)]);
    let some = feed.ledger.summary(Filter { release: Some(&first), devices: Some(&two), since_ms: 0 });
    assert_eq!((some.windows, some.n, some.errors), (2, 200, 4));
    assert_eq!(feed.ledger.by_device(Filter::default()).len(), 3);
    assert_eq!(feed.ledger.by_release(Filter::default())[&Some(release(2))].n, 50);
    let later = Filter { since_ms: 200 * QUARTER, ..Filter::default() };
    assert_eq!(feed.ledger.summary(later).windows, 0);
}

#[test]
fn folding_twice_or_again_from_the_start_gives_the_same() {
    let mut feed = Feed::new(4);
    let drift = feed.run(4, 4, 300, |i| if i < 3 { 400.0 } else { 0.0 });
    let before = feed.ledger.summary(Filter::default());
    for row in &feed.rows {
        feed.ledger.fold(row);
    }
    assert_eq!(feed.ledger.summary(Filter::default()), before);
    let mut again = Feed::new(4);
    feed.rows.iter().for_each(|row| again.ledger.fold(row));
    again.ledger.advance(104 * QUARTER + 5 * MINUTE);
    assert_eq!(again.ledger.summary(Filter::default()), before);
    assert_eq!(again.ledger.drift(&release(1)), drift);
}

#[test]
fn a_corrupt_row_is_skipped_and_counted() {
    let mut feed = Feed::new(1);
    let good = window(1, 100 * QUARTER, 100, 0.0);
    let mut lying = good.clone();
    lying.errors = 1000;
    let mut elsewhere = good.clone();
    elsewhere.task = "other".parse().unwrap();
    feed.send_at(device(0), 100 * QUARTER, vec![0xff, 0x00]);
    feed.send(device(0), &lying);
    feed.send(device(0), &elsewhere);
    feed.send(device(0), &good);
    assert_eq!(feed.ledger.summary(Filter::default()).windows, 1);
    let skipped = &feed.ledger.skipped()[&device(0)];
    assert_eq!((skipped.rows, skipped.last_row), (3, 3));
    assert!(skipped.last_cause.contains("its row says task meter"), "{}", skipped.last_cause);
}

#[test]
fn stable_inputs_are_no_drift() {
    let drift = Feed::new(6).run(6, 6, 300, |_| 0.0);
    assert_eq!((drift.scope.clone(), drift.fact(), drift.share_ppm), (Scope::Nowhere, None, 0));
    assert_eq!(drift.findings.len(), 6);
}

#[test]
fn one_device_is_a_suspect_and_triggers_nothing() {
    let drift = Feed::new(6).run(6, 5, 300, |i| if i == 2 { 400.0 } else { 0.0 });
    assert_eq!(drift.scope, Scope::Devices { suspects: BTreeSet::from([device(2)]) });
    assert_eq!(drift.fact(), None);
}

#[test]
fn a_group_is_an_environment() {
    let drift = Feed::new(6).run(6, 5, 300, |i| if i % 2 == 0 { 400.0 } else { 0.0 });
    let fact = drift.fact().unwrap();
    assert_eq!((fact.scope.as_str(), fact.share_ppm), ("even", 1_000_000));
    assert_eq!(fact.features.len(), 2);
}

#[test]
fn the_fleet_is_the_world() {
    let drift = Feed::new(6).run(6, 5, 300, |_| 400.0);
    assert_eq!(drift.fact().unwrap().scope, "fleet");
}

#[test]
fn quiet_devices_are_judged_together() {
    // Sixty requests are too few alone; four devices of a group have 240, and two devices are not enough for a pool.
    let drift = Feed::new(8).run(8, 5, 60, |i| if i % 2 == 0 { 400.0 } else { 0.0 });
    assert_eq!(drift.fact().unwrap().scope, "even");
    let drift = Feed::new(8).run(8, 5, 60, |_| 400.0);
    assert_eq!(drift.fact().unwrap().scope, "fleet");
    assert!(drift.findings.iter().all(|finding| !matches!(finding.subject, Subject::Device(_))));
    assert_eq!(Feed::new(2).run(2, 5, 60, |_| 400.0).findings, []);
}

#[test]
fn two_windows_of_five_are_not_a_verdict() {
    let mut feed = Feed::new(4);
    let drift = feed.run(4, 2, 300, |_| 400.0);
    assert_eq!(drift.scope, Scope::Nowhere);
    assert!(drift.findings.iter().all(|finding| finding.report.drifted && finding.tally == (2, 2)));
}

#[test]
fn inputs_on_other_bins_and_strangers_judge_nothing() {
    let mut feed = Feed::new(1);
    for quarter in 100..105 {
        let mut other = window(1, quarter * QUARTER, 300, 400.0);
        other.profile = Some(Digest([1; 32]));
        feed.send(device(0), &other);
        feed.send("stranger".parse().unwrap(), &window(1, quarter * QUARTER, 300, 400.0));
    }
    feed.ledger.advance(110 * QUARTER);
    assert_eq!(feed.ledger.drift(&release(1)).findings, []);
    assert_eq!(feed.ledger.summary(Filter::default()).windows, 10);
}

#[test]
fn a_clock_that_runs_ahead_is_not_believed() {
    let mut feed = Feed::new(1);
    let ahead = window(1, u64::MAX / 2, 300, 0.0);
    feed.send_at(device(0), 100 * QUARTER, cbor::encode(&ahead));
    assert_eq!(feed.ledger.summary(Filter { since_ms: 96 * QUARTER, ..Filter::default() }).windows, 1);
    assert!(feed.ledger.drift(&release(1)).findings.is_empty());
    feed.ledger.advance(102 * QUARTER);
    assert_eq!(feed.ledger.drift(&release(1)).findings[0].end_ms, 101 * QUARTER);
}

#[test]
fn old_quality_is_dropped_and_pairs_are_kept() {
    let mut feed = Feed::new(1);
    feed.send(device(0), &window(1, 100 * QUARTER, 100, 0.0));
    feed.ledger.advance(100 * QUARTER + 2 * 86_400_000);
    assert_eq!(feed.ledger.summary(Filter::default()).windows, 0);
    let pairs = feed.ledger.pairs(&device(0), &release(1), &release(2));
    assert_eq!((pairs.labelled(), pairs.both_right, pairs.only_other), (10, 9, 1));
    assert_eq!(feed.ledger.pairs_with_any(&device(0), &release(1)), pairs);
    feed.ledger.advance(100 * QUARTER + 31 * 86_400_000);
    assert_eq!(feed.ledger.pairs(&device(0), &release(1), &release(2)).labelled(), 0);
}

#[test]
fn labels_of_dropped_quality_are_kept_and_the_newest_say_the_most() {
    let labels =
        |ledger: &Ledger, since_ms| ledger.labels_before(since_ms).into_iter().next().map(|all| all.1);
    let mut feed = Feed::new(1);
    feed.send(device(0), &window(1, 100 * QUARTER, 100, 0.0));
    feed.send(device(0), &window(1, 101 * QUARTER, 200, 0.0));
    assert_eq!(labels(&feed.ledger, 100 * QUARTER), None);
    assert_eq!(labels(&feed.ledger, 101 * QUARTER), Some(Rate { hits: 9, n: 10 }));
    feed.ledger.advance(100 * QUARTER + 2 * 86_400_000);
    assert_eq!(labels(&feed.ledger, 0), Some(Rate { hits: 27, n: 30 }));

    let (pair, wrong) = ((device(0), release(1)), window(1, 500 * QUARTER, 1000, 0.0));
    feed.ledger.earlier.insert(pair, Rate { hits: 1_000_000, n: 1_000_000 });
    feed.send(device(0), &wrong);
    feed.ledger.advance(500 * QUARTER + 2 * 86_400_000);
    assert_eq!(labels(&feed.ledger, 0), Some(Rate { hits: 5_090, n: 5_100 }));
}

#[test]
fn selection_gets_device_class_and_prediction_apart() {
    let mut feed = Feed::new(3);
    for i in 0..3 {
        feed.send(device(i), &window(1, 100 * QUARTER, 100 * (i as u32 + 1), 0.0));
    }
    let (rpi, nuc) = ("rpi-4".parse().unwrap(), "nuc".parse().unwrap());
    let ids = [device(0), device(1), device(2)];
    let classes = BTreeMap::from([(&ids[0], &rpi), (&ids[1], &rpi), (&ids[2], &nuc)]);
    let predicted = Predicted { accuracy_ppm: Some(900_000), rows: 500, latency_us: 100 };
    let installed = Installed {
        release: Some(release(1)),
        manifest: None,
        phase: Phase::Committed,
        proof_us: Some(250),
        proof_bytes: None,
    };
    let measures = Measures::new(&feed.ledger, &classes, 0);
    let of = |id: &DeviceId, class, version| {
        measures.evidence(id, class, &release(version), Some(&installed), predicted)
    };
    let evidence = of(&ids[0], &rpi, 1);
    assert_eq!((evidence.device.labels.n, evidence.device.proof_us), (10, Some(250)));
    assert_eq!(
        (evidence.class.labels.n, evidence.class.failures, evidence.predicted),
        (20, Rate { hits: 4, n: 200 }, predicted)
    );
    for measured in [evidence.device, evidence.class] {
        assert!(measured.latency_us.is_some_and(|us| (297..=303).contains(&us)));
    }
    // Alone in its class, it has no peers to learn from.
    assert_eq!(of(&ids[2], &nuc, 1).class.labels.n, 0);
    let other = of(&ids[0], &rpi, 2);
    assert_eq!((other.device.proof_us, other.device.latency_us), (None, None));
    let later = Measures::new(&feed.ledger, &classes, 101 * QUARTER);
    let aged = later.evidence(&ids[0], &rpi, &release(1), None, predicted);
    assert_eq!((aged.device.labels.n, aged.class.labels.n), (0, 0));
    assert_eq!((aged.earlier.device.n, aged.earlier.class.n), (10, 20));
    assert_eq!(LatencySource::Predicted.to_string(), "predicted");
}

#[tokio::test]
async fn rows_are_read_once_from_the_store() {
    let (_dir, store) = crate::store::test_store().await;
    let now = 1000 * QUARTER;
    let insert = async |seq: u32, at: u64, probation: bool, task: &str, body: Vec<u8>| {
        sqlx::query(
            "INSERT INTO windows (boot_no, seq, device, task, release, generation, start_ms, end_ms, wall, received_ms, probation, n, errors, \
             labelled, correct, body) VALUES (1, ?, 'cam-0', ?, 'meter@1', 1, 0, 1, 1, ?, ?, 0, 0, 10, 9, ?)",
        )
        .bind(seq)
        .bind(task)
        .bind(i64::try_from(at).unwrap())
        .bind(probation)
        .bind(body)
        .execute(store.writer())
        .await
        .unwrap();
    };
    let at = |at: u64| cbor::encode(&window(1, at, 100, 0.0));
    let days_ago = now - 3 * 86_400_000;
    insert(1, days_ago, false, "meter", at(days_ago)).await;
    insert(2, days_ago, true, "meter", at(days_ago)).await;
    insert(3, now - MINUTE, false, "meter", at(now - MINUTE)).await;
    insert(4, now - MINUTE, false, "meter", vec![1, 2, 3]).await;
    insert(5, now - MINUTE, false, "other", at(now - MINUTE)).await;
    let mut ledger = Ledger::new(task(), EvidenceConfig::default());
    ledger.set_roster(roster(1));
    assert_eq!(ledger.read(&store, now).await.unwrap(), 3);
    assert_eq!(ledger.read(&store, now).await.unwrap(), 0);
    // The old row in probation counts for its pairs, and both old ones for their labels.
    assert_eq!(
        ledger.labels_before(0),
        BTreeMap::from([((device(0), release(1)), Rate { hits: 18, n: 20 })])
    );
    assert_eq!(ledger.summary(Filter::default()).n, 100);
    assert_eq!(ledger.pairs(&device(0), &release(1), &release(2)).labelled(), 20);
    assert_eq!(ledger.skipped().values().map(|skipped| skipped.rows).sum::<u64>(), 1);
    insert(6, now, false, "meter", at(now)).await;
    assert_eq!(ledger.read(&store, now + MINUTE).await.unwrap(), 1);
    let by_device: BTreeMap<DeviceId, u64> =
        ledger.by_device(Filter::default()).into_iter().map(|(id, sum)| (id, sum.n)).collect();
    assert_eq!(by_device, BTreeMap::from([(device(0), 200)]));
}
