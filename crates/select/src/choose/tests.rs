use super::*;
use crate::{Measured, Predicted, Switching};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use dunlin_monitor::rate::Rate;
use dunlin_protocol::{Arch, Budgets, cbor};
use proptest::prelude::*;

fn profile() -> DeviceProfile {
    DeviceProfile {
        class: "rpi-4".parse().unwrap(),
        arch: Arch::Aarch64,
        cores: 4,
        ram_bytes: 1 << 30,
        budgets: Budgets { model_bytes_max: 1 << 20, model_ram_bytes_max: 1 << 24, latency_us_max: 5000 },
        ops: ["ai.onnx/Gemm", "ai.onnx/Relu"].map(String::from).into(),
        agent: "0.3.0".into(),
    }
}

fn candidate(release: &str, accuracy_ppm: u32) -> Candidate {
    Candidate {
        release: release.parse().unwrap(),
        task_type: TaskType::Classification,
        standing: Standing::Approved,
        hard: Hard {
            arch: BTreeSet::new(),
            classes: Default::default(),
            ops: ["ai.onnx/Gemm".to_string()].into(),
            bundle_bytes: 1 << 16,
            ram_bytes: 1 << 20,
            min_agent: String::new(),
        },
        evidence: Evidence {
            predicted: Predicted { accuracy_ppm: Some(accuracy_ppm), rows: 1000, latency_us: 500 },
            ..Evidence::default()
        },
    }
}

fn policy() -> Policy {
    Policy::new(TaskType::Classification)
}

fn run(candidates: &[Candidate], current: Option<&str>, policy: &Policy) -> Selection {
    let (profile, known_bad) = (profile(), ["bad@1".parse().unwrap()].into());
    let current = current.map(|release| release.parse().unwrap());
    select(
        &Device { profile: &profile, known_bad: &known_bad, served_ms: None },
        candidates,
        current.as_ref(),
        policy,
    )
}

fn chosen(selection: &Selection) -> String {
    selection.chosen.as_ref().map_or("baseline".into(), ToString::to_string)
}

fn excluded(candidate: Candidate, policy: &Policy) -> Vec<Constraint> {
    match run(&[candidate], None, policy).rows.remove(0).verdict {
        Verdict::Excluded(constraints) => constraints,
        Verdict::Eligible(_) => Vec::new(),
    }
}

#[test]
fn every_limit_has_its_constraint() {
    let of = |change: &dyn Fn(&mut Candidate)| {
        let mut candidate = candidate("m@1", 900_000);
        change(&mut candidate);
        excluded(candidate, &policy())
    };
    assert_eq!(of(&|_| {}), []);
    assert_eq!(of(&|c| c.hard.arch = [Arch::X86_64].into()), [Constraint::Arch { device: Arch::Aarch64 }]);
    let device = "rpi-4".parse().unwrap();
    assert_eq!(of(&|c| c.hard.classes = ["jetson".parse().unwrap()].into()), [Constraint::Class { device }]);
    assert_eq!(of(&|c| c.hard.classes = ["jetson", "rpi-4"].map(|class| class.parse().unwrap()).into()), []);
    let missing = ["ai.onnx/Conv".to_string()].into();
    assert_eq!(of(&|c| c.hard.ops = ["ai.onnx/Conv".to_string()].into()), [Constraint::Ops { missing }]);
    assert_eq!(of(&|c| c.hard.ram_bytes = 1 << 25), [Constraint::Ram { bytes: 1 << 25, budget: 1 << 24 }]);
    assert_eq!(
        of(&|c| c.hard.bundle_bytes = 1 << 21),
        [Constraint::Size { bytes: 1 << 21, budget: 1 << 20 }]
    );
    assert!(matches!(of(&|c| c.hard.min_agent = "0.10".into())[..], [Constraint::Agent { .. }]));
    assert!(matches!(
        of(&|c| c.evidence.device.proof_us = Some(9000))[..],
        [Constraint::Latency { us: 9000, limit: 5000, .. }]
    ));
    assert!(matches!(of(&|c| c.task_type = TaskType::Regression)[..], [Constraint::TaskType { .. }]));
    assert_eq!(of(&|c| c.release = "bad@1".parse().unwrap()), [Constraint::KnownBad]);
    for (standing, constraint) in [
        (Standing::Withdrawn, Constraint::Withdrawn),
        (Standing::Quarantined, Constraint::Quarantined),
        (Standing::NotReached, Constraint::NotReached),
    ] {
        assert_eq!(of(&|c| c.standing = standing), [constraint]);
    }
    let pinned = Policy { pinned: Some("x@1".parse().unwrap()), ..policy() };
    assert_eq!(excluded(candidate("m@1", 900_000), &pinned), [Constraint::NotPinned]);
    let without = Policy { excluded: ["m@1".parse().unwrap()].into(), ..policy() };
    assert_eq!(excluded(candidate("m@1", 900_000), &without), [Constraint::Excluded]);
    let mut poor = candidate("m@1", 900_000);
    poor.evidence.device.labels = Rate::new(60, 100);
    let strict = Policy { accuracy_ppm_min: Some(800_000), ..policy() };
    assert!(matches!(excluded(poor, &strict)[..], [Constraint::Accuracy { labels: 100, .. }]));
}

