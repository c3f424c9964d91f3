//! The laws, for line-ups of several members.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{Phase, ReasonCode, Role, Rule};

use super::world::{World, digest, goal, release, retarget, task, with};
use crate::{CRASHES_MAX, Command, Event, Goal, Line, Observed, Step, Stop, WRONG_MAX};

const VOTER: Role = Role::Voter { weight_ppm: 500_000 };
const TWO: [(&str, Role); 2] = [("v@1", VOTER), ("w@1", VOTER)];
const SHADOW: Role = Role::Shadow { cpu_ppm: 10_000, ram_bytes: 0, battery_ppm_min: 0 };

fn line(world: &World) -> &Line {
    world.updater.designation(&task("meter")).line().unwrap()
}

fn members(world: &World) -> Vec<String> {
    line(world).members.iter().map(|(member, _)| member.release.to_string()).collect()
}

fn stack(generation: u64) -> Goal {
    with(goal(generation, "m@1", None), Rule::Stack, &[("v@1", VOTER), ("meta@1", Role::Meta)])
}

/// A champion and two voters.
fn vote(generation: u64, champion: &str) -> Goal {
    with(goal(generation, champion, None), Rule::SoftVote, &TWO)
}

fn proofs(world: &World) -> usize {
    world.log.iter().filter(|command| matches!(command, Command::Prove { .. })).count()
}

/// The releases of which this was told.
fn told(world: &World, phase: Phase, reason: ReasonCode) -> Vec<String> {
    let release = |command: &Command| match command {
        Command::Report { outcome, .. } if (outcome.phase, outcome.reason) == (phase, reason) => {
            outcome.release.as_ref().map(ToString::to_string)
        }
        _ => None,
    };
    world.log.iter().filter_map(release).collect()
}

fn last(world: &World) -> (Phase, ReasonCode) {
    *world.phases().last().unwrap()
}

fn known_bad(world: &World) -> Vec<String> {
    world.updater.known_bad().map(|bad| bad.release.to_string()).collect()
}

fn floors(model: &str) -> Event {
    Event::FloorsRaised([(model.parse().unwrap(), 2)].into())
}

/// Answers every order rightly until such a one is open, and takes it.
fn order(world: &mut World, such: impl Fn(&Command) -> bool) -> Command {
    for _ in 0..200 {
        if let Some(at) = world.open.iter().position(&such) {
            return world.open.remove(at);
        }
        if world.open.is_empty() {
            world.wait();
        } else {
            let command = world.open.remove(0);
            world.obey(command);
        }
    }
    panic!("it is never ordered: {:?}", world.updater.step(&task("meter")));
}

fn proof_of(name: &str) -> impl Fn(&Command) -> bool {
    let release = release(name);
    move |command: &Command| matches!(command, Command::Prove { pack, .. } if pack.release == release)
}

fn crash(world: &mut World) {
    for _ in 0..CRASHES_MAX {
        world.restart(Stop::Crashed);
    }
}

#[test]
fn every_member_is_fetched_and_proved_before_the_switch() {
    let mut world = World::new();
    world.assign(1, vec![("meter", stack(1))]);
    world.settle();
    assert_eq!(world.phases().last(), Some(&(Phase::Committed, ReasonCode::Ok)));
    assert_eq!(
        (members(&world), line(&world).conduct.rule),
        (vec!["v@1".into(), "meta@1".into()], Rule::Stack)
    );
    assert_eq!(proofs(&world), 3);
    for name in ["m@1", "v@1", "meta@1"] {
        assert!(world.proved.contains(&release(name)));
    }
}

#[test]
fn the_same_line_up_again_is_not_fetched_and_another_rule_is_a_switch() {
    let mut world = World::new();
    world.assign(1, vec![("meter", stack(1))]);
    world.settle();
    world.log.clear();
    world.assign(2, vec![("meter", stack(2))]);
    world.settle();
    assert!(!world.log.iter().any(|command| matches!(command, Command::SwitchTo { .. })));
    let mut softer = stack(3);
    softer.conduct.rule = Rule::SoftVote;
    world.assign(3, vec![("meter", softer)]);
    world.settle();
    assert!(world.log.iter().any(|command| matches!(command, Command::SwitchTo { trial: false, .. })));
    assert_eq!((line(&world).conduct.rule, line(&world).generation), (Rule::SoftVote, 3));
    assert!(!world.assign(3, vec![("meter", Goal { generation: 3, ..line_goal(&world) })]), "nothing is new");
}

