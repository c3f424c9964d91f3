use std::collections::BTreeSet;

use dunlin_protocol::{
    BootId, Bytes, Confusion, Counts, DeviceProfile, Digest, Gap, Header, Installed, Kind, Outcome, Phase,
    Report, SCHEMA, Sample, SampleKind, Samples, Status, Window, WindowsDigest, cbor,
};
use dunlin_trust::{EcdsaP256Signer, Signer, envelope};
use serde::Serialize;

use super::*;
use crate::identity::Issued;
use crate::store::{Claim, NewDevice, test_store};

struct Device {
    id: DeviceId,
    signer: EcdsaP256Signer,
}

fn profile() -> DeviceProfile {
    serde_json::from_value(serde_json::json!({
        "class": "pi4", "arch": "aarch64", "cores": 4, "ram_bytes": 1 << 30,
        "budgets": { "model_bytes_max": 1, "model_ram_bytes_max": 1, "latency_us_max": 1 },
    }))
    .unwrap()
}

/// Enrols a device under a claim that is made for it; returns the id of the key that it had before.
async fn enrol(store: &Store, claim: &Claim, id: &DeviceId, issued: &Issued, now_ms: u64) -> Option<String> {
    let mut tx = store.begin().await.unwrap();
    Store::claim_add(&mut tx, claim, &dunlin_trust::sha256(claim.id.as_bytes())).await.unwrap();
    let new = NewDevice { issued, profile: &profile() };
    let before = Store::enrol(&mut tx, claim, id, &new, now_ms).await.unwrap();
    tx.commit().await.unwrap();
    before
}

async fn device(store: &Store, id: &str) -> Device {
    let signer = EcdsaP256Signer::from_pkcs8(&EcdsaP256Signer::generate_pkcs8().unwrap()).unwrap();
    let id: DeviceId = id.parse().unwrap();
    let claim = Claim {
        id: id.to_string(),
        device: None,
        groups: BTreeSet::from(["hall".parse().unwrap()]),
        created_by: "test".into(),
        created_ms: 1,
        expires_ms: u64::MAX >> 1,
        used_ms: None,
        used_by: None,
    };
    let issued = Issued {
        pem: String::new(),
        spki: signer.public().to_vec(),
        serial: id.to_string(),
        from_ms: 2,
        until_ms: u64::MAX >> 1,
    };
    assert_eq!(enrol(store, &claim, &id, &issued, 2).await, None);
    Device { id, signer }
}

impl Device {
    fn payload<T: Serialize>(&self, kind: Kind, boot: u8, seq: u64, body: &T) -> Vec<u8> {
        let header = Header {
            v: SCHEMA,
            kind,
            device: self.id.clone(),
            boot: BootId([boot; 16]),
            seq,
            exp: None,
            body: Bytes(cbor::encode(body)),
        };
        envelope::seal_up(&header, &self.signer).unwrap().encode()
    }

    fn record<T: Serialize>(&self, kind: Kind, boot: u8, seq: u64, body: &T) -> Record {
        Record::open(&self.payload(kind, boot, seq, body), &self.id, self.signer.public(), 1000 + seq)
            .unwrap()
    }
}

fn window(n: u64) -> Window {
    let zero = serde_json::json!({ "task": "meter", "start_ms": 1, "end_ms": 2, "wall": true, "n": n });
    let mut window: Window = serde_json::from_value(zero).unwrap();
    window.confusion = Confusion { classes: 2, counts: Counts::pack(&[3, 1, 0, 4]) };
    window
}

fn upto(stored: &Stored, device: &Device) -> Vec<u64> {
    stored.acks[&device.id].iter().map(|range| range.upto).collect()
}

