//! Whole rollouts over simulated fleets: random devices, labels and looks, one seed each.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use dunlin_protocol::{DeviceId, Now, ReasonCode, ReleaseId};
use dunlin_rollout::{
    Failure, Inventory, Member, Order, Paired, Plan, Policy, Progress, Report, Stance, State, StopReason,
    Unit, Verdict, WaitingOn, plan,
};
use proptest::prelude::*;

const TICK_MS: u64 = 60_000;

/// SplitMix64: small, seeded, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How the candidate compares on labelled inputs, and what else goes wrong.
#[derive(Clone, Copy)]
struct World {
    devices: usize,
    only_new: f64,
    only_old: f64,
    labels_per_tick: usize,
    silent: bool,
    failing: bool,
}

const ALIKE: World =
    World { devices: 60, only_new: 0.03, only_old: 0.03, labels_per_tick: 4, silent: false, failing: false };

fn policy() -> Policy {
    let mut policy = Policy { silence_ms_max: 10 * TICK_MS, ..Policy::default() };
    for wave in &mut policy.waves {
        wave.soak_ms = 5 * TICK_MS;
        wave.requests_min = 20;
        wave.labels_min = 50;
    }
    policy
}

fn candidate() -> ReleaseId {
    "auto.meter.mlp@2".parse().unwrap()
}

fn fleet(devices: usize) -> Inventory {
    let member = |i: usize| {
        let mut member = Member::idle(["rpi-4", "nuc", "zero-2"][i % 3].parse().unwrap());
        member.serving = Some("base@1".parse().unwrap());
        (format!("cam-{i}").parse().unwrap(), member)
    };
    Inventory { devices: (0..devices).map(member).collect() }
}

struct Run {
    plan: Plan,
    inventory: Inventory,
    /// Every device that was ever open to the candidate.
    touched: BTreeSet<DeviceId>,
    last: Verdict,
}

fn simulate(world: World, policy: &Policy, seed: u64, ticks: u64) -> Run {
    let mut dice = Dice(seed);
    let first = Plan::new(&format!("r-{seed}"), "meter".parse().unwrap(), [candidate()], "test");
    let mut run =
        Run { plan: first, inventory: fleet(world.devices), touched: BTreeSet::new(), last: Verdict::Ended };
    for tick in 0..ticks {
        let at_ms = tick * TICK_MS;
        for (device, member) in &mut run.inventory.devices {
            if run.plan.stance(device) == Stance::Open {
                run.touched.insert(device.clone());
                act(world, member, &mut dice, at_ms);
            } else {
                member.heard_ms = Some(at_ms);
            }
        }
        let (next, report) =
            plan(policy, &run.inventory, &run.plan, Now { mono_ms: at_ms, wall_ms: Some(at_ms) });
        if next != run.plan {
            assert_eq!((next.parent, next.generation), (Some(run.plan.generation), run.plan.generation + 1));
        }
        assert!(run.plan.members.keys().all(|device| next.members.contains_key(device)), "waves only grow");
        run.plan = next;
        run.last = report.verdict;
        if run.plan.state.is_final() {
            break;
        }
    }
    run
}

fn act(world: World, member: &mut Member, dice: &mut Dice, at_ms: u64) {
    let release = candidate();
    member.progress = match member.progress.clone() {
        Progress::Idle => Progress::Ordered { release, since_ms: at_ms },
        Progress::Ordered { .. } if world.failing => {
            Progress::Failed { release, reason: ReasonCode::GoldenMismatch }
        }
        Progress::Ordered { since_ms, .. } if world.silent => Progress::Ordered { release, since_ms },
        Progress::Ordered { .. } => Progress::Committed { release },
        other @ (Progress::Declined | Progress::Committed { .. } | Progress::Failed { .. }) => other,
    };
    if world.silent {
        return;
    }
    member.heard_ms = Some(at_ms);
    member.requests += 10;
    for _ in 0..world.labels_per_tick {
        let roll = dice.unit();
        let paired = &mut member.paired;
        let count = if roll < world.only_new {
            &mut paired.only_new
        } else if roll < world.only_new + world.only_old {
            &mut paired.only_old
        } else if roll < 0.95 {
            &mut paired.both_right
        } else {
            &mut paired.both_wrong
        };
        *count += 1;
    }
}

/// FNV-1a over the plans below, found on x86-64. A change of the rules changes it; a target must not.
const PLANS: u64 = 0xdb65_dde7_039b_415a;