fn line_goal(world: &World) -> Goal {
    world.updater.step(&task("meter")).goal().unwrap().clone()
}

#[test]
fn a_member_that_fails_its_proof_is_left_out_and_the_champion_goes_on() {
    let mut world = World::new();
    let wanted = stack(1);
    world.assign(1, vec![("meter", wanted.clone())]);
    world.until(Phase::Proving);
    let champion = world.open.remove(0);
    world.obey(champion);
    let Some(Command::Prove { task: meter, pack, .. }) = world.open.pop() else { panic!("a proof is due") };
    assert_eq!(pack.release, release("v@1"));
    let (manifest, detail) = (pack.manifest.digest, "wrong answers".to_string());
    let reason = ReasonCode::GoldenMismatch;
    assert!(world.tell(Event::ProofFailed { task: meter, manifest, reason, detail }));
    world.settle();
    assert!(world.phases().contains(&(Phase::Rejected, ReasonCode::GoldenMismatch)));
    assert_eq!(world.phases().last(), Some(&(Phase::Committed, ReasonCode::Ok)));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    assert_eq!(line(&world).conduct.rule, Rule::First, "a meta-model hears all or none");
    assert_eq!(world.updater.known_bad().next().unwrap().release, release("v@1"));

    assert!(!world.assign(1, vec![("meter", wanted)]), "the same generation again is nothing new");
    world.log.clear();
    world.assign(2, vec![("meter", stack(2))]);
    world.settle();
    assert_eq!(proofs(&world), 0, "what failed here is not tried again, what serves is not proved again");
    assert!(world.phases().contains(&(Phase::Rejected, ReasonCode::KnownBad)));
    assert!(world.tell(retarget("v@1")));
    world.assign(3, vec![("meter", stack(3))]);
    world.settle();
    assert_eq!((members(&world).len(), line(&world).conduct.rule), (2, Rule::Stack));
}

#[test]
fn members_that_do_not_go_with_the_champion_are_left_out_before_they_are_fetched() {
    for members in [
        &[("odd@1", Role::Bigger)][..],
        &[("foreign@1", VOTER)],
        &[("v@1", VOTER), ("w@1", VOTER), ("meta@1", Role::Meta)],
        &[("v@1", VOTER), ("m@2", Role::Meta)],
    ] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "m@1", None))]);
        world.settle();
        world.log.clear();
        let wanted = || vec![("meter", with(goal(2, "m@1", None), Rule::Stack, members))];
        world.assign(2, wanted());
        world.settle();
        let refused = members[members.len() - 1].0;
        assert_eq!(told(&world, Phase::Rejected, ReasonCode::LineupConflict), [refused]);
        assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok), "{members:?}");
        assert!(line(&world).members.is_empty() && known_bad(&world).is_empty(), "each of them may be sound");
        let model = digest(&format!("model {refused}"));
        let fetched =
            |command: &Command| matches!(command, Command::FetchBlob { blob, .. } if blob.digest == model);
        assert!(!world.log.iter().any(fetched));
        assert!(!world.assign(2, wanted()), "it does not come again with the same assignment");
    }
}

/// A stack of two voters loses more than the member that failed: the other voter and the meta-model are in the middle of what
/// is staged and proved.
#[test]
fn what_can_not_be_without_a_failed_member_goes_from_all_that_is_at_hand() {
    let all = [("s@1", SHADOW), TWO[0], TWO[1], ("jury@1", Role::Meta), ("f@1", Role::Fallback)];
    for failed in ["v@1", "w@1", "jury@1"] {
        let mut world = World::new();
        world.assign(1, vec![("meter", with(goal(1, "m@1", None), Rule::Stack, &all))]);
        let proof = order(&mut world, proof_of(failed));
        world.fail(proof, 0);
        let Step::Proving { work, .. } = world.updater.step(&task("meter")) else { panic!("f@1 is next") };
        let staged = work.staged.iter().map(|pack| &pack.release);
        assert!(staged.eq(work.goal.parts().map(|part| &part.release)), "{failed}: {work:?}");
        assert_eq!(work.proofs.len(), 2, "those of champion and shadow");
        world.settle();
        assert_eq!(told(&world, Phase::Rejected, ReasonCode::GoldenMismatch), [failed]);
        assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok));
        assert_eq!(members(&world), ["s@1", "f@1"]);
        assert!(line(&world).conduct.is_plain());
    }
}

