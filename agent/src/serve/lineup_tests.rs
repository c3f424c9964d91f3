//! Line-ups of several members.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dunlin_engine::{floats, of_floats};
use dunlin_protocol::{
    BaselineRule, Conduct, ContextRule, Member, Now, ReasonCode, ResourceUse, Role, Rule, Signal, TaskId,
    TaskPolicy, TensorData,
};
use futures_util::FutureExt;

use super::onnx::{IDENTITY, broken, chain, linear, policy, resident};
use super::{
    Absence, Answer, AnsweredBy, Crew, INLINE_US_MAX, InferError, Limits, Reading, Resident, Serving,
};

const VOTER: Role = Role::Voter { weight_ppm: 1_000_000 };

fn task() -> TaskId {
    "meter".parse().unwrap()
}

fn now(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: Some(1_000_000 + mono_ms) }
}

/// Names the class of the largest input.
fn good(release: &str) -> Resident {
    weighted(release, &IDENTITY)
}

fn weighted(release: &str, w: &[f32; 9]) -> Resident {
    resident(release, &task(), &linear(3, 3, w, false), 3)
}

/// Names this class whatever comes, as long as the inputs are positive.
fn fixed(release: &str, class: usize) -> Resident {
    let mut w = [0.0; 9];
    w.iter_mut().skip(class).step_by(3).for_each(|w| *w = 1.0);
    weighted(release, &w)
}

/// Not finite for negative inputs, with which it was proved.
fn brittle(release: &str) -> Resident {
    broken(resident(release, &task(), &linear(3, 3, &IDENTITY, true), 3), &[-1.0, 1.0, 1.0])
}

fn x(row: [f32; 3]) -> Vec<TensorData> {
    vec![of_floats("x", &[1, 3], &row)]
}

fn crew(champion: Resident, rule: Rule, members: Vec<(Role, Resident)>) -> Crew {
    let member = |(role, model): (Role, Resident)| {
        (Member { release: model.release.clone(), role, limit_us: None }, model)
    };
    Crew {
        members: members.into_iter().map(member).collect(),
        conduct: Conduct { rule, context: vec![] },
        ..Crew::new(champion, None)
    }
}

fn serving(crew: Crew) -> Arc<Serving> {
    let serving = Serving::new(Limits::default());
    serving.set_policy(&policy(&task()));
    serving.line_up(&task(), crew, 5, false);
    serving
}

fn ask(serving: &Serving, id: &str, row: [f32; 3]) -> Answer {
    serving.infer(&task(), id, &x(row), now(1)).unwrap()
}

fn class(answer: &Answer) -> u32 {
    dunlin_engine::argmax(&floats(answer.outputs.last().unwrap()).unwrap()).unwrap()
}

fn release(answer: &Answer) -> String {
    answer.release.as_ref().unwrap().to_string()
}

fn names<'a>(releases: impl IntoIterator<Item = &'a dunlin_protocol::ReleaseId>) -> Vec<String> {
    releases.into_iter().map(ToString::to_string).collect()
}

#[test]
fn a_challenger_answers_its_share_of_the_ids_and_always_the_same_ones() {
    let role = Role::Challenger { share_ppm: 250_000 };
    let serving = serving(crew(good("m@1"), Rule::First, vec![(role, good("c@1"))]));
    let who = |i: u32| {
        let answer = ask(&serving, &format!("id-{i}"), [3.0, 0.0, 0.0]);
        (answer.by, release(&answer))
    };
    let all: Vec<_> = (0..2_000).map(who).collect();
    let challenged = all.iter().filter(|(by, _)| *by == AnsweredBy::Challenger).count();
    assert!((400..600).contains(&challenged), "{challenged} of 2000");
    assert!(all.iter().all(|(by, release)| (*by == AnsweredBy::Challenger) == (release == "c@1")));
    assert!((0..100).all(|i| who(i) == all[i as usize]));
    let again = all[..100].iter().filter(|(by, _)| *by == AnsweredBy::Challenger).count();
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    let n = |name: &str| windows.iter().find(|w| w.release == name.parse().ok()).unwrap().n;
    assert_eq!((n("c@1") as usize, n("m@1") as usize), (challenged + again, 2_100 - challenged - again));
}

