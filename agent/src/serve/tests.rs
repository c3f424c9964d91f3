use dunlin_engine::{floats, of_floats};
use dunlin_protocol::{Now, ReasonCode, ResourceUse, SampleKind, SamplePolicy, TaskId, TensorData, Window};

use super::onnx::{IDENTITY, broken, chain, linear, panicky, policy, resident};
use super::{AnsweredBy, FeedbackError, InferError, Limits, Resident, STRIKES_MAX, Serving};

fn task() -> TaskId {
    "meter".parse().unwrap()
}

fn now(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: Some(1_000_000 + mono_ms) }
}

fn good(release: &str) -> Resident {
    resident(release, &task(), &linear(3, 3, &IDENTITY, false), 3)
}

/// Sees the classes the other way round.
fn contrary(release: &str) -> Resident {
    let w = IDENTITY.map(|x| -x);
    resident(release, &task(), &linear(3, 3, &w, false), 3)
}

/// Not finite for negative inputs, with which it was proved.
fn brittle(release: &str) -> Resident {
    broken(resident(release, &task(), &linear(3, 3, &IDENTITY, true), 3), &[-1.0, 1.0, 1.0])
}

fn x(rows: &[[f32; 3]]) -> Vec<TensorData> {
    vec![of_floats("x", &[rows.len() as u64, 3], rows.as_flattened())]
}

fn window<'a>(windows: &'a [Window], release: &str) -> &'a Window {
    let id = release.parse().unwrap();
    windows
        .iter()
        .find(|w| w.release.as_ref() == Some(&id))
        .unwrap_or_else(|| panic!("no window of {release} in {windows:?}"))
}

#[test]
fn answers_that_wait_to_be_counted_are_few_and_none_is_missed_by_who_looks() {
    let serving = Serving::new(Limits::default());
    serving.switch(&task(), good("m@1"), None, 7, false);
    let mut most = 0;
    for i in 0..300 {
        serving.infer(&task(), &format!("{i}"), &x(&[[3.0, 0.0, 0.0]]), now(i)).unwrap();
        most = most.max(serving.noted(&task()));
    }
    assert!((1..128).contains(&most), "{most} waited");
    serving.feedback(&task(), "299", 0, now(300)).unwrap();
    assert_eq!(serving.noted(&task()), 0);
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    assert_eq!(window(&windows, "m@1").n, 300);
}

