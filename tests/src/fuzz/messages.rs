//! What comes in over MQTT and HTTP: CBOR messages, topics and ids, manifests and policies, byte ranges.
use dunlin_controller::api::range::{byte_range, satisfiable};
use dunlin_protocol::{
    AckBody, AckRange, BootId, Bundle, Bytes, Check, ClaimToken, Cmd, CmdBody, Desired, DeviceId, Down,
    Envelope, Gap, GroupId, Header, Kind, ModelName, PAYLOAD_BYTES_MAX, ReleaseId, Reply, RepoFiles,
    RepoVersions, Report, SCHEMA, Samples, Status, TargetCustom, TaskId, TaskPolicy, Topic, Up, Window, cbor,
};
use dunlin_trust::{ApprovedFile, ApprovedRelease, check_bundle, check_retrained};
use object_store::GetRange;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// A message that decodes encodes again, and decodes to the same.
fn round_trip<T: DeserializeOwned + Serialize>(input: &[u8]) -> bool {
    let Ok(message) = cbor::decode::<T>(input, PAYLOAD_BYTES_MAX) else { return false };
    let encoded = cbor::encode(&message);
    let again: T = cbor::decode(&encoded, usize::MAX).expect("what was encoded decodes");
    // Bytes are compared, as not a number is not equal to itself.
    assert_eq!(cbor::encode(&again), encoded);
    true
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
    let files = RepoFiles {
        roots: vec![Bytes(vec![1; 9])],
        timestamp: Bytes(b"{}".to_vec()),
        ..RepoFiles::default()
    };
    let check = Check { image: files.clone(), director: files };
    let desired = Desired { generation: 3, files: Some(check.clone()) };
    let rollback =
        Cmd { id: "c1".to_owned(), cmd: CmdBody::Rollback { task: "meter".parse().expect("an id") } };
    vec![
        cbor::encode(&Envelope { k: "0a".repeat(32), s: Bytes(vec![5; 64]), p: Bytes(p.clone()) }),
        p,
        header.body.0,
        cbor::encode(&check),
        cbor::encode(&desired),
        cbor::encode(&rollback),
        cbor::encode(&RepoVersions { root: 1, timestamp: 22, snapshot: 3, targets: 4, retrained: 5 }),
    ]
}

pub(crate) fn cbor(input: &[u8]) -> u64 {
    let envelope = Envelope::decode(input).is_ok_and(|envelope| envelope.header().is_ok());
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
    reads.into_iter().fold(0, |bits, read| bits << 1 | u64::from(read))
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

/// Manifests and policies as JSON, judged against a good one of the other: what reads is written and read as the same,
/// and what is within the bounds fits what was approved.
pub(crate) fn manifest(input: &[u8]) -> u64 {
    let mut seen = 0;
    if let Ok(bundle) = serde_json::from_slice::<Bundle>(input) {
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
        seen |= verdict.err().map_or(0, |refusal| sum(&refusal.detail)) << 16;
    }
    if let Ok(policy) = serde_json::from_slice::<TaskPolicy>(input) {
        let text = serde_json::to_vec(&policy).expect("a policy is JSON");
        assert_eq!(serde_json::from_slice::<TaskPolicy>(&text).ok(), Some(policy.clone()));
        if let Some(bounds) = &policy.retrained {
            let good: Bundle = serde_json::from_value(bundle()).expect("a manifest");
            let first = |text: String| text.split(' ').take(3).map(str::len).sum::<usize>() as u64;
            seen |= check_retrained(bounds, &good).err().map_or(0, |refusal| first(refusal.detail)) << 8;
        }
        seen |= 16 | u64::from(policy.retrained.is_some()) << 5;
    }
    seen
}

/// Tells texts apart, roughly.
fn sum(text: &str) -> u64 {
    text.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))) & 0xff
}

pub(crate) fn range_seeds() -> Vec<Vec<u8>> {
    ["bytes=2-5", "bytes=7-", "bytes=-3", "bytes=0-18446744073709551615", "bytes=1-2,4-5"]
        .map(|text| text.as_bytes().to_vec())
        .into()
}

/// A range that can be satisfied lies within the blob and is not empty.
pub(crate) fn range(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    let Some(range) = byte_range(text) else { return 1 };
    for length in [0, 1, 5, 1 << 20, u64::MAX] {
        if satisfiable(&range, length) {
            let (start, end) = match &range {
                GetRange::Bounded(range) => (range.start, range.end.min(length)),
                GetRange::Offset(first) => (*first, length),
                GetRange::Suffix(last) => (length - (*last).min(length), length),
            };
            assert!(start < end && end <= length, "{range:?} of {length}");
        }
    }
    match range {
        GetRange::Bounded(_) => 2,
        GetRange::Offset(_) => 3,
        GetRange::Suffix(_) => 4,
    }
}
