//! The laws of the crate, held against a [`world`].
#![allow(clippy::wildcard_enum_match_arm, reason = "the world answers some orders and lets the rest pass")]

mod failures;
mod lineups;
mod probation;
mod programs;
mod retrained;
mod world;

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{Phase, ReasonCode, Role, Rule, TaskId, cbor};
use dunlin_trust::CountedBy;
use proptest::prelude::*;

use crate::{Command, Event, Item, Journal, Step, Stop};
use world::{World, digest, goal, release, task, under, with};

#[test]
fn a_good_release_goes_all_the_way() {
    let mut world = World::new();
    assert!(world.assign(1, vec![("meter", goal(1, "m@1", Some("base@1")))]));
    world.settle();
    let phases: Vec<Phase> = world.phases().into_iter().map(|(phase, _)| phase).collect();
    let expected = [
        Phase::Assigned,
        Phase::Fetching,
        Phase::Verifying,
        Phase::Staged,
        Phase::Proving,
        Phase::Probation,
        Phase::Committed,
    ];
    assert_eq!(phases, expected);
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.updater.installed()[&task("meter")].phase, Phase::Committed);
}

#[test]
fn what_serves_already_is_committed_without_a_download() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.log.clear();
    world.assign(2, vec![("meter", goal(2, "m@1", None))]);
    world.settle();
    assert!(!world.log.iter().any(|command| matches!(
        command,
        Command::FetchManifest { .. } | Command::FetchBlob { .. } | Command::SwitchTo { .. }
    )));
    assert_eq!(world.phases().last(), Some(&(Phase::Committed, ReasonCode::Ok)));
    assert!(
        !world.assign(2, vec![("meter", goal(2, "m@1", None))]),
        "the same generation again is nothing new"
    );
    assert!(!world.assign(1, vec![("meter", goal(1, "m@9", None))]), "an older one is refused");
}

/// A thief of the director's keys numbered assignments as high as numbers go. The owner named other keys.
#[test]
fn generations_count_anew_under_other_keys() {
    let mut world = World::new();
    let keys = |root| Some(CountedBy { root, keys: digest(if root == 1 { "old" } else { "new" }) });
    world.counted_by = keys(1);
    world.assign(u64::MAX, vec![("meter", goal(u64::MAX, "m@1", None))]);
    world.settle();
    assert!(!world.assign(7, vec![("meter", goal(7, "m@2", None))]), "under the same keys they only rise");
    world.counted_by = keys(2);
    assert!(world.assign(7, vec![("meter", goal(7, "m@2", None))]));
    world.settle();
    assert_eq!((world.serving("meter").unwrap(), world.updater.generation()), ("m@2".into(), 7));
    assert_eq!(world.updater.counted_by(), keys(2));
    assert!(!world.assign(6, vec![("meter", goal(6, "m@1", None))]));
}

#[test]
fn a_bad_task_does_not_block_another() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None)), ("valve", goal(1, "v@1", None))]);
    for _ in 0..200 {
        let Some(at) = world.open.iter().position(
            |command| !matches!(command, Command::FetchManifest { task, .. } if task.as_str() == "meter"),
        ) else {
            if world.serving("valve").is_some()
                && matches!(world.updater.step(&task("valve")), Step::Settled { .. })
            {
                break;
            }
            world.wait();
            continue;
        };
        let command = world.open.remove(at);
        world.obey(command);
    }
    assert_eq!(world.serving("valve").unwrap(), "v@1");
    assert!(matches!(world.updater.step(&task("meter")), Step::Fetching { item: Item::Manifest(_), .. }));
}

#[test]
fn an_operator_returns_to_the_previous_release_once() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    assert!(!world.tell(Event::OperatorRollback { task: task("meter") }), "nothing to return to");
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.settle();
    assert!(world.tell(Event::OperatorRollback { task: task("meter") }));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(!world.tell(Event::OperatorRollback { task: task("meter") }));
}

