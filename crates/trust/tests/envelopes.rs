//! Envelopes in both directions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod forge;

use dunlin_protocol::{BootId, Bytes, DeviceId, Envelope, Header, Kind, Now, ReasonCode, SCHEMA};
use dunlin_trust::{EcdsaP256Signer, RepoKind, Signer, envelope};
use forge::{Forge, NOW_MS, key, now};
use proptest::prelude::*;

fn header(kind: Kind) -> Header {
    Header {
        v: SCHEMA,
        kind,
        device: "pole-1".parse().unwrap(),
        boot: BootId([0; 16]),
        seq: 7,
        exp: Some(NOW_MS + 1),
        body: Bytes(vec![1, 2, 3]),
    }
}

fn device_key() -> EcdsaP256Signer {
    EcdsaP256Signer::from_pkcs8(&EcdsaP256Signer::generate_pkcs8().unwrap()).unwrap()
}

#[test]
fn a_device_signs_and_only_it() {
    let (device, other) = (device_key(), device_key());
    let sealed = envelope::seal_up(&header(Kind::Window), &device).unwrap();
    let sealed = Envelope::decode(&sealed.encode()).unwrap();
    assert_eq!(sealed.s.0.len(), 64);
    assert_eq!(*envelope::open_up(&sealed, device.public()).unwrap(), header(Kind::Window));
    let refused = |sealed: &Envelope, spki: &[u8]| envelope::open_up(sealed, spki).unwrap_err().reason();
    assert_eq!(refused(&sealed, other.public()), ReasonCode::EnvelopeSignature);
    let mut bent = sealed.clone();
    *bent.p.0.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&bent, device.public()), ReasonCode::EnvelopeSignature);
    let mut renamed = sealed;
    renamed.k = other.key_id().to_owned();
    assert_eq!(refused(&renamed, device.public()), ReasonCode::EnvelopeSignature);
}

#[test]
fn a_controller_signs_with_the_directors_timestamp_key() {
    let forge = Forge::new(RepoKind::Director);
    let director = forge.trusted();
    let device: DeviceId = "pole-1".parse().unwrap();
    let sealed = envelope::seal_down(&header(Kind::Cmd), &forge.timestamp).unwrap();
    let open = |sealed: &Envelope, device: &str, floor, now| {
        let opened = envelope::open_down(sealed, &director, &device.parse().unwrap(), floor, now);
        opened.map(|header| header.seq).map_err(|error| error.reason())
    };
    assert_eq!(open(&sealed, "pole-1", 6, now()), Ok(7));
    assert_eq!(open(&sealed, "pole-1", 7, now()), Err(ReasonCode::EnvelopeReplayed));
    assert_eq!(open(&sealed, "pole-2", 6, now()), Err(ReasonCode::EnvelopeWrongDevice));
    let later = Now { mono_ms: 0, wall_ms: Some(NOW_MS + 1) };
    assert_eq!(open(&sealed, "pole-1", 6, later), Err(ReasonCode::EnvelopeExpired));
    let no_clock = Now { mono_ms: 0, wall_ms: None };
    assert_eq!(open(&sealed, "pole-1", 6, no_clock), Err(ReasonCode::ClockUnknown));
    let ack = envelope::seal_down(&header(Kind::Ack), &forge.timestamp).unwrap();
    assert_eq!(open(&ack, "pole-1", 6, no_clock), Ok(7));
    assert_eq!(open(&ack, "pole-1", 6, later), Ok(7), "what is stored stays stored");
    assert_eq!(open(&ack, "pole-1", 7, no_clock), Err(ReasonCode::EnvelopeReplayed));

    for stranger in [&forge.snapshot, &forge.targets[0], &key()] {
        let forged = envelope::seal_down(&header(Kind::Cmd), stranger).unwrap();
        assert_eq!(open(&forged, "pole-1", 6, now()), Err(ReasonCode::EnvelopeSignature));
    }
    let mut bent = sealed.clone();
    bent.s.0[0] ^= 1;
    assert_eq!(open(&bent, "pole-1", 6, now()), Err(ReasonCode::EnvelopeSignature));
    assert!(envelope::open_down(&sealed, &director, &device, 0, now()).is_ok());
}

#[test]
fn messages_keep_to_their_direction() {
    let (device, forge) = (device_key(), Forge::new(RepoKind::Director));
    assert!(envelope::seal_up(&header(Kind::Ack), &device).is_err());
    assert!(envelope::seal_down(&header(Kind::Window), &forge.timestamp).is_err());
    assert!(envelope::seal_down(&Header { exp: None, ..header(Kind::Ack) }, &forge.timestamp).is_err());
    // Signed by the right key all the same, by hand.
    let by_hand = |header: Header, signer: &dyn Signer| {
        let p = header.encode();
        let s = signer.sign(&Envelope::signing_bytes(&p)).unwrap();
        Envelope { k: signer.key_id().to_owned(), s: Bytes(s), p: Bytes(p) }
    };
    let up = by_hand(header(Kind::Cmd), &device);
    assert_eq!(envelope::open_up(&up, device.public()).unwrap_err().reason(), ReasonCode::EnvelopeMalformed);
    let director = forge.trusted();
    let to = "pole-1".parse().unwrap();
    let open =
        |sealed: &Envelope| envelope::open_down(sealed, &director, &to, 0, now()).unwrap_err().reason();
    assert_eq!(open(&by_hand(header(Kind::Report), &forge.timestamp)), ReasonCode::EnvelopeMalformed);
    assert_eq!(
        open(&by_hand(Header { exp: None, ..header(Kind::Cmd) }, &forge.timestamp)),
        ReasonCode::EnvelopeMalformed
    );
    assert_eq!(
        open(&by_hand(Header { v: 2, ..header(Kind::Cmd) }, &forge.timestamp)),
        ReasonCode::SchemaUnknown
    );
}

proptest! {
    #[test]
    fn random_envelopes_never_panic(p in proptest::collection::vec(any::<u8>(), 0..80), k in ".{0,70}", s in proptest::collection::vec(any::<u8>(), 0..70)) {
        let device = device_key();
        let sealed = Envelope { p: Bytes(p), k, s: Bytes(s) };
        prop_assert!(envelope::open_up(&sealed, device.public()).is_err());
    }
}