#[tokio::test]
async fn every_record_is_stored_once_and_acknowledged_in_one_run() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let one = |seq| d.record(Kind::Window, 1, seq, &window(seq));
    assert_eq!(upto(&store_batch(&store, vec![one(1), one(3)]).await.unwrap(), &d), [1]);
    let again = store_batch(&store, vec![one(1), one(2), one(2)]).await.unwrap();
    assert_eq!((upto(&again, &d), again.duplicates, again.stored["window"]), (vec![3], 2, 1));
    let none = store_batch(&store, vec![one(1), one(2), one(3)]).await.unwrap();
    assert_eq!((upto(&none, &d), none.duplicates), (vec![3], 3));
    assert_eq!(store.windows_count(Some(&d.id)).await.unwrap(), 3);
    let rows = store.windows(&"meter".parse().unwrap(), 0, 0, 10).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.window.n).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3]));
    let boots = store.boots(&d.id, 5).await.unwrap();
    assert_eq!((boots[0].windows_stored, boots[0].upto), (3, 3));
}

#[tokio::test]
async fn boots_and_devices_are_counted_apart() {
    let (_dir, store) = test_store().await;
    let (a, b) = (device(&store, "a").await, device(&store, "b").await);
    let batch = vec![
        a.record(Kind::Window, 1, 1, &window(1)),
        a.record(Kind::Window, 2, 1, &window(1)),
        b.record(Kind::Window, 1, 2, &window(1)),
    ];
    let stored = store_batch(&store, batch).await.unwrap();
    assert_eq!((upto(&stored, &a), upto(&stored, &b)), (vec![1, 1], vec![0]));
    assert_eq!(store.windows_count(None).await.unwrap(), 3);
}

#[tokio::test]
async fn a_gap_closes_the_run_and_is_told_from_loss() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let gap = Gap { boot: BootId([1; 16]), ranges: vec![(1, 4)] };
    let batch = vec![d.record(Kind::Window, 1, 5, &window(5)), d.record(Kind::Gap, 1, 6, &gap)];
    assert_eq!(upto(&store_batch(&store, batch).await.unwrap(), &d), [6]);
    assert_eq!(store.boots(&d.id, 1).await.unwrap()[0].records_lost, 4);
}

/// A device that was cut off does not know what of its last words came.
#[tokio::test]
async fn of_what_a_device_may_have_sent_only_what_never_came_is_lost() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let gap = Gap { boot: BootId([1; 16]), ranges: vec![(2, 7)] };
    let words = [1, 2, 5].map(|seq| d.record(Kind::Report, 1, seq, &Report::default()));
    store_batch(&store, words.into()).await.unwrap();
    assert_eq!(upto(&store_batch(&store, vec![d.record(Kind::Gap, 2, 1, &gap)]).await.unwrap(), &d), [7, 1]);
    let cut_off = store.boots(&d.id, 2).await.unwrap().into_iter().find(|boot| boot.upto == 7).unwrap();
    assert_eq!((cut_off.records_lost, cut_off.missing), (4, vec![]));
    let gaps = store.gaps(&d.id, 10).await.unwrap();
    assert_eq!(gaps.iter().map(|gap| (gap.first, gap.last)).collect::<Vec<_>>(), [(6, 7), (3, 4)]);
}

