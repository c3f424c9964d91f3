//! The laws of the crate, held against a [`world`].
#![allow(clippy::wildcard_enum_match_arm, reason = "the world answers some orders and lets the rest pass")]

mod lineups;
mod programs;
mod world;

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{Phase, ReasonCode, Role, Rule};
use dunlin_trust::CountedBy;
use proptest::prelude::*;

use crate::{CRASHES_MAX, Command, Event, GUARD_EVERY_MS, Goal, Item, Journal, Observed, Proof, Step, Stop};
use world::{World, digest, goal, release, retarget, task, under, with};

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
fn a_bad_release_is_left_remembered_and_tried_again_only_when_retargeted() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.until(Phase::Probation);
    assert_eq!(world.serving("meter").unwrap(), "m@2");
    let errors = Observed { requests: 50, errors: 40, ..Observed::default() };
    assert!(world.tell(Event::GuardObserved { task: task("meter"), seen: errors }));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.phases().last(), Some(&(Phase::RolledBack, ReasonCode::GuardErrors)));

    world.settle();
    world.assign(3, vec![("meter", goal(3, "m@2", None))]);
    assert_eq!(world.phases().last(), Some(&(Phase::Rejected, ReasonCode::KnownBad)));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(world.tell(retarget("m@2")));
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@2");
}

#[test]
fn what_signers_withdrew_meanwhile_is_not_tried_again() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "odd@1", None))]);
    world.until(Phase::Probation);
    let errors = Observed { requests: 50, errors: 40, ..Observed::default() };
    assert!(world.tell(Event::GuardObserved { task: task("meter"), seen: errors }));
    world.settle();
    let floors = |floor| [("odd".parse().unwrap(), floor)].into();
    assert!(world.tell(Event::Retarget { release: release("odd@1"), floors: floors(2) }));
    assert_eq!(world.phases().last(), Some(&(Phase::Rejected, ReasonCode::BelowReleaseFloor)));
    assert!(world.open.iter().all(|order| order.awaited_by().is_none()), "{:?}", world.open);
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert!(world.tell(Event::Retarget { release: release("odd@1"), floors: floors(1) }));
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "odd@1");
}

#[test]
fn three_crashes_on_probation_return_to_the_old_release_and_power_cuts_do_not() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.until(Phase::Probation);
    for _ in 0..5 {
        world.restart(Stop::PowerLost);
        world.restart(Stop::Orderly);
    }
    for strike in 0..CRASHES_MAX {
        assert_eq!(world.serving("meter").unwrap(), "m@2", "strike {strike}");
        world.restart(Stop::Crashed);
    }
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.updater.known_bad().next().unwrap().reason, ReasonCode::CrashLoop);
    let restored = world.open.iter().find_map(|command| {
        if let Command::Restore { serving, .. } = command { Some(serving) } else { None }
    });
    assert_eq!(
        restored.unwrap().release().unwrap().to_string(),
        "m@1",
        "the bad release is not even loaded again"
    );
}

#[test]
fn a_crash_loop_after_the_commit_returns_to_the_old_release_and_long_lives_forget() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    world.settle();
    for _ in 0..2 * CRASHES_MAX {
        world.restart(Stop::Crashed);
        world.restart(Stop::PowerLost);
        world.wait();
    }
    for _ in 1..CRASHES_MAX {
        world.restart(Stop::Crashed);
        world.restart(Stop::Orderly);
    }
    assert_eq!(world.serving("meter").unwrap(), "m@2", "two in a row are not three");
    world.restart(Stop::Crashed);
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.phases().last(), Some(&(Phase::RolledBack, ReasonCode::CrashLoop)));
    world.settle();
    assert!(world.tell(retarget("m@2")), "an operator has it tried again");
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@2");
}

#[test]
fn a_champion_that_fails_after_its_commit_is_left_until_an_operator_or_a_new_generation() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", Some("base@1")))]);
    world.settle();
    let failed = || Event::ServeFailed {
        task: task("meter"),
        release: release("m@2"),
        detail: "it failed".to_string(),
    };
    assert!(world.tell(failed()));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(world.phases().last(), Some(&(Phase::RolledBack, ReasonCode::ModelFailed)));
    assert!(!world.tell(failed()), "it is not what serves any more");
    world.restart(Stop::Crashed);
    assert_eq!(world.serving("meter").unwrap(), "m@1", "and stays left over a restart");
    world.assign(3, vec![("meter", goal(3, "m@2", None))]);
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@2");
}

