//! Whose fault a failure is.

use dunlin_engine::of_floats;
use dunlin_protocol::{Now, ReasonCode, TaskId, TensorData};
use futures_util::FutureExt;

use super::onnx::{IDENTITY, broken, fixed, linear, panicky, policy, resident};
use super::{ANSWERS_PER_STRIKE, Absence, AnsweredBy, InferError, Limits, Resident, STRIKES_MAX, Serving};

const FINE: [f32; 3] = [1.0, 2.0, 3.0];
/// More failures than take a broken member out.
const OFTEN: u32 = 3 * STRIKES_MAX;

fn task() -> TaskId {
    "meter".parse().unwrap()
}

fn now() -> Now {
    Now { mono_ms: 1, wall_ms: None }
}

fn good(release: &str) -> Resident {
    resident(release, &task(), &linear(3, 3, &IDENTITY, false), 3)
}

/// Fails on finite numbers, each with some of them: the logarithm below zero, a sum beyond what floats hold, a division of
/// whole numbers by zero, at which the runtime panics.
fn picky() -> [(Resident, [f32; 3]); 3] {
    let of = |onnx: &[u8]| resident("m@2", &task(), onnx, 3);
    [
        (of(&linear(3, 3, &IDENTITY, true)), [-1.0, 1.0, 1.0]),
        (of(&linear(3, 3, &[2.0; 9], false)), [f32::MAX; 3]),
        (of(&panicky(3)), [0.0, 1.0, 2.0]),
    ]
}

fn x(row: [f32; 3]) -> Vec<TensorData> {
    vec![of_floats("x", &[1, 3], &row)]
}

fn by(serving: &Serving, row: [f32; 3]) -> AnsweredBy {
    serving.infer(&task(), "a", &x(row), now()).unwrap().by
}

async fn named(serving: &Serving, release: &str, row: [f32; 3]) -> Result<AnsweredBy, InferError> {
    let version = Some(release.parse().unwrap());
    serving.answer(&task(), version, "n".into(), x(row), now()).await.map(|answer| answer.by)
}

#[test]
fn no_request_takes_a_member_out_that_answers_what_it_was_proved_with() {
    for (picky, bad) in picky() {
        let serving = Serving::new(Limits::default());
        let proved = Resident { known: x(FINE).into(), ..picky };
        serving.switch(&task(), proved, Some(good("m@1")), 1, false);
        for _ in 0..OFTEN {
            let answer = serving.infer(&task(), "a", &x(bad), now()).unwrap();
            assert_eq!(answer.by, AnsweredBy::Fallback, "{bad:?}");
            assert_eq!(answer.left_out, [("m@2".parse().unwrap(), Absence::Failed)]);
        }
        assert_eq!(by(&serving, FINE), AnsweredBy::Champion, "{bad:?}");
        let told = serving.take_indicators();
        assert!(told.len() == 1 && told[0].reason == ReasonCode::ModelFailed, "{told:?}");
        assert_eq!(told[0].count, u64::from(OFTEN));
        let view = serving.view_of(&task()).unwrap();
        assert_eq!((view.failed, view.members[0].tally.executions), (u64::from(OFTEN), 1));
        assert!(serving.fallen().now_or_never().is_none());
    }
}

#[test]
fn without_a_proof_at_hand_the_first_answer_stands_for_it() {
    for (picky, bad) in picky() {
        let serving = Serving::new(Limits::default());
        serving.switch(&task(), picky, Some(good("m@1")), 1, false);
        assert_eq!(by(&serving, FINE), AnsweredBy::Champion);
        (0..OFTEN).for_each(|_| assert_eq!(by(&serving, bad), AnsweredBy::Fallback));
        assert_eq!(by(&serving, FINE), AnsweredBy::Champion, "{bad:?}");
    }
    for (never_answered, bad) in picky() {
        let serving = Serving::new(Limits::default());
        serving.switch(&task(), never_answered, Some(good("m@1")), 1, false);
        (0..STRIKES_MAX).for_each(|_| assert_eq!(by(&serving, bad), AnsweredBy::Fallback));
        assert_eq!(by(&serving, FINE), AnsweredBy::Fallback, "nothing speaks for it");
    }
}

