//! Every message as a release of this protocol wrote it: what lies in `golden/` is read for ever, and is written so.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use dunlin_protocol::{
    AckBody, AckRange, Arch, BootId, Budgets, Bytes, Check, Cmd, CmdBody, Confusion, Counts, Desired,
    DeviceProfile, Digest, Envelope, Gap, Header, Indicator, Installed, Kind, Outcome, PAYLOAD_BYTES_MAX,
    PairCounts, Phase, ReasonCode, ReleaseId, Reply, RepoFiles, Report, ResourceUse, SCHEMA, Sample,
    SampleKind, Samples, Sketch, Status, Window, cbor,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.cbor"))
}

/// The committed file is this value, and this value is written as that file.
#[track_caller]
fn holds<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let kept = std::fs::read(file(name)).unwrap_or_else(|error| panic!("{}: {error}", file(name).display()));
    let read: T = cbor::decode(&kept, PAYLOAD_BYTES_MAX).unwrap();
    assert_eq!(read, *value, "{name} is read as something else");
    assert_eq!(cbor::encode(value), kept, "{name} is written otherwise");
}

fn release() -> ReleaseId {
    "meter-mlp@3".parse().unwrap()
}

fn status() -> Status {
    Status { online: true, epoch: 3, agent: "0.1.0".into() }
}

fn window() -> Window {
    Window {
        task: "meter".parse().unwrap(),
        release: Some(release()),
        generation: 4,
        start_ms: 1_790_000_000_000,
        end_ms: 1_790_000_060_000,
        wall: true,
        n: 600,
        errors: 2,
        probation: true,
        latency_us: Sketch { zero: 0, first: -3, len: 2, bins: Counts::pack(&[1, 300]) },
        confidence: Counts::pack(&[0, 1, 127, 128, 16_384]),
        classes: Counts::pack(&[60, 540]),
        confusion: Confusion { classes: 2, counts: Counts::pack(&[9, 1, 2, 88]) },
        pair: Some(PairCounts {
            other: release(),
            n: 100,
            disagree: 4,
            both_right: 90,
            only_this: 3,
            only_other: 1,
            both_wrong: 6,
        }),
        profile: Some(Digest([7; 32])),
        features: Counts::pack(&[9, 8, 7, 6]),
        autocorrelation_ppm: -12,
        resources: ResourceUse { temperature_mc: Some(41_000), ..ResourceUse::default() },
    }
}

fn report() -> Report {
    let profile = DeviceProfile {
        class: "raspberry-pi-4".parse().unwrap(),
        arch: Arch::Aarch64,
        cores: 4,
        ram_bytes: 1 << 31,
        budgets: Budgets { model_bytes_max: 1, model_ram_bytes_max: 2, latency_us_max: 3 },
        ops: BTreeSet::from(["ai.onnx/Gemm".to_owned()]),
        agent: "0.1.0".into(),
    };
    let installed = Installed {
        release: Some(release()),
        manifest: Some(Digest([1; 32])),
        phase: Phase::Committed,
        proof_us: Some(10),
        proof_bytes: Some(4096),
    };
    let outcome = Outcome {
        generation: 1,
        task: Some("meter".parse().unwrap()),
        release: Some(release()),
        correlation: "r-1".into(),
        phase: Phase::RolledBack,
        reason: ReasonCode::GuardErrors,
        detail: "12 of 50".into(),
        at_ms: Some(1_790_000_000_000),
    };
    let indicator = Indicator {
        reason: ReasonCode::EnvelopeReplayed,
        detail: "seq 7".into(),
        count: 3,
        at_ms: Some(1_790_000_000_000),
    };
    Report {
        generation: 3,
        installed: BTreeMap::from([("meter".parse().unwrap(), installed)]),
        outcomes: vec![outcome],
        indicators: vec![indicator],
        profile: Some(profile),
        windows_closed: 9,
        windows_digest: None,
    }
}

fn samples() -> Samples {
    let sample = Sample {
        id: "request-1".into(),
        at_ms: Some(1_790_000_000_000),
        x: Bytes(vec![0, 0, 128, 63]),
        predicted: 1,
        label: Some(2),
        kind: SampleKind::Uncertain,
        inclusion_ppm: 300_000,
    };
    Samples { task: "meter".parse().unwrap(), release: release(), samples: vec![sample] }
}

fn gap() -> Gap {
    Gap { boot: BootId([1; 16]), ranges: vec![(1, 4), (9, 9)] }
}

fn reply() -> Reply {
    Reply { id: "q-1".into(), reason: ReasonCode::Ok, detail: "done".into() }
}

fn desired() -> Desired {
    let files = RepoFiles {
        roots: vec![Bytes(vec![1])],
        timestamp: Bytes(vec![2]),
        snapshot: Some(Bytes(vec![3])),
        targets: Some(Bytes(vec![4])),
        delegated: BTreeMap::from([("retrained".to_owned(), Bytes(vec![5]))]),
    };
    Desired { generation: 3, files: Some(Check { image: files.clone(), director: files }) }
}

fn cmds() -> [(&'static str, Cmd); 4] {
    let cmd = |cmd| Cmd { id: "q-1".into(), cmd };
    [
        ("cmd-check", cmd(CmdBody::Check)),
        ("cmd-report", cmd(CmdBody::Report)),
        ("cmd-rollback", cmd(CmdBody::Rollback { task: "meter".parse().unwrap() })),
        ("cmd-retarget", cmd(CmdBody::Retarget { release: release() })),
    ]
}

fn ack() -> AckBody {
    AckBody { ranges: vec![AckRange { boot: BootId([1; 16]), upto: 7 }] }
}

fn envelope() -> Envelope {
    let header = Header {
        v: SCHEMA,
        kind: Kind::Status,
        device: "pole-17".parse().unwrap(),
        boot: BootId([2; 16]),
        seq: 5,
        exp: Some(1_790_000_600_000),
        body: Bytes(cbor::encode(&status())),
    };
    Envelope { p: Bytes(header.encode()), k: "key".into(), s: Bytes(vec![9; 64]) }
}

#[test]
fn every_message_is_read_and_written_as_ever() {
    holds("status", &status());
    holds("window", &window());
    holds("report", &report());
    holds("samples", &samples());
    holds("gap", &gap());
    holds("reply", &reply());
    holds("desired", &desired());
    for (name, cmd) in cmds() {
        holds(name, &cmd);
    }
    holds("ack", &ack());
}

#[test]
fn an_envelope_and_its_header_are_read_and_written_as_ever() {
    let kept = std::fs::read(file("envelope")).unwrap();
    let read = Envelope::decode(&kept).unwrap();
    assert_eq!(read, envelope());
    assert_eq!(read.encode(), kept);
    assert_eq!(read.header().unwrap().encode(), read.p.0);
}
