//! docs/protocol.cddl says what is really sent: every message type, encoded as it goes out, fits its rule, and a
//! message with a missing or foreign field does not.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::BTreeMap;

use dunlin_protocol::*;
use dunlin_tests::messages::{check, release, report, samples, task, window};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_cbor::Value;

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
    let mut map: BTreeMap<String, Value> = serde_cbor::from_slice(&cbor::encode(&window(true))).unwrap();
    map.remove("n");
    let bytes = serde_cbor::to_vec(&map).unwrap();
    assert!(cddl_cat::validate_cbor_bytes("window", CDDL, &bytes).is_err(), "a window without n");
    map.insert("n".into(), Value::Text("600".into()));
    let bytes = serde_cbor::to_vec(&map).unwrap();
    assert!(cddl_cat::validate_cbor_bytes("window", CDDL, &bytes).is_err(), "n as text");
}

/// Fields whose value has keys of its own: ids and names, not fields.
const KEYED: [&str; 2] = ["installed", "delegated"];

/// Reads a message and writes it again; nothing, if it can not be read.
type Read = fn(&[u8]) -> Option<Vec<u8>>;

/// Every message with everything that it may hold, by its rule.
fn messages() -> Vec<(&'static str, Vec<u8>, Read)> {
    fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<Vec<u8>> {
        cbor::decode::<T>(bytes, PAYLOAD_BYTES_MAX).ok().map(|message| cbor::encode(&message))
    }
    let (task, release) = (task(), release());
    let status = Status { online: false, epoch: 3, agent: "0.1.0".into() };
    let gap = Gap { boot: BootId([1; 16]), ranges: vec![(1, 4), (9, 9)] };
    let reply = Reply { id: "1".into(), reason: ReasonCode::Ok, detail: "x".into() };
    let ack = AckBody { ranges: vec![AckRange { boot: BootId([1; 16]), upto: 7 }] };
    let cmd = |cmd| cbor::encode(&Cmd { id: "1".into(), cmd });
    vec![
        ("window", cbor::encode(&window(true)), read::<Window>),
        ("report", cbor::encode(&report(true)), read::<Report>),
        ("samples", cbor::encode(&samples(true)), read::<Samples>),
        ("check", cbor::encode(&check(true)), read::<Check>),
        ("desired", cbor::encode(&Desired { generation: 3, files: Some(check(true)) }), read::<Desired>),
        ("status", cbor::encode(&status), read::<Status>),
        ("gap", cbor::encode(&gap), read::<Gap>),
        ("reply", cbor::encode(&reply), read::<Reply>),
        ("ack", cbor::encode(&ack), read::<AckBody>),
        ("cmd", cmd(CmdBody::Check), read::<Cmd>),
        ("cmd", cmd(CmdBody::Rollback { task }), read::<Cmd>),
        ("cmd", cmd(CmdBody::Retarget { release }), read::<Cmd>),
    ]
}

/// Does something to every map of fields in `value`, the outermost first.
fn each_map(value: &mut Value, keyed: bool, act: &mut impl FnMut(&mut BTreeMap<Value, Value>)) {
    if let Value::Map(map) = value {
        if !keyed {
            act(map);
        }
        for (key, value) in map {
            let keyed = matches!(key, Value::Text(name) if KEYED.contains(&name.as_str()));
            each_map(value, keyed, act);
        }
    } else if let Value::Array(items) = value {
        items.iter_mut().for_each(|item| each_map(item, false, act));
    }
}

#[test]
fn what_a_later_version_adds_to_any_message_is_ignored_wherever_it_stands() {
    for (rule, bytes, read) in messages() {
        let mut value: Value = serde_cbor::from_slice(&bytes).unwrap();
        let mut maps = 0;
        each_map(&mut value, false, &mut |map| {
            maps += 1;
            map.insert(Value::Text("of_a_later_version".to_owned()), Value::Array(vec![Value::Bool(true)]));
        });
        assert!(maps > 0, "{rule}");
        assert_eq!(read(&serde_cbor::to_vec(&value).unwrap()), Some(bytes), "{rule}");
    }
}

#[test]
fn what_an_earlier_version_leaves_out_is_read_wherever_the_rules_call_it_optional() {
    let mut optional = 0;
    for (rule, bytes, read) in messages() {
        let whole: Value = serde_cbor::from_slice(&bytes).unwrap();
        let mut fields = Vec::new();
        let mut count = 0;
        each_map(&mut whole.clone(), false, &mut |map| {
            fields.extend(map.keys().cloned().map(|key| (count, key)));
            count += 1;
        });
        for (which, field) in fields {
            let (mut less, mut at) = (whole.clone(), 0);
            each_map(&mut less, false, &mut |map| {
                if at == which {
                    map.remove(&field);
                }
                at += 1;
            });
            let less = serde_cbor::to_vec(&less).unwrap();
            let allowed = cddl_cat::validate_cbor_bytes(rule, CDDL, &less).is_ok();
            assert!(read(&less).is_some() || !allowed, "{rule} without {field:?}");
            optional += usize::from(allowed);
        }
    }
    assert!(optional > 10, "{optional} fields are optional");
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