#[test]
fn a_fallback_that_fails_stays_left_over_a_restart_until_an_operator_or_a_new_generation() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", Some("base@1")))]);
    world.settle();
    let fallback = |world: &World| {
        let line = world.updater.designation(&task("meter")).line().cloned().unwrap();
        assert_eq!(line.champion.release, release("m@1"), "the champion is not touched");
        line.fallback.map(|pack| pack.release)
    };
    let failed = || Event::ServeFailed {
        task: task("meter"),
        release: release("base@1"),
        detail: "it failed".to_string(),
    };
    assert_eq!(fallback(&world), Some(release("base@1")));
    assert!(world.tell(failed()));
    assert_eq!(fallback(&world), None);
    assert!(!world.tell(failed()), "it is not what serves any more");
    world.restart(Stop::PowerLost);
    world.settle();
    assert_eq!(fallback(&world), None);
    assert!(world.tell(retarget("base@1")), "an operator has it tried again");
    world.settle();
    assert_eq!(fallback(&world), Some(release("base@1")));
    assert!(world.tell(failed()));
    world.assign(2, vec![("meter", goal(2, "m@1", Some("base@1")))]);
    world.settle();
    assert_eq!(fallback(&world), Some(release("base@1")));
}

#[test]
fn crashes_while_fetching_are_never_a_failure() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    for _ in 0..50 {
        world.restart(Stop::Crashed);
        world.restart(Stop::PowerLost);
    }
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@1");
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
fn a_retrained_release_must_keep_to_every_signed_bound_while_it_is_proved() {
    let good = Proof { latency_us: 50, peak_bytes: 10, anchor_ppm: 900_000 };
    for (proof, reason) in [
        (Proof { anchor_ppm: 899_999, ..good }, ReasonCode::AnchorScore),
        (Proof { peak_bytes: 11, ..good }, ReasonCode::RamExceeded),
        (Proof { latency_us: 51, ..good }, ReasonCode::LatencyExceeded),
    ] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "auto.meter.mlp@1", None))]);
        world.until(Phase::Proving);
        let Some(Command::Prove { task, pack, .. }) = world.open.pop() else { panic!("a proof is due") };
        assert!(
            pack.blobs.iter().any(|blob| blob.digest == digest("anchor")),
            "the anchor set is fetched with it"
        );
        world.tell(Event::Proved { task, manifest: pack.manifest.digest, proof });
        assert_eq!(world.phases().last(), Some(&(Phase::Failed, reason)));
        assert_eq!(world.serving("meter"), None);
    }
}

/// The owner may change the bounds at any time, also under a release that serves.
#[test]
fn a_retrained_release_that_serves_is_held_to_a_new_policy() {
    let retrained = |generation| goal(generation, "auto.meter.mlp@1", None);
    for (policy, last, serves, proofs) in [
        ("closed", (Phase::Failed, ReasonCode::RetrainedNotAllowed), "m@1", 0),
        ("strict", (Phase::Failed, ReasonCode::LatencyExceeded), "m@1", 1),
        ("another", (Phase::Committed, ReasonCode::Ok), "auto.meter.mlp@1", 1),
    ] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "m@1", None))]);
        world.settle();
        world.assign(2, vec![("meter", retrained(2))]);
        world.settle();
        world.log.clear();
        world.assign(3, vec![("meter", under(policy, retrained(3)))]);
        world.settle();
        assert_eq!(world.phases().last(), Some(&last), "{policy}");
        assert_eq!(world.serving("meter").unwrap(), serves, "{policy}");
        let proved = |world: &World| {
            world.log.iter().filter(|command| matches!(command, Command::Prove { .. })).count()
        };
        assert_eq!(proved(&world), proofs, "{policy}");
        if serves != "m@1" {
            world.assign(4, vec![("meter", under(policy, retrained(4)))]);
            world.settle();
            assert_eq!(proved(&world), proofs, "under the policy that it was proved by it stands");
        }
    }
}

#[test]
fn a_retrained_predecessor_goes_with_the_policy_that_allowed_it() {
    for policy in ["closed", "another"] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "auto.meter.mlp@1", None))]);
        world.settle();
        world.assign(2, vec![("meter", goal(2, "m@2", None))]);
        world.settle();
        world.assign(3, vec![("meter", under(policy, goal(3, "m@2", None)))]);
        world.settle();
        assert_eq!(world.serving("meter").unwrap(), "m@2");
        assert!(!world.tell(Event::OperatorRollback { task: task("meter") }), "{policy}");
    }
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

