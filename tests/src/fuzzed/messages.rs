//! What comes in over MQTT and HTTP: CBOR messages, topics and ids, manifests and policies.
use dunlin_agent::update::MANIFEST_BYTES_MAX;
use dunlin_protocol::{
    AckBody, AckRange, BootId, Bundle, Bytes, Check, ClaimToken, Cmd, CmdBody, Desired, DeviceId, Down,
    Envelope, Gap, GroupId, Header, Kind, ModelName, PAYLOAD_BYTES_MAX, ReasonCode, ReleaseId, Reply,
    RepoVersions, Report, SCHEMA, Sample, SampleKind, Samples, Status, TargetCustom, TaskId, TaskPolicy,
    Topic, Up, Window, cbor,
};
use dunlin_trust::{ApprovedFile, ApprovedRelease, check_bundle, check_retrained};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::told_apart;
use crate::messages::{check, release, report, samples, task, window};

/// A message that decodes encodes again, and decodes to the same. One that does not is told by its error.
fn round_trip<T: DeserializeOwned + Serialize>(input: &[u8]) -> Result<(), u64> {
    let message =
        cbor::decode::<T>(input, PAYLOAD_BYTES_MAX).map_err(|error| told_apart(&error.to_string()))?;
    let encoded = cbor::encode(&message);
    let again: T = cbor::decode(&encoded, usize::MAX).expect("what was encoded decodes");
    // Bytes are compared, as not a number is not equal to itself.
    assert_eq!(cbor::encode(&again), encoded);
    Ok(())
}

/// A batch of samples about as long as a message may be, and longer.
pub(crate) fn cbor_large() -> Vec<Vec<u8>> {
    let samples = |n: usize| {
        let sample = |i: usize| Sample {
            id: format!("s{i}"),
            at_ms: Some(1),
            x: Bytes(vec![7; 256]),
            predicted: 1,
            label: None,
            kind: SampleKind::Random,
            inclusion_ppm: 1,
        };
        cbor::encode(&Samples { task: task(), release: release(), samples: (0..n).map(sample).collect() })
    };
    vec![samples(PAYLOAD_BYTES_MAX / 400), samples(PAYLOAD_BYTES_MAX / 200)]
}

pub(crate) fn cbor_seeds() -> Vec<Vec<u8>> {
    let boot = BootId([7; 16]);
    let header = Header {
        v: SCHEMA,
        kind: Kind::Ack,
        device: "pole-1".parse().expect("an id"),
        boot,
        seq: 1,
        exp: Some(1_800_000_000_000),
        body: Bytes(cbor::encode(&AckBody { ranges: vec![AckRange { boot, upto: 3 }] })),
    };
    let p = header.encode();
    let check = check(true);
    let desired = Desired { generation: 3, files: Some(check.clone()) };
    let rollback = Cmd { id: "c1".to_owned(), cmd: CmdBody::Rollback { task: task() } };
    vec![
        cbor::encode(&Envelope { k: "0a".repeat(32), s: Bytes(vec![5; 64]), p: Bytes(p.clone()) }),
        p,
        header.body.0,
        cbor::encode(&check),
        cbor::encode(&desired),
        cbor::encode(&rollback),
        cbor::encode(&RepoVersions { root: 1, timestamp: 22, snapshot: 3, targets: 4, retrained: 5 }),
        cbor::encode(&window(true)),
        cbor::encode(&report(true)),
        cbor::encode(&samples(true)),
        cbor::encode(&Status { online: true, epoch: 3, agent: "0.1.0".to_owned() }),
        cbor::encode(&Gap { boot, ranges: vec![(1, 4), (9, 9)] }),
        cbor::encode(&Reply { id: "c1".to_owned(), reason: ReasonCode::Ok, detail: "x".to_owned() }),
    ]
}

