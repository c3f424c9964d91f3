//! The selection for each board of `firmware-targets/boards`, and its bits, which must be the same on every target.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dunlin_monitor::rate::Rate;
use dunlin_protocol::{Arch, DeviceProfile, Hard, TaskType, cbor};
use dunlin_select::{
    Candidate, Constraint, Device, Earlier, Evidence, Measured, Policy, Predicted, Selection, Standing,
    Verdict, select,
};

/// FNV-1a over the selections below, found on x86-64. A change of what is selected, or of how it is written down, changes
/// it; a target must not.
const SELECTIONS: u64 = 0xd943_3f4f_6a33_f21c;

#[derive(serde::Deserialize)]
struct Board {
    device: DeviceProfile,
}

fn boards() -> BTreeMap<String, DeviceProfile> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../firmware-targets/boards");
    let read = |path: &Path| toml::from_str::<Board>(&std::fs::read_to_string(path).unwrap()).unwrap().device;
    let profiles = std::fs::read_dir(folder).unwrap().map(|entry| read(&entry.unwrap().path()));
    profiles.map(|profile| (profile.class.to_string(), profile)).collect()
}

fn candidate(release: &str, accuracy_ppm: u32, bundle_bytes: u64, latency_us: u64) -> Candidate {
    Candidate {
        release: release.parse().unwrap(),
        task_type: TaskType::Classification,
        standing: Standing::Approved,
        hard: Hard {
            arch: BTreeSet::new(),
            classes: Default::default(),
            ops: BTreeSet::new(),
            bundle_bytes,
            ram_bytes: bundle_bytes * 3,
            min_agent: String::new(),
        },
        evidence: Evidence {
            predicted: Predicted { accuracy_ppm: Some(accuracy_ppm), rows: 1000, latency_us },
            ..Evidence::default()
        },
    }
}

/// The same network in four sizes: the larger, the better.
fn sizes() -> [Candidate; 4] {
    [
        candidate("tiny@1", 850_000, 16 << 10, 300),
        candidate("small@1", 900_000, 200 << 10, 900),
        candidate("medium@1", 940_000, 20 << 20, 6_000),
        candidate("large@1", 970_000, 100 << 20, 20_000),
    ]
}

fn choose(profile: &DeviceProfile, candidates: &[Candidate]) -> Selection {
    let device = Device { profile, known_bad: &BTreeSet::new(), served_ms: None };
    select(&device, candidates, None, &Policy::new(TaskType::Classification))
}

#[test]
fn every_board_gets_a_model_and_none_that_it_has_no_room_for() {
    let mut chosen = BTreeMap::new();
    for (class, profile) in boards() {
        let selection = choose(&profile, &sizes());
        let release = selection.chosen.as_ref().unwrap();
        let sizes = sizes();
        let hard = &sizes.iter().find(|candidate| candidate.release == *release).unwrap().hard;
        assert!(hard.bundle_bytes <= profile.budgets.model_bytes_max, "{class}: {}", selection.explain());
        assert!(hard.ram_bytes <= profile.budgets.model_ram_bytes_max, "{class}: {}", selection.explain());
        assert!(
            profile.budgets.model_ram_bytes_max <= profile.ram_bytes / 2,
            "{class} needs the rest itself"
        );
        chosen.insert(class, release.to_string());
    }
    // One fleet, four answers.
    for (class, release) in [
        ("beaglebone-black", "tiny@1"),
        ("raspberry-pi-zero-2w", "small@1"),
        ("stm32mp157", "small@1"),
        ("raspberry-pi-4", "medium@1"),
        ("jetson-orin-nano", "large@1"),
    ] {
        assert_eq!(chosen[class], release, "{class}");
    }
}

#[test]
fn a_model_for_one_architecture_runs_on_its_boards_alone() {
    for (class, profile) in boards() {
        let mut arm = candidate("arm@1", 900_000, 1 << 10, 100);
        arm.hard.arch = [Arch::Aarch64, Arch::Armv7].into();
        let refused = match choose(&profile, &[arm]).rows.remove(0).verdict {
            Verdict::Excluded(why) => why.contains(&Constraint::Arch { device: profile.arch }),
            Verdict::Eligible(_) => false,
        };
        assert_eq!(refused, matches!(profile.arch, Arch::X86_64 | Arch::Riscv64), "{class}");
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn measured(&mut self) -> Measured {
        let mut rate = |most: u64, good: u64| {
            let n = self.below(most);
            Rate::new(n * good / 1000, n)
        };
        let (labels, failures) = (rate(400, 930), rate(5000, 3));
        let latency = self.below(30_000) + 50;
        Measured { labels, failures, latency_us: Some(latency), proof_us: Some(latency / 2 + 1) }
    }
}

#[test]
fn selections_are_the_same_bits_everywhere() {
    let mut dice = Dice(1);
    let mut digest: u64 = 0xcbf2_9ce4_8422_2325;
    for profile in boards().values() {
        for _ in 0..40 {
            let mut candidates = sizes();
            for candidate in &mut candidates {
                candidate.evidence.device = dice.measured();
                candidate.evidence.class = dice.measured();
                let (device, class) = (dice.measured().labels, dice.measured().labels);
                candidate.evidence.earlier = Earlier { device, class };
            }
            for byte in cbor::encode(&choose(profile, &candidates)) {
                digest = (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }
    assert_eq!(digest, SELECTIONS, "{digest:#018x}");
}