#[test]
fn the_better_model_wins_and_ties_go_to_the_smaller_id() {
    let pool = [candidate("b@1", 900_000), candidate("a@1", 900_000), candidate("c@1", 950_000)];
    assert_eq!(chosen(&run(&pool, None, &policy())), "c@1");
    assert_eq!(chosen(&run(&pool[..2], None, &policy())), "a@1");
    assert_eq!(chosen(&run(&[], None, &policy())), "baseline");
}

#[test]
fn accuracy_is_weighed_against_latency_and_bytes() {
    let mut slow = candidate("slow@1", 905_000);
    slow.evidence.predicted.latency_us = 4900;
    let pool = [candidate("fast@1", 900_000), slow];
    assert_eq!(chosen(&run(&pool, None, &policy())), "fast@1");
    let accurate =
        Policy { weights: crate::Weights { latency: 0.0, energy: 0.0, ..Default::default() }, ..policy() };
    assert_eq!(chosen(&run(&pool, None, &accurate)), "slow@1");
}

#[test]
fn a_change_has_to_pay_for_itself() {
    let pool = |ppm| [candidate("old@1", 900_000), candidate("new@1", ppm)];
    assert!(matches!(run(&pool(905_000), Some("old@1"), &policy()).why, Why::NotSure { .. }));
    assert!(matches!(run(&pool(960_000), Some("old@1"), &policy()).why, Why::Better { .. }));
    assert_eq!(run(&pool(800_000), Some("old@1"), &policy()).why, Why::Best);
    let dear = Policy { switching: Switching { cost: 1000.0, ..Switching::default() }, ..policy() };
    assert!(matches!(run(&pool(960_000), Some("old@1"), &dear).why, Why::NotSure { .. }));
}

#[test]
fn dwell_holds_a_gain_but_not_an_exclusion() {
    let (profile, none) = (profile(), BTreeSet::new());
    let device = Device { profile: &profile, known_bad: &none, served_ms: Some(1000) };
    let mut pool = [candidate("old@1", 800_000), candidate("new@1", 960_000)];
    let current = "old@1".parse().unwrap();
    let held = select(&device, &pool, Some(&current), &policy());
    assert_eq!((chosen(&held), held.is_kept()), ("old@1".into(), true));
    assert!(matches!(held.why, Why::Dwell { served_ms: 1000, dwell_ms: 600_000, .. }));
    pool[0].standing = Standing::Withdrawn;
    let moved = select(&device, &pool, Some(&current), &policy());
    assert_eq!((chosen(&moved), moved.why), ("new@1".into(), Why::CurrentIneligible));
}

#[test]
fn a_trial_is_run_where_it_is_eligible() {
    let mut trial = candidate("auto.m.mlp@2", 850_000);
    trial.standing = Standing::Trial;
    let mut pool = [candidate("old@1", 900_000), trial];
    assert_eq!(run(&pool, Some("old@1"), &policy()).why, Why::Trial);
    let kept = run(&pool, Some("auto.m.mlp@2"), &policy());
    assert_eq!(
        (chosen(&kept), kept.why),
        ("auto.m.mlp@2".into(), Why::Best),
        "old@1 scores higher, but is not tried"
    );
    pool[1].hard.ram_bytes = 1 << 25;
    assert_eq!(run(&pool, Some("old@1"), &policy()).why, Why::Best);
}

#[test]
fn explain_names_numbers_and_constraints() {
    let mut large = candidate("large@1", 990_000);
    large.hard.bundle_bytes = 1 << 21;
    large.hard.arch = [Arch::X86_64].into();
    let text =
        run(&[candidate("old@1", 900_000), candidate("new@1", 905_000), large], Some("old@1"), &policy())
            .explain();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("keep old@1: new@1 scores higher, but a change pays with probability 0."),
        "{text}"
    );
    assert_eq!(
        lines[1],
        "  large@1: excluded: it is not built for Aarch64; the bundle of 2097152 bytes is over the budget of 1048576"
    );
    assert!(lines[2].starts_with("  new@1: score 0.8") && lines[2].ends_with("500 µs predicted)"), "{text}");
}

/// SplitMix64, so that the noise below is always the same.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Decides 300 times while labels come in for whichever model serves; the number of changes and the last choice.
fn live(accuracies: [f64; 2], seed: u64, policy: &Policy) -> (usize, String) {
    let (mut state, mut changes) = (seed, 0);
    let mut pool = [candidate("a@1", 900_000), candidate("b@1", 900_000)];
    let mut current = "a@1".to_string();
    for _ in 0..300 {
        for (candidate, accuracy) in pool.iter_mut().zip(accuracies) {
            let serves = candidate.release.to_string() == current;
            let Measured { labels, .. } =
                if serves { &mut candidate.evidence.device } else { &mut candidate.evidence.class };
            for _ in 0..20 {
                *labels = labels.plus(Rate::new(u64::from(uniform(&mut state) < accuracy), 1));
            }
        }
        let next = chosen(&run(&pool, Some(&current), policy));
        changes += usize::from(next != current);
        current = next;
    }
    (changes, current)
}