#[test]
fn a_cascade_asks_the_bigger_one_only_when_the_smaller_is_unsure() {
    let rule = Rule::Cascade { margin_ppm: 300_000 };
    let serving = serving(crew(good("small@1"), rule, vec![(Role::Bigger, fixed("big@1", 2))]));
    let sure = ask(&serving, "a", [9.0, 0.0, 0.0]);
    assert_eq!((sure.by, class(&sure)), (AnsweredBy::Champion, 0));
    let unsure = ask(&serving, "b", [1.0, 1.1, 0.9]);
    assert_eq!((unsure.by, release(&unsure).as_str(), class(&unsure)), (AnsweredBy::Bigger, "big@1", 2));
    assert!(unsure.voters.is_empty() && unsure.left_out.is_empty());
    // Each is counted by what it said itself.
    serving.feedback(&task(), "b", 1, now(2)).unwrap();
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    let window = |name: &str| windows.iter().find(|w| w.release == name.parse().ok()).unwrap();
    let (small, big) = (window("small@1"), window("big@1"));
    assert_eq!((small.n, big.n), (2, 1));
    assert_eq!(small.confusion.counts.unpack(9).unwrap()[4], 1, "right, though the answer was not its own");
    assert_eq!(big.confusion.counts.unpack(9).unwrap()[5], 1);
    let pair = big.pair.as_ref().unwrap();
    assert_eq!((pair.n, pair.disagree, pair.only_other), (1, 1, 1));
    assert!(small.pair.is_none());
}

#[test]
fn a_bigger_member_that_fails_leaves_the_smaller_ones_answer() {
    let rule = Rule::Cascade { margin_ppm: 1_000_000 };
    let serving = serving(crew(good("small@1"), rule, vec![(Role::Bigger, brittle("big@1"))]));
    let answer = ask(&serving, "a", [-1.0, 1.0, 0.0]);
    assert_eq!((answer.by, class(&answer)), (AnsweredBy::Champion, 1));
    assert_eq!(answer.left_out, [("big@1".parse().unwrap(), Absence::Failed)]);
}

#[test]
fn votes_name_who_voted_and_who_did_not() {
    for (rule, winner) in [(Rule::HardVote, 2), (Rule::SoftVote, 0), (Rule::WeightedVote, 2)] {
        let heavy = Role::Voter { weight_ppm: 9_000_000 };
        let members = vec![(VOTER, fixed("a@1", 2)), (heavy, fixed("b@1", 2)), (VOTER, brittle("c@1"))];
        let serving = serving(crew(weighted("m@1", &IDENTITY.map(|w| w * 9.0)), rule, members));
        let answer = ask(&serving, "v", [0.9, 0.4, -0.8]);
        assert_eq!(answer.by, AnsweredBy::Vote);
        assert_eq!(names(&answer.voters), ["m@1", "a@1", "b@1"]);
        assert_eq!(answer.left_out, [("c@1".parse().unwrap(), Absence::Failed)]);
        assert_eq!((release(&answer).as_str(), answer.generation, answer.outputs.len()), ("m@1", 5, 1));
        let notes: Vec<_> = answer.notes().collect();
        assert_eq!(notes, [("voters", "m@1,a@1,b@1".to_owned()), ("left_out", "c@1:failed".to_owned())]);
        assert_eq!(class(&answer), winner, "{rule:?}");
        assert_eq!(serving.take_indicators()[0].reason, ReasonCode::ModelFailed);
    }
}

#[test]
fn a_vote_without_anybody_is_left_to_the_fallbacks_in_their_order_and_then_the_baseline() {
    let members = vec![
        (VOTER, brittle("a@1")),
        (Role::Fallback, brittle("second@1")),
        (Role::Fallback, fixed("third@1", 1)),
    ];
    let mut three = crew(brittle("m@1"), Rule::SoftVote, members);
    three.fallback = Some(brittle("first@1"));
    let serving = serving(three);
    let answer = ask(&serving, "a", [-1.0, 3.0, 0.0]);
    assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Fallback, "third@1"));
    let left_out = names(answer.left_out.iter().map(|(release, _)| release));
    assert_eq!(left_out, ["m@1", "a@1", "first@1", "second@1"]);

    serving.line_up(&task(), crew(brittle("m@1"), Rule::SoftVote, vec![(VOTER, brittle("a@1"))]), 6, false);
    let answer = ask(&serving, "b", [-1.0, 3.0, 0.0]);
    assert_eq!((answer.by, answer.release.as_ref(), answer.left_out.len()), (AnsweredBy::Baseline, None, 2));
}

