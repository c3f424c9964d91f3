use std::sync::Mutex;

use dunlin_protocol::{AckRange, BootId, Bytes, CmdBody, Now, SCHEMA};
use dunlin_trust::{Ed25519Signer, RepoKind, Signer, TrustedRepo, envelope, write};

use super::*;

const NOW_MS: u64 = 1_900_000_000_000;

/// A device with a pinned director root, and the controller's key that belongs to it.
struct Fixture {
    device: DeviceId,
    controller: Ed25519Signer,
    open: Opener,
}

fn ed25519() -> Ed25519Signer {
    Ed25519Signer::from_pkcs8(&Ed25519Signer::generate_pkcs8().unwrap()).unwrap()
}

fn fixture() -> Fixture {
    let controller = ed25519();
    let role = write::RoleSpec { keys: vec![controller.key().clone()], threshold: 1 };
    let spec = write::RootSpec {
        root: role.clone(),
        timestamp: role.clone(),
        snapshot: role.clone(),
        targets: role,
    };
    let root = write::sign(&write::root(1, 2_000_000_000_000, &spec).unwrap(), &[&controller as &dyn Signer])
        .unwrap();
    let director = TrustedRepo::pinned(RepoKind::Director, &root).unwrap();
    let device: DeviceId = "pole-17".parse().unwrap();
    let (addressee, floor) = (device.clone(), Mutex::new(0));
    let open: Opener = Arc::new(move |sealed| {
        let mut floor = floor.lock().unwrap();
        let now = Now { mono_ms: 0, wall_ms: Some(NOW_MS) };
        let header =
            envelope::open_down(sealed, &director, &addressee, *floor, now).map_err(|e| e.reason())?;
        *floor = header.seq;
        Ok((*header).clone())
    });
    Fixture { device, controller, open }
}

fn header(kind: Kind, device: &DeviceId, seq: u64, body: Vec<u8>) -> Header {
    Header {
        v: SCHEMA,
        kind,
        device: device.clone(),
        boot: BootId([0; 16]),
        seq,
        exp: Some(NOW_MS + 60_000),
        body: Bytes(body),
    }
}

impl Fixture {
    fn sealed(&self, header: &Header) -> Vec<u8> {
        envelope::seal_down(header, &self.controller).unwrap().encode()
    }

    fn accept(&self, down: Down, payload: &[u8]) -> Result<Inbound, ReasonCode> {
        let topic = Topic::down(&self.device, down).to_string();
        accept(&self.device, &topic, payload, &self.open).map_err(|refusal| refusal.reason)
    }
}

fn ack() -> Vec<u8> {
    cbor::encode(&AckBody { ranges: vec![AckRange { boot: BootId([7; 16]), upto: 3 }] })
}

#[test]
fn a_genuine_message_of_each_kind_is_accepted() {
    let fixture = fixture();
    let desired = cbor::encode(&Desired { generation: 4, files: None });
    let cmd = cbor::encode(&Cmd { id: "c1".into(), cmd: CmdBody::Report });
    for (seq, down, kind, body) in [
        (1, Down::Ack, Kind::Ack, ack()),
        (2, Down::Desired, Kind::Desired, desired),
        (3, Down::Cmd, Kind::Cmd, cmd),
    ] {
        let payload = fixture.sealed(&header(kind, &fixture.device, seq, body));
        assert!(fixture.accept(down, &payload).is_ok(), "{down:?}");
        assert_eq!(fixture.accept(down, &payload), Err(ReasonCode::EnvelopeReplayed), "{down:?}");
    }
}

#[test]
fn every_way_of_being_wrong_has_its_reason() {
    let fixture = fixture();
    let other: DeviceId = "pole-18".parse().unwrap();
    let good = header(Kind::Ack, &fixture.device, 1, ack());
    let forged = envelope::seal_down(&good, &ed25519()).unwrap().encode();
    let expired = Header { kind: Kind::Cmd, exp: Some(NOW_MS), ..good.clone() };
    let unknown = Header { v: SCHEMA + 1, ..good.clone() };
    let p = unknown.encode();
    let signature = fixture.controller.sign(&Envelope::signing_bytes(&p)).unwrap();
    let unknown =
        Envelope { p: Bytes(p), k: fixture.controller.key_id().to_owned(), s: Bytes(signature) }.encode();
    let mut flipped = Envelope::decode(&fixture.sealed(&good)).unwrap();
    let last = flipped.p.0.len() - 1;
    flipped.p.0[last] ^= 1;
    let cut = fixture.sealed(&good)[..40].to_vec();
    let not_a_body = header(Kind::Ack, &fixture.device, 1, vec![0xff; 9]);
    let table = [
        ("forged key", forged, ReasonCode::EnvelopeSignature),
        ("flipped bit", flipped.encode(), ReasonCode::EnvelopeSignature),
        ("foreign", fixture.sealed(&header(Kind::Ack, &other, 1, ack())), ReasonCode::EnvelopeWrongDevice),
        ("expired", fixture.sealed(&expired), ReasonCode::EnvelopeExpired),
        ("unknown schema", unknown, ReasonCode::SchemaUnknown),
        ("oversized", vec![0; PAYLOAD_BYTES_MAX + 1], ReasonCode::TooLarge),
        ("empty", vec![], ReasonCode::EnvelopeMalformed),
        ("noise", b"hello".to_vec(), ReasonCode::EnvelopeMalformed),
        ("cut", cut, ReasonCode::EnvelopeMalformed),
    ];
    for (what, payload, reason) in table {
        assert_eq!(fixture.accept(Down::Ack, &payload), Err(reason), "{what}");
    }
    assert!(fixture.accept(Down::Ack, &fixture.sealed(&good)).is_ok(), "a refused message raises no floor");
    let wrong_topic = fixture.sealed(&header(Kind::Ack, &fixture.device, 2, ack()));
    assert_eq!(fixture.accept(Down::Cmd, &wrong_topic), Err(ReasonCode::EnvelopeMalformed));
    let not_a_body = Header { seq: 3, ..not_a_body };
    assert_eq!(fixture.accept(Down::Ack, &fixture.sealed(&not_a_body)), Err(ReasonCode::EnvelopeMalformed));
}

#[test]
fn a_notice_is_only_a_notice_and_foreign_topics_are_refused() {
    let fixture = fixture();
    let accept = |topic: &str| {
        accept(&fixture.device, topic, b"whatever", &fixture.open).map_err(|refusal| refusal.reason)
    };
    assert_eq!(accept("dunlin/v1/all/notice"), Ok(Inbound::Notice));
    assert_eq!(accept("dunlin/v1/d/pole-18/down/ack"), Err(ReasonCode::EnvelopeWrongDevice));
    assert_eq!(accept("dunlin/v1/d/pole-17/up/status"), Err(ReasonCode::EnvelopeMalformed));
    assert_eq!(accept("elsewhere"), Err(ReasonCode::EnvelopeMalformed));
}