pub(crate) fn cbor(input: &[u8]) -> u64 {
    let envelope = Envelope::decode(input).and_then(|envelope| envelope.header());
    let envelope = envelope.map(drop).map_err(|error| told_apart(&error.to_string()));
    let reads = [
        envelope,
        round_trip::<Envelope>(input),
        round_trip::<Header>(input),
        round_trip::<Status>(input),
        round_trip::<Window>(input),
        round_trip::<Report>(input),
        round_trip::<Samples>(input),
        round_trip::<Gap>(input),
        round_trip::<Reply>(input),
        round_trip::<Desired>(input),
        round_trip::<Cmd>(input),
        round_trip::<AckBody>(input),
        round_trip::<Check>(input),
        round_trip::<RepoVersions>(input),
    ];
    let told = reads.iter().fold(0u64, |sum, read| sum.rotate_left(3) ^ read.err().unwrap_or(0));
    reads.into_iter().fold(told, |bits, read| bits << 1 | u64::from(read.is_ok()))
}

pub(crate) fn topic_seeds() -> Vec<Vec<u8>> {
    let device: DeviceId = "pole-17".parse().expect("an id");
    let topics = Up::ALL
        .map(|up| Topic::up(&device, up))
        .into_iter()
        .chain(Down::ALL.map(|down| Topic::down(&device, down)));
    let mut seeds: Vec<Vec<u8>> =
        topics.chain([Topic::Notice]).map(|topic| topic.to_string().into_bytes()).collect();
    let pin = "ab".repeat(32);
    seeds.push(format!("dunlin1.aHR0cHM6Ly9h.{pin}.{pin}.{pin}.secret").into_bytes());
    seeds.extend(["meter@7", "auto.meter.gbdt.12.json", "a-b.c"].map(|text| text.as_bytes().to_vec()));
    seeds
}

/// Whatever parses is written as it was read, and what names a device holds nothing that means something to a broker or
/// a file system.
pub(crate) fn topic(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    let mut seen = 1;
    if let Some(topic) = Topic::parse(text) {
        assert_eq!(topic.to_string(), text);
        seen |= 2;
    }
    let plain = |id: &str| {
        assert!(
            !id.is_empty() && !id.contains(['/', '+', '#', '\\', '\0', ' ']) && id != "." && id != "..",
            "{id:?}"
        )
    };
    if let Ok(id) = text.parse::<DeviceId>() {
        plain(id.as_str());
        assert_eq!(id.as_str(), text);
        assert_eq!(Topic::parse(&Topic::up(&id, Up::Status).to_string()), Some(Topic::up(&id, Up::Status)));
        seen |= 4;
    }
    if let Ok(id) = text.parse::<ModelName>() {
        plain(id.as_str());
        seen |= 8;
    }
    seen |= u64::from(text.parse::<TaskId>().is_ok()) << 4 | u64::from(text.parse::<GroupId>().is_ok()) << 5;
    if let Ok(release) = text.parse::<ReleaseId>() {
        assert_eq!(release.to_string().parse(), Ok(release.clone()));
        assert_eq!(ReleaseId::from_target_name(&release.target_name()), Some(release));
        seen |= 64;
    }
    if let Some(release) = ReleaseId::from_target_name(text) {
        assert_eq!(release.target_name(), text);
        seen |= 128;
    }
    if let Ok(token) = text.parse::<ClaimToken>() {
        assert!(token.to_string().parse::<ClaimToken>().is_ok_and(|again| again == token));
        seen |= 256;
    }
    seen
}

fn signature() -> (serde_json::Value, serde_json::Value) {
    let spec =
        |name: &str, columns: i64| json!([{ "name": name, "datatype": "FP32", "shape": [-1, columns] }]);
    (spec("x", 2), spec("y", 3))
}

fn bundle() -> serde_json::Value {
    let blob = |length: u64| json!({ "digest": "07".repeat(32), "length": length });
    let hard = json!({ "arch": ["aarch64"], "ops": ["ai.onnx/Gemm"], "bundle_bytes": 10, "ram_bytes": 10, "min_agent": "0.1.0" });
    let (inputs, outputs) = signature();
    json!({
        "format": 1, "release": "auto.meter.gbdt@1", "task": "meter", "task_type": "classification", "family": "gbdt",
        "model": blob(3), "golden": blob(4), "profile": blob(2), "hard": hard, "latency_us": 100, "metrics": { "accuracy_ppm": 1 },
        "signature": { "inputs": inputs, "outputs": outputs, "features": [{ "name": "a", "unit": "V" }, { "name": "b" }], "labels": ["u", "v", "w"] },
        "lineage": { "run": "r1", "dataset": "08".repeat(32), "code": "0.1.0", "seed": 7 }, "licence": "MIT",
    })
}