#[test]
fn a_model_of_so_many_rows_is_known_by_as_many() {
    let serving = Serving::new(Limits::default());
    serving.switch(&task(), resident("m@1", &task(), &fixed(2, 3), 3), None, 1, false);
    let two = |first: f32| vec![of_floats("x", &[2, 3], &[first, 0.0, 0.0, 0.0, 0.0, 0.0])];
    let ask = |first| serving.infer(&task(), "a", &two(first), now());
    ask(1.0).unwrap();
    (0..OFTEN).for_each(|_| assert!(matches!(ask(f32::NAN), Err(InferError::Input(_)))));
    ask(1.0).unwrap();
}

#[tokio::test]
async fn a_request_that_nobody_can_answer_is_told_so() {
    for (picky, bad) in picky() {
        let serving = Serving::new(Limits::default());
        let proved = Resident { known: x(FINE).into(), ..picky.clone() };
        serving.switch(&task(), proved, None, 1, false);
        let refused = serving.infer(&task(), "a", &x(bad), now());
        assert!(
            matches!(&refused, Err(InferError::Input(why)) if why.contains("can not answer this: ")),
            "{refused:?}"
        );
        assert_eq!(named(&serving, "m@2", bad).await, refused.map(|answer| answer.by));

        serving.switch(&task(), broken(picky.clone(), &bad), None, 2, false);
        let refused = serving.infer(&task(), "a", &x(bad), now());
        assert!(matches!(refused, Err(InferError::NotReady(_))), "{refused:?}");

        serving.set_policy(&policy(&task()));
        let proved = Resident { known: x(FINE).into(), ..picky };
        serving.switch(&task(), proved, None, 3, false);
        assert_eq!(by(&serving, bad), AnsweredBy::Baseline);
    }
}

/// Whoever names a member has it counted as everybody else does, the champion or another one.
#[tokio::test]
async fn failures_of_a_named_member_count_as_all_others() {
    for release in ["m@2", "m@1"] {
        let member = |name: &str| {
            let model = resident(name, &task(), &linear(3, 3, &IDENTITY, true), 3);
            if name == release { broken(model, &[-1.0, 1.0, 1.0]) } else { good(name) }
        };
        let serving = Serving::new(Limits::default());
        serving.switch(&task(), member("m@2"), Some(member("m@1")), 1, false);
        let fail = async |times| {
            for _ in 0..times {
                let failed = named(&serving, release, [-1.0, 1.0, 1.0]).await;
                assert!(matches!(failed, Err(InferError::Failed { .. })), "{release}: {failed:?}");
            }
        };
        fail(STRIKES_MAX - 1).await;
        // These make up for one.
        for _ in 0..ANSWERS_PER_STRIKE {
            named(&serving, release, FINE).await.unwrap();
        }
        fail(1).await;
        named(&serving, release, FINE).await.unwrap();
        fail(1).await;
        assert!(named(&serving, release, FINE).await.is_err(), "{release} is out");
        let told = serving.take_indicators();
        let count = |reason| told.iter().find(|i| i.reason == reason).map(|i| i.count);
        assert_eq!(count(ReasonCode::ModelFailed), Some(u64::from(STRIKES_MAX) + 1), "{release}: {told:?}");
        assert_eq!(count(ReasonCode::Quarantined), Some(1), "{release}: {told:?}");
    }
}

/// What a request is to blame for counts against a champion on probation only where the one before has an answer.
#[test]
fn on_probation_a_failure_counts_if_the_champion_before_has_an_answer() {
    for (picky, bad) in picky() {
        for (before, errors) in [(good("m@1"), 2), (picky.clone(), 0)] {
            let serving = Serving::new(Limits::default());
            let proved = |model| Resident { known: x(FINE).into(), ..model };
            serving.switch(&task(), proved(before), None, 1, false);
            serving.switch(&task(), proved(picky.clone()), None, 2, true);
            (0..errors.max(1)).for_each(|_| assert!(serving.infer(&task(), "a", &x(bad), now()).is_err()));
            assert_eq!(by(&serving, FINE), AnsweredBy::Champion);
            let guard = serving.guard(&task()).unwrap();
            assert_eq!((guard.errors, guard.requests), (errors, errors + 1), "{bad:?}");
        }
    }
}
