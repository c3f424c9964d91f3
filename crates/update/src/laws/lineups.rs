//! The laws, for line-ups of several members.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{Phase, ReasonCode, Role, Rule};

use super::world::{World, goal, release, task, with};
use crate::{Command, Event, Goal, Line};

const VOTER: Role = Role::Voter { weight_ppm: 500_000 };

fn line(world: &World) -> &Line {
    world.updater.designation(&task("meter")).line().unwrap()
}

fn members(world: &World) -> Vec<String> {
    line(world).members.iter().map(|(member, _)| member.release.to_string()).collect()
}

fn stack(generation: u64) -> Goal {
    with(goal(generation, "m@1", None), Rule::Stack, &[("v@1", VOTER), ("meta@1", Role::Meta)])
}

fn proofs(world: &World) -> usize {
    world.log.iter().filter(|command| matches!(command, Command::Prove { .. })).count()
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
    assert!(world.tell(Event::Retarget { release: release("v@1") }));
    world.assign(3, vec![("meter", stack(3))]);
    world.settle();
    assert_eq!((members(&world).len(), line(&world).conduct.rule), (2, Rule::Stack));
}

#[test]
fn members_that_do_not_go_with_the_champion_are_refused_before_they_are_fetched() {
    for members in [
        &[("odd@1", Role::Bigger)][..],
        &[("foreign@1", VOTER)],
        &[("v@1", VOTER), ("w@1", VOTER), ("meta@1", Role::Meta)],
        &[("v@1", VOTER), ("m@2", Role::Meta)],
    ] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "m@1", None))]);
        world.settle();
        world.assign(2, vec![("meter", with(goal(2, "m@1", None), Rule::Stack, members))]);
        world.settle();
        assert_eq!(world.phases().last(), Some(&(Phase::Failed, ReasonCode::LineupConflict)), "{members:?}");
        assert!(line(&world).members.is_empty());
    }
}

#[test]
fn a_withdrawn_member_goes_alone_and_a_withdrawn_champion_is_followed_by_the_chain_of_fallbacks() {
    let chain = [("second@1", Role::Fallback), ("v@1", VOTER)];
    let mut world = World::new();
    world.assign(1, vec![("meter", with(goal(1, "m@1", Some("base@1")), Rule::SoftVote, &chain))]);
    world.settle();
    let floors = |model: &str| Event::FloorsRaised([(model.parse().unwrap(), 2)].into());
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