#[tokio::test]
async fn reports_and_samples_reach_their_tables() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let outcome = Outcome {
        generation: 4,
        task: Some("meter".parse().unwrap()),
        release: Some("m@2".parse().unwrap()),
        correlation: "c".into(),
        phase: Phase::RolledBack,
        reason: ReasonCode::GuardErrors,
        detail: String::new(),
        at_ms: None,
    };
    let report = Report { generation: 4, outcomes: vec![outcome], windows_closed: 9, ..Report::default() };
    let sample = Sample {
        id: "r1".into(),
        at_ms: None,
        x: Bytes(vec![0; 8]),
        predicted: 1,
        label: None,
        kind: SampleKind::Random,
        inclusion_ppm: 10,
    };
    let samples = |label| Samples {
        task: "meter".parse().unwrap(),
        release: "m@2".parse().unwrap(),
        samples: vec![Sample { label, ..sample.clone() }],
    };
    let batch = vec![
        d.record(Kind::Report, 1, 1, &report),
        d.record(Kind::Samples, 1, 2, &samples(None)),
        d.record(Kind::Samples, 1, 3, &samples(Some(7))),
    ];
    let stored = store_batch(&store, batch).await.unwrap();
    assert!(stored.news);
    let happened = store.happenings(&d.id, 10).await.unwrap();
    assert_eq!((happened[0].phase.as_str(), happened[0].reason.as_str()), ("rolled_back", "guard_errors"));
    assert_eq!(store.device(&d.id).await.unwrap().generation, 4);
    let labelled = store.labelled_samples(&"meter".parse().unwrap(), 0, 10).await.unwrap();
    assert_eq!(labelled.len(), 1, "the label that came late joins its sample");
    assert_eq!(labelled[0].sample.label, Some(7));
    assert_eq!(store.boots(&d.id, 1).await.unwrap()[0].windows_closed, 9);
}

/// What a device with stolen or broken numbers says must leave numbers to go on with.
#[tokio::test]
async fn a_generation_that_nobody_assigned_is_not_counted_on_from() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    for (seq, generation, counted) in [(1, u64::MAX, 0), (2, 7, 7), (3, u64::MAX >> 1, 7), (4, 8, 8)] {
        let installed = Installed {
            release: Some(format!("m@{seq}").parse().unwrap()),
            manifest: None,
            phase: Phase::Committed,
            proof_us: None,
            proof_bytes: None,
        };
        let installed = [("meter".parse().unwrap(), installed)].into();
        let report = Report { generation, installed, ..Report::default() };
        store_batch(&store, vec![d.record(Kind::Report, 1, seq, &report)]).await.unwrap();
        assert_eq!(store.device(&d.id).await.unwrap().generation, counted);
        let runs = &store.installed(&d.id).await.unwrap()[&"meter".parse().unwrap()];
        assert_eq!(runs.release.as_ref().unwrap().version, u32::try_from(seq).unwrap());
    }
}

#[tokio::test]
async fn bad_messages_are_refused_by_name_and_the_good_ones_pass() {
    let (_dir, store) = test_store().await;
    let (a, b) = (device(&store, "a").await, device(&store, "b").await);
    let good = a.payload(Kind::Window, 1, 1, &window(1));
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let unknown_schema = {
        let header = Header {
            v: SCHEMA + 1,
            kind: Kind::Window,
            device: a.id.clone(),
            boot: BootId([1; 16]),
            seq: 2,
            exp: None,
            body: Bytes::default(),
        };
        envelope::seal_up(&header, &a.signer).unwrap().encode()
    };
    let cases = [
        ("dunlin/v1/d/a/up/telemetry", forged, ReasonCode::EnvelopeSignature),
        ("dunlin/v1/d/b/up/telemetry", good.clone(), ReasonCode::EnvelopeSignature),
        ("dunlin/v1/d/zz/up/telemetry", good.clone(), ReasonCode::EnvelopeSignature),
        ("dunlin/v1/d/a/up/telemetry", b"\xff\xff".to_vec(), ReasonCode::EnvelopeMalformed),
        ("dunlin/v1/d/a/up/telemetry", vec![0; dunlin_protocol::PAYLOAD_BYTES_MAX + 1], ReasonCode::TooLarge),
        ("dunlin/v1/d/a/up/telemetry", unknown_schema, ReasonCode::SchemaUnknown),
        (
            "dunlin/v1/d/a/up/telemetry",
            a.payload(Kind::Window, 1, 0, &window(1)),
            ReasonCode::EnvelopeMalformed,
        ),
        (
            "dunlin/v1/d/a/up/telemetry",
            a.payload(Kind::Window, 1, 7, &"no window"),
            ReasonCode::EnvelopeMalformed,
        ),
        ("dunlin/v1/nonsense", good.clone(), ReasonCode::EnvelopeMalformed),
    ];
    let mut messages: Vec<Message> = cases
        .iter()
        .map(|(topic, payload, _)| Message { topic: (*topic).into(), payload: payload.clone().into() })
        .collect();
    messages.push(Message { topic: "dunlin/v1/d/a/up/telemetry".into(), payload: good.into() });
    let (records, refused) = verify_batch(&store, messages).await.unwrap();
    let taken: Vec<u64> =
        records.iter().filter(|record| record.refusal().is_none()).map(Record::seq).collect();
    assert_eq!((taken, records.len()), (vec![1], 2), "the number of the one that says nothing counts");
    let mut reasons: Vec<_> = refused.into_iter().map(|(_, refusal)| refusal.reason).collect();
    let mut expected: Vec<_> = cases.iter().map(|(.., reason)| *reason).collect();
    reasons.sort();
    expected.sort();
    assert_eq!(reasons, expected);
    let mut tx = store.begin().await.unwrap();
    Store::device_set_state(&mut tx, &b.id, crate::store::DeviceState::Revoked).await.unwrap();
    tx.commit().await.unwrap();
    let late = Message {
        topic: "dunlin/v1/d/b/up/telemetry".into(),
        payload: b.payload(Kind::Window, 1, 1, &window(1)).into(),
    };
    assert!(
        verify_batch(&store, vec![late]).await.unwrap().0.is_empty(),
        "a revoked device is heard no more"
    );
}