/// How long a release that is asked once stays on probation until it is committed, milliseconds.
fn watched_ms(deadline_ms: Option<u64>, wall_ms: Option<u64>) -> u64 {
    let mut world = World::new();
    world.now.wall_ms = wall_ms;
    assert!(world.assign(1, vec![("meter", Goal { deadline_ms, ..goal(1, "m@1", None) })]));
    world.until(Phase::Probation);
    let since_ms = world.now.mono_ms;
    for _look in 0..1_000 {
        if world.updater.step(&task("meter")).phase() != Phase::Probation {
            break;
        }
        world.wait();
        let seen = Observed { requests: 1, ..Observed::default() };
        world.tell(Event::GuardObserved { task: task("meter"), seen });
    }
    assert_eq!(world.phases().last(), Some(&(Phase::Committed, ReasonCode::Ok)));
    world.now.mono_ms - since_ms
}

/// A deadline says until when requests are waited for, and nothing else: what comes after its own is begun all the same and
/// watched for its least duration, and a board that does not know the time waits as if there were none.
#[test]
fn a_deadline_only_ends_the_wait_for_requests() {
    let wall_ms = World::new().now.wall_ms.unwrap();
    // It is looked at every second.
    let within = |ms: u64, took_ms: u64| took_ms.abs_diff(ms) <= GUARD_EVERY_MS;
    let passed = watched_ms(Some(wall_ms - 1), Some(wall_ms));
    assert!(within(5_000, passed), "{passed} ms after its deadline");
    let ahead = watched_ms(Some(wall_ms + 20_000), Some(wall_ms));
    assert!(within(20_000, ahead), "{ahead} ms until its deadline");
    for (deadline_ms, wall_ms) in [(None, Some(wall_ms)), (Some(wall_ms + 20_000), None)] {
        let idle = watched_ms(deadline_ms, wall_ms);
        assert!(within(50_000, idle), "{idle} ms without one");
    }
}

/// How long a release stays on probation that is asked enough at once and compared with its predecessor as `paired` says,
/// and how the end of it is told.
fn compared_ms(predecessor: bool, pairs_min: u64, paired: u64) -> (u64, String) {
    let mut world = World::new();
    if predecessor {
        world.assign(1, vec![("meter", goal(1, "m@1", None))]);
        world.settle();
    }
    let mut wanted = goal(2, "m@2", None);
    wanted.probation.pairs_min = pairs_min;
    world.assign(2, vec![("meter", wanted)]);
    world.until(Phase::Probation);
    let since_ms = world.now.mono_ms;
    for _look in 0..1_000 {
        if world.updater.step(&task("meter")).phase() != Phase::Probation {
            break;
        }
        world.wait();
        let seen = Observed { requests: 1_000, paired, ..Observed::default() };
        world.tell(Event::GuardObserved { task: task("meter"), seen });
    }
    assert_eq!(world.serving("meter").unwrap(), "m@2");
    let told = world.log.iter().rev().find_map(|command| match command {
        Command::Report { outcome, .. } => Some((outcome.phase, outcome.detail.clone())),
        _ => None,
    });
    let (phase, detail) = told.unwrap();
    assert_eq!(phase, Phase::Committed);
    (world.now.mono_ms - since_ms, detail)
}

/// A device that has nothing to compare is not kept on probation for ever, and says on how much it committed.
#[test]
fn pairs_are_waited_for_up_to_a_bound_and_only_where_there_is_a_predecessor() {
    let within = |ms: u64, took_ms: u64| took_ms.abs_diff(ms) <= GUARD_EVERY_MS;
    for (predecessor, pairs_min, paired, ms) in [
        (true, 0, 0, 5_000),
        (true, 100, 100, 5_000),
        (true, 100, 99, 50_000),
        (true, 100, 0, 50_000),
        (false, 100, 0, 5_000),
    ] {
        let (took_ms, detail) = compared_ms(predecessor, pairs_min, paired);
        assert!(within(ms, took_ms), "{took_ms} ms where {ms} belong: {paired} of {pairs_min}");
        assert!(detail.contains(&alloc::format!("pairs: {paired},")), "{detail}");
    }
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