#[test]
fn what_is_left_of_a_stack_is_nothing_new() {
    let jury = |generation| {
        let all = [TWO[0], TWO[1], ("jury@1", Role::Meta)];
        vec![("meter", with(goal(generation, "m@1", None), Rule::Stack, &all))]
    };
    let mut world = World::new();
    world.assign(1, jury(1));
    let proof = order(&mut world, proof_of("v@1"));
    world.fail(proof, 0);
    let Step::Switching { goal: left, line: next, .. } = world.updater.step(&task("meter")) else {
        panic!("the switch is next")
    };
    assert!(next.is(left) && next.members.is_empty());
    world.settle();
    assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok));
    assert_eq!((world.serving("meter").unwrap().as_str(), members(&world).len()), ("m@1", 0));
    assert_eq!(proofs(&world), 2, "a meta-model that can not be heard is not proved");

    world.log.clear();
    world.assign(2, vec![("meter", goal(2, "m@1", None))]);
    world.settle();
    let phases = [Phase::Assigned, Phase::Fetching, Phase::Committed].map(|phase| (phase, ReasonCode::Ok));
    assert_eq!(world.phases(), phases, "it serves already");
    world.assign(3, jury(3));
    world.settle();
    assert_eq!(told(&world, Phase::Rejected, ReasonCode::KnownBad), ["v@1"], "the others did not fail");
    assert_eq!((last(&world), proofs(&world)), ((Phase::Committed, ReasonCode::Ok), 0));
}

#[test]
fn a_newer_assignment_of_what_is_left_goes_on_with_its_probation() {
    let all = [TWO[0], TWO[1], ("foreign@1", VOTER)];
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", with(goal(2, "m@2", None), Rule::SoftVote, &all))]);
    let proof = order(&mut world, proof_of("v@1"));
    world.fail(proof, 0);
    world.until(Phase::Probation);
    assert_eq!(members(&world), ["w@1"]);
    for (generation, wanted) in [(3, &all[..]), (4, &all[1..]), (5, &all[1..2])] {
        world.log.clear();
        let wanted = with(goal(generation, "m@2", None), Rule::SoftVote, wanted);
        assert!(world.assign(generation, vec![("meter", wanted)]));
        assert_eq!(world.phases(), [(Phase::Probation, ReasonCode::Ok)], "generation {generation}");
    }
    world.settle();
    assert!(world.log.iter().any(|command| matches!(command, Command::Commit { .. })));
    assert_eq!((line(&world).generation, members(&world)), (5, vec!["w@1".to_string()]));
}

#[test]
fn a_member_whose_files_come_wrong_again_and_again_is_left_out_until_the_next_assignment() {
    let (name, model) = (release("v@1").target_name(), digest("model v@1"));
    let manifest =
        |command: &Command| matches!(command, Command::FetchManifest { file, .. } if file.name == name);
    let blob = |command: &Command| matches!(command, Command::FetchBlob { blob, .. } if blob.digest == model);
    let files: [&dyn Fn(&Command) -> bool; 2] = [&manifest, &blob];
    for file in files {
        let mut world = World::new();
        world.assign(1, vec![("meter", vote(1, "m@1"))]);
        for _ in 0..WRONG_MAX {
            let fetch = order(&mut world, file);
            world.fail(fetch, 1);
        }
        world.settle();
        assert_eq!(told(&world, Phase::Rejected, ReasonCode::DigestMismatch), ["v@1"]);
        assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok));
        assert_eq!((members(&world), known_bad(&world)), (vec!["w@1".to_string()], vec![]));
        assert!(!world.assign(1, vec![("meter", vote(1, "m@1"))]));
        world.assign(2, vec![("meter", vote(2, "m@1"))]);
        world.settle();
        assert_eq!(members(&world), ["v@1", "w@1"], "a server may be mended");
    }
}