fn status(online: bool, epoch: u64) -> Status {
    Status { online, epoch, agent: "0.1.0".into() }
}

async fn clones(store: &Store) -> usize {
    store.alerts(true, 10).await.unwrap().iter().filter(|alert| alert.kind == "cloned_identity").count()
}

#[tokio::test]
async fn restarts_and_late_wills_are_no_clones() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    for (boot, online, epoch) in
        [(1, true, 1), (1, true, 2), (2, true, 3), (1, false, 2), (2, true, 3), (2, true, 4), (3, true, 5)]
    {
        store_batch(&store, vec![d.record(Kind::Status, boot, epoch, &status(online, epoch))]).await.unwrap();
    }
    assert_eq!(clones(&store).await, 0);
    let row = store.device(&d.id).await.unwrap();
    assert!(row.online && row.epoch == 5, "the late will of an older session changes nothing");
}

#[tokio::test]
async fn two_agents_with_one_key_raise_an_alert() {
    let (_dir, store) = test_store().await;
    for (id, order) in [("copy", [(1, 5), (2, 5)]), ("takeover", [(1, 5), (2, 6)])] {
        let d = device(&store, id).await;
        for (boot, epoch) in order {
            store_batch(&store, vec![d.record(Kind::Status, boot, epoch, &status(true, epoch))])
                .await
                .unwrap();
        }
        if id == "takeover" {
            assert_eq!(clones(&store).await, 1, "a new boot above all others is a restart");
            store_batch(&store, vec![d.record(Kind::Status, 1, 6, &status(true, 6))]).await.unwrap();
            store_batch(&store, vec![d.record(Kind::Status, 2, 7, &status(true, 7))]).await.unwrap();
            store_batch(&store, vec![d.record(Kind::Status, 1, 7, &status(true, 7))]).await.unwrap();
        }
    }
    assert_eq!(clones(&store).await, 2);
}

fn report(generation: u64) -> Report {
    Report { generation, ..Report::default() }
}

async fn set_back(store: &Store) -> usize {
    store.alerts(true, 10).await.unwrap().iter().filter(|alert| alert.kind == "state_restored").count()
}

