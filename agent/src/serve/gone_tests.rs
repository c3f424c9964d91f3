//! What is left to do when a caller, a champion or every model is gone.

use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::{Effort, of_floats};
use dunlin_protocol::{Now, ResourceUse, TaskId, TensorData};
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::timeout;

use super::onnx::{IDENTITY, chain, identity, linear, policy, resident};
use super::{AnsweredBy, Budget, INLINE_US_MAX, InferError, Limits, Resident, Serving};
use crate::api::{self, Api};

const NOW: Now = Now { mono_ms: 1, wall_ms: None };

fn task() -> TaskId {
    "meter".parse().unwrap()
}

/// Expected to take so long that a worker has to answer.
fn heavy(release: &str) -> Resident {
    let mut model = resident(release, &task(), &linear(3, 3, &IDENTITY, false), 3);
    Arc::get_mut(&mut model.bundle).unwrap().latency_us = 1_000 * INLINE_US_MAX;
    model
}

fn x() -> Vec<TensorData> {
    vec![of_floats("x", &[1, 3], &[1.0, 2.0, 3.0])]
}

/// A device with one worker.
fn serving() -> Arc<Serving> {
    let serving = Serving::new(Limits { workers: 1, ..Limits::default() });
    serving.set_policy(&policy(&task()));
    serving.switch(&task(), heavy("m@1"), None, 1, false);
    serving
}

#[tokio::test]
async fn what_the_champion_before_answers_late_says_nothing_of_the_new_one() {
    let serving = serving();
    let held = serving.pool.hold();
    let (id, of_before) = (task(), "a".to_owned());
    let mut waiting = Box::pin(serving.answer(&id, None, of_before, x(), NOW));
    assert!(waiting.as_mut().now_or_never().is_none());
    serving.switch(&task(), heavy("m@2"), None, 2, true);
    drop(held);
    assert_eq!(waiting.await.unwrap().release, "m@1".parse().ok());
    assert_eq!(serving.guard(&task()).unwrap().requests, 0);
    serving.answer(&task(), None, "b".into(), x(), NOW).await.unwrap();
    assert_eq!(serving.guard(&task()).unwrap().requests, 1);
}

#[tokio::test]
async fn a_request_is_answered_and_counted_though_its_caller_went_away() {
    let serving = serving();
    let api = Api::new(Arc::clone(&serving), Arc::new(|| NOW), api::Limits::default());
    let held = serving.pool.hold();
    let id = task();
    let (room, mut left) = oneshot::channel::<()>();
    let mut waiting = Box::pin(api.answered(&id, None, "a", x(), room));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(waiting);
    assert_eq!(left.try_recv(), Err(TryRecvError::Empty), "it keeps its room");
    drop(held);
    assert!(timeout(Duration::from_secs(60), left).await.unwrap().is_err());
    assert_eq!(serving.guard(&task()).unwrap().requests, 1);
}

#[tokio::test]
async fn an_explanation_is_worked_on_though_its_caller_went_away() {
    const SIDE: usize = 256;
    let serving = serving();
    serving.switch(&task(), resident("m@2", &task(), &chain(SIDE, 200), SIDE), None, 2, false);
    let effort = Effort { sampled: true, permutations: 16, seed: 1 };
    let budget = Budget { time: Duration::from_secs(1), effort };
    let id = task();
    let explain = || {
        let row = vec![of_floats("x", &[1, SIDE as u64], &[0.5; SIDE])];
        Box::pin(serving.explain(&id, None, row, budget))
    };
    let mut begun = explain();
    assert!(begun.as_mut().now_or_never().is_none());
    drop(begun);
    assert_eq!(explain().await, Err(InferError::Overloaded));
}

#[test]
fn the_baseline_answers_in_the_place_of_releases_that_are_gone() {
    let serving = serving();
    let named_y = resident("m@2", &task(), &identity(1, 3), 3);
    serving.switch(&task(), named_y, None, 2, false);
    let ask = || serving.infer(&task(), "a", &x(), NOW).unwrap();
    let name = |by: AnsweredBy| {
        let answer = ask();
        assert_eq!(answer.by, by);
        answer.outputs.last().unwrap().name.clone()
    };
    assert_eq!(name(AnsweredBy::Champion), "y");
    serving.vacate(&task());
    assert_eq!(name(AnsweredBy::Baseline), "y", "which callers ask for");
    let view = serving.view_of(&task()).unwrap();
    assert!(view.members.is_empty() && view.is_ready());
    let windows = serving.close_windows(NOW, &ResourceUse::default());
    let of = |release: Option<&str>| {
        let release = release.map(|release| release.parse().unwrap());
        windows.iter().find(|window| window.release == release).map(|window| window.n)
    };
    assert_eq!((of(Some("m@2")), of(None)), (Some(1), Some(1)));
}

#[test]
fn what_was_counted_of_a_task_that_is_removed_is_reported_once() {
    let serving = serving();
    serving.switch(&task(), heavy("m@2"), None, 2, false);
    serving.infer(&task(), "a", &x(), NOW).unwrap();
    serving.remove(&task());
    assert!(serving.view().is_empty());
    let close = || serving.close_windows(NOW, &ResourceUse::default());
    assert_eq!(close().iter().map(|window| window.n).collect::<Vec<_>>(), [1]);
    assert!(close().is_empty());
    assert!(serving.gone().is_empty());
}

#[test]
fn a_release_with_two_parts_is_one_version() {
    let serving = serving();
    serving.switch(&task(), heavy("m@2"), Some(heavy("m@1")), 2, true);
    let view = serving.view_of(&task()).unwrap();
    assert_eq!(view.members.len(), 3);
    assert_eq!(view.versions().iter().map(ToString::to_string).collect::<Vec<_>>(), ["m@2", "m@1"]);
}
