//! Who does the work of a request.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

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

#[derive(Debug)]
pub(super) struct Pool {
    workers: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    run_max: Duration,
}

/// What came of some work.
#[derive(Debug)]
pub(super) enum Worked<T> {
    /// It was done, after waiting so long for a worker.
    Done(T, Duration),
    /// It took longer than [`Limits::run_max`], or than the caller's own limit. Its thread goes on, but its worker's place is
    /// given back: members that are late are soon no longer asked, see `strikes`.
    Late(Duration),
    /// The caller's own limit passed before a worker was free.
    Waited,
    /// Too many wait.
    Refused,
}

impl Pool {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            workers: Arc::new(Semaphore::new(limits.workers.max(1))),
            waiting: AtomicUsize::new(0),
            waiting_max: limits.waiting_max.max(1),
            run_max: limits.run_max,
        }
    }

    /// Does some work; with a `limit` of its own never on the caller's task, where it could not be left.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        expected_us: u64,
        limit: Option<Duration>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Worked<T> {
        if limit.is_none() && expected_us < INLINE_US_MAX {
            return Worked::Done(work(), Duration::ZERO);
        }
        let from = Instant::now();
        let Some(place) = Place::take(&self.waiting, self.waiting_max) else { return Worked::Refused };
        // A limit of the caller's own holds for the wait too.
        let Ok(worker) =
            timeout(limit.unwrap_or(Duration::MAX), Arc::clone(&self.workers).acquire_owned()).await
        else {
            return Worked::Waited;
        };
        let Ok(worker) = worker else { return Worked::Refused };
        drop(place);
        let queued = from.elapsed();
        let left = limit.map_or(self.run_max, |limit| limit.saturating_sub(queued).min(self.run_max));
        // The thread holds the worker's place, so that a caller who goes away does not free it.
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
        match timeout(left, run).await {
            Ok(Ok(done)) => Worked::Done(done, queued),
            // The engine catches the runtime's panics; one that gets here is this program's own.
            Ok(Err(_)) => Worked::Refused,
            Err(_) => {
                give_back(&held);
                Worked::Late(limit.unwrap_or(self.run_max))
            }
        }
    }
}

/// A place in the queue, given back even if the caller goes away while it waits.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, max: usize) -> Option<Self> {
        if waiting.fetch_add(1, Ordering::Relaxed) < max {
            return Some(Self(waiting));
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