#[tokio::test]
async fn a_device_that_goes_on_from_an_older_copy_of_its_state_raises_an_alert() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let up = |boot, epoch| d.record(Kind::Status, boot, epoch, &status(true, epoch));
    let say = |boot, seq, generation| d.record(Kind::Report, boot, seq, &report(generation));
    store_batch(&store, vec![up(1, 1), say(1, 1, 4), say(1, 3, 5)]).await.unwrap();
    // Late is not lower: within a boot, and what an earlier boot had spooled.
    store_batch(&store, vec![say(1, 2, 4)]).await.unwrap();
    store_batch(&store, vec![up(2, 2), say(2, 1, 6), say(1, 4, 5), say(2, 2, 6)]).await.unwrap();
    // A boot of which no session is known: it may be of before.
    store_batch(&store, vec![say(3, 1, 2)]).await.unwrap();
    assert_eq!(set_back(&store).await, 0);
    store_batch(&store, vec![up(4, 3), say(4, 1, 5)]).await.unwrap();
    assert_eq!(set_back(&store).await, 1);
    assert_eq!(store.device(&d.id).await.unwrap().generation, 6, "the highest stays known");
}

#[tokio::test]
async fn a_copy_that_is_many_sessions_old_raises_an_alert_too() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let up = |boot, epoch| d.record(Kind::Status, boot, epoch, &status(true, epoch));
    let say = |boot, generation| d.record(Kind::Report, boot, 1, &report(generation));
    store_batch(&store, vec![up(2, 9), say(2, 6)]).await.unwrap();
    assert_eq!(set_back(&store).await, 0);
    // The session number comes out of the copy as well.
    store_batch(&store, vec![up(4, 6), say(4, 5)]).await.unwrap();
    assert_eq!(set_back(&store).await, 1);
}

#[tokio::test]
async fn a_number_that_is_counted_twice_for_other_records_raises_an_alert() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    for n in [5, 5] {
        store_batch(&store, vec![d.record(Kind::Window, 1, 1, &window(n))]).await.unwrap();
    }
    assert_eq!(set_back(&store).await, 0, "sent again");
    store_batch(&store, vec![d.record(Kind::Window, 1, 1, &window(6))]).await.unwrap();
    assert_eq!(set_back(&store).await, 1);
}

/// A report of a boot that has closed so many windows, of which these are new.
fn closed(windows_closed: u64, windows: &[u64]) -> Report {
    let bodies = windows.iter().map(|n| cbor::encode(&window(*n)));
    let chain = |so_far: Digest, body: Vec<u8>| dunlin_trust::sha256(&[&so_far.0[..], &body].concat());
    let digest = WindowsDigest { n: windows.len() as u64, sha256: bodies.fold(Digest([0; 32]), chain) };
    Report { windows_closed, windows_digest: Some(digest), ..Report::default() }
}

async fn mismatches(store: &Store) -> usize {
    store.alerts(true, 10).await.unwrap().iter().filter(|alert| alert.kind == "telemetry_mismatch").count()
}

#[tokio::test]
async fn windows_that_are_not_those_the_device_closed_raise_an_alert() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let one = |seq, n| d.record(Kind::Window, 1, seq, &window(n));
    let say = |seq, report: &Report| d.record(Kind::Report, 1, seq, report);
    store_batch(&store, vec![one(1, 7), one(2, 8), say(3, &closed(2, &[7, 8]))]).await.unwrap();
    store_batch(&store, vec![one(4, 9), say(5, &closed(3, &[9]))]).await.unwrap();
    // One is on its way still: nothing can be said.
    store_batch(&store, vec![say(7, &closed(4, &[1]))]).await.unwrap();
    store_batch(&store, vec![one(6, 1)]).await.unwrap();
    assert_eq!(mismatches(&store).await, 0);
    store_batch(&store, vec![one(8, 2), say(9, &closed(5, &[3])), one(10, 4)]).await.unwrap();
    assert_eq!(mismatches(&store).await, 1, "whatever comes after it");
}