fn policy() -> serde_json::Value {
    let (inputs, outputs) = signature();
    json!({
        "format": 1, "task": "meter", "task_type": "classification", "metric": "accuracy", "baseline_class": 0, "labels": ["u", "v", "w"],
        "retrained": {
            "inputs": inputs, "outputs": outputs, "ops": ["ai.onnx/Gemm"], "bundle_bytes_max": 10, "ram_bytes_max": 10,
            "latency_us_max": 1000, "anchor": { "digest": "09".repeat(32), "length": 5 }, "anchor_score_ppm_min": 900_000,
        },
        "samples": { "bytes_per_day_max": 1000, "random_ppm_min": 100 },
    })
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    vec![bundle().to_string().into_bytes(), policy().to_string().into_bytes()]
}

/// A manifest of about as many bytes as one is fetched.
pub(crate) fn manifest_large() -> Vec<Vec<u8>> {
    let mut bundle = bundle();
    let feature = |i: u64| json!({ "name": format!("f{i}"), "unit": "V" });
    let n = MANIFEST_BYTES_MAX / feature(100_000).to_string().len() as u64;
    bundle["signature"]["features"] = (0..n).map(feature).collect();
    vec![bundle.to_string().into_bytes()]
}

/// Manifests and policies as JSON, judged against a good one of the other: what reads is written and read as the same,
/// and what is within the bounds fits what was approved.
pub(crate) fn manifest(input: &[u8]) -> u64 {
    let mut seen = 0;
    let read = serde_json::from_slice::<Bundle>(input);
    seen |= read.as_ref().err().map_or(0, |error| told_apart(&error.to_string())) << 36;
    if let Ok(bundle) = read {
        let text = serde_json::to_vec(&bundle).expect("a manifest is JSON");
        assert_eq!(serde_json::from_slice::<Bundle>(&text).ok(), Some(bundle.clone()));
        let good: Bundle = serde_json::from_value(self::bundle()).expect("a manifest");
        let manifest =
            ApprovedFile { name: good.release.target_name(), length: 1, sha256: dunlin_trust::sha256(input) };
        let custom = TargetCustom { task: good.task.clone(), hard: good.hard.clone() };
        let approved = ApprovedRelease { release: good.release, manifest, custom, retrained: true };
        let verdict = check_bundle(&approved, &good.task, &bundle);
        if verdict.is_ok() {
            assert!(
                bundle.blobs().map(|blob| u128::from(blob.length)).sum::<u128>()
                    <= u128::from(bundle.hard.bundle_bytes)
            );
        }
        let bounds = serde_json::from_value::<TaskPolicy>(policy()).ok().and_then(|policy| policy.retrained);
        let within = check_retrained(&bounds.expect("a policy with bounds"), &bundle);
        seen |= 1 | u64::from(verdict.is_ok()) << 1 | u64::from(within.is_ok()) << 2;
        seen |= verdict.err().map_or(0, |refusal| told_apart(&refusal.detail)) << 16;
    }
    let read = serde_json::from_slice::<TaskPolicy>(input);
    seen |= read.as_ref().err().map_or(0, |error| told_apart(&error.to_string())) << 46;
    if let Ok(policy) = read {
        let text = serde_json::to_vec(&policy).expect("a policy is JSON");
        assert_eq!(serde_json::from_slice::<TaskPolicy>(&text).ok(), Some(policy.clone()));
        if let Some(bounds) = &policy.retrained {
            let good: Bundle = serde_json::from_value(bundle()).expect("a manifest");
            let refused = check_retrained(bounds, &good).err();
            seen |= refused.map_or(0, |refusal| told_apart(&refusal.detail)) << 26;
        }
        seen |= 16 | u64::from(policy.retrained.is_some()) << 5;
    }
    seen
}
