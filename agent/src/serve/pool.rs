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
    run_max: Duration,
    gather: Arc<BTreeMap<TaskId, Gather>>,
}

/// What came of some work.
#[derive(Debug)]
pub(super) enum Worked<T> {
    /// It was done, after waiting so long for a worker.
    Done(T, Duration),
    /// It took longer than [`Limits::run_max`]. Its thread goes on, but its worker's place is given back: members that
    /// are late are soon no longer asked, see `strikes`.
    Late(Duration),
    /// Too many wait.
    Refused,
}

impl<T> Worked<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Worked<U> {
        match self {
            Self::Done(done, queued) => Worked::Done(change(done), queued),
            Self::Late(limit) => Worked::Late(limit),
            Self::Refused => Worked::Refused,
        }
    }
}

impl Pool {
    pub(super) fn new(limits: Limits, gather: BTreeMap<TaskId, Gather>) -> Self {
        Self {
            workers: Arc::new(Semaphore::new(limits.workers.max(1))),
            waiting: Arc::default(),
            waiting_max: limits.waiting_max.max(1),
            run_max: limits.run_max,
            gather: Arc::new(gather),
        }
    }

    /// How requests of a task are gathered, if they are.
    pub(super) fn gather(&self, task: &TaskId) -> Option<Gather> {
        self.gather.get(task).copied()
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        expected_us: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Worked<T> {
        if expected_us < INLINE_US_MAX {
            return Worked::Done(work(), Duration::ZERO);
        }
        let from = Instant::now();
        let Some(place) = self.place() else { return Worked::Refused };
        let Some(worker) = self.worker().await else { return Worked::Refused };
        drop(place);
        let queued = from.elapsed();
        match self.work(worker, work).await {
            Worked::Done(done, _) => Worked::Done(done, queued),
            other @ (Worked::Late(_) | Worked::Refused) => other,
        }
    }

    /// A place in the queue, unless it is full.
    pub(super) fn place(&self) -> Option<Place> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.waiting_max {
            return Some(Place(Arc::clone(&self.waiting)));
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// A worker, as soon as there is one.
    pub(super) async fn worker(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.workers).acquire_owned().await.ok()
    }

    /// Does some work on a thread of its own. The thread holds the worker's place, so that a caller who goes away does
    /// not free it.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        worker: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Worked<T> {
        let held = Arc::new(Mutex::new(Some(worker)));
        let give_back = |held: &Mutex<Option<OwnedSemaphorePermit>>| {
            drop(held.lock().unwrap_or_else(PoisonError::into_inner).take());
        };
        let of_thread = Arc::clone(&held);
        let run = tokio::task::spawn_blocking(move || {
            let done = work();
            give_back(&of_thread);
            done
        });
        match timeout(self.run_max, run).await {
            Ok(Ok(done)) => Worked::Done(done, Duration::ZERO),
            // The engine catches the runtime's panics; one that gets here is this program's own.
            Ok(Err(_)) => Worked::Refused,
            Err(_) => {
                give_back(&held);
                Worked::Late(self.run_max)
            }
        }
    }
}

/// A place in the queue, given back even if the caller goes away while it waits.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