#[tokio::test]
async fn windows_after_a_report_do_not_stand_in_for_lost_ones_before_it() {
    let (_dir, store) = test_store().await;
    let (a, b) = (device(&store, "a").await, device(&store, "b").await);
    let one = |d: &Device, seq| d.record(Kind::Window, 1, seq, &window(seq));
    let say = |d: &Device, seq, report: &Report| d.record(Kind::Report, 1, seq, report);
    for d in [&a, &b] {
        store_batch(&store, (1..=4).map(|seq| one(d, seq)).collect()).await.unwrap();
    }
    // The device gave up 5 and 7, which its bounds forced out.
    let evicted = vec![
        say(&a, 6, &closed(5, &[5])),
        say(&a, 8, &closed(6, &[7])),
        one(&a, 9),
        say(&a, 10, &closed(7, &[9])),
    ];
    store_batch(&store, evicted).await.unwrap();
    // The batch with 5 was refused by the database, and the device has not sent it again yet.
    store_batch(&store, vec![one(&b, 6), say(&b, 7, &closed(6, &[5, 6])), one(&b, 8)]).await.unwrap();
    assert_eq!(mismatches(&store).await, 0);
}

#[tokio::test]
async fn a_damaged_row_costs_itself_and_nothing_else() {
    let (_dir, store) = test_store().await;
    let (a, b) = (device(&store, "a").await, device(&store, "b").await);
    let batch = vec![a.record(Kind::Window, 1, 1, &window(1)), b.record(Kind::Window, 1, 1, &window(2))];
    store_batch(&store, batch).await.unwrap();
    sqlx::query("UPDATE windows SET body = x'ff00' WHERE device = 'a'")
        .execute(store.writer())
        .await
        .unwrap();
    sqlx::query("UPDATE devices SET profile = '{' WHERE id = 'a'").execute(store.writer()).await.unwrap();
    sqlx::query("UPDATE boots SET ahead = x'ffff' WHERE device = 'a'").execute(store.writer()).await.unwrap();
    let windows = store.windows(&"meter".parse().unwrap(), 0, 0, 10).await.unwrap();
    assert_eq!(windows.iter().map(|row| row.device.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(store.devices().await.unwrap().len(), 1);
    assert!(store.device(&a.id).await.unwrap_err().to_string().contains("devices"));
    let named: BTreeSet<&str> = store.damaged().await.unwrap().iter().map(|damage| damage.table).collect();
    assert_eq!(named, BTreeSet::from(["boots", "devices", "windows"]));
    assert_eq!(
        upto(&store_batch(&store, vec![a.record(Kind::Window, 1, 2, &window(1))]).await.unwrap(), &a),
        [2]
    );
}

#[tokio::test]
async fn a_record_that_is_refused_does_not_hold_up_those_after_it() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let outcome = Outcome {
        generation: 1,
        task: None,
        release: None,
        correlation: String::new(),
        phase: Phase::Failed,
        reason: ReasonCode::NoSpace,
        detail: String::new(),
        at_ms: None,
    };
    let report = Report { outcomes: vec![outcome; record::OUTCOMES_MAX + 1], ..Report::default() };
    let ranges = |count| (0..count as u64).map(|n| (10 * n + 10, 10 * n + 11)).collect();
    let gap = |count| Gap { boot: BootId([2; 16]), ranges: ranges(count) };
    let payloads = [
        d.payload(Kind::Window, 1, 1, &"no window"),
        d.payload(Kind::Report, 1, 2, &report),
        d.payload(Kind::Gap, 1, 3, &gap(record::GAP_RANGES_MAX + 1)),
        d.payload(Kind::Window, 1, 4, &window(4)),
        d.payload(Kind::Status, 1, 5, &"no status"),
    ];
    let message =
        |payload: Vec<u8>| Message { topic: "dunlin/v1/d/a/up/report".into(), payload: payload.into() };
    let (records, refused) = verify_batch(&store, payloads.map(message).into()).await.unwrap();
    let reasons: Vec<_> = refused.iter().map(|(_, refusal)| refusal.reason).collect();
    let malformed = ReasonCode::EnvelopeMalformed;
    assert_eq!(reasons, [malformed, ReasonCode::TooLarge, ReasonCode::TooLarge, malformed]);
    let stored = store_batch(&store, records).await.unwrap();
    assert_eq!(
        (upto(&stored, &d), stored.stored["window"]),
        (vec![4], 1),
        "a status has no number of its own"
    );
    assert!(store.happenings(&d.id, 10).await.unwrap().is_empty());
    assert!(store.gaps(&d.id, 10).await.unwrap().is_empty());
    let full = d.record(Kind::Gap, 1, 5, &gap(record::GAP_RANGES_MAX));
    assert_eq!(store_batch(&store, vec![full]).await.unwrap().stored["gap"], 1);
    assert_eq!(store.gaps(&d.id, 5000).await.unwrap().len(), record::GAP_RANGES_MAX);
}

#[tokio::test]
async fn what_comes_again_is_no_sign_of_life() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let at = |payload: &[u8], at_ms| Record::open(payload, &d.id, d.signer.public(), at_ms).unwrap();
    let seen = async |payload: &[u8], at_ms| {
        store_batch(&store, vec![at(payload, at_ms)]).await.unwrap();
        store.device(&d.id).await.unwrap().seen_ms
    };
    let first = d.payload(Kind::Window, 1, 1, &window(1));
    let online = d.payload(Kind::Status, 1, 1, &status(true, 1));
    let will = d.payload(Kind::Status, 1, 1, &status(false, 1));
    assert_eq!(seen(&first, 1000).await, 1000);
    assert_eq!(seen(&first, 2000).await, 1000, "a repeated record");
    assert_eq!(seen(&online, 3000).await, 3000);
    assert_eq!(seen(&online, 4000).await, 3000, "a repeated status");
    assert_eq!(seen(&will, 5000).await, 3000, "the broker speaks");
    assert_eq!(seen(&online, 6000).await, 3000, "the status of a session that has ended");
    assert!(!store.device(&d.id).await.unwrap().online);
    let next = d.payload(Kind::Status, 1, 2, &status(true, 2));
    assert_eq!(seen(&next, 7000).await, 7000);
}