#[test]
fn noise_does_not_make_a_device_flap() {
    let greedy = Policy {
        switching: Switching { cost: 0.0, cost_per_mib: 0.0, probability_min: 0.5, ..Switching::default() },
        ..policy()
    };
    let total = |policy: &Policy| (0..20).map(|seed| live([0.9, 0.9], seed, policy).0).sum::<usize>();
    let (steady, flapping) = (total(&policy()), total(&greedy));
    assert!(steady <= 10, "{steady} changes in 20 lives of 300 decisions");
    assert!(flapping > 3 * steady.max(10), "{flapping}: the test would not notice missing hysteresis");
}

#[test]
fn a_real_gain_is_taken_once() {
    for seed in 0..20 {
        assert_eq!(live([0.85, 0.93], seed, &policy()), (1, "b@1".into()), "seed {seed}");
    }
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let hard = (any::<bool>(), any::<bool>(), 0u64..1 << 21, 0u64..1 << 25);
    let labels = || (0u64..200, 0u64..200).prop_map(|(hits, misses)| Rate::new(hits, hits + misses));
    let standing = prop_oneof![4 => Just(Standing::Approved), 1 => Just(Standing::Trial), 1 => Just(Standing::Quarantined)];
    (1u32..30, hard, 0u32..1_000_000, labels(), labels(), 0u64..8000, standing).prop_map(
        |(version, (arch, ops, bundle_bytes, ram_bytes), ppm, device, class, latency_us, standing)| {
            let mut any = candidate(&format!("m@{version}"), ppm);
            any.standing = standing;
            any.hard.arch = if arch { [Arch::Aarch64].into() } else { [Arch::Armv7, Arch::Aarch64].into() };
            if ops {
                any.hard.ops = ["ai.onnx/Relu".to_string()].into();
            }
            (any.hard.bundle_bytes, any.hard.ram_bytes) = (bundle_bytes, ram_bytes);
            (any.evidence.device.labels, any.evidence.class.labels) = (device, class);
            any.evidence.predicted.latency_us = latency_us;
            any
        },
    )
}

fn pool() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec(any_candidate(), 0..8).prop_map(|pool| {
        let by_release: BTreeMap<_, _> = pool.into_iter().map(|c| (c.release.clone(), c)).collect();
        by_release.into_values().collect()
    })
}

fn eligible(selection: &Selection) -> BTreeSet<ReleaseId> {
    let rows = selection.rows.iter().filter(|row| matches!(row.verdict, Verdict::Eligible(_)));
    rows.map(|row| row.release.clone()).collect()
}

proptest! {
    #[test]
    fn an_ineligible_model_changes_nothing(pool in pool(), mut extra in any_candidate(), current in proptest::option::of(1u32..30)) {
        extra.release = "z@1".parse().unwrap();
        extra.hard.ram_bytes = 1 << 30;
        let current = current.map(|version| format!("m@{version}"));
        let before = run(&pool, current.as_deref(), &policy());
        let mut after = run(&[pool, vec![extra]].concat(), current.as_deref(), &policy());
        prop_assert_eq!(after.rows.pop().map(|row| row.release), Some("z@1".parse().unwrap()));
        prop_assert_eq!(before, after);
    }

    #[test]
    fn tightening_never_enlarges(pool in pool(), latency in 0u64..9000, less in 0u64..9000, ppm in 0u32..1_000_000, more in 0u32..1_000_000) {
        let loose = Policy { latency_us_max: Some(latency), accuracy_ppm_min: Some(ppm), ..policy() };
        let tight = Policy { latency_us_max: Some(latency.saturating_sub(less)), accuracy_ppm_min: Some(ppm.saturating_add(more)), ..policy() };
        let unlimited = eligible(&run(&pool, None, &policy()));
        let (loose, tight) = (eligible(&run(&pool, None, &loose)), eligible(&run(&pool, None, &tight)));
        prop_assert!(tight.is_subset(&loose) && loose.is_subset(&unlimited));
    }

    #[test]
    fn same_input_same_bytes_in_any_order(pool in pool().prop_shuffle(), current in proptest::option::of(1u32..30)) {
        let current = current.map(|version| format!("m@{version}"));
        let mut reversed = pool.clone();
        reversed.reverse();
        let [one, two] = [pool, reversed].map(|pool| cbor::encode(&run(&pool, current.as_deref(), &policy())));
        prop_assert_eq!(one, two);
    }

    #[test]
    fn only_eligible_releases_are_chosen(pool in pool(), current in proptest::option::of(1u32..30)) {
        let current = current.map(|version| format!("m@{version}"));
        let selection = run(&pool, current.as_deref(), &policy());
        prop_assert_eq!(selection.rows.len(), pool.len());
        prop_assert!(selection.chosen.as_ref().map_or(eligible(&selection).is_empty(), |chosen| eligible(&selection).contains(chosen)));
        prop_assert!(!selection.explain().is_empty());
    }
}