#[test]
fn a_rule_of_the_policy_comes_before_its_constant() {
    let serving = serving(crew(brittle("m@1"), Rule::First, vec![]));
    let rule =
        |feature, from_micro, below_micro, class| BaselineRule { feature, from_micro, below_micro, class };
    let baseline_rules = vec![
        rule(9, None, None, 0),
        rule(0, None, None, 7),
        rule(1, Some(500_000), Some(2_000_000), 2),
        rule(1, Some(2_000_000), None, 0),
    ];
    serving.set_policy(&TaskPolicy { baseline_rules, ..policy(&task()) });
    for (second, expected) in [(0.4, 1), (0.5, 2), (1.9, 2), (2.0, 0), (f32::NAN, 1)] {
        let answer = ask(&serving, "a", [-1.0, second, 0.0]);
        assert_eq!((answer.by, class(&answer)), (AnsweredBy::Baseline, expected), "{second}");
    }
}

/// Hears three scores each of two models; follows the second.
fn meta(release: &str) -> Resident {
    let mut w = [0.0; 18];
    (0..3).for_each(|class| w[(3 + class) * 3 + class] = 5.0);
    resident(release, &task(), &linear(6, 3, &w, false), 3)
}

#[test]
fn a_stack_answers_what_the_meta_model_makes_of_all_scores_or_the_champion() {
    let stack = |voter| crew(good("m@1"), Rule::Stack, vec![(VOTER, voter), (Role::Meta, meta("meta@1"))]);
    let serving = serving(stack(fixed("v@1", 2)));
    let answer = ask(&serving, "a", [3.0, 1.0, 0.0]);
    assert_eq!((answer.by, release(&answer).as_str(), class(&answer)), (AnsweredBy::Stack, "meta@1", 2));
    assert_eq!(names(&answer.voters), ["m@1", "v@1"]);
    assert_eq!(answer.outputs.last().unwrap().shape, [1, 3]);

    serving.line_up(&task(), stack(brittle("v@1")), 6, false);
    let answer = ask(&serving, "b", [3.0, -1.0, 0.0]);
    assert_eq!((answer.by, class(&answer)), (AnsweredBy::Champion, 0));
    assert_eq!(answer.left_out, [("v@1".parse().unwrap(), Absence::Failed)]);
}

#[test]
fn a_shadow_is_counted_beside_the_champion_within_its_budget() {
    let shadow = |cpu_ppm, battery_ppm_min| Role::Shadow { cpu_ppm, ram_bytes: 0, battery_ppm_min };
    let members = vec![(shadow(1_000_000, 500_000), fixed("s@1", 2)), (shadow(0, 0), good("never@1"))];
    let serving = serving(crew(good("m@1"), Rule::First, members));
    for i in 0..10 {
        let row = if i < 4 { [0.0, 0.0, 3.0] } else { [3.0, 0.0, 0.0] };
        let answer = ask(&serving, &format!("s{i}"), row);
        assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Champion, "m@1"));
    }
    serving.feedback(&task(), "s9", 0, now(3)).unwrap();
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    assert_eq!(windows.len(), 2, "{windows:?}");
    let shadow = windows.iter().find(|w| w.release == "s@1".parse().ok()).unwrap();
    let pair = shadow.pair.as_ref().unwrap();
    assert_eq!((shadow.n, pair.n, pair.disagree, pair.only_other), (10, 10, 6, 1));
    assert_eq!(pair.other.to_string(), "m@1");
    let champion = windows.iter().find(|w| w.release == "m@1".parse().ok()).unwrap();
    assert!(champion.n == 10 && champion.pair.is_none());

    serving.surrounded(Reading { battery_ppm: Some(499_999), ..Reading::default() }, now(4));
    ask(&serving, "saving", [3.0, 0.0, 0.0]);
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    assert_eq!(windows.len(), 1, "the battery is for answers");
}

