use dunlin_protocol::{Conduct, Member, Now, Rule};

use super::*;
use crate::serve::onnx::{IDENTITY, linear, policy, resident};
use crate::serve::{Absence, AnsweredBy, Crew, Limits};

const NO_BUDGET: Budget = Budget { ram_bytes: None, cpu_ppm: None };

fn held(task: &str, role: MemberRole, model: u8, bytes: u64, value: u32) -> Held {
    Held {
        task: task.parse().unwrap(),
        role,
        release: format!("m@{model}").parse().unwrap(),
        model: Digest([model; 32]),
        value,
        bytes,
        row_us: 0,
        share_ppm: ALL_PPM,
        cpu_ppm_max: None,
        trial: false,
        struck: false,
    }
}

/// Two tasks with champion, fallback and predecessor, ten bytes each.
fn two_tasks() -> Vec<Held> {
    let parts = [MemberRole::Champion, MemberRole::Fallback, MemberRole::Previous];
    let of = |task, value, from: u8| {
        parts.into_iter().zip(from..).map(move |(role, model)| held(task, role, model, 10, value))
    };
    of("low", 1, 1).chain(of("high", 2, 11)).collect()
}

fn out(all: &[Held], budget: Budget) -> Vec<(&str, MemberRole)> {
    let candidates: Vec<_> = all.iter().map(|held| Candidate { held, cpu_ppm: 100, away_ms: None }).collect();
    let out = pack(&candidates, &budget);
    out.into_iter().map(|i| (all[i].task.as_str(), all[i].role)).collect()
}

fn ram(bytes: u64) -> Budget {
    Budget { ram_bytes: Some(bytes), cpu_ppm: None }
}

#[test]
fn without_a_bound_everything_stays() {
    assert!(out(&two_tasks(), NO_BUDGET).is_empty());
    assert!(out(&two_tasks(), ram(60 * 100)).is_empty());
}

#[test]
fn who_only_listens_goes_first_then_fallbacks_then_champions_of_less_worth() {
    use MemberRole::{Champion, Fallback, Previous};
    let all = two_tasks();
    let steps: [(u64, &[(&str, MemberRole)]); 4] = [
        (500, &[("low", Previous)]),
        (400, &[("low", Previous), ("high", Previous)]),
        (300, &[("low", Fallback), ("low", Previous), ("high", Previous)]),
        (
            100,
            &[
                ("low", Champion),
                ("low", Fallback),
                ("low", Previous),
                ("high", Fallback),
                ("high", Previous),
            ],
        ),
    ];
    let large: Vec<Held> = all.iter().map(|held| Held { bytes: 100, ..held.clone() }).collect();
    for (bytes, gone) in steps {
        assert_eq!(out(&large, ram(bytes)), gone, "{bytes} bytes");
    }
}

#[test]
fn members_of_a_line_up_go_in_the_order_of_what_answers_lose_by_it() {
    use MemberRole::{Bigger, Challenger, Champion, Meta, Shadow, Smaller, Voter};
    let parts = [Voter, Shadow, Smaller, Champion, Challenger, Meta, Bigger];
    let all: Vec<Held> =
        parts.into_iter().zip(1..).map(|(role, model)| held("a", role, model, 100, 1)).collect();
    let steps: [(u64, &[MemberRole]); 4] = [
        (600, &[Voter, Smaller, Champion, Challenger, Meta, Bigger]),
        (500, &[Voter, Smaller, Champion, Meta, Bigger]),
        (200, &[Smaller, Champion]),
        (100, &[Champion]),
    ];
    for (bytes, stays) in steps {
        let gone = out(&all, ram(bytes));
        let left: Vec<_> = parts.into_iter().filter(|role| !gone.contains(&("a", *role))).collect();
        assert_eq!(left, stays, "{bytes} bytes");
    }
}

#[test]
fn a_member_costs_what_it_is_asked_and_no_more_than_its_own_budget() {
    let whole = Held { row_us: 100, ..held("a", MemberRole::Champion, 1, 0, 1) };
    // 5,000 rows a second of 100 microseconds each are half a core.
    assert_eq!(whole.cpu_ppm(5_000_000), 500_000);
    assert_eq!(Held { share_ppm: 200_000, ..whole.clone() }.cpu_ppm(5_000_000), 100_000);
    assert_eq!(Held { cpu_ppm_max: Some(30_000), ..whole }.cpu_ppm(5_000_000), 30_000);
}