#[test]
fn a_member_that_is_withdrawn_on_the_way_goes_and_the_rest_goes_on() {
    let (name, model) = (release("v@1").target_name(), digest("model v@1"));
    let manifest =
        |command: &Command| matches!(command, Command::FetchManifest { file, .. } if file.name == name);
    let blob = |command: &Command| matches!(command, Command::FetchBlob { blob, .. } if blob.digest == model);
    let (own, others) = (proof_of("v@1"), proof_of("w@1"));
    let stages: [&dyn Fn(&Command) -> bool; 7] = [
        &|command: &Command| matches!(command, Command::FetchPolicy { .. }),
        &manifest,
        &blob,
        &|command: &Command| matches!(command, Command::Verify { .. }),
        &own,
        &others,
        &|command: &Command| matches!(command, Command::SwitchTo { .. }),
    ];
    for (at, stage) in stages.into_iter().enumerate() {
        for waits in [false, true] {
            let mut world = World::new();
            world.assign(1, vec![("meter", vote(1, "m@1"))]);
            let in_hand = order(&mut world, stage);
            if waits && at < 3 {
                world.fail(in_hand.clone(), 2);
            }
            world.tell(floors("v"));
            // The answer may be to what is asked no more.
            world.obey(in_hand);
            world.settle();
            assert_eq!(told(&world, Phase::Rejected, ReasonCode::BelowReleaseFloor), ["v@1"], "{at}");
            assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok), "{at}");
            assert_eq!(members(&world), ["w@1"], "{at}");
        }
    }
}

#[test]
fn a_probation_outlives_the_withdrawal_of_members_and_fallback() {
    for (gone, fallback, left) in [("v", Some("base@1"), &TWO[1..]), ("base", None, &TWO[..])] {
        for good in [true, false] {
            let mut world = World::new();
            world.assign(1, vec![("meter", goal(1, "m@1", None))]);
            world.settle();
            let trial = with(goal(2, "m@2", Some("base@1")), Rule::SoftVote, &TWO);
            world.assign(2, vec![("meter", trial)]);
            world.until(Phase::Probation);
            world.log.clear();
            world.tell(floors(gone));
            assert_eq!(told(&world, Phase::RolledBack, ReasonCode::BelowReleaseFloor), [format!("{gone}@1")]);
            assert_eq!(members(&world).len(), left.len());
            let serves = world.updater.designation(&task("meter"));
            let restored = |command: &Command| matches!(command, Command::Restore { serving, trial: true, .. } if serving == serves);
            assert!(world.log.iter().any(restored));

            // The trust core refuses what names the withdrawn release, until there is another assignment.
            let refused = (task("meter"), Err((ReasonCode::BelowReleaseFloor, String::new())));
            assert!(!world.judged(2, vec![refused]));
            world.restart(Stop::PowerLost);
            let rest = with(goal(3, "m@2", fallback), Rule::SoftVote, left);
            assert!(world.assign(3, vec![("meter", rest)]));
            assert_eq!(world.updater.step(&task("meter")).phase(), Phase::Probation);
            assert_eq!(last(&world), (Phase::Probation, ReasonCode::Ok));
            if good {
                world.settle();
                assert!(world.log.iter().any(|command| matches!(command, Command::Commit { .. })));
                assert_eq!(world.serving("meter").unwrap(), "m@2");
            } else {
                let seen = Observed { requests: 50, errors: 40, ..Observed::default() };
                world.tell(Event::GuardObserved { task: task("meter"), seen });
                assert_eq!(last(&world), (Phase::RolledBack, ReasonCode::GuardErrors));
                assert_eq!(world.serving("meter").unwrap(), "m@1");
            }
        }
    }
}

#[test]
fn a_probation_ends_with_the_withdrawal_of_its_champion_and_begins_anew() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", vote(2, "n@1"))]);
    world.until(Phase::Probation);
    world.tell(floors("n"));
    assert_eq!(world.serving("meter").unwrap(), "m@1");
    world.log.clear();
    world.assign(3, vec![("meter", goal(3, "n@1", None))]);
    world.settle();
    let phases = world.phases();
    let trial = phases.iter().position(|(phase, _)| *phase == Phase::Probation).unwrap();
    assert_eq!(phases[trial + 1..], [(Phase::Committed, ReasonCode::Ok)]);
}