#[test]
fn the_champion_answers_and_its_window_counts_rows_and_labels() {
    let serving = Serving::new(Limits::default());
    serving.switch(&task(), good("m@1"), None, 7, false);
    let answer = serving.infer(&task(), "a", &x(&[[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), now(1)).unwrap();
    assert_eq!((answer.by, answer.generation), (AnsweredBy::Champion, 7));
    assert_eq!(floats(&answer.outputs[0]).unwrap().len(), 6);
    serving.infer(&task(), "b", &x(&[[0.0, 0.0, 3.0]]), now(2)).unwrap();
    serving.feedback(&task(), "a.1", 1, now(3)).unwrap();
    serving.feedback(&task(), "b", 0, now(3)).unwrap();
    assert!(
        matches!(serving.feedback(&task(), "b", 0, now(3)), Err(FeedbackError::UnknownRequest(_))),
        "a label is taken once"
    );
    assert!(matches!(
        serving.feedback(&task(), "a.0", 3, now(3)),
        Err(FeedbackError::UnknownClass { class: 3, .. })
    ));
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    let w = window(&windows, "m@1");
    assert_eq!((w.n, w.errors, w.generation), (3, 0, 7));
    assert_eq!(w.classes.unpack(3).unwrap(), [1, 1, 1]);
    let mut confusion = vec![0; 9];
    (confusion[4], confusion[2]) = (1, 1);
    assert_eq!(w.confusion.counts.unpack(9).unwrap(), confusion);
    assert!(serving.close_windows(now(60_001), &ResourceUse::default()).is_empty());
}

#[test]
fn a_failing_champion_is_answered_for_by_fallback_then_baseline() {
    let serving = Serving::new(Limits::default());
    let bad = x(&[[-1.0, 1.0, 1.0]]);
    serving.switch(&task(), brittle("m@2"), Some(good("m@1")), 1, false);
    let answer = serving.infer(&task(), "a", &bad, now(1)).unwrap();
    assert_eq!((answer.by, answer.release.unwrap().to_string()), (AnsweredBy::Fallback, "m@1".into()));
    let fine = serving.infer(&task(), "b", &x(&[[1.0, 2.0, 3.0]]), now(1)).unwrap();
    assert_eq!(fine.by, AnsweredBy::Champion);

    serving.switch(&task(), brittle("m@2"), Some(brittle("m@3")), 2, false);
    assert!(
        matches!(serving.infer(&task(), "c", &bad, now(2)), Err(InferError::NotReady(_))),
        "no policy, no baseline"
    );
    serving.set_policy(&policy(&task()));
    let answer = serving.infer(&task(), "d", &bad, now(2)).unwrap();
    assert_eq!((answer.by, answer.release), (AnsweredBy::Baseline, None));
    assert_eq!(floats(&answer.outputs[0]).unwrap(), [0.0, 1.0, 0.0]);
    assert_eq!(answer.outputs[0].name, "scores");

    let indicators = serving.take_indicators();
    assert!(indicators.iter().all(|i| i.reason == ReasonCode::ModelFailed));
    assert_eq!(indicators.iter().map(|i| i.count).sum::<u64>(), 5);
    assert!(serving.take_indicators().is_empty());
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    assert_eq!(windows.iter().filter(|w| w.release.is_none()).map(|w| w.n).sum::<u64>(), 1);
    let errors: u64 = windows.iter().map(|w| w.errors).sum();
    assert_eq!(errors, 5);
}

#[test]
fn a_wrong_input_is_the_callers_fault_and_no_failover() {
    let serving = Serving::new(Limits::default());
    serving.set_policy(&policy(&task()));
    serving.switch(&task(), good("m@1"), Some(good("m@2")), 1, false);
    let short = vec![of_floats("x", &[1, 2], &[0.0, 0.0])];
    assert!(matches!(serving.infer(&task(), "a", &short, now(1)), Err(InferError::Input(_))));
    assert!(matches!(serving.infer(&task(), "a", &[], now(1)), Err(InferError::Input(_))));
    assert_eq!(serving.guard(&task()).unwrap().errors, 0);
    assert!(serving.take_indicators().is_empty());
    let other: TaskId = "other".parse().unwrap();
    assert!(matches!(serving.infer(&other, "a", &short, now(1)), Err(InferError::UnknownTask(_))));
}

#[test]
fn probation_pairs_both_champions_on_the_same_inputs() {
    let serving = Serving::new(Limits::default());
    serving.switch(&task(), good("m@1"), None, 1, false);
    serving.switch(&task(), contrary("m@2"), None, 2, true);
    for i in 0..10 {
        // Both see the middle class here, and opposite ones there.
        let row = if i < 4 { [0.0, 0.0, 0.0] } else { [2.0, 0.0, -2.0] };
        serving.infer(&task(), &format!("r{i}"), &x(&[row]), now(i)).unwrap();
    }
    let guard = serving.guard(&task()).unwrap();
    assert_eq!((guard.requests, guard.errors, guard.paired, guard.disagree), (10, 0, 10, 6));
    assert!(guard.p99_us > 0 || guard.previous_p99_us < u64::MAX);
    serving.feedback(&task(), "r9", 0, now(11)).unwrap();
    let windows = serving.close_windows(now(60_000), &ResourceUse::default());
    let w = window(&windows, "m@2");
    let pair = w.pair.as_ref().unwrap();
    assert!(w.probation);
    assert_eq!((pair.other.to_string().as_str(), pair.n, pair.disagree, pair.only_other), ("m@1", 10, 6, 1));

    assert!(serving.rollback(&task()));
    let answer = serving.infer(&task(), "z", &x(&[[2.0, 0.0, -2.0]]), now(1)).unwrap();
    assert_eq!(answer.release.unwrap().to_string(), "m@1");
    assert!(!serving.rollback(&task()), "there is nothing more to return to");
}

#[test]
fn commit_unloads_the_previous_champion() {
    let serving = Serving::new(Limits::default());
    let old = good("m@1");
    let loaded = std::sync::Arc::downgrade(&old.model);
    serving.switch(&task(), old, None, 1, false);
    serving.switch(&task(), good("m@2"), None, 2, true);
    assert!(loaded.upgrade().is_some());
    serving.commit(&task());
    assert!(loaded.upgrade().is_none(), "its memory is given back");
    assert!(!serving.rollback(&task()));
}

#[test]
fn a_switch_under_load_is_never_seen_half() {
    let serving = Serving::new(Limits::default());
    serving.switch(&task(), good("m@1"), None, 1, false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for i in 0..200 {
                    let answer =
                        serving.infer(&task(), &format!("{i}"), &x(&[[1.0, 2.0, 3.0]]), now(i)).unwrap();
                    assert_eq!(u64::from(answer.release.unwrap().version), answer.generation);
                }
            });
        }
        for generation in 2..10 {
            serving.switch(&task(), good(&format!("m@{generation}")), None, generation, generation % 2 == 0);
        }
    });
}

