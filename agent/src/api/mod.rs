//! The local HTTP API of the agent: the Open Inference Protocol V2 (REST, with the binary tensor extension), late
//! labels, and Prometheus metrics.
//!
//! A model name is a task, a version is a release (`line@3`, or the bare number where the line-up has only one such).
//! The listener is made by the caller: loopback, or a Unix socket's stand-in in front of it. There is no
//! authentication here, so nothing in it changes what runs: `load` and `unload` of the repository extension are
//! refused.

mod infer;
mod json;
mod metrics;
mod models;
mod refusal;
mod request;
mod route;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::Now;
use http_body_util::Full;
use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::serve::Serving;

pub use request::BODY_BYTES_MAX;

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

/// What the API answers from.
#[derive(Clone)]
pub struct Api {
    serving: Arc<Serving>,
    clock: Clock,
    extra: Option<Extra>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("serving", &self.serving).finish_non_exhaustive()
    }
}

impl Api {
    /// The API of `serving`.
    pub fn new(serving: Arc<Serving>, clock: Clock) -> Self {
        Self { serving, clock, extra: None }
    }

    /// Adds further routes; they are asked only about paths that are not the API's own.
    #[must_use]
    pub fn with_extra(self, extra: Extra) -> Self {
        Self { extra: Some(extra), ..self }
    }

    /// Serves connections of `listener` until `stop` is done; connections still open are then dropped.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(_) => {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            // Small answers must not wait for the acknowledgement of the one before; a failure costs time only.
            let _slower = stream.set_nodelay(true);
            let api = self.clone();
            connections.spawn(async move {
                let _place = place;
                let service = service_fn(|request| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(route::answer(&api, request).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a local connection ended early");
                }
            });
            while connections.try_join_next().is_some() {}
        }
    }
}
