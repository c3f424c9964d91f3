//! Who does the work of a request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dunlin_protocol::TaskId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::gather::Gather;

/// Requests expected to take less are answered on the connection's own task: handing them to a worker and back
/// costs more than they do, and no other connection waits longer than this.
pub const INLINE_US_MAX: u64 = 1_000;

/// Late threads that go on without a worker's place: more than one member leaves before it is not asked any more, and far
/// fewer than the runtime has. Further ones keep their places.
const STRAYS_MAX: usize = 8;

/// Bounds of serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Models that run at one time; the number of cores is a good value.
    pub workers: usize,
    /// Requests that may wait for a worker before further ones are refused.
    pub waiting_max: usize,
    /// How long a worker may take for one member; then the next member answers. What is answered on the connection's own
    /// task can not be cut off.
    pub run_max: Duration,
}

impl Default for Limits {
    /// One worker a core; sixteen waiting for each, so that the last one waits for sixteen runs. After five seconds
    /// an application has given up.
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, Into::into);
        Self { workers, waiting_max: workers * 16, run_max: Duration::from_secs(5) }
    }
}

/// The workers, their queue, and how tasks gather what waits in it. A copy is the same pool.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    workers: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    strays: Arc<AtomicUsize>,
    run_max: Duration,
    gather: Arc<BTreeMap<TaskId, Gather>>,
}

/// How work waits for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// In the queue, unless it is short enough for the caller's own task; requests of a task that gathers are run together.
    Gathered,
    /// In the queue as well, and for itself.
    Alone,
    /// Not at all: it is done by a worker that is idle now, or not.
    Never,
}

/// What came of some work.
#[derive(Debug)]
pub(super) enum Worked<T> {
    /// It was done, after waiting so long for a worker.
    Done(T, Duration),
    /// It took longer than [`Limits::run_max`], or than the caller's own limit. Its thread goes on, but its worker's place is
    /// given back, unless [`STRAYS_MAX`] do: members that are late are soon no longer asked, see `strikes`.
    Late(Duration),
    /// Half of the caller's own limit passed before a worker was free; the work was not begun.
    Waited,
    /// Too many wait, or no worker is idle for what may not wait.
    Refused,
}

/// Whether work is done on the caller's own task: never with a limit of its own, as it could not be left there.
pub(super) fn is_inline(expected_us: u64, limit: Option<Duration>) -> bool {
    limit.is_none() && expected_us < INLINE_US_MAX
}

impl Pool {
    pub(super) fn new(limits: Limits, gather: BTreeMap<TaskId, Gather>) -> Self {
        Self {
            workers: Arc::new(Semaphore::new(limits.workers.max(1))),
            waiting: Arc::default(),
            waiting_max: limits.waiting_max.max(1),
            strays: Arc::default(),
            run_max: limits.run_max,
            gather: Arc::new(gather),
        }
    }

    /// How long a worker may take for one run.
    pub(super) fn run_max(&self) -> Duration {
        self.run_max
    }

    /// How requests of a task are gathered, if they are.
    pub(super) fn gather(&self, task: &TaskId) -> Option<Gather> {
        self.gather.get(task).copied()
    }

    /// Does some work, within a `limit` of its own if it has one, of which half may go by in the queue.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        wait: Wait,
        expected_us: u64,
        limit: Option<Duration>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Worked<T> {
        let (worker, queued) = match wait {
            Wait::Never => (Arc::clone(&self.workers).try_acquire_owned().ok(), Duration::ZERO),
            Wait::Gathered | Wait::Alone if is_inline(expected_us, limit) => {
                return Worked::Done(work(), Duration::ZERO);
            }
            Wait::Gathered | Wait::Alone => {
                let from = Instant::now();
                let Some(place) = self.place() else { return Worked::Refused };
                // A limit of the caller's own holds for the wait too. Work that is begun has half of it at least, so that
                // it is never late by the queue's doing.
                let patience = limit.map_or(Duration::MAX, |limit| limit / 2);
                let Ok(worker) = timeout(patience, self.worker()).await else { return Worked::Waited };
                drop(place);
                let queued = from.elapsed();
                if queued > patience {
                    return Worked::Waited;
                }
                (worker, queued)
            }
        };
        match worker {
            Some(worker) => self.on(worker, queued, limit, work).await,
            None => Worked::Refused,
        }
    }

    /// A place in the queue, unless it is full.
    pub(super) fn place(&self) -> Option<Place> {
        Place::take(&self.waiting, self.waiting_max)
    }

