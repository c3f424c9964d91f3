use std::time::Duration;

use dunlin_engine::{floats, of_floats};
use dunlin_protocol::{Conduct, Member, Now, Role, Rule, TaskId};

use super::*;
use crate::serve::onnx::{IDENTITY, fixed, linear, resident};
use crate::serve::pack::{Settings, TaskSettings};
use crate::serve::{AnsweredBy, Crew, INLINE_US_MAX, InferError, Limits, Resident};

/// As long as nobody waits: a test that needs the time to pass does not end.
const FOR_EVER: Duration = Duration::from_secs(3600);
const NOW: Now = Now { mono_ms: 1, wall_ms: None };
/// Requests that are asked at the same time.
const CROWD: u8 = 8;

fn task() -> TaskId {
    "meter".parse().unwrap()
}

/// A model that is expected to be too slow for the connection's own thread.
fn slow(release: &str, onnx: &[u8]) -> Resident {
    let mut resident = resident(release, &task(), onnx, 3);
    Arc::make_mut(&mut resident.bundle).latency_us = 8 * INLINE_US_MAX;
    resident
}

fn serving(rows_max: usize, wait_max: Duration) -> Arc<crate::serve::Serving> {
    let gather = Some(Gather { rows_max, wait_max });
    let tasks = [(task(), TaskSettings { gather, ..TaskSettings::default() })].into();
    let limits = Limits { workers: 1, waiting_max: 64, ..Limits::default() };
    crate::serve::Serving::with(limits, Settings { tasks, ..Settings::default() })
}

/// What is asked by the `i`th of some clients; positive everywhere.
fn x(i: u8) -> Vec<TensorData> {
    let i = f32::from(i);
    vec![of_floats("x", &[1, 3], &[1.0 + i, 2.5, 9.0 - i])]
}

type Answers = Vec<Result<crate::serve::Answer, InferError>>;

async fn ask(serving: &Arc<crate::serve::Serving>, all: Vec<Vec<TensorData>>) -> Answers {
    let task = task();
    let asked = all
        .into_iter()
        .enumerate()
        .map(|(i, inputs)| serving.answer(&task, None, i.to_string(), inputs, NOW));
    tokio::time::timeout(Duration::from_secs(120), futures_util::future::join_all(asked)).await.unwrap()
}

/// The same, while the worker is busy until each of so many members is waited for by all of them.
async fn ask_a_busy_one(
    serving: &Arc<crate::serve::Serving>,
    all: Vec<Vec<TensorData>>,
    members: usize,
) -> Answers {
    let (n, busy) = (all.len() * members, serving.pool.hold());
    let free = async {
        while serving.pool.waiting() < n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(busy);
    };
    tokio::join!(ask(serving, all), free).0
}

/// How often each member was run.
fn executions(serving: &crate::serve::Serving) -> Vec<u64> {
    serving.view_of(&task()).unwrap().members.iter().map(|member| member.tally.executions).collect()
}

