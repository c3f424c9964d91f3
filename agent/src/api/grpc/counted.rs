use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tonic::Status;

use crate::api::body::{self, BODY_TIMEOUT};
use crate::api::{Api, refusal::Refusal};

/// What a call holds of the bytes that bodies have together.
pub(super) type Held = Arc<Mutex<OwnedSemaphorePermit>>;

/// A body that takes the bytes it is read into from what all bodies have together.
pub(super) struct Counted {
    body: Incoming,
    api: Arc<Api>,
    held: Held,
    /// Bytes that are still counted; beyond the largest body a message has what frames its tensors.
    left: usize,
    /// Until when the client may take.
    until: Pin<Box<Sleep>>,
}

impl Counted {
    /// The body, and what is to be kept until its call is answered.
    pub(super) fn new(body: Incoming, api: &Arc<Api>) -> Result<(Self, Held), Refusal> {
        let held = Arc::new(Mutex::new(api.room(0)?));
        let left = api.limits.body_bytes_max;
        Ok((
            Self {
                body,
                api: Arc::clone(api),
                held: Arc::clone(&held),
                left,
                until: Box::pin(sleep(BODY_TIMEOUT)),
            },
            held,
        ))
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(frame)) => frame,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                ready!(self.until.as_mut().poll(context));
                return Poll::Ready(Some(Err(body::late().into())));
            }
        };
        let counted = frame.map_err(|e| Status::from_error(e.into())).and_then(|frame| {
            let more = frame.data_ref().map_or(0, Bytes::len).min(self.left);
            self.left -= more;
            let more = self.api.room(more)?;
            self.held.lock().unwrap_or_else(PoisonError::into_inner).merge(more);
            Ok(frame)
        });
        Poll::Ready(Some(counted))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