#[test]
fn plans_are_the_same_bits_everywhere() {
    let mut digest: u64 = 0xcbf2_9ce4_8422_2325;
    for seed in 0..12 {
        let world = World {
            only_new: 0.02 * (seed % 4) as f64,
            only_old: 0.03 * (seed % 3) as f64,
            failing: seed == 9,
            silent: seed == 10,
            ..ALIKE
        };
        let run = simulate(world, &policy(), seed, 200);
        for byte in dunlin_protocol::cbor::encode(&(run.plan, format!("{:?}", run.last))) {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    assert_eq!(digest, PLANS, "{digest:#018x}");
}

#[test]
fn false_stops_of_an_equal_model_stay_below_alpha() {
    let seeds = 300;
    let stops = (0..seeds)
        .filter(|seed| matches!(simulate(ALIKE, &policy(), *seed, 400).plan.state, State::Stopped { .. }))
        .count();
    // Alpha is spent up to .05 over the waves; 300 runs at .05 exceed 26 with probability below .003.
    assert!(stops <= 26, "{stops} of {seeds}");
}

#[test]
fn a_better_model_reaches_the_whole_fleet() {
    let better = World { only_new: 0.15, only_old: 0.02, ..ALIKE };
    for seed in 0..30 {
        let run = simulate(better, &policy(), seed, 600);
        assert!(matches!(run.plan.state, State::Promoted { .. }), "seed {seed}: {:?}", run.last);
        assert_eq!(run.touched.len(), 60);
    }
}

#[test]
fn a_harmful_model_is_stopped_in_the_canary_and_sent_back() {
    let worse = World { only_new: 0.02, only_old: 0.22, ..ALIKE };
    for seed in 0..30 {
        let run = simulate(worse, &policy(), seed, 600);
        assert!(
            matches!(run.plan.state, State::Stopped { reason: StopReason::Harm { .. }, .. }),
            "seed {seed}: {:?}",
            run.last
        );
        assert_eq!(run.touched.len(), 3, "seed {seed}: nobody outside the canary");
        for device in run.inventory.devices.keys() {
            let member = run.plan.members.get(device);
            let stance = if member.is_some() { Stance::Return } else { Stance::Hold };
            assert_eq!(run.plan.stance(device), stance);
            assert!(member.is_none_or(|previous| previous.release == Some("base@1".parse().unwrap())));
        }
    }
}

#[test]
fn silent_devices_stop_it() {
    let run = simulate(World { silent: true, ..ALIKE }, &policy(), 1, 100);
    let State::Stopped { reason: StopReason::Failures { failed, allowed: 0 }, .. } = &run.plan.state else {
        panic!("{:?}", run.plan.state)
    };
    assert_eq!(failed.len(), 3);
    assert!(failed.iter().all(|(_, how)| matches!(how, Failure::Silent { .. } | Failure::Unfinished { .. })));
}

#[test]
fn one_failure_in_a_small_canary_stops_it() {
    let run = simulate(World { failing: true, ..ALIKE }, &policy(), 2, 100);
    assert!(matches!(run.plan.state, State::Stopped { reason: StopReason::Failures { .. }, .. }));
    assert_eq!(run.touched.len(), 3);
}

#[test]
fn without_labels_it_waits_for_ever() {
    let run = simulate(World { labels_per_tick: 0, ..ALIKE }, &policy(), 3, 2_000);
    assert!(matches!(run.last, Verdict::Wait(WaitingOn::Labels { have: 0, .. })), "{:?}", run.last);
    assert_eq!(run.touched.len(), 3);
}

#[test]
fn a_wave_that_gates_no_labels_passes_on_guardrails() {
    let mut policy = policy();
    policy.waves.iter_mut().for_each(|wave| wave.labels_min = 0);
    let run = simulate(World { labels_per_tick: 0, ..ALIKE }, &policy, 4, 200);
    assert!(matches!(run.last, Verdict::Promote { evidence: None }));
}

#[test]
fn a_wave_that_asks_for_pairs_waits_for_them_and_names_who_had_none() {
    let mut policy = policy();
    for wave in &mut policy.waves {
        (wave.labels_min, wave.pairs_min) = (0, 30);
    }
    let look = |pairs: u64| {
        let mut member = Member::idle("rpi-4".parse().unwrap());
        let device: DeviceId = "cam-1".parse().unwrap();
        let inventory = |member: &Member| Inventory { devices: [(device.clone(), member.clone())].into() };
        let at = |after_ms: u64| Now { mono_ms: 0, wall_ms: Some(START_MS + after_ms) };
        let created = Plan::new("r", "meter".parse().unwrap(), [candidate()], "test");
        let (open, _) = plan(&policy, &inventory(&member), &created, at(0));
        member.progress = Progress::Committed { release: candidate() };
        (member.requests, member.pairs, member.heard_ms) = (1_000, pairs, Some(START_MS + 6 * TICK_MS));
        plan(&policy, &inventory(&member), &open, at(6 * TICK_MS)).1
    };
    let report = look(0);
    assert_eq!(report.verdict, Verdict::Wait(WaitingOn::Pairs { have: 0, need: 30 }));
    assert_eq!((report.tally.committed, report.tally.uncompared), (1, 1));
    assert!(report.hint.unwrap().contains("by hand"));
    assert_eq!(look(29).verdict, Verdict::Wait(WaitingOn::Pairs { have: 29, need: 30 }));
    let report = look(30);
    assert!(matches!(report.verdict, Verdict::Open { wave: 1, .. }), "{report:?}");
    assert_eq!(report.tally.uncompared, 0);
}

#[test]
fn the_device_level_test_decides_once_it_has_the_power() {
    let better = World { devices: 200, only_new: 0.15, only_old: 0.02, labels_per_tick: 20, ..ALIKE };
    let run = simulate(better, &policy(), 5, 600);
    let Verdict::Promote { evidence: Some(evidence) } = run.last else { panic!("{:?}", run.last) };
    assert_eq!(evidence.unit, Unit::Device);
    assert!(evidence.device_power_ppm >= 800_000);
    // Three devices have none, and the report says so.
    let run = simulate(World { only_new: 0.06, only_old: 0.06, ..better }, &policy(), 5, 12);
    let Verdict::Wait(WaitingOn::Significance { evidence }) = run.last else { panic!("{:?}", run.last) };
    assert_eq!((evidence.unit, evidence.device_power_ppm), (Unit::Input, 0));
}

#[test]
fn operators_pause_resume_approve_and_abort() {
    let mut policy = policy();
    policy.waves[1].approval = true;
    let now = Now { mono_ms: 0, wall_ms: Some(0) };
    let run = simulate(World { only_new: 0.3, only_old: 0.0, ..ALIKE }, &policy, 6, 300);
    assert_eq!(run.last, Verdict::Wait(WaitingOn::Approval { wave: 1 }));
    let later = Now { mono_ms: 0, wall_ms: Some(300 * TICK_MS) };
    let approved = run.plan.order(Order::Approve { wave: 1 }, now).unwrap();
    let paused = approved.order(Order::Pause { by: "ann".into() }, now).unwrap();
    let (still, report) = plan(&policy, &run.inventory, &paused, later);
    assert_eq!((still, report.verdict), (paused.clone(), Verdict::Wait(WaitingOn::Paused)));
    let resumed = paused.order(Order::Resume, now).unwrap();
    let (opened, report) = plan(&policy, &run.inventory, &resumed, later);
    assert!(matches!(report.verdict, Verdict::Open { wave: 1, evidence: Some(_) }), "{:?}", report.verdict);
    let aborted = opened.order(Order::Abort { by: "ann".into() }, now).unwrap();
    assert!(opened.members.keys().all(|device| aborted.stance(device) == Stance::Return));
    assert!(aborted.order(Order::Promote, now).is_err(), "an ended rollout never moves again");
    let (same, report) = plan(&policy, &run.inventory, &aborted, later);
    assert_eq!((same, report.verdict), (aborted, Verdict::Ended));
}

#[test]
fn a_paused_rollout_still_stops_on_failures() {
    let run = simulate(ALIKE, &policy(), 7, 3);
    let paused =
        run.plan.order(Order::Pause { by: "ann".into() }, Now { mono_ms: 0, wall_ms: Some(0) }).unwrap();
    let mut inventory = run.inventory;
    for device in paused.members.keys() {
        inventory.devices.get_mut(device).unwrap().progress =
            Progress::Failed { release: candidate(), reason: ReasonCode::GuardErrors };
    }
    let (next, _) = plan(&policy(), &inventory, &paused, Now { mono_ms: 0, wall_ms: Some(4 * TICK_MS) });
    assert!(matches!(next.state, State::Stopped { .. }));
}

#[test]
fn without_a_clock_nothing_moves() {
    let run = simulate(ALIKE, &policy(), 8, 3);
    let (next, report) = plan(&policy(), &run.inventory, &run.plan, Now { mono_ms: 9, wall_ms: None });
    assert_eq!((next, report.verdict), (run.plan, Verdict::Wait(WaitingOn::Clock)));
}

#[test]
fn plans_and_reports_read_back_from_json() {
    let run = simulate(World { only_new: 0.02, only_old: 0.3, ..ALIKE }, &policy(), 9, 300);
    let text = serde_json::to_string(&run.plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), run.plan);
    let text = serde_json::to_string(&run.last).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), run.last);
}