/// Both are approved, but the one could never stand in for the other.
#[test]
fn a_fallback_that_takes_other_inputs_is_refused_before_it_is_fetched() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", Some("base@1")))]);
    world.settle();
    world.log.clear();
    world.assign(2, vec![("meter", goal(2, "m@2", Some("odd@1")))]);
    world.settle();
    assert_eq!(world.phases().last(), Some(&(Phase::Failed, ReasonCode::LineupConflict)));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(world.updater.known_bad().next().is_none(), "neither of them is bad by itself");
    let odd = digest("model odd@1");
    let fetched =
        |command: &Command| matches!(command, Command::FetchBlob { blob, .. } if blob.digest == odd);
    assert!(!world.log.iter().any(fetched));
    world.assign(3, vec![("meter", goal(3, "odd@1", None))]);
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "odd@1");
}

#[test]
fn a_withdrawn_release_is_left_for_its_predecessor_then_its_fallback_then_the_baseline() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", Some("base@1")))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", Some("base@1")))]);
    world.settle();
    let floors = |model: &str, floor| Event::FloorsRaised([(model.parse().unwrap(), floor)].into());
    let mut world_at = |event| {
        world.tell(event);
        world.serving("meter")
    };
    assert_eq!(
        world_at(floors("m", 2)).unwrap(),
        "m@2",
        "withdrawing an older one changes nothing that serves"
    );
    assert_eq!(world_at(floors("m", 3)).unwrap(), "base@1");
    assert_eq!(world_at(floors("base", 2)), None);
}

#[test]
fn word_of_files_of_a_superseded_goal_moves_nothing() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.until(Phase::Verifying);
    let Some(Command::Verify { task, files: stale }) = world.open.pop() else { panic!("files are due") };
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.until(Phase::Verifying);
    let (digest, files) = (stale[0].digest, stale);
    assert!(!world.tell(Event::StagedVerified { task: task.clone(), files }));
    assert!(!world.tell(Event::StagedDamaged { task: task.clone(), digest }));
    assert_eq!(world.updater.step(&task).phase(), Phase::Verifying);
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@2");
}

#[test]
fn room_is_made_by_letting_go_of_the_predecessor_first() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.settle();
    world.assign(3, vec![("meter", goal(3, "m@3", None))]);
    while !world.open.iter().any(|command| matches!(command, Command::CheckSpace { .. })) {
        let command = world.open.remove(0);
        world.obey(command);
    }
    let full = || Event::SpaceChecked { task: task("meter"), enough: false, detail: String::new() };
    assert!(world.tell(full()));
    assert!(world.open.iter().any(|command| matches!(command, Command::CheckSpace { .. })), "asks again");
    assert!(world.tell(full()));
    assert_eq!(world.phases().last(), Some(&(Phase::Deferred, ReasonCode::NoSpace)));
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@3");
}

#[test]
fn a_journal_of_a_newer_format_is_refused_by_name() {
    let journal = Journal { format: 2, ..Journal::default() };
    assert_eq!(
        Journal::decode(&journal.encode()).unwrap_err().to_string(),
        "update journal has format 2; this agent reads format 1"
    );
}

#[test]
fn a_journal_is_read_with_what_a_later_agent_adds_and_without_what_an_earlier_one_lacks() {
    /// A journal as an agent writes it that has a field more.
    #[derive(serde::Serialize)]
    struct Later {
        #[serde(flatten)]
        journal: Journal,
        of_a_later_version: u32,
    }
    /// One as an agent writes it that knows neither who counts generations nor programs.
    #[derive(serde::Serialize)]
    struct Earlier {
        format: u32,
        generation: u64,
        tasks: alloc::collections::BTreeMap<TaskId, ()>,
        known_bad: Vec<()>,
        outbox: Vec<()>,
        next_seq: u64,
    }
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    let journal = Journal::decode(&world.disk).unwrap();
    let later = Later { journal: journal.clone(), of_a_later_version: 7 };
    assert_eq!(Journal::decode(&cbor::encode(&later)).unwrap(), journal);
    let new = Journal::default();
    let (format, generation, next_seq) = (new.format, new.generation, new.next_seq);
    let earlier =
        Earlier { format, generation, next_seq, tasks: [].into(), known_bad: vec![], outbox: vec![] };
    assert_eq!(Journal::decode(&cbor::encode(&earlier)).unwrap(), new);
}

