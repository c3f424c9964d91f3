//! Releases that fail, on probation and after it, and when they are tried again.
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{Phase, ReasonCode};

use super::world::{World, goal, release, retarget, task};
use crate::{CRASHES_MAX, Command, Designation, Event, Observed, Stop};

/// A device that has `m@1`, and left this release for it on probation.
fn has_left(failed: &str) -> World {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, failed, None))]);
    world.until(Phase::Probation);
    assert_eq!(world.serving("meter").unwrap(), failed);
    let errors = Observed { requests: 50, errors: 40, ..Observed::default() };
    assert!(world.tell(Event::GuardObserved { task: task("meter"), seen: errors }));
    world
}

#[test]
fn a_bad_release_is_left_remembered_and_tried_again_only_when_retargeted() {
    let mut world = has_left("m@2");
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

/// A shell may let a switch lie, be started anew meanwhile, and be told that what serves was withdrawn.
#[test]
fn a_switch_that_was_let_lie_is_ordered_again_as_things_stand_while_it_is_waited_for() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", goal(2, "m@2", None))]);
    let is_switch = |command: &Command| matches!(command, Command::SwitchTo { .. });
    while !world.open.iter().any(is_switch) {
        let command = world.open.remove(0);
        world.obey(command);
    }
    let again = |world: &mut World| -> Vec<Command> {
        world.updater.switch_again();
        core::iter::from_fn(|| world.updater.poll_command()).collect()
    };
    world.open.retain(|command| !is_switch(command));
    let journal = world.updater.journal().clone();
    let orders = again(&mut world);
    assert!(
        matches!(&orders[..], [Command::SwitchTo { trial: true, previous: Designation::Line(_), .. }]),
        "{orders:?}"
    );
    assert_eq!(*world.updater.journal(), journal);

    world.restart(Stop::Orderly);
    assert!(world.open.iter().any(is_switch), "a start orders it by itself");
    world.open.retain(|command| !is_switch(command));
    let floors = BTreeMap::from([("m".parse().unwrap(), 2)]);
    assert!(world.tell(Event::FloorsRaised(floors)));
    let orders = again(&mut world);
    let [Command::SwitchTo { trial: true, previous: Designation::Baseline, .. }] = &orders[..] else {
        panic!("{orders:?}");
    };
    world.obey(orders[0].clone());
    world.settle();
    assert_eq!(world.serving("meter").unwrap(), "m@2");
    assert_eq!(again(&mut world), []);
}

#[test]
fn what_signers_withdrew_meanwhile_is_not_tried_again() {
    let mut world = has_left("odd@1");
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