#[test]
fn the_context_moves_the_task_to_a_smaller_member_and_back() {
    let mut wanted =
        crew(good("m@1"), Rule::SoftVote, vec![(VOTER, good("v@1")), (Role::Smaller, good("s@1"))]);
    let rule = ContextRule { signal: Signal::TemperatureMc, enter: 80_000, leave: 70_000, dwell_ms: 10_000 };
    wanted.conduct.context = vec![rule];
    let serving = serving(wanted);
    let at = |seconds: u64, mc: i64| {
        let reading = Reading { temperature_mc: Some(mc), ..Reading::default() };
        serving.surrounded(reading, now(seconds * 1_000));
        let answer = ask(&serving, "a", [3.0, 0.0, 0.0]);
        (answer.by, answer.voters.len())
    };
    assert_eq!(at(0, 85_000), (AnsweredBy::Vote, 2), "it has to last");
    assert_eq!(at(10, 85_000), (AnsweredBy::Smaller, 0));
    assert!(serving.view_of(&task()).unwrap().degraded.unwrap().contains("temperature"));
    assert_eq!(at(20, 75_000).0, AnsweredBy::Smaller, "between the bounds nothing moves");
    assert_eq!((at(30, 60_000).0, at(40, 60_000).0), (AnsweredBy::Smaller, AnsweredBy::Vote));
    let told = serving.take_indicators();
    assert_eq!((told.len(), told[0].reason, told[0].count), (1, ReasonCode::Degraded, 2));
    assert!(told[0].detail.contains("good again"), "{}", told[0].detail);
}

/// Fails on negative inputs, and takes one feature less than all others.
fn narrow(release: &str) -> Resident {
    resident(release, &task(), &linear(2, 3, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], true), 3)
}

#[test]
fn what_the_champion_can_not_read_is_the_callers_fault_whoever_failed_before() {
    let challenger = (Role::Challenger { share_ppm: 1_000_000 }, narrow("c@1"));
    let serving = serving(crew(good("m@1"), Rule::First, vec![challenger]));
    let short = vec![of_floats("x", &[1, 2], &[-1.0, 0.0])];
    for i in 1..2 * super::STRIKES_MAX {
        let answer = serving.infer(&task(), &format!("{i}"), &short, now(1));
        assert!(matches!(answer, Err(InferError::Input(_))), "{answer:?}");
    }
    assert_eq!(serving.guard(&task()).unwrap().errors, 0);
    let told = serving.take_indicators();
    assert!(told.iter().all(|indicator| indicator.detail.contains("c@1")), "{told:?}");
    assert!(serving.view_of(&task()).unwrap().members[0].out.is_none());
}

#[test]
fn a_member_that_can_not_read_what_others_can_is_left_out_and_not_struck() {
    let members = vec![(VOTER, narrow("v@1")), (Role::Fallback, narrow("f@1"))];
    let serving = serving(crew(brittle("m@1"), Rule::SoftVote, members));
    for i in 0..2 * super::STRIKES_MAX {
        let answer = ask(&serving, &format!("{i}"), [3.0, 1.0, 1.0]);
        assert_eq!((answer.by, answer.voters.len()), (AnsweredBy::Champion, 0), "one voice is no vote");
        assert_eq!(answer.left_out, [("v@1".parse().unwrap(), Absence::Failed)]);
    }
    assert!(serving.take_indicators().is_empty());

    let answer = ask(&serving, "failed", [-1.0, 3.0, 0.0]);
    assert_eq!((answer.by, answer.left_out.len()), (AnsweredBy::Baseline, 3));
    let told = serving.take_indicators();
    assert!(told.len() == 1 && told[0].detail.contains("m@1"), "{told:?}");
    assert!(serving.view_of(&task()).unwrap().members.iter().all(|member| member.out.is_none()));
}

#[test]
fn voters_are_those_that_were_heard() {
    let misfit = resident("w@1", &task(), &linear(3, 2, &[1.0; 6], false), 2);
    let serving = serving(crew(good("m@1"), Rule::SoftVote, vec![(VOTER, misfit), (VOTER, good("v@1"))]));
    let answer = ask(&serving, "a", [3.0, 0.0, 0.0]);
    assert_eq!((answer.by, class(&answer)), (AnsweredBy::Vote, 0));
    assert_eq!(names(&answer.voters), ["m@1", "v@1"]);
    assert_eq!(answer.left_out, [("w@1".parse().unwrap(), Absence::Failed)]);
}