#[test]
fn samples_leave_only_if_the_policy_says_so_and_wrong_answers_are_flagged() {
    let serving = Serving::new(Limits::default());
    serving.set_policy(&policy(&task()));
    serving.switch(&task(), good("m@1"), None, 1, false);
    serving.infer(&task(), "a", &x(&[[1.0, 0.0, 0.0]]), now(1)).unwrap();
    assert!(serving.take_samples().is_empty());
    let samples = Some(SamplePolicy { bytes_per_day_max: 24 * 300, random_ppm_min: 500_000 });
    serving.set_policy(&dunlin_protocol::TaskPolicy { samples, ..policy(&task()) });
    for i in 0..50 {
        serving.infer(&task(), &format!("s{i}"), &x(&[[9.0, 0.0, 0.0]]), now(2)).unwrap();
    }
    let first: Vec<_> = serving.take_samples().into_iter().flat_map(|s| s.samples).collect();
    assert!(
        !first.is_empty()
            && first.iter().all(|s| s.kind == SampleKind::Random && s.predicted == 0 && s.x.0.len() == 12)
    );
    let unsampled = (0..50).map(|i| format!("s{i}")).find(|id| first.iter().all(|s| s.id != *id)).unwrap();
    serving.feedback(&task(), &unsampled, 2, now(3)).unwrap();
    let flagged: Vec<_> = serving.take_samples().into_iter().flat_map(|s| s.samples).collect();
    assert_eq!((flagged.len(), flagged[0].kind, flagged[0].label), (1, SampleKind::Flagged, Some(2)));
}

/// Asks for what `brittle` fails on, `times` times.
fn strike(serving: &Serving, times: u32) -> Vec<AnsweredBy> {
    let bad = x(&[[-1.0, 1.0, 1.0]]);
    (0..times).map(|i| serving.infer(&task(), &format!("s{i}"), &bad, now(1)).unwrap().by).collect()
}

#[tokio::test]
async fn a_champion_that_fails_too_often_is_not_asked_any_more_until_a_new_generation() {
    let serving = Serving::new(Limits::default());
    let fine = x(&[[1.0, 2.0, 3.0]]);
    serving.switch(&task(), brittle("m@2"), Some(good("m@1")), 1, false);
    assert_eq!(strike(&serving, STRIKES_MAX - 1), vec![AnsweredBy::Fallback; STRIKES_MAX as usize - 1]);
    let before = serving.infer(&task(), "before", &fine, now(1)).unwrap();
    assert_eq!(before.by, AnsweredBy::Champion, "it still answers what it can");
    strike(&serving, 1);
    // The answer between made up for a hundredth of a strike, so one more is needed.
    strike(&serving, 1);
    let after = serving.infer(&task(), "after", &fine, now(1)).unwrap();
    assert_eq!(after.by, AnsweredBy::Fallback);
    let named = serving.answer(&task(), Some("m@2".parse().unwrap()), "n".into(), fine.clone(), now(1)).await;
    assert!(matches!(named, Err(InferError::Failed { .. })));
    let fallen = serving.fallen().await;
    assert_eq!(fallen.len(), 1);
    assert_eq!((&fallen[0].0, fallen[0].1.to_string().as_str()), (&task(), "m@2"));
    let view = serving.view_of(&task()).unwrap();
    assert!(view.members[0].out.as_ref().unwrap().contains("finite") && view.is_ready());
    let told = serving.take_indicators();
    let quarantined: Vec<_> = told.iter().filter(|i| i.reason == ReasonCode::Quarantined).collect();
    assert_eq!((quarantined.len(), quarantined[0].count), (1, 1));

    serving.switch(&task(), brittle("m@2"), Some(good("m@1")), 2, false);
    assert_eq!(serving.infer(&task(), "anew", &fine, now(1)).unwrap().by, AnsweredBy::Champion);
}

#[test]
fn inputs_that_are_no_numbers_take_nobody_out() {
    let serving = Serving::new(Limits::default());
    serving.set_policy(&policy(&task()));
    serving.switch(&task(), good("m@1"), Some(good("m@2")), 1, false);
    for i in 0..10 * STRIKES_MAX {
        let answer = serving.infer(&task(), &format!("{i}"), &x(&[[f32::NAN, 0.0, 0.0]]), now(1)).unwrap();
        assert_eq!(answer.by, AnsweredBy::Baseline);
    }
    let answer = serving.infer(&task(), "fine", &x(&[[1.0, 0.0, 0.0]]), now(1)).unwrap();
    assert_eq!(answer.by, AnsweredBy::Champion);
}

