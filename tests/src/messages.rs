//! One message of every kind, with everything that it may hold or with as little as it must: what the rules of the wire are
//! held against, and what is bent to fuzz those who read it.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::{
    Arch, Budgets, Bytes, Check, Confusion, Counts, DeviceProfile, Digest, Indicator, Installed, Outcome,
    PairCounts, Phase, ReasonCode, ReleaseId, RepoFiles, Report, ResourceUse, Sample, SampleKind, Samples,
    Sketch, TaskId, Window, WindowsDigest,
};

/// The task that they are about.
pub fn task() -> TaskId {
    "meter".parse().expect("an id")
}

/// The release that they are about.
pub fn release() -> ReleaseId {
    "meter-mlp@3".parse().expect("a release")
}

/// A window.
pub fn window(full: bool) -> Window {
    Window {
        task: task(),
        release: full.then(release),
        generation: 4,
        start_ms: 1,
        end_ms: 2,
        wall: true,
        n: 600,
        errors: 0,
        probation: full,
        latency_us: Sketch { zero: 0, first: -3, len: 2, bins: Counts::pack(&[1, 300]) },
        confidence: Counts::pack(&[0; 20]),
        classes: Counts::pack(&[60; 10]),
        confusion: Confusion { classes: 3, counts: Counts::pack(&[1; 9]) },
        pair: full.then(|| PairCounts {
            other: release(),
            n: 1,
            disagree: 0,
            both_right: 0,
            only_this: 0,
            only_other: 0,
            both_wrong: 0,
        }),
        profile: full.then_some(Digest([7; 32])),
        features: Counts::pack(&[9; 8]),
        autocorrelation_ppm: -12,
        resources: ResourceUse { temperature_mc: full.then_some(41_000), ..ResourceUse::default() },
    }
}

/// A report.
pub fn report(full: bool) -> Report {
    let profile = DeviceProfile {
        class: "raspberry-pi-4".parse().expect("a class"),
        arch: Arch::Aarch64,
        cores: 4,
        ram_bytes: 1 << 31,
        budgets: Budgets { model_bytes_max: 1, model_ram_bytes_max: 2, latency_us_max: 3 },
        ops: BTreeSet::from(["ai.onnx/Gemm".to_owned()]),
        agent: "0.1.0".to_owned(),
    };
    let installed = Installed {
        release: full.then(release),
        manifest: full.then_some(Digest([1; 32])),
        phase: Phase::Committed,
        proof_us: full.then_some(10),
        proof_bytes: full.then_some(10),
    };
    let text = |text: &str| if full { text.to_owned() } else { String::new() };
    let outcome = Outcome {
        generation: 1,
        task: full.then(task),
        release: full.then(release),
        correlation: text("r-1"),
        phase: Phase::RolledBack,
        reason: ReasonCode::GuardErrors,
        detail: text("12 of 50"),
        at_ms: full.then_some(1),
    };
    let (reason, detail) = (ReasonCode::EnvelopeReplayed, String::new());
    let indicator = full.then_some(Indicator { reason, detail, count: 1, at_ms: None });
    Report {
        generation: 3,
        installed: BTreeMap::from([(task(), installed)]),
        outcomes: vec![outcome],
        indicators: indicator.into_iter().collect(),
        profile: full.then_some(profile),
        windows_closed: 9,
        windows_digest: full.then_some(WindowsDigest { n: 2, sha256: Digest([3; 32]) }),
    }
}

/// A batch of one sample.
pub fn samples(full: bool) -> Samples {
    let sample = Sample {
        id: "a".to_owned(),
        at_ms: full.then_some(1),
        x: Bytes(vec![0; 8]),
        predicted: 1,
        label: full.then_some(2),
        kind: SampleKind::Uncertain,
        inclusion_ppm: 300_000,
    };
    Samples { task: task(), release: release(), samples: vec![sample] }
}

/// The metadata of both repositories, by form alone.
pub fn check(full: bool) -> Check {
    let delegated = full.then(|| ("retrained".to_owned(), Bytes(vec![5])));
    let files = RepoFiles {
        roots: full.then(|| Bytes(vec![1; 9])).into_iter().collect(),
        timestamp: Bytes(b"{}".to_vec()),
        snapshot: full.then(|| Bytes(vec![3])),
        targets: full.then(|| Bytes(vec![4])),
        delegated: delegated.into_iter().collect(),
    };
    Check { image: files.clone(), director: files }
}