fn scores(answer: &crate::serve::Answer) -> Vec<f32> {
    floats(&answer.outputs[0]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_batch_is_run_at_once_and_answers_as_single_requests_do() {
    let serving = serving(CROWD.into(), FOR_EVER);
    serving.switch(&task(), slow("m@1", &linear(3, 3, &IDENTITY, false)), None, 1, false);
    let answers = ask_a_busy_one(&serving, (0..CROWD).map(x).collect(), 1).await;
    assert_eq!(executions(&serving), [1]);
    for (i, answer) in (0..CROWD).zip(answers) {
        let answer = answer.unwrap();
        let alone = serving.infer(&task(), "alone", &x(i), NOW).unwrap();
        assert_eq!((answer.by, answer.rows), (AnsweredBy::Champion, 1));
        assert_eq!(answer.outputs[0].shape, [1, 3]);
        let (both, single) = (scores(&answer), scores(&alone));
        assert!(both.iter().zip(&single).all(|(a, b)| (a - b).abs() < 1e-6), "{both:?} {single:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_waits_for_others_longer_than_the_bound() {
    let serving = serving(1000, Duration::from_millis(20));
    serving.switch(&task(), slow("m@1", &linear(3, 3, &IDENTITY, false)), None, 1, false);
    // So few never make a full batch.
    assert!(ask_a_busy_one(&serving, (0..3).map(x).collect(), 1).await.iter().all(Result::is_ok));
    assert_eq!(executions(&serving), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_client_waits_for_nobody() {
    let serving = serving(1000, FOR_EVER);
    serving.switch(&task(), slow("m@1", &linear(3, 3, &IDENTITY, false)), None, 1, false);
    for i in 0..3 {
        assert!(ask(&serving, vec![x(i)]).await[0].is_ok());
    }
    assert_eq!(executions(&serving), [3]);
}

#[test]
fn a_batch_is_no_longer_than_a_worker_has_time_for() {
    let gather = Gather { rows_max: 1000, wait_max: FOR_EVER };
    let limits = Limits { run_max: Duration::from_secs(1), ..Limits::default() };
    let pool = Pool::new(limits, [(task(), gather)].into());
    let mut model = resident("m@1", &task(), &linear(3, 3, &IDENTITY, false), 3);
    Arc::make_mut(&mut model.bundle).latency_us = 50_000;
    let asked = Asked::new("a".into(), x(1), NOW);
    let terms = terms(&pool, Wait::Gathered, &Serving::new(model), None, &asked).unwrap();
    // A quarter of the time at 50 ms a row.
    assert_eq!(terms.rows_max, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn champion_and_voters_gather_each_for_itself() {
    let serving = serving(CROWD.into(), FOR_EVER);
    let good = |release: &str| slow(release, &linear(3, 3, &IDENTITY, false));
    let voter = good("v@1");
    let role = Role::Voter { weight_ppm: 1_000_000 };
    let member = Member { release: voter.release.clone(), role, limit_us: None };
    let crew = Crew {
        members: vec![(member, voter)],
        conduct: Conduct { rule: Rule::SoftVote, context: vec![] },
        ..Crew::new(good("m@1"), None)
    };
    serving.line_up(&task(), crew, 1, false);
    for answer in ask_a_busy_one(&serving, (0..CROWD).map(x).collect(), 2).await {
        let answer = answer.unwrap();
        assert_eq!((answer.by, answer.voters.len()), (AnsweredBy::Vote, 2));
    }
    assert_eq!(executions(&serving), [1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_input_fails_alone() {
    let serving = serving(CROWD.into(), Duration::from_millis(20));
    // The logarithm of what is negative is no number.
    let brittle = slow("m@2", &linear(3, 3, &IDENTITY, true));
    serving.switch(&task(), brittle, Some(slow("m@1", &linear(3, 3, &IDENTITY, false))), 1, false);
    let mut all: Vec<_> = (0..CROWD).map(x).collect();
    all[3] = vec![of_floats("x", &[1, 3], &[-1.0, 1.0, 1.0])];
    for (i, answer) in ask_a_busy_one(&serving, all, 1).await.into_iter().enumerate() {
        let by = if i == 3 { AnsweredBy::Fallback } else { AnsweredBy::Champion };
        assert_eq!(answer.unwrap().by, by, "request {i}");
    }
    assert_eq!(serving.view_of(&task()).unwrap().failed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_another_shape_is_refused_and_the_rest_answered() {
    let serving = serving(CROWD.into(), Duration::from_millis(20));
    serving.switch(&task(), slow("m@1", &linear(3, 3, &IDENTITY, false)), None, 1, false);
    let mut all: Vec<_> = (0..CROWD).map(x).collect();
    all[2] = vec![of_floats("x", &[1, 2], &[1.0, 1.0])];
    // Its shape promises more bytes than there are, so that the next one's would move up.
    all[5][0].data.0.truncate(8);
    for (i, answer) in ask_a_busy_one(&serving, all, 1).await.into_iter().enumerate() {
        match answer {
            Ok(answer) => assert!(i != 2 && i != 5 && answer.by == AnsweredBy::Champion),
            Err(InferError::Input(_)) => assert!(i == 2 || i == 5, "request {i}"),
            Err(other) => panic!("request {i}: {other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_probation_nobody_waits_for_others() {
    let serving = serving(1000, FOR_EVER);
    serving.switch(&task(), slow("m@1", &linear(3, 3, &IDENTITY, false)), None, 1, false);
    serving.switch(&task(), slow("m@2", &linear(3, 3, &IDENTITY, false)), None, 2, true);
    assert!(ask_a_busy_one(&serving, (0..3).map(x).collect(), 1).await.iter().all(Result::is_ok));
}

#[test]
fn only_small_requests_for_models_of_any_number_of_rows_are_gathered() {
    let gather = Gather { rows_max: 4, wait_max: FOR_EVER };
    let pool = Pool::new(Limits::default(), [(task(), gather)].into());
    let asked = |inputs| Asked::new("a".into(), inputs, NOW);
    let one = asked(vec![of_floats("x", &[1, 3], &[1.0; 3])]);
    let free = Serving::new(slow("m@1", &linear(3, 3, &IDENTITY, false)));
    let of = |model: &Serving, asked: &Asked| terms(&pool, Wait::Gathered, model, None, asked);
    assert_eq!(of(&free, &one), Some(gather));
    let four = asked(vec![of_floats("x", &[4, 3], &[1.0; 12])]);
    assert_eq!(of(&free, &four), None, "it is a batch already");
    let single = Serving::new(slow("m@1", &fixed(1, 3)));
    assert_eq!(of(&single, &one), None, "its batch is fixed");
    let mut quick = resident("m@1", &task(), &linear(3, 3, &IDENTITY, false), 3);
    Arc::make_mut(&mut quick.bundle).latency_us = INLINE_US_MAX - 1;
    assert_eq!(of(&Serving::new(quick), &one), None, "it is answered at once");
    let limit = Some(Duration::from_secs(1));
    assert_eq!(terms(&pool, Wait::Gathered, &free, limit, &one), None, "others are not in its time limit");
    assert_eq!(terms(&pool, Wait::Never, &free, None, &one), None, "it may not wait");
    let off = Pool::new(Limits::default(), Default::default());
    assert_eq!(terms(&off, Wait::Gathered, &free, None, &one), None, "nobody asked for it");
}
