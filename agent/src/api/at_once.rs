//! Connections that go on at once when they have woken themselves.
//!
//! hyper keeps the body of a request back until the service asks for it, and then wakes its own task, which is the one
//! that the service runs in. To a runtime of several threads that is a task that gives way to others: it goes to the
//! back of the queue, and a second thread is woken to help with what now seems to be too much for one. That costs more
//! than the request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Polls of one turn: twice what a request takes whose body came with its head. After these others have theirs.
const POLLS_MAX: usize = 4;

/// A future that is polled again at once if it was woken while it was polled.
pub(super) struct AtOnce<F> {
    future: Pin<Box<F>>,
    signal: Arc<Signal>,
    /// `signal`, as the future is given it.
    waker: Waker,
}

#[derive(Default)]
struct Signal {
    task: AtomicWaker,
    /// Whether whoever polls will look at `woken`, so that the task need not be.
    polling: AtomicBool,
    woken: AtomicBool,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order, and in the other one in `poll`: one of the two sees what the other one did.
        self.woken.store(true, Ordering::SeqCst);
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl<F: Future> AtOnce<F> {
    pub(super) fn new(future: F) -> Self {
        let signal = Arc::<Signal>::default();
        Self { future: Box::pin(future), waker: Arc::clone(&signal).into(), signal }
    }
}

impl<F: Future> Future for AtOnce<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, signal, waker } = &mut *self;
        signal.task.register(context.waker());
        for _ in 0..POLLS_MAX {
            // Not a store: what whoever set it has done before is to be seen by what is polled now.
            signal.woken.swap(false, Ordering::SeqCst);
            signal.polling.store(true, Ordering::SeqCst);
            let polled = future.as_mut().poll(&mut Context::from_waker(waker));
            signal.polling.store(false, Ordering::SeqCst);
            if polled.is_ready() || !signal.woken.load(Ordering::SeqCst) {
                return polled;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::ready;
    use std::time::Duration;

    use futures_util::future::poll_fn;

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Wakes itself `times` before it is done.
    fn restless(times: usize) -> impl Future<Output = ()> {
        let mut left = times;
        poll_fn(move |context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn polled<F: Future>(future: &mut AtOnce<F>) -> (Poll<F::Output>, usize) {
        let woken = Arc::<Woken>::default();
        let polled = Pin::new(future).poll(&mut Context::from_waker(&Arc::clone(&woken).into()));
        (polled, woken.0.load(Ordering::SeqCst))
    }

    #[test]
    fn who_wakes_himself_goes_on_without_being_woken() {
        assert_eq!(polled(&mut AtOnce::new(restless(POLLS_MAX - 1))), (Poll::Ready(()), 0));
    }

    #[test]
    fn after_some_polls_others_have_their_turn() {
        let mut future = AtOnce::new(restless(POLLS_MAX));
        assert_eq!(polled(&mut future), (Poll::Pending, 1));
        assert_eq!(polled(&mut future), (Poll::Ready(()), 0));
    }

    #[test]
    fn who_waits_is_woken_from_outside() {
        let mut given = None;
        let mut future = AtOnce::new(poll_fn(|context| {
            given = Some(context.waker().clone());
            Poll::<()>::Pending
        }));
        let woken = Arc::<Woken>::default();
        assert!(
            Pin::new(&mut future).poll(&mut Context::from_waker(&Arc::clone(&woken).into())).is_pending()
        );
        drop(future);
        given.unwrap().wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }

    /// Two threads that pass a number back and forth, each woken by the other while it may still be polled.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_waking_is_lost() {
        const ROUNDS: usize = 20_000;
        let (to_a, mut from_b) = tokio::sync::mpsc::channel(1);
        let (to_b, mut from_a) = tokio::sync::mpsc::channel(1);
        let a = tokio::spawn(AtOnce::new(async move {
            for i in 0..ROUNDS {
                to_b.send(i).await.unwrap();
                assert_eq!(from_b.recv().await, Some(i));
            }
        }));
        let b = tokio::spawn(AtOnce::new(poll_fn(move |context| {
            loop {
                let Some(i) = ready!(from_a.poll_recv(context)) else { return Poll::Ready(()) };
                to_a.try_send(i).unwrap();
            }
        })));
        let both = async { (a.await.unwrap(), b.await.unwrap()) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("a waking was lost");
    }
}
