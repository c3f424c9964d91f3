//! docs/protocol.cddl says what is really sent: every message type, encoded as it goes out, fits its rule, and a
//! message with a missing or foreign field does not.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::BTreeMap;

use dunlin_protocol::*;
use dunlin_tests::messages::{check, release, report, samples, task, window};

const CDDL: &str = include_str!("../../docs/protocol.cddl");

#[track_caller]
fn fits(rule: &str, payload: &[u8]) {
    if let Err(error) = cddl_cat::validate_cbor_bytes(rule, CDDL, payload) {
        panic!("{rule}: {error:?}");
    }
}

#[test]
fn every_message_fits_its_rule() {
    for full in [true, false] {
        fits("window", &cbor::encode(&window(full)));
        fits("report", &cbor::encode(&report(full)));
        fits("samples", &cbor::encode(&samples(full)));
        let check = check(full);
        fits("check", &cbor::encode(&check));
        fits("desired", &cbor::encode(&Desired { generation: 3, files: full.then_some(check) }));
    }
    fits("status", &cbor::encode(&Status { online: false, epoch: 3, agent: "0.1.0".into() }));
    fits("gap", &cbor::encode(&Gap { boot: BootId([1; 16]), ranges: vec![(1, 4), (9, 9)] }));
    fits("reply", &cbor::encode(&Reply { id: "1".into(), reason: ReasonCode::Ok, detail: "x".into() }));
    fits("ack", &cbor::encode(&AckBody { ranges: vec![AckRange { boot: BootId([1; 16]), upto: 7 }] }));
    let task = task();
    for cmd in [
        CmdBody::Check,
        CmdBody::Report,
        CmdBody::Rollback { task },
        CmdBody::Retarget { release: release() },
    ] {
        fits("cmd", &cbor::encode(&Cmd { id: "1".into(), cmd }));
    }
}

#[test]
fn every_kind_of_header_and_its_envelope_fit() {
    for kind in [
        Kind::Status,
        Kind::Window,
        Kind::Report,
        Kind::Samples,
        Kind::Gap,
        Kind::Reply,
        Kind::Desired,
        Kind::Cmd,
        Kind::Ack,
    ] {
        let device = "pole-17".parse().unwrap();
        let exp = (kind == Kind::Cmd).then_some(5);
        let header =
            Header { v: SCHEMA, kind, device, boot: BootId([0; 16]), seq: 1, exp, body: Bytes(vec![0xa0]) };
        fits("header", &header.encode());
        let envelope = Envelope { p: Bytes(header.encode()), k: "key".into(), s: Bytes(vec![0; 64]) };
        fits("envelope", &envelope.encode());
        assert_eq!(Envelope::decode(&envelope.encode()).unwrap().header().unwrap(), header);
    }
}

#[test]
fn the_rules_refuse_what_is_not_sent() {
    let mut map: BTreeMap<String, serde_cbor::Value> =
        serde_cbor::from_slice(&cbor::encode(&window(true))).unwrap();
    map.remove("n");
    let bytes = serde_cbor::to_vec(&map).unwrap();
    assert!(cddl_cat::validate_cbor_bytes("window", CDDL, &bytes).is_err(), "a window without n");
    map.insert("n".into(), serde_cbor::Value::Text("600".into()));
    let bytes = serde_cbor::to_vec(&map).unwrap();
    assert!(cddl_cat::validate_cbor_bytes("window", CDDL, &bytes).is_err(), "n as text");
}

#[test]
fn unknown_fields_are_ignored_and_optional_ones_may_be_absent() {
    let mut map: BTreeMap<String, serde_cbor::Value> =
        serde_cbor::from_slice(&cbor::encode(&window(true))).unwrap();
    map.insert("of_a_later_release".into(), serde_cbor::Value::Bool(true));
    for optional in ["pair", "profile", "features", "resources", "confusion"] {
        map.remove(optional);
    }
    let read: Window = cbor::decode(&serde_cbor::to_vec(&map).unwrap(), PAYLOAD_BYTES_MAX).unwrap();
    assert_eq!(read.n, 600);
    assert_eq!(read.pair, None);
}

#[test]
fn an_unknown_schema_version_is_named() {
    let device = "pole-17".parse().unwrap();
    let header = Header {
        v: 2,
        kind: Kind::Status,
        device,
        boot: BootId([0; 16]),
        seq: 1,
        exp: None,
        body: Bytes(vec![]),
    };
    let envelope = Envelope { p: Bytes(header.encode()), k: "key".into(), s: Bytes(vec![]) };
    let error = envelope.header().unwrap_err();
    assert_eq!(error.to_string(), "schema version 2 is unknown; this build speaks 1");
}

#[test]
fn hostile_payloads_are_errors() {
    for payload in [
        &b""[..],
        b"\xff",
        b"\xa1\x61\x70\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        &[0x9f; 4096],
        b"not cbor at all",
    ] {
        assert!(Envelope::decode(payload).is_err());
    }
    let huge = vec![0; PAYLOAD_BYTES_MAX + 1];
    assert!(Envelope::decode(&huge).unwrap_err().to_string().contains("no envelope"));
}
