//! How long a release is watched before it is there to stay.
use alloc::string::String;
use alloc::vec;

use dunlin_protocol::{Phase, ReasonCode};

use super::world::{World, goal, task};
use crate::{Command, Event, GUARD_EVERY_MS, Goal, Observed};

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