#[test]
fn a_member_whose_proof_crashes_is_left_out() {
    let mut world = World::new();
    world.assign(1, vec![("meter", vote(1, "m@1"))]);
    order(&mut world, proof_of("v@1"));
    crash(&mut world);
    world.settle();
    assert_eq!(told(&world, Phase::Rejected, ReasonCode::ProofCrashed), ["v@1"]);
    assert_eq!((members(&world), known_bad(&world)), (vec!["w@1".to_string()], vec!["v@1".to_string()]));
    assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok));
}

#[test]
fn a_switch_that_crashes_is_held_against_what_is_new_in_it() {
    let base = Some("base@1");
    let wanted = |generation| vec![("meter", with(goal(generation, "m@1", base), Rule::SoftVote, &TWO[..1]))];
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", base))]);
    world.settle();
    world.log.clear();
    world.assign(2, wanted(2));
    world.until(Phase::Staged);
    crash(&mut world);
    assert_eq!(told(&world, Phase::Rejected, ReasonCode::CrashLoop), ["v@1"]);
    assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok), "the rest serves already");
    assert_eq!((world.serving("meter").unwrap().as_str(), members(&world).len()), ("m@1", 0));
    assert_eq!(known_bad(&world), ["v@1"]);
    assert!(!world.assign(2, wanted(2)));

    let mut world = World::new();
    world.assign(1, vec![("meter", stack(1))]);
    world.settle();
    let softer = with(goal(2, "m@1", None), Rule::SoftVote, &TWO[..1]);
    world.assign(2, vec![("meter", softer)]);
    world.until(Phase::Staged);
    crash(&mut world);
    assert_eq!(last(&world), (Phase::Failed, ReasonCode::LineupConflict), "nothing in it is new");
    assert_eq!((members(&world).len(), line(&world).conduct.rule), (2, Rule::Stack), "what served goes on");
    assert!(known_bad(&world).is_empty());
}

#[test]
fn a_champion_that_stays_is_not_bad_for_a_switch_that_can_not_be_loaded() {
    let failed =
        |name| Event::ServeFailed { task: task("meter"), release: release(name), detail: "no memory".into() };
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", vote(2, "m@1"))]);
    world.until(Phase::Staged);
    assert!(world.tell(failed("v@1")));
    assert_eq!(told(&world, Phase::Rejected, ReasonCode::ModelFailed), ["v@1"]);
    assert_eq!(world.updater.step(&task("meter")).phase(), Phase::Staged, "the rest is switched to");
    assert!(world.tell(failed("m@1")));
    assert_eq!(last(&world), (Phase::Failed, ReasonCode::LineupConflict));
    assert_eq!(
        (world.serving("meter").unwrap().as_str(), known_bad(&world)),
        ("m@1", vec!["v@1".to_string()])
    );
}

#[test]
fn a_crash_loop_after_the_commit_leaves_the_members_before_the_champion() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    let all = [TWO[0], ("meta@1", Role::Meta)];
    world.assign(2, vec![("meter", with(goal(2, "m@2", None), Rule::Stack, &all))]);
    world.settle();
    world.log.clear();
    crash(&mut world);
    assert_eq!(told(&world, Phase::RolledBack, ReasonCode::CrashLoop), ["v@1", "meta@1"]);
    assert_eq!((world.serving("meter").unwrap().as_str(), members(&world).len()), ("m@2", 0));
    assert!(line(&world).conduct.is_plain() && known_bad(&world).is_empty());
    crash(&mut world);
    assert_eq!(world.serving("meter").unwrap(), "m@1");
}