    /// A worker, as soon as there is one.
    pub(super) async fn worker(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.workers).acquire_owned().await.ok()
    }

    /// How many wait for a worker.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes a worker, so that none is idle.
    #[cfg(test)]
    pub(super) fn hold(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.workers).try_acquire_owned().expect("a worker is idle")
    }

    /// Has a worker do some work that waited so long for it.
    pub(super) async fn on<T: Send + 'static>(
        &self,
        worker: OwnedSemaphorePermit,
        queued: Duration,
        limit: Option<Duration>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Worked<T> {
        let left = limit.map_or(self.run_max, |limit| limit.saturating_sub(queued).min(self.run_max));
        // The thread holds the worker's place, so that a caller who goes away does not free it.
        let hold = Arc::new(Mutex::new(Hold::Worker { _place: worker }));
        let of_thread = Arc::clone(&hold);
        let run = tokio::task::spawn_blocking(move || {
            let done = work();
            *of_thread.lock().unwrap_or_else(PoisonError::into_inner) = Hold::Nothing;
            done
        });
        match timeout(left, run).await {
            Ok(Ok(done)) => Worked::Done(done, queued),
            // The engine catches the runtime's panics; one that gets here is this program's own.
            Ok(Err(_)) => Worked::Refused,
            Err(_) => {
                let mut hold = hold.lock().unwrap_or_else(PoisonError::into_inner);
                match &*hold {
                    Hold::Worker { .. } => {
                        if let Some(place) = Place::take(&self.strays, STRAYS_MAX) {
                            *hold = Hold::Stray { _place: place };
                        }
                    }
                    Hold::Stray { .. } | Hold::Nothing => {}
                }
                Worked::Late(limit.unwrap_or(self.run_max))
            }
        }
    }
}

/// What a thread holds while it works.
#[derive(Debug)]
enum Hold {
    Worker {
        _place: OwnedSemaphorePermit,
    },
    /// It is late, and others have its worker.
    Stray {
        _place: Place,
    },
    /// It is done.
    Nothing,
}

/// One of a bounded number of places, given back however its holder ends.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place, unless `max` are `taken`.
    pub(super) fn take(taken: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn one_worker() -> Pool {
        Pool::new(Limits { workers: 1, ..Limits::default() }, BTreeMap::new())
    }

    #[tokio::test]
    async fn what_waits_for_most_of_its_limit_is_not_begun() {
        let pool = one_worker();
        let held = pool.hold();
        let limit = Some(Duration::from_millis(20));
        let begun = Arc::new(AtomicBool::new(false));
        let of_work = Arc::clone(&begun);
        let worked = pool.run(Wait::Alone, 0, limit, move || of_work.store(true, Ordering::Relaxed)).await;
        assert!(matches!(worked, Worked::Waited), "{worked:?}");
        assert!(!begun.load(Ordering::Relaxed));

        let limit = Some(Duration::from_secs(60));
        let free = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(held);
        };
        let (worked, ()) = tokio::join!(pool.run(Wait::Alone, 0, limit, || ()), free);
        assert!(matches!(worked, Worked::Done((), queued) if queued > Duration::ZERO), "{worked:?}");
    }

    #[tokio::test]
    async fn so_many_late_threads_give_their_places_back_and_further_ones_keep_them() {
        let pool = one_worker();
        let over = Arc::new(AtomicBool::new(false));
        let late = async || {
            let over = Arc::clone(&over);
            // A test that fails ends too.
            let until = Instant::now() + Duration::from_secs(30);
            let endless = move || {
                while !over.load(Ordering::Relaxed) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            let held = pool.worker().await.unwrap();
            pool.on(held, Duration::ZERO, Some(Duration::from_millis(5)), endless).await
        };
        for _ in 0..=STRAYS_MAX {
            let worked = late().await;
            assert!(matches!(worked, Worked::Late(_)), "{worked:?}");
        }
        let worked = pool.run(Wait::Never, 0, None, || ()).await;
        assert!(matches!(worked, Worked::Refused), "the last one keeps its place: {worked:?}");
        over.store(true, Ordering::Relaxed);
        let freed = async {
            drop(pool.worker().await);
            while pool.strays.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), freed).await.expect("places of threads that are done are free");
    }

    #[tokio::test]
    async fn what_may_not_wait_is_done_by_an_idle_worker_or_not_at_all() {
        let pool = one_worker();
        let held = pool.hold();
        let worked = pool.run(Wait::Never, 0, None, || ()).await;
        assert!(matches!(worked, Worked::Refused), "{worked:?}");
        drop(held);
        let worked = pool.run(Wait::Never, 0, None, || ()).await;
        assert!(matches!(worked, Worked::Done((), queued) if queued.is_zero()), "{worked:?}");
    }
}
