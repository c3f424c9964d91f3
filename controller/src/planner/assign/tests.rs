use dunlin_protocol::{Arch, Budgets, DeviceProfile, Phase, ReasonCode};
use dunlin_rollout::{Plan, Policy, Previous, StopReason};

use super::*;
use crate::planner::{Decided, DeviceOutcome, TaskRow};
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
        classes: Default::default(),
        ops: BTreeSet::new(),
        bundle_bytes: 1000,
        ram_bytes: 1000,
        min_agent: String::new(),
    };
    let predicted = Predicted { accuracy_ppm: Some(accuracy_ppm), rows: 500, latency_us: 100 };
    Approved { task: "meter".parse().unwrap(), hard, predicted, retrained: false }
}

/// A task without history.
fn view(definition: &TaskDefinition) -> TaskView<'_> {
    TaskView {
        definition,
        rollouts: vec![],
        progress: BTreeMap::new(),
        outcomes: Outcomes::default(),
        measures: Measures::default(),
        policy: true,
    }
}

/// The task with this `[lineup]` and one release in its pool.
fn with_lineup(lineup: &str) -> TaskDefinition {
    let text = format!("task = \"meter\"\nlabels = [\"a\", \"b\"]\npool = [\"old@1\"]\n[lineup]\n{lineup}");
    let definition: TaskDefinition = toml::from_str(&text).unwrap();
    definition.check().unwrap();
    definition
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
        class: None,
        generation: 1,
        correlation: String::new(),
        tasks: vec![task],
        program: None,
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
    let task = TaskView { rollouts, outcomes: Outcomes::new(outcomes), ..view(definition) };
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
    let desired = look_with(&with_lineup(lineup), vec![], outcomes, &told("old@1", 0));
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
    };
    let (whole, text) = stack("try@1");
    assert_eq!((whole.conduct.rule, whole.members.len()), (dunlin_protocol::Rule::Stack, 2));
    assert!(text.contains("\nwith meta-model new@1\nwith voter try@1"), "{text}");
    let (alone, text) = stack("unknown@1");
    assert!(alone.conduct.is_plain() && alone.members.is_empty());
    assert!(text.contains("\nwithout voter unknown@1: it is not approved"), "{text}");
    assert!(text.contains("\nwithout meta-model new@1: no rule that is possible here asks it"), "{text}");
}

/// With so much memory for the members: who is in, what is said of them, and how much is left.
fn filled(lineup: &str, ram: u64) -> (usize, Vec<String>, u64) {
    let (definition, device) = (with_lineup(lineup), device());
    let approved = BTreeMap::from(["old@1", "new@1", "try@1"].map(|name| (release(name), self::approved(1))));
    let place = Place { task: &view(&definition), device: &device, approved: &approved };
    let mut left = ram;
    let Filled { lineup, words } = place.fill(LineUp::new(release("old@1"), None), &mut left);
    (lineup.members.len(), words, left)
}

