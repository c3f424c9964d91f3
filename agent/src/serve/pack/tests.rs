use dunlin_protocol::Now;

use super::*;
use crate::serve::onnx::{IDENTITY, linear, policy, resident};
use crate::serve::{AnsweredBy, Limits};

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
        trial: false,
        struck: false,
    }
}

/// Two tasks with all that a line-up can have, ten bytes each.
fn two_tasks() -> Vec<Held> {
    let parts = [MemberRole::Champion, MemberRole::Fallback, MemberRole::Previous];
    let of = |task, value, from: u8| {
        parts.into_iter().zip(from..).map(move |(role, model)| held(task, role, model, 10, value))
    };
    of("low", 1, 0).chain(of("high", 2, 10)).collect()
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
    serving.put_back(&task, MemberRole::Champion, good("m@2"));
    assert_eq!(ask(), AnsweredBy::Champion);
    serving.switch(&task, good("m@3"), None, 2, false);
    serving.take_out(&all[0]);
    assert_eq!(ask(), AnsweredBy::Champion, "another release has its place");
}
