//! The local API of the agent: the Open Inference Protocol V2 (REST with the binary tensor, model repository and
//! statistics extensions; gRPC with the feature `grpc`), late labels, and Prometheus metrics.
//!
//! A model name is a task, a version is a release (`line@3`, or the bare number where the line-up has only one such).
//! What runs here is decided by signed assignments. An administrator may take a task out of memory and put back what
//! its assignment designates, nothing else; a new generation puts it back as well.

mod access;
mod at_once;
mod body;
mod door;
mod explain;
#[cfg(feature = "grpc")]
mod grpc;
mod infer;
mod metrics;
mod models;
mod refusal;
mod repository;
mod request;
mod route;
mod statistics;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::{Now, ReasonCode, ReleaseId, TaskId, TensorData};
use futures_util::future::{BoxFuture, poll_immediate};
use http_body_util::Full;
use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::serve::{Answer, InferError, Serving};

pub use access::{Access, Token};
pub use door::Door;

use at_once::AtOnce;
use refusal::Refusal;

/// Most connections at one time: more than the applications of one device open, few enough that their buffers stay
/// small beside a model.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after the listener refuses to accept, as it does while the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers of the API.
pub(crate) type Answered = Response<Full<Bytes>>;

/// Further routes, such as the status that the command line reads: given method and path, a JSON body, or `None`
/// where the route is not known.
pub type Extra = Arc<dyn Fn(&str, &str) -> Option<serde_json::Value> + Send + Sync>;

/// Where the API takes the time from.
pub type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// What an administrator wants of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// What the assignment designates is loaded, anew if it is there.
    Loaded,
    /// Its models are out of memory, and requests are refused.
    Unloaded,
}

/// Who loads and unloads: told task and wish, says what came of it.
pub type Loader = Arc<dyn Fn(TaskId, Residency) -> BoxFuture<'static, ReasonCode> + Send + Sync>;

/// Bounds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// Bytes of the bodies of all requests that are read or answered at one time, but never less than one may have. What is
    /// held for a byte of JSON is a few more; further bodies are refused.
    pub bodies_bytes_max: usize,
    /// Requests that are read or answered at one time; further ones are refused, not queued.
    pub requests_max: usize,
    /// Input tensors of a request, and outputs it may name.
    pub tensors_max: usize,
}

impl Default for Limits {
    /// A batch of large images, and another one while it is worked on; more requests than the cores of a device work on; far
    /// more tensors than models take.
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self { body_bytes_max: 16 * MIB, bodies_bytes_max: 32 * MIB, requests_max: 32, tensors_max: 64 }
    }
}

/// What the API answers from.
#[derive(Clone)]
pub struct Api {
    serving: Arc<Serving>,
    clock: Clock,
    extra: Option<Extra>,
    loader: Option<Loader>,
    access: Arc<Access>,
    limits: Limits,
    /// Connections that may still be opened, over all doors.
    places: Arc<Semaphore>,
    /// Requests that may still be read.
    requests: Arc<Semaphore>,
    /// Bytes of bodies that may still be read.
    bodies: Arc<Semaphore>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("serving", &self.serving).finish_non_exhaustive()
    }
}

impl Api {
    /// The API of `serving`, open to everyone who reaches it.
    pub fn new(serving: Arc<Serving>, clock: Clock, limits: Limits) -> Self {
        let bodies = limits.bodies_bytes_max.max(limits.body_bytes_max);
        Self {
            serving,
            clock,
            extra: None,
            loader: None,
            access: Arc::default(),
            limits,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            requests: Arc::new(Semaphore::new(limits.requests_max)),
            bodies: Arc::new(Semaphore::new(bodies.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Adds further routes; they are asked only about paths that are not the API's own.
    #[must_use]
    pub fn with_extra(self, extra: Extra) -> Self {
        Self { extra: Some(extra), ..self }
    }

    /// Offers load and unload to administrators.
    #[must_use]
    pub fn with_loader(self, loader: Loader) -> Self {
        Self { loader: Some(loader), ..self }
    }

    /// Asks for tokens.
    #[must_use]
    pub fn with_access(self, access: Access) -> Self {
        Self { access: Arc::new(access), ..self }
    }

    /// Has the line-up answer. What has begun goes on, is counted and keeps its `room` if the client goes away: a member that
    /// hangs is found out however little its callers wait, and what they leave behind is bounded as they are.
    pub(crate) async fn answered(
        &self,
        task: &TaskId,
        version: Option<ReleaseId>,
        id: &str,
        inputs: Vec<TensorData>,
        room: impl Send + 'static,
    ) -> Result<Answer, InferError> {
        let (serving, task, id, now) =
            (Arc::clone(&self.serving), task.clone(), id.to_owned(), (self.clock)());
        let mut answer = Box::pin(async move {
            let _room = room;
            serving.answer(&task, version, id, inputs, now).await
        });
        match poll_immediate(&mut answer).await {
            Some(answer) => answer,
            // A task of its own ends before its work with the runtime alone.
            None => tokio::spawn(answer).await.unwrap_or(Err(InferError::Overloaded)),
        }
    }

    /// The place of one more request.
    fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let full = |_| {
            Refusal::new(
                hyper::StatusCode::TOO_MANY_REQUESTS,
                format!("{} requests are being answered, which is the limit", self.limits.requests_max),
            )
        };
        Arc::clone(&self.requests).try_acquire_owned().map_err(full)
    }

    /// Room for so many more bytes of a body, until its request is answered.
    fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.bodies).try_acquire_many_owned(permits).map_err(|_| {
            Refusal::new(
                hyper::StatusCode::TOO_MANY_REQUESTS,
                "the bodies of all requests together are too large at the moment: ask again",
            )
        })
    }

    /// Serves connections that come in by `door` until `stop` is done; connections still open are then dropped.
    pub async fn serve(self, door: Door, stop: impl Future<Output = ()>) {
        self.connections(door, stop, |api, stream, peer| async move {
            let service = service_fn(|request| {
                let api = &api;
                async move { Ok::<_, Infallible>(route::answer(api, peer, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            connection.await
        })
        .await;
    }

    /// Accepts connections and lets `serve` have each, until `stop` is done.
    async fn connections<F>(
        self,
        door: Door,
        stop: impl Future<Output = ()>,
        serve: impl Fn(Self, Box<dyn door::Stream>, access::Peer) -> F,
    ) where
        F: Future<Output = hyper::Result<()>> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = async {
                let place = Arc::clone(&self.places).acquire_owned().await;
                (place, door.accept(&self.serving).await)
            };
            let (place, accepted) = tokio::select! {
                () = &mut stop => return,
                accepted = accepted => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let connection = serve(self.clone(), stream, peer);
            connections.spawn(async move {
                let _place = place;
                if let Err(error) = AtOnce::new(connection).await {
                    tracing::debug!(%error, "a local connection ended early");
                }
            });
            while connections.try_join_next().is_some() {}
        }
    }
}
