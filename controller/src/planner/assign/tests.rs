use dunlin_protocol::{Arch, Budgets, DeviceProfile, Phase, ReasonCode};
use dunlin_rollout::{Plan, Policy, Previous};

use super::*;
use crate::planner::{DeviceOutcome, TaskRow};
use crate::store::{DeviceState, Read};

const NOW_MS: u64 = 50_000_000;
const MINUTE_MS: u64 = 60_000;

fn release(name: &str) -> ReleaseId {
    name.parse().unwrap()
}

fn device() -> DeviceRow {
    DeviceRow {
        id: "cam-1".parse().unwrap(),
        state: DeviceState::Active,
        profile: DeviceProfile {
            class: "rpi-4".parse().unwrap(),
            arch: Arch::X86_64,
            cores: 2,
            ram_bytes: 1 << 30,
            budgets: Budgets {
                model_bytes_max: 1 << 24,
                model_ram_bytes_max: 1 << 28,
                latency_us_max: 1_000_000,
            },
            ops: BTreeSet::new(),
            agent: "0.1.0".into(),
        },
        groups: BTreeSet::new(),
        key_id: String::new(),
        enrolled_ms: 0,
        online: true,
        epoch: 1,
        agent: "0.1.0".into(),
        seen_ms: NOW_MS,
        generation: 1,
    }
}

fn approved(accuracy_ppm: u32) -> Approved {
    let hard = Hard {
        arch: BTreeSet::new(),
        ops: BTreeSet::new(),
        bundle_bytes: 1000,
        ram_bytes: 1000,
        min_agent: String::new(),
    };
    let predicted = Predicted { accuracy_ppm: Some(accuracy_ppm), rows: 500, latency_us: 100 };
    Approved { task: "meter".parse().unwrap(), hard, predicted }
}

fn definition() -> TaskDefinition {
    toml::from_str("task = \"meter\"\nlabels = [\"a\", \"b\"]\npool = [\"old@1\", \"new@1\"]").unwrap()
}

fn told(champion: &str, made_ms: u64) -> AssignmentRow {
    let definition = definition();
    let task = TaskAssignment {
        task: definition.task,
        lineup: LineUp::new(release(champion), None),
        probation: definition.probation,
        deadline_ms: None,
    };
    let assignment = dunlin_protocol::Assignment {
        device: device().id,
        generation: 1,
        correlation: String::new(),
        tasks: vec![task],
    };
    AssignmentRow { assignment, published: true, made_ms }
}

fn committed(champion: &str, received_ms: u64) -> DeviceOutcome {
    DeviceOutcome {
        device: device().id,
        release: release(champion),
        generation: 1,
        phase: Phase::Committed,
        reason: ReasonCode::Ok,
        received_ms,
    }
}

#[test]
fn what_stands_still_stays_as_the_device_was_told() {
    let (definition, device, assigned) = (definition(), device(), told("old@1", 0));
    let read = |damaged: &[(&str, &str)]| Read::<TaskRow> {
        rows: Vec::new(),
        damaged: damaged.iter().map(|(row, task)| ((*row).to_owned(), (*task).to_owned())).collect(),
    };
    let none = Read::<RolloutRow> { rows: Vec::new(), damaged: BTreeMap::new() };
    let view = DeviceView { row: &device, installed: None, assigned: Some(&assigned) };
    let damaged = Still::new(&read(&[("meter", "meter")]), &none);
    assert!(damaged.any() && damaged.holds(&definition.task));
    let desired = desire(&view, (&[], &damaged), &BTreeMap::new(), NOW_MS);
    assert_eq!(desired.tasks, assigned.assignment.tasks);
    assert!(desired.decisions.is_empty());
    // A row whose id is damaged too may be the definition of anything that has none.
    let nameless = Still::new(&read(&[("m\u{0}", "m\u{0}")]), &none);
    assert_eq!(desire(&view, (&[], &nameless), &BTreeMap::new(), NOW_MS).tasks, assigned.assignment.tasks);
    // A task that is gone is not kept.
    let sound = Still::new(&read(&[]), &none);
    assert!(!sound.any());
    assert!(desire(&view, (&[], &sound), &BTreeMap::new(), NOW_MS).tasks.is_empty());
}

fn look(rollouts: Vec<&RolloutRow>, outcomes: Vec<DeviceOutcome>, assigned: &AssignmentRow) -> Desired {
    look_with(&definition(), rollouts, outcomes, assigned)
}

fn look_with(
    definition: &TaskDefinition,
    rollouts: Vec<&RolloutRow>,
    outcomes: Vec<DeviceOutcome>,
    assigned: &AssignmentRow,
) -> Desired {
    let device = device();
    let task = TaskView {
        definition,
        rollouts,
        progress: BTreeMap::new(),
        outcomes: Outcomes::new(outcomes),
        measures: Measures::default(),
    };
    let approved = [("old@1", 700_000), ("new@1", 990_000), ("try@1", 990_000)]
        .map(|(name, ppm)| (release(name), self::approved(ppm)));
    let view = DeviceView { row: &device, installed: None, assigned: Some(assigned) };
    desire(&view, (&[task], &Still::default()), &BTreeMap::from(approved), NOW_MS)
}

fn champion(desired: &Desired) -> String {
    desired.tasks[0].lineup.champion.to_string()
}