#[tokio::test]
async fn a_device_enrolled_anew_counts_its_generations_anew() {
    let (_dir, store) = test_store().await;
    let d = device(&store, "a").await;
    let report = |generation| Report { generation, ..Report::default() };
    store_batch(&store, vec![d.record(Kind::Report, 1, 1, &report(u64::MAX))]).await.unwrap();
    let signer = EcdsaP256Signer::from_pkcs8(&EcdsaP256Signer::generate_pkcs8().unwrap()).unwrap();
    let claim = Claim {
        id: "again".into(),
        device: Some(d.id.clone()),
        groups: BTreeSet::new(),
        created_by: "test".into(),
        created_ms: 1,
        expires_ms: u64::MAX >> 1,
        used_ms: None,
        used_by: None,
    };
    let issued = Issued {
        pem: String::new(),
        spki: signer.public().to_vec(),
        serial: "again".into(),
        from_ms: 3,
        until_ms: 4,
    };
    let before = enrol(&store, &claim, &d.id, &issued, 3).await;
    assert_eq!(before, Some(crate::store::key_id(d.signer.public())));
    let certificates = store.certificates(&d.id, 5).await.unwrap();
    let revoked: Vec<_> = certificates.iter().map(|row| (row.serial.as_str(), row.revoked_ms)).collect();
    assert_eq!(revoked, [("again", None), ("a", Some(3))], "the certificates are part of the enrolment");
    let d = Device { id: d.id, signer };
    store_batch(&store, vec![d.record(Kind::Report, 2, 1, &report(1))]).await.unwrap();
    assert_eq!(store.device(&d.id).await.unwrap().generation, 1);
}