#[test]
fn what_is_small_enough_stays_beside_what_is_not() {
    let all = [
        held("a", MemberRole::Champion, 1, 900, 3),
        held("b", MemberRole::Champion, 2, 5_000, 2),
        held("c", MemberRole::Champion, 3, 100, 1),
    ];
    assert_eq!(out(&all, ram(1_000)), [("b", MemberRole::Champion)]);
}

#[test]
fn one_file_counts_once_however_many_serve_it() {
    let mut all =
        vec![held("a", MemberRole::Champion, 7, 600, 2), held("b", MemberRole::Champion, 7, 600, 1)];
    assert!(out(&all, ram(1_000)).is_empty());
    all[1].model = Digest([8; 32]);
    assert_eq!(out(&all, ram(1_000)), [("b", MemberRole::Champion)]);
}

#[test]
fn processor_time_is_that_of_who_answers_and_who_listens() {
    use MemberRole::{Fallback, Previous};
    let all = two_tasks();
    let cpu = |ppm| Budget { ram_bytes: None, cpu_ppm: Some(ppm) };
    // A fallback costs nothing while its champion answers.
    assert_eq!(out(&all, cpu(200)), [("low", Previous), ("high", Previous)]);
    assert!(out(&all[..2], cpu(100)).is_empty());
    let candidates: Vec<_> = all[..2]
        .iter()
        .map(|held| Candidate { held, cpu_ppm: if held.role == Fallback { 50 } else { 200 }, away_ms: None })
        .collect();
    assert_eq!(pack(&candidates, &cpu(100)), BTreeSet::from([0]), "the lighter one answers alone");
}

#[test]
fn who_is_on_probation_stays_and_who_is_quarantined_does_not() {
    let mut all =
        vec![held("a", MemberRole::Champion, 1, 800, 1), held("b", MemberRole::Champion, 2, 800, 2)];
    all[0].trial = true;
    assert_eq!(out(&all, ram(1_000)), [("b", MemberRole::Champion)]);
    all[0].trial = false;
    all[1].struck = true;
    assert_eq!(out(&all, ram(1_000)), [("b", MemberRole::Champion)]);
}

#[test]
fn what_is_out_comes_back_only_with_room_to_spare_and_after_a_while() {
    let one = held("a", MemberRole::Champion, 1, 950, 1);
    let out =
        |held, away_ms, bytes| !pack(&[Candidate { held, cpu_ppm: 0, away_ms }], &ram(bytes)).is_empty();
    assert!(!out(&one, None, 1_000), "what is in stays in");
    assert!(out(&one, Some(DWELL_MS), 1_000), "five in a hundred to spare are too few");
    assert!(!out(&one, Some(DWELL_MS), 1_100));
    assert!(out(&one, Some(DWELL_MS - 1), 1_100), "too soon");
}

#[test]
fn a_member_out_of_memory_is_answered_for_and_answers_again_when_it_is_back() {
    let serving = Serving::new(Limits::default());
    let task: TaskId = "meter".parse().unwrap();
    let good = |release| resident(release, &task, &linear(3, 3, &IDENTITY, false), 3);
    let ask = || {
        let x = vec![dunlin_engine::of_floats("x", &[1, 3], &[1.0, 2.0, 3.0])];
        serving.infer(&task, "a", &x, Now { mono_ms: 1, wall_ms: None }).unwrap().by
    };
    serving.set_policy(&policy(&task));
    let champion = good("m@2");
    let loaded = Arc::downgrade(&champion.model);
    serving.switch(&task, champion, Some(good("m@1")), 1, false);
    assert_eq!(ask(), AnsweredBy::Champion);
    let all = serving.held();
    assert_eq!(
        all.iter().map(|held| held.role).collect::<Vec<_>>(),
        [MemberRole::Champion, MemberRole::Fallback]
    );
    assert_eq!((serving.rows()[&task], all[0].value), (1, VALUE));
    serving.take_out(&all[0]);
    assert!(loaded.upgrade().is_none(), "its memory is given back");
    assert_eq!(ask(), AnsweredBy::Fallback);
    serving.take_out(&all[1]);
    assert_eq!(ask(), AnsweredBy::Baseline);
    assert_eq!(serving.view_of(&task).unwrap().away.len(), 2);
    serving.put_back(&all[0], good("m@2"));
    assert_eq!(ask(), AnsweredBy::Champion);
    serving.switch(&task, good("m@3"), None, 2, false);
    serving.take_out(&all[0]);
    assert_eq!(ask(), AnsweredBy::Champion, "another release has its place");
}