#[test]
fn what_was_committed_lately_is_not_left_for_something_better_yet() {
    let assigned = told("old@1", 0);
    let fresh = look(vec![], vec![committed("old@1", NOW_MS - 9 * MINUTE_MS)], &assigned);
    assert_eq!(champion(&fresh), "old@1");
    assert_eq!(fresh.decisions[0].selection["why"]["why"], "dwell");
    assert_eq!(fresh.decisions[0].selection["why"]["served_ms"], 9 * MINUTE_MS);
    let settled = look(vec![], vec![committed("old@1", NOW_MS - 11 * MINUTE_MS)], &assigned);
    assert_eq!(champion(&settled), "new@1");
}

#[test]
fn what_is_on_its_way_is_held_until_its_probation_should_be_over() {
    let after = |minutes| champion(&look(vec![], vec![], &told("old@1", NOW_MS - minutes * MINUTE_MS)));
    assert_eq!(definition().probation.ms_min, 10 * MINUTE_MS);
    assert_eq!((after(1).as_str(), after(19).as_str()), ("old@1", "old@1"));
    assert_eq!(after(21), "new@1");
}

#[test]
fn a_trial_is_watched_as_long_as_its_wave_soaks() {
    let mut plan = Plan::new("r-1", "meter".parse().unwrap(), [release("try@1")], "test");
    plan.state = State::Open { wave: 0, since_ms: NOW_MS };
    plan.members.insert(device().id, Previous { wave: 0, release: Some(release("old@1")) });
    let mut policy = Policy::default();
    policy.waves[0].soak_ms = 7_200_000;
    let row = RolloutRow { plan, policy, created_by: "ann".into(), created_ms: 0, run: None, report: None };
    let desired = look(vec![&row], vec![], &told("old@1", 0));
    assert_eq!(champion(&desired), "try@1");
    assert_eq!(desired.orders, BTreeMap::from([("r-1".to_owned(), release("try@1"))]));
    let task = &desired.tasks[0];
    assert_eq!(task.probation.ms_min, 7_200_000);
    assert_eq!(task.deadline_ms, Some(NOW_MS + 7_200_000 + 1_800_000));
}

/// With this `[lineup]`, where `old@1` serves.
fn lined_up(lineup: &str, outcomes: Vec<DeviceOutcome>) -> (LineUp, String) {
    let text = format!("task = \"meter\"\nlabels = [\"a\", \"b\"]\npool = [\"old@1\"]\n[lineup]\n{lineup}");
    let definition: TaskDefinition = toml::from_str(&text).unwrap();
    definition.check().unwrap();
    let desired = look_with(&definition, vec![], outcomes, &told("old@1", 0));
    (desired.tasks[0].lineup.clone(), desired.decisions[0].text.clone())
}

#[test]
fn a_line_up_is_filled_with_what_the_device_can_run_and_says_what_is_missing() {
    let lineup = "rule = { cascade = { margin_ppm = 1000 } }
        members = [
            { release = \"new@1\", role = \"bigger\", limit_us = 5000 },
            { release = \"unknown@1\", role = { voter = { weight_ppm = 1 } } },
            { release = \"try@1\", role = { challenger = { share_ppm = 50000 } } },
            { release = \"old@1\", role = \"smaller\" },
        ]
        context = [{ signal = \"link\", enter = 0, leave = 1, dwell_ms = 0 }]";
    let (filled, text) = lined_up(lineup, vec![]);
    let members: Vec<String> = filled.members.iter().map(|member| member.release.to_string()).collect();
    assert_eq!(
        (filled.champion.to_string().as_str(), members),
        ("old@1", vec!["new@1".into(), "try@1".into()])
    );
    assert_eq!(filled.members[0].limit_us, Some(5000));
    assert_eq!(filled.conduct.rule, dunlin_protocol::Rule::Cascade { margin_ppm: 1000 });
    assert!(text.contains("\nwith bigger new@1") && text.contains("\nwith challenger try@1"), "{text}");
    assert!(text.contains("\nwithout voter unknown@1: it is not approved"), "{text}");
    assert!(text.contains("\nwithout smaller old@1: it has another part"), "{text}");

    let failed = DeviceOutcome {
        phase: Phase::Rejected,
        reason: ReasonCode::GoldenMismatch,
        ..committed("new@1", NOW_MS)
    };
    let (filled, text) = lined_up(lineup, vec![failed]);
    assert_eq!(filled.members.len(), 1);
    assert!(text.contains("\nwithout bigger new@1: it failed there"), "{text}");
}

#[test]
fn a_stack_is_whole_or_it_is_the_champion_alone() {
    let stack = |voter: &str| {
        lined_up(
            &format!(
                "rule = \"stack\"
                members = [
                    {{ release = \"new@1\", role = \"meta\" }},
                    {{ release = \"{voter}\", role = {{ voter = {{ weight_ppm = 1 }} }} }},
                ]"
            ),
            vec![],
        )
        .0
    };
    assert_eq!(stack("try@1").conduct.rule, dunlin_protocol::Rule::Stack);
    assert_eq!(stack("unknown@1").conduct.rule, dunlin_protocol::Rule::First);
}

#[test]
fn members_that_do_not_fit_into_the_memory_that_is_left_are_left_out() {
    let mut ram = 2_500;
    let wanted: super::super::Lineup = toml::from_str(
        "members = [{ release = \"new@1\", role = \"bigger\" }, { release = \"try@1\", role = \"bigger\" }]",
    )
    .unwrap();
    let approved = BTreeMap::from(["old@1", "new@1", "try@1"].map(|name| (release(name), self::approved(1))));
    let plain = LineUp::new(release("old@1"), None);
    let filled = fill(plain, &wanted, &device(), &approved, |_| false, &mut ram);
    assert_eq!((filled.lineup.members.len(), ram), (1, 500));
    assert!(filled.words.contains("without bigger try@1: it needs 1000 bytes of memory, 500 are left"));
}