#[test]
fn without_a_journal_the_record_says_what_serves() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    let record = crate::Record::decode(&world.updater.record().encode()).unwrap();
    world.disk = Journal::adopt(record).encode();
    world.restart(Stop::PowerLost);
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(world.assign(1, vec![("meter", goal(1, "m@1", None))]), "the assignment is taken up anew");
    world.settle();
    assert_eq!(world.phases().last(), Some(&(Phase::Committed, ReasonCode::Ok)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Storms of right, wrong, stale and repeated facts, restarts and new assignments. The laws are checked at every
    /// turn; and when the storm is over, what is assigned comes to rest.
    #[test]
    fn no_storm_breaks_a_law(storm in proptest::collection::vec((0u8..24, any::<u8>(), any::<u8>()), 1..120)) {
        let mut world = World::new();
        let mut generation = 0;
        let names = ["m@1", "m@2", "m@3", "auto.meter.mlp@1", "base@1"];
        for (action, which, kind) in storm {
            let pick = usize::from(which);
            match action {
                0..=9 if !world.open.is_empty() => {
                    let command = world.open.remove(pick % world.open.len());
                    world.obey(command);
                }
                10..=13 if !world.open.is_empty() => {
                    let command = world.open.remove(pick % world.open.len());
                    world.fail(command, kind);
                }
                14 if !world.log.is_empty() => {
                    // An answer to an order of long ago. Proofs are only told where they happened.
                    let command = world.log[pick * 7 % world.log.len()].clone();
                    if !matches!(command, Command::Persist(_)) {
                        world.obey(command);
                    }
                }
                15 => world.restart(Stop::Crashed),
                16 => world.restart(Stop::PowerLost),
                17 => { world.tell(Event::OperatorRollback { task: task(["meter", "valve"][pick % 2]) }); }
                18 => {
                    let floors = [("m".parse().unwrap(), u32::from(kind % 4))].into();
                    world.tell(Event::Retarget { release: release(names[pick % 5]), floors });
                }
                19 => {
                    let model = ["m", "base", "meta"][pick % 3];
                    world.tell(Event::FloorsRaised([(model.parse().unwrap(), u32::from(kind % 4))].into()));
                }
                20 | 21 => {
                    generation += 1;
                    let fallback = (kind % 3 == 0).then_some("base@1");
                    let policy = ["policy", "closed", "strict", "another"][usize::from(kind) / 8 % 4];
                    let mut meter = under(policy, goal(generation, names[pick % 4], fallback));
                    if kind % 5 == 0 {
                        let voter = (names[(pick + 1) % 4], Role::Voter { weight_ppm: 1 });
                        let rule = if kind % 2 == 0 { Rule::Stack } else { Rule::SoftVote };
                        meter = with(meter, rule, &[voter, ("meta@1", Role::Meta)]);
                    }
                    meter.deadline_ms = (kind % 7 == 0).then_some(u64::from(which) * 20_000);
                    let mut goals = vec![("meter", meter)];
                    if kind % 2 == 0 {
                        goals.push(("valve", goal(generation, names[usize::from(kind) % 3], None)));
                    }
                    world.assign(generation, goals);
                }
                _ => world.wait(),
            }
        }
        world.settle();
        for task in world.updater.tasks() {
            prop_assert!(world.updater.step(task).under_way().is_none(), "{:?}", world.updater.step(task));
        }
    }
}