#[test]
fn a_stack_whose_voter_is_out_of_memory_is_answered_by_its_champion_and_says_so() {
    let serving = Serving::new(Limits::default());
    let task: TaskId = "meter".parse().unwrap();
    let linear =
        |release: &str, features, w: &[f32]| resident(release, &task, &linear(features, 3, w, false), 3);
    let good = |release| linear(release, 3, &IDENTITY);
    let member =
        |role, model: Resident| (Member { release: model.release.clone(), role, limit_us: None }, model);
    let voter = Role::Voter { weight_ppm: 1_000_000 };
    let crew = Crew {
        members: vec![member(voter, good("v@1")), member(Role::Meta, linear("meta@1", 6, &[1.0; 18]))],
        conduct: Conduct { rule: Rule::Stack, context: vec![] },
        ..Crew::new(good("m@1"), None)
    };
    serving.line_up(&task, crew, 1, false);
    let ask = || {
        let x = vec![dunlin_engine::of_floats("x", &[1, 3], &[1.0, 2.0, 3.0])];
        serving.infer(&task, "a", &x, Now { mono_ms: 1, wall_ms: None }).unwrap()
    };
    assert_eq!(ask().by, AnsweredBy::Stack);
    let held = serving.held().into_iter().find(|held| held.role == MemberRole::Voter).unwrap();
    serving.take_out(&held);
    let answer = ask();
    assert_eq!(answer.by, AnsweredBy::Champion);
    assert_eq!(answer.left_out, [(held.release.clone(), Absence::Unloaded)]);
    serving.put_back(&held, good("v@1"));
    assert_eq!(ask().by, AnsweredBy::Stack);
    assert!(serving.take_indicators().is_empty(), "nothing has failed");
}

#[test]
fn a_smaller_member_stands_in_for_a_champion_that_is_out_of_memory() {
    let serving = Serving::new(Limits::default());
    let task: TaskId = "meter".parse().unwrap();
    let good = |release| resident(release, &task, &linear(3, 3, &IDENTITY, false), 3);
    let smaller = good("s@1");
    let member = Member { release: smaller.release.clone(), role: Role::Smaller, limit_us: None };
    let crew = Crew { members: vec![(member, smaller)], ..Crew::new(good("m@1"), None) };
    serving.line_up(&task, crew, 1, false);
    serving.take_out(&serving.held()[0]);
    let x = vec![dunlin_engine::of_floats("x", &[1, 3], &[1.0, 2.0, 3.0])];
    let answer = serving.infer(&task, "a", &x, Now { mono_ms: 1, wall_ms: None }).unwrap();
    assert_eq!(answer.by, AnsweredBy::Smaller);
    assert_eq!(answer.left_out, [("m@1".parse().unwrap(), Absence::Unloaded)]);
}

#[test]
fn a_predecessor_goes_with_its_fallbacks() {
    let serving = Serving::new(Limits::default());
    let task: TaskId = "meter".parse().unwrap();
    let good = |release| resident(release, &task, &linear(3, 3, &IDENTITY, false), 3);
    let (champion, fallback) = (good("m@1"), good("f@1"));
    let loaded = [&champion, &fallback].map(|model| Arc::downgrade(&model.model));
    serving.switch(&task, champion, Some(fallback), 1, false);
    serving.switch(&task, good("m@2"), None, 2, true);
    let all = serving.held();
    let before: Vec<_> = all.iter().filter(|held| held.role == MemberRole::Previous).collect();
    assert_eq!(before.iter().map(|held| held.share_ppm).collect::<Vec<_>>(), [ALL_PPM, 0]);
    assert!(all[0].trial);
    serving.take_out(before[1]);
    assert!(loaded.iter().all(|model| model.upgrade().is_none()));
    assert!(!serving.rollback(&task), "there is nothing left to return to at once");
}