#[test]
fn a_member_whose_scores_are_not_as_many_as_its_signature_says_is_passed_over() {
    let serving = Serving::new(Limits::default());
    let wrong = resident("m@2", &task(), &linear(3, 3, &IDENTITY, false), 4);
    serving.switch(&task(), wrong, Some(good("m@1")), 1, false);
    let answer = serving.infer(&task(), "a", &x(&[[1.0, 0.0, 0.0]]), now(1)).unwrap();
    assert_eq!((answer.by, answer.release.unwrap().to_string()), (AnsweredBy::Fallback, "m@1".into()));
    assert!(serving.take_indicators()[0].detail.contains("3 scores for 1 rows of 4 classes"));
}

#[test]
fn a_member_whose_scores_have_another_shape_than_its_signature_says_is_passed_over() {
    let serving = Serving::new(Limits::default());
    let mut wrong = good("m@2");
    std::sync::Arc::make_mut(&mut wrong.bundle).signature.outputs[0].shape = vec![-1, 4];
    serving.switch(&task(), wrong, Some(good("m@1")), 1, false);
    let answer = serving.infer(&task(), "a", &x(&[[1.0, 0.0, 0.0]]), now(1)).unwrap();
    assert_eq!((answer.by, answer.release.unwrap().to_string()), (AnsweredBy::Fallback, "m@1".into()));
    let told = serving.take_indicators();
    assert_eq!((told.len(), told[0].reason), (1, ReasonCode::ModelFailed));
    assert!(told[0].detail.contains("shape [1, 3] to 1 rows where the signature has [-1, 4]"), "{told:?}");
}

#[tokio::test]
async fn a_member_that_panics_is_answered_for_at_once_and_soon_not_asked() {
    let serving = Serving::new(Limits::default());
    let panics = broken(resident("m@2", &task(), &panicky(3), 3), &[0.0; 3]);
    serving.switch(&task(), panics, Some(good("m@1")), 1, false);
    let ask = async |id: String, row: [f32; 3]| {
        let answer = serving.answer(&task(), None, id, x(&[row]), now(1)).await.unwrap();
        (answer.by, answer.release.unwrap().to_string())
    };
    let fine = [1.0, 2.0, 3.0];
    assert_eq!(ask("fine".into(), fine).await.0, AnsweredBy::Champion);
    for i in 0..STRIKES_MAX {
        let (by, release) = ask(format!("{i}"), [0.0, 1.0, 2.0]).await;
        assert_eq!((by, release.as_str()), (AnsweredBy::Fallback, "m@1"), "the same request is answered");
    }
    let told = serving.take_indicators();
    let of =
        |reason: ReasonCode| told.iter().find(|i| i.reason == reason).unwrap_or_else(|| panic!("{told:?}"));
    let failed = of(ReasonCode::ModelFailed);
    assert!(failed.count == u64::from(STRIKES_MAX) && failed.detail.contains("panicked"), "{told:?}");
    assert!(of(ReasonCode::Quarantined).detail.contains("m@2"), "{told:?}");
    assert_eq!(serving.fallen().await[0].1.to_string(), "m@2");
    assert_eq!(ask("after".into(), fine).await.0, AnsweredBy::Fallback, "it is not asked any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_member_is_passed_over_and_soon_not_asked() {
    const SIDE: usize = 512;
    // Some seconds of work for one, some milliseconds for the other.
    let limits = Limits { workers: 1, run_max: std::time::Duration::from_millis(600), ..Limits::default() };
    let serving = Serving::new(limits);
    let slow = || resident("m@2", &task(), &chain(SIDE, 500), SIDE);
    let quick = resident("m@1", &task(), &linear(SIDE, 3, &[0.0; SIDE * 3], false), 3);
    serving.switch(&task(), slow(), Some(quick), 1, false);
    let rows: u64 = 256;
    let batch = vec![of_floats("x", &[rows, SIDE as u64], &vec![0.0; SIDE * rows as usize])];
    for i in 0..STRIKES_MAX {
        let answer = serving.answer(&task(), None, format!("{i}"), batch.clone(), now(1)).await.unwrap();
        assert_eq!(answer.by, AnsweredBy::Fallback, "with one worker, whom the late one no longer holds");
    }
    let told = serving.take_indicators();
    assert!(told.iter().any(|i| i.reason == ReasonCode::ModelFailed && i.detail.contains("within 600 ms")));
    assert_eq!(serving.fallen().await[0].1.to_string(), "m@2");
}