/// One that needs a worker, whatever the request.
fn heavy(mut model: Resident) -> Resident {
    Arc::get_mut(&mut model.bundle).unwrap().latency_us = 1_000 * INLINE_US_MAX;
    model
}

/// A device with one worker, and a place for one request to wait for it.
fn small(crew: Crew) -> Arc<Serving> {
    let serving = Serving::new(Limits { workers: 1, waiting_max: 1, ..Limits::default() });
    serving.set_policy(&policy(&task()));
    serving.line_up(&task(), crew, 1, false);
    serving
}

async fn asked(serving: &Serving, row: [f32; 3]) -> Result<Answer, InferError> {
    serving.answer(&task(), None, "a".into(), x(row), now(1)).await
}

#[tokio::test]
async fn voters_that_find_no_worker_are_left_out_and_not_struck() {
    let mut wanted = crew(good("m@1"), Rule::SoftVote, vec![(VOTER, good("v@1")), (VOTER, good("w@1"))]);
    wanted.members.iter_mut().for_each(|(member, _)| member.limit_us = Some(10_000));
    let serving = small(wanted);
    let _held = serving.pool.hold();
    // One waits in vain, and there is no place for the other.
    let answer = asked(&serving, [3.0, 0.0, 0.0]).await.unwrap();
    assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Champion, "m@1"));
    let late = |name: &str| (name.parse().unwrap(), Absence::Late);
    assert_eq!(answer.left_out, [late("v@1"), late("w@1")]);
    assert!(serving.take_indicators().is_empty(), "no failure is counted");
    assert_eq!(serving.view_of(&task()).unwrap().failed, 0);
}

#[tokio::test]
async fn the_champion_waits_for_no_voter() {
    let mut wanted = crew(heavy(good("m@1")), Rule::SoftVote, vec![(VOTER, good("v@1"))]);
    wanted.members[0].0.limit_us = Some(60_000_000);
    let serving = small(wanted);
    let held = serving.pool.hold();
    // The one place in the queue is the champion's.
    let mut waiting = Box::pin(asked(&serving, [3.0, 0.0, 0.0]));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(held);
    let answer = waiting.await.unwrap();
    assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Champion, "m@1"));
    assert_eq!(answer.left_out, [("v@1".parse().unwrap(), Absence::Late)]);
}

#[tokio::test]
async fn a_request_is_refused_only_if_nobody_answers() {
    let challenger = |model| vec![(Role::Challenger { share_ppm: 1_000_000 }, heavy(model))];
    let serving = small(crew(brittle("m@1"), Rule::First, challenger(good("c@1"))));
    let held = serving.pool.hold();
    let mut waiting = Box::pin(asked(&serving, [3.0, 1.0, 1.0]));
    assert!(waiting.as_mut().now_or_never().is_none());
    let answer = asked(&serving, [3.0, 1.0, 1.0]).await.unwrap();
    assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Champion, "m@1"));
    assert_eq!(answer.left_out, [("c@1".parse().unwrap(), Absence::Late)]);
    let refused = asked(&serving, [-1.0, 1.0, 1.0]).await;
    assert_eq!(refused, Err(InferError::Overloaded), "the baseline is for models that can not answer");
    drop(held);
    assert_eq!(waiting.await.unwrap().by, AnsweredBy::Challenger);
}

#[tokio::test]
async fn a_champion_that_too_many_wait_for_leaves_the_vote_to_the_voters() {
    let serving = small(crew(heavy(good("m@1")), Rule::SoftVote, vec![(VOTER, good("v@1"))]));
    let held = serving.pool.hold();
    let (task_id, champion) = (task(), Some("m@1".parse().unwrap()));
    let mut waiting = Box::pin(serving.answer(&task_id, champion, "b".into(), x([3.0, 0.0, 0.0]), now(1)));
    assert!(waiting.as_mut().now_or_never().is_none());
    let answer = asked(&serving, [3.0, 0.0, 0.0]).await.unwrap();
    assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Fallback, "v@1"));
    assert_eq!(answer.left_out, [("m@1".parse().unwrap(), Absence::Late)]);
    drop(held);
    assert_eq!(waiting.await.unwrap().by, AnsweredBy::Champion);

    let with_fallback = Crew { fallback: Some(good("f@1")), ..crew(heavy(good("m@1")), Rule::First, vec![]) };
    serving.line_up(&task(), with_fallback, 2, false);
    let held = serving.pool.hold();
    let mut waiting = Box::pin(asked(&serving, [3.0, 0.0, 0.0]));
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(asked(&serving, [3.0, 0.0, 0.0]).await, Err(InferError::Overloaded));
    drop(held);
    assert_eq!(waiting.await.unwrap().by, AnsweredBy::Champion);
}

