//! A thread for one transfer.

use std::future::Future;
use std::{io, thread};

use tokio::sync::oneshot;

/// Why a transfer was not made to its end.
#[derive(Debug)]
pub(super) enum AsideError {
    /// No thread for it.
    Thread(io::Error),
    /// It panicked.
    Panicked,
}

/// Runs a transfer on a thread with a runtime of its own, which ends with it, or when nobody waits for it any more. It
/// may wait for the disk where it stands, and what it takes of the heap is one thread's: passed between those that answer
/// requests, its buffers would leave most of a MiB with each of them. What the transfer owns goes when the thread is
/// through with it, which may be after nobody waits any more.
///
/// # Errors
/// The thread can not be started, or the transfer panicked.
pub(super) async fn aside<T: Send + 'static>(
    transfer: impl Future<Output = T> + Send + 'static,
) -> Result<T, AsideError> {
    let (mut done, waiting) = oneshot::channel();
    let run = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(done.send(Err(AsideError::Thread(error)))),
        };
        let made = runtime.block_on(async {
            tokio::select! {
                made = transfer => Some(made),
                () = done.closed() => None,
            }
        });
        // A name that is still being looked up must not keep the thread.
        runtime.shutdown_background();
        if let Some(made) = made {
            drop(done.send(Ok(made)));
        }
    };
    thread::Builder::new().name("transfer".to_owned()).spawn(run).map_err(AsideError::Thread)?;
    // As long as somebody waits, a thread that gives no answer is one that panicked.
    waiting.await.unwrap_or(Err(AsideError::Panicked))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_transfer_has_a_thread_of_its_own() {
        let made = aside(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            thread::current().id()
        });
        assert_ne!(made.await.unwrap(), thread::current().id());
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_ends() {
        let (held, ended) = mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let job = tokio::spawn(aside(async move {
            let _held = held;
            assert!(begun.send(()).is_ok());
            std::future::pending::<()>().await;
        }));
        has_begun.await.unwrap();
        job.abort();
        assert!(job.await.is_err());
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[tokio::test]
    async fn a_transfer_that_panics_is_an_error() {
        let made: Result<(), _> = aside(async { panic!("on purpose") }).await;
        assert!(matches!(made, Err(AsideError::Panicked)), "{made:?}");
    }

    #[tokio::test]
    async fn what_a_transfer_owns_is_held_until_its_thread_is_through() {
        let (held, ended) = mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let (go_on, disk) = mpsc::channel::<()>();
        let job = tokio::spawn(aside(async move {
            let _held = held;
            assert!(begun.send(()).is_ok());
            // As a disk does that takes its time.
            disk.recv().unwrap();
            std::future::pending::<()>().await;
        }));
        has_begun.await.unwrap();
        job.abort();
        assert!(job.await.is_err());
        assert_eq!(ended.try_recv(), Err(mpsc::TryRecvError::Empty));
        go_on.send(()).unwrap();
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
