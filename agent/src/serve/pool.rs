//! Who does the work of a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::{Answer, InferError};

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
}

impl Default for Limits {
    /// One worker a core; sixteen waiting for each, so that the last one waits for sixteen runs.
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, Into::into);
        Self { workers, waiting_max: workers * 16 }
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    workers: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Pool {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            workers: Arc::new(Semaphore::new(limits.workers.max(1))),
            waiting: AtomicUsize::new(0),
            waiting_max: limits.waiting_max.max(1),
        }
    }

    pub(super) async fn run(
        &self,
        expected_us: u64,
        work: impl FnOnce() -> Result<Answer, InferError> + Send + 'static,
    ) -> Result<Answer, InferError> {
        if expected_us < INLINE_US_MAX {
            return work();
        }
        let place = Place::take(&self.waiting, self.waiting_max)?;
        let worker = Arc::clone(&self.workers).acquire_owned().await.map_err(|_| InferError::Overloaded)?;
        drop(place);
        let done = tokio::task::spawn_blocking(move || {
            let _busy = worker;
            work()
        });
        // The engine catches the runtime's panics; one that gets here is this program's own.
        done.await.unwrap_or(Err(InferError::Overloaded))
    }
}

/// A place in the queue, given back even if the caller goes away while it waits.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, max: usize) -> Result<Self, InferError> {
        if waiting.fetch_add(1, Ordering::Relaxed) < max {
            return Ok(Self(waiting));
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
        Err(InferError::Overloaded)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