#[tokio::test]
async fn a_shadow_runs_on_an_idle_worker_or_not_at_all() {
    let shadow = Role::Shadow { cpu_ppm: 1_000_000, ram_bytes: 0, battery_ppm_min: 0 };
    let serving = small(crew(good("m@1"), Rule::First, vec![(shadow, good("s@1"))]));
    let held = serving.pool.hold();
    asked(&serving, [3.0, 0.0, 0.0]).await.unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(held);
    asked(&serving, [3.0, 0.0, 0.0]).await.unwrap();
    let counted = async {
        loop {
            let windows = serving.close_windows(now(60_000), &ResourceUse::default());
            if let Some(window) = windows.iter().find(|w| w.release == "s@1".parse().ok()) {
                break window.n;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(60), counted).await.unwrap();
    assert_eq!(counted, 1, "the first was let go");
}

#[test]
fn in_probation_champion_and_fallbacks_before_stay_in_memory_and_are_shared() {
    let (champion, fallback, voter) = (good("m@1"), good("f@1"), good("v@1"));
    let resident = |serving: &Serving| names(serving.residents().iter().map(|model| &model.release));
    let of = |model: &Resident| Arc::downgrade(&model.model);
    let loaded = [of(&champion), of(&fallback), of(&voter)];
    let in_memory = || loaded.each_ref().map(|model: &Weak<_>| model.strong_count() > 0);
    let voting = crew(champion, Rule::SoftVote, vec![(Role::Fallback, fallback), (VOTER, voter)]);
    let serving = serving(voting);
    assert_eq!(serving.residents().len(), 3);

    // The fallback goes on under the new champion.
    let shared = serving.residents().into_iter().find(|model| model.release.to_string() == "f@1");
    serving.line_up(&task(), Crew::new(good("m@2"), shared), 6, true);
    assert_eq!(in_memory(), [true, true, false]);
    assert_eq!(resident(&serving), ["m@2", "f@1", "m@1", "f@1"]);

    assert!(serving.rollback(&task()));
    let answer = ask(&serving, "a", [3.0, 0.0, 0.0]);
    assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Champion, "m@1"));
    assert_eq!(resident(&serving), ["m@1", "f@1"]);
}

#[test]
fn a_model_that_failed_too_often_is_not_shared() {
    let serving = serving(crew(brittle("m@1"), Rule::First, vec![(Role::Fallback, good("f@1"))]));
    for i in 0..super::STRIKES_MAX {
        assert_eq!(ask(&serving, &format!("{i}"), [-1.0, 1.0, 0.0]).by, AnsweredBy::Fallback);
    }
    assert_eq!(names(serving.residents().iter().map(|model| &model.release)), ["f@1"]);
}

#[test]
fn a_voter_that_fails_too_often_is_told_to_who_decides_what_serves() {
    let serving = serving(crew(good("m@1"), Rule::SoftVote, vec![(VOTER, brittle("v@1"))]));
    for i in 0..super::STRIKES_MAX {
        ask(&serving, &format!("{i}"), [-1.0, 1.0, 0.0]);
    }
    let fallen = serving.fallen().now_or_never().unwrap();
    assert_eq!(names(fallen.iter().map(|(_, release, _)| release)), ["v@1"]);
    assert!(serving.fallen().now_or_never().is_none(), "it is told once");
}