#[test]
fn a_withdrawn_member_goes_alone_and_a_withdrawn_champion_is_followed_by_the_chain_of_fallbacks() {
    let chain = [("second@1", Role::Fallback), ("v@1", VOTER)];
    let mut world = World::new();
    world.assign(1, vec![("meter", with(goal(1, "m@1", Some("base@1")), Rule::SoftVote, &chain))]);
    world.settle();
    world.tell(floors("v"));
    assert_eq!((world.serving("meter").unwrap().as_str(), members(&world)), ("m@1", vec!["second@1".into()]));
    let told = world.log.iter().rev().find_map(|command| match command {
        Command::Report { outcome, .. } if outcome.phase == Phase::RolledBack => outcome.release.clone(),
        _ => None,
    });
    assert_eq!(told, Some(release("v@1")), "nothing is said against the champion");
    world.tell(floors("m"));
    assert_eq!(world.serving("meter").unwrap(), "base@1");
    world.tell(floors("base"));
    assert_eq!(world.serving("meter").unwrap(), "second@1");
    world.tell(floors("second"));
    assert_eq!(world.serving("meter"), None);
}

#[test]
fn a_member_that_fails_too_often_stays_left_over_a_restart_until_an_operator_or_a_new_generation() {
    let failed = || Event::ServeFailed {
        task: task("meter"),
        release: release("v@1"),
        detail: "it failed".to_string(),
    };
    let mut world = World::new();
    world.assign(1, vec![("meter", stack(1))]);
    world.settle();
    assert!(world.tell(failed()));
    // A stack is nothing without one of its voters.
    assert_eq!((members(&world), line(&world).conduct.rule), (vec![], Rule::First));
    assert!(!world.tell(failed()), "it is not what serves any more");
    world.restart(Stop::PowerLost);
    world.settle();
    assert!(members(&world).is_empty());
    assert!(known_bad(&world).is_empty());
    assert!(world.tell(retarget("v@1")), "an operator has it tried again");
    world.settle();
    assert_eq!(members(&world), ["v@1", "meta@1"]);
    assert!(world.tell(failed()));
    world.assign(2, vec![("meter", stack(2))]);
    world.settle();
    assert_eq!((members(&world).len(), line(&world).conduct.rule), (2, Rule::Stack));
}

/// An operator's word comes with the floors as they are, and those are told right after it.
#[test]
fn a_withdrawn_member_that_an_operator_has_tried_again_is_not_served() {
    let failed = || Event::ServeFailed {
        task: task("meter"),
        release: release("v@1"),
        detail: "it failed".to_string(),
    };
    for (left, before) in [("by its failures", failed()), ("by its withdrawal", floors("v"))] {
        let mut world = World::new();
        world.assign(1, vec![("meter", vote(1, "m@1"))]);
        world.settle();
        world.tell(before);
        assert_eq!(members(&world), ["w@1"], "left {left}");
        world.log.clear();
        assert!(world.tell(retarget("v@1")), "left {left}");
        assert!(world.tell(floors("v")));
        let stays = |world: &World| {
            assert_eq!(world.serving("meter").unwrap(), "m@1", "left {left}");
            assert_eq!(members(world), ["w@1"], "left {left}");
        };
        stays(&world);
        world.settle();
        stays(&world);
        let again = |command: &Command| match command {
            Command::Prove { pack, .. } => pack.release == release("v@1"),
            Command::SwitchTo { line, .. } => line.packs().any(|pack| pack.release == release("v@1")),
            _ => false,
        };
        assert!(!world.log.iter().any(again), "left {left}: {:?}", world.log);
        world.restart(Stop::Orderly);
        world.settle();
        stays(&world);
    }
}

#[test]
fn a_member_that_fails_too_often_on_probation_leaves_the_champion_on_probation() {
    let mut world = World::new();
    world.assign(1, vec![("meter", goal(1, "m@1", None))]);
    world.settle();
    world.assign(2, vec![("meter", vote(2, "m@2"))]);
    world.until(Phase::Probation);
    let failed =
        Event::ServeFailed { task: task("meter"), release: release("v@1"), detail: "it failed".to_string() };
    assert!(world.tell(failed));
    assert_eq!(members(&world), ["w@1"]);
    assert_eq!(world.updater.step(&task("meter")).phase(), Phase::Probation);
    world.settle();
    assert_eq!(last(&world), (Phase::Committed, ReasonCode::Ok));
    assert_eq!(members(&world), ["w@1"]);
}
