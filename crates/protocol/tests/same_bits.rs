//! Messages are the same bytes on every target, whatever the width of its words and the order of its bytes.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use dunlin_protocol::{
    Bytes, Confusion, Counts, DType, Digest, GoldenSet, PairCounts, ResourceUse, Sketch, TensorData, Window,
    cbor,
};

/// FNV-1a over the messages below, found on x86-64. A change of their form changes it; a target must not.
const MESSAGES: u64 = 0x8dda_9736_fead_19e6;

fn window(seed: u64) -> Window {
    let counts = |n: u64| Counts::pack(&(0..n).map(|i| i.wrapping_mul(seed) % 70_001).collect::<Vec<_>>());
    Window {
        task: "meter".parse().unwrap(),
        release: seed.is_multiple_of(2).then(|| "meter-mlp@4".parse().unwrap()),
        generation: seed,
        start_ms: u64::MAX / (seed + 1),
        end_ms: u64::MAX,
        wall: seed.is_multiple_of(3),
        n: 1 << (seed % 64),
        errors: seed % 23,
        probation: true,
        latency_us: Sketch { zero: 1, first: -7, len: 40, bins: counts(40) },
        confidence: counts(20),
        classes: counts(10),
        confusion: Confusion { classes: 3, counts: counts(9) },
        pair: Some(PairCounts {
            other: "meter-mlp@3".parse().unwrap(),
            n: 90,
            disagree: 4,
            both_right: 80,
            only_this: 3,
            only_other: 1,
            both_wrong: 6,
        }),
        profile: Some(Digest([seed as u8; 32])),
        features: counts(64),
        autocorrelation_ppm: -(seed as i64) * 1_000,
        resources: ResourceUse { temperature_mc: Some(-40_000 + seed as i64), ..ResourceUse::default() },
    }
}

fn golden(seed: u64) -> GoldenSet {
    let values = (0..24u64).map(|i| (i * seed) as f32 / 7.0 - 3.0);
    let tensor = TensorData {
        name: "x".into(),
        datatype: DType::Fp32,
        shape: vec![6, 4],
        data: Bytes(values.flat_map(f32::to_le_bytes).collect()),
    };
    GoldenSet { format: 1, inputs: vec![tensor], outputs: Vec::new(), tolerance_ppm: 100, labels: vec![3; 6] }
}

#[test]
fn messages_are_the_same_bytes_everywhere() {
    let mut digest: u64 = 0xcbf2_9ce4_8422_2325;
    for seed in 0..200 {
        let window = window(seed);
        let bytes = cbor::encode(&window);
        assert_eq!(cbor::decode::<Window>(&bytes, bytes.len()).unwrap(), window);
        for byte in bytes.into_iter().chain(cbor::encode(&golden(seed))) {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    assert_eq!(digest, MESSAGES, "{digest:#018x}");
}