/// Anything a fleet may report.
fn any_progress() -> impl Strategy<Value = Progress> {
    prop_oneof![
        Just(Progress::Idle),
        Just(Progress::Declined),
        (0u64..100).prop_map(|tick| Progress::Ordered { release: candidate(), since_ms: tick * TICK_MS }),
        Just(Progress::Committed { release: candidate() }),
        Just(Progress::Failed { release: candidate(), reason: ReasonCode::GuardLatency }),
    ]
}

/// Devices that each wave is open to of 30 of three classes: one per class for 1 and 5 %, then 25 %, rounded up, and all.
const OPEN_OF_30: [usize; 4] = [3, 3, 8, 30];

proptest! {
    #[test]
    fn only_members_of_opened_waves_are_ever_open(
        looks in prop::collection::vec(prop::collection::vec((any_progress(), 0u64..400, 0u64..60, 0u64..60), 30), 1..12),
    ) {
        let policy = policy();
        let mut inventory = fleet(30);
        let mut current = Plan::new("r", "meter".parse().unwrap(), [candidate()], "test");
        for (tick, look) in looks.into_iter().enumerate() {
            for (member, (progress, requests, only_new, only_old)) in inventory.devices.values_mut().zip(look) {
                member.progress = progress;
                member.requests = requests;
                member.paired.only_new = only_new;
                member.paired.only_old = only_old;
                member.heard_ms = Some(tick as u64 * 20 * TICK_MS);
            }
            let at_ms = tick as u64 * 20 * TICK_MS;
            let now = Now { mono_ms: at_ms, wall_ms: Some(at_ms) };
            let (next, report) = plan(&policy, &inventory, &current, now);
            prop_assert_eq!(&(next.clone(), report.clone()), &plan(&policy, &inventory, &current, now), "pure");
            if let State::Open { wave, .. } = next.state {
                let open = inventory.devices.keys().filter(|device| next.stance(device) == Stance::Open);
                prop_assert_eq!(open.count(), OPEN_OF_30[wave]);
            }
            if let State::Stopped { .. } = next.state {
                prop_assert!(inventory.devices.keys().all(|device| next.stance(device) != Stance::Open));
            }
            current = next;
        }
    }
}