#[test]
fn readings_are_asked_for_where_a_rule_or_a_shadow_goes_by_them() {
    let shadow = Role::Shadow { cpu_ppm: 10_000, ram_bytes: 0, battery_ppm_min: 0 };
    let serving = serving(crew(good("m@1"), Rule::First, vec![]));
    assert!(!serving.wants_reading());
    serving.line_up(&task(), crew(good("m@1"), Rule::First, vec![(shadow, good("s@1"))]), 6, false);
    assert!(serving.wants_reading());
    let mut smaller = crew(good("m@1"), Rule::First, vec![(Role::Smaller, good("s@1"))]);
    smaller.conduct.context =
        vec![ContextRule { signal: Signal::Link, enter: 0, leave: 1, dwell_ms: 60_000 }];
    serving.line_up(&task(), smaller, 7, false);
    assert!(serving.wants_reading());
    serving.line_up(&task(), crew(good("m@1"), Rule::First, vec![]), 8, false);
    assert!(!serving.wants_reading());
}

/// Enough columns for a product that takes a while.
const SIDE: usize = 512;
const ROWS: u64 = 1024;

fn batch() -> Vec<TensorData> {
    vec![of_floats("x", &[ROWS, SIDE as u64], &vec![0.0; SIDE * ROWS as usize])]
}

fn quick(release: &str) -> Resident {
    resident(release, &task(), &linear(SIDE, 3, &[0.0; SIDE * 3], false), 3)
}

/// Some seconds of work for a batch.
fn slow(release: &str) -> Resident {
    resident(release, &task(), &chain(SIDE, 60), SIDE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_late_is_left_out_and_named() {
    let limits = Limits { workers: 2, run_max: Duration::from_secs(60), ..Limits::default() };
    let serving = Serving::new(limits);
    let mut wanted = crew(quick("m@1"), Rule::SoftVote, vec![(VOTER, quick("a@1")), (VOTER, slow("late@1"))]);
    wanted.members[1].0.limit_us = Some(100_000);
    serving.line_up(&task(), wanted, 1, false);
    let answer = serving.answer(&task(), None, "a".into(), batch(), now(1)).await.unwrap();
    assert_eq!((answer.by, names(&answer.voters)), (AnsweredBy::Vote, vec!["m@1".into(), "a@1".into()]));
    assert_eq!(answer.left_out, [("late@1".parse().unwrap(), Absence::Late)]);
}

#[test]
fn a_predecessor_that_fails_does_not_strike_the_champion() {
    let serving = Serving::new(Limits::default());
    serving.switch(&task(), brittle("m@1"), None, 1, false);
    serving.switch(&task(), good("m@2"), None, 2, true);
    for i in 0..2 * super::STRIKES_MAX {
        let answer = ask(&serving, &format!("{i}"), [-1.0, 1.0, 0.0]);
        assert_eq!((answer.by, release(&answer).as_str()), (AnsweredBy::Champion, "m@2"));
    }
    assert_eq!(serving.guard(&task()).unwrap().errors, 0);
    assert!(serving.take_indicators().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_ups_are_swapped_whole_while_requests_are_in_flight() {
    let lineup = |generation: u64| {
        let name = |part: &str| good(&format!("{part}@{generation}"));
        crew(name("m"), Rule::HardVote, vec![(VOTER, name("a")), (VOTER, name("b"))])
    };
    let serving = Serving::new(Limits::default());
    serving.line_up(&task(), lineup(1), 1, false);
    let over = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4)
        .map(|asker| {
            let (serving, over) = (serving.clone(), over.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !over.load(Ordering::Relaxed) || n == 0 {
                    let id = format!("{asker}-{n}");
                    let answer = serving.answer(&task(), None, id, x([3.0, 0.0, 0.0]), now(1)).await.unwrap();
                    assert!(answer.left_out.is_empty());
                    assert!(answer.voters.iter().all(|r| u64::from(r.version) == answer.generation));
                    // After a roll-back only the champion is left.
                    assert!(matches!(answer.voters.len(), 0 | 3));
                    assert_eq!(class(&answer), 0);
                    n += 1;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for generation in 2..60 {
        serving.line_up(&task(), lineup(generation), generation, generation % 2 == 0);
        if generation % 4 == 0 {
            assert!(serving.rollback(&task()));
            let view = serving.view_of(&task()).unwrap();
            assert_eq!((view.generation, view.members.len()), (generation - 1, 1), "it was kept warm");
        }
        tokio::task::yield_now().await;
    }
    over.store(true, Ordering::Relaxed);
    for task in asking {
        task.await.unwrap();
    }
}