#[test]
fn members_that_do_not_fit_into_the_memory_that_is_left_are_left_out() {
    let cascade = "rule = { cascade = { margin_ppm = 1 } }
        members = [{ release = \"new@1\", role = \"bigger\" }, { release = \"try@1\", role = \"bigger\" }]";
    let (members, words, left) = filled(cascade, 1_500);
    assert_eq!((members, left), (1, 500));
    let said = ["with bigger new@1", "without bigger try@1: it needs 1000 bytes of memory, 500 are left"];
    assert_eq!(words, said);
}

#[test]
fn members_that_go_with_their_rule_leave_their_memory_to_others() {
    let stack = "rule = \"stack\"
        members = [
            { release = \"new@1\", role = { voter = { weight_ppm = 1 } } },
            { release = \"try@1\", role = \"meta\" },
        ]";
    let (members, words, left) = filled(stack, 1_500);
    assert_eq!((members, left), (0, 1_500));
    assert_eq!(words[0], "without voter new@1: no rule that is possible here asks it");
    assert!(words[1].starts_with("without meta-model try@1: it needs"), "{words:?}");
}

#[test]
fn members_of_one_task_do_not_take_the_memory_of_another_ones_champion() {
    let meter = with_lineup("members = [{ release = \"new@1\", role = \"fallback\" }]");
    let valve: TaskDefinition =
        toml::from_str("task = \"valve\"\nlabels = [\"a\", \"b\"]\npool = [\"turn@1\"]").unwrap();
    let of_valve = Approved { task: valve.task.clone(), ..approved(700_000) };
    let approved = BTreeMap::from([
        (release("old@1"), approved(700_000)),
        (release("new@1"), approved(700_000)),
        (release("turn@1"), of_valve),
    ]);
    let run = |ram_bytes| {
        let mut device = device();
        device.profile.ram_bytes = ram_bytes;
        let about = DeviceView { row: &device, installed: None, assigned: None };
        let desired = desire(&about, (&[view(&meter), view(&valve)], &Still::default()), &approved, NOW_MS);
        let releases = desired.tasks.iter().map(|task| task.lineup.releases().count()).collect::<Vec<_>>();
        (releases, desired.decisions[0].members.join("; "))
    };
    let without = "without fallback new@1: it needs 1000 bytes of memory, 500 are left";
    assert_eq!(run(2_500), (vec![1, 1], without.to_owned()));
    assert_eq!(run(3_000), (vec![2, 1], "with fallback new@1".to_owned()));
}

#[test]
fn members_that_devices_would_refuse_or_that_were_stopped_are_left_out() {
    let names = ["turn@1", "auto.valve.mlp@1", "auto.meter.mlp@1", "try@1", "new@1"];
    let member = |name: &&str| format!("{{ release = {name:?}, role = \"fallback\" }}");
    let members: Vec<String> = names.iter().map(member).collect();
    let definition = with_lineup(&format!("members = [{}]", members.join(", ")));
    let mut approved = BTreeMap::from(names.map(|name| {
        let retrained = name.starts_with("auto.");
        (release(name), Approved { retrained, ..self::approved(1) })
    }));
    approved.get_mut(&release("turn@1")).unwrap().task = "valve".parse().unwrap();
    let mut plan = Plan::new("r-1", definition.task.clone(), [release("try@1")], "test");
    plan.state = State::Stopped { at_ms: 1, reason: StopReason::Operator { by: "ann".into() } };
    let policy = Policy::default();
    let row = RolloutRow { plan, policy, created_by: "ann".into(), created_ms: 0, run: None, report: None };
    let device = device();
    let words = |definition: &TaskDefinition, policy| {
        let task = TaskView { rollouts: vec![&row], policy, ..view(definition) };
        let place = Place { task: &task, device: &device, approved: &approved };
        let mut ram = u64::MAX;
        place.fill(LineUp::new(release("old@1"), None), &mut ram).words
    };
    let mut said = [
        "without fallback turn@1: it is approved for the task valve",
        "without fallback auto.valve.mlp@1: it is a retrained release of another line or task",
        "without fallback auto.meter.mlp@1: it is retrained, and the task has no signed policy",
        "without fallback try@1: its rollout was stopped",
        "with fallback new@1",
    ];
    assert_eq!(words(&definition, false), said);
    said[2] = "with fallback auto.meter.mlp@1";
    assert_eq!(words(&definition, true), said);
    // What an operator puts into the pool runs again.
    let mut again = definition.clone();
    again.pool.insert(release("try@1"));
    said[3] = "with fallback try@1";
    assert_eq!(words(&again, true), said);
}

#[test]
fn a_decision_is_told_again_when_only_the_members_change() {
    let decided = |lineup: &str| {
        let desired = look_with(&with_lineup(lineup), vec![], vec![], &told("old@1", 0));
        desired.decisions.into_iter().next().unwrap()
    };
    let plain = decided("");
    let last = Decided {
        chosen: plain.chosen.clone(),
        rollouts: plain.rollouts.clone(),
        members: plain.members.clone(),
        made_ms: plain.made_ms,
    };
    assert!(last.is_said_by(&plain));
    assert!(!last.is_said_by(&decided("members = [{ release = \"new@1\", role = \"fallback\" }]")));
    assert!(!last.is_said_by(&decided("members = [{ release = \"unknown@1\", role = \"fallback\" }]")));
}