/// One device in one wave, at a time after the order.
fn one_device(progress: Progress, paired: Paired, after_ms: u64) -> (State, Report) {
    let policy = policy();
    let mut member = Member::idle("rpi-4".parse().unwrap());
    (member.progress, member.paired, member.requests) = (progress, paired, 1_000);
    let created = Plan::new("r", "meter".parse().unwrap(), [candidate()], "test");
    let device: DeviceId = "cam-1".parse().unwrap();
    let at = |wall_ms: u64| Now { mono_ms: 0, wall_ms: Some(wall_ms) };
    let idle = Inventory { devices: [(device.clone(), Member::idle("rpi-4".parse().unwrap()))].into() };
    let (open, _) = plan(&policy, &idle, &created, at(START_MS));
    member.heard_ms = Some(START_MS + after_ms);
    let inventory = Inventory { devices: [(device, member)].into() };
    let (next, report) = plan(&policy, &inventory, &open, at(START_MS + after_ms));
    (next.state, report)
}

const START_MS: u64 = 1_000 * TICK_MS;

#[test]
fn a_device_on_probation_is_not_unfinished_until_its_probation_should_be_over() {
    let policy = policy();
    let ordered = || Progress::Ordered { release: candidate(), since_ms: START_MS };
    let late_ms = policy.watched(0).ms_min + policy.silence_ms_max;
    assert!(late_ms > policy.silence_ms_max);
    let (state, report) = one_device(ordered(), Paired::default(), late_ms);
    assert!(matches!(state, State::Open { .. }), "{report:?}");
    assert_eq!(report.hint, None);
    let (state, _) = one_device(ordered(), Paired::default(), late_ms + 1);
    assert!(matches!(state, State::Stopped { reason: StopReason::Failures { .. }, .. }));
}

#[test]
fn short_evidence_after_probation_says_what_can_be_done() {
    let committed = || Progress::Committed { release: candidate() };
    let few = Paired { both_right: 3, ..Paired::default() };
    let (_, report) = one_device(committed(), few, 20 * TICK_MS);
    assert!(matches!(report.verdict, Verdict::Wait(WaitingOn::Labels { have: 3, .. })), "{report:?}");
    assert!(report.hint.unwrap().contains("late labels"));
    let torn = Paired { both_right: 40, only_new: 8, only_old: 8, both_wrong: 4 };
    let (_, report) = one_device(committed(), torn, 20 * TICK_MS);
    assert!(matches!(report.verdict, Verdict::Wait(WaitingOn::Significance { .. })), "{report:?}");
    assert!(report.hint.unwrap().contains("promote it by hand"));
}
