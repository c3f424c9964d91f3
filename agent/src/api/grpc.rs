//! The protocol over gRPC: `inference.GRPCInferenceService`, unary calls.
//!
//! The messages in [`message`] are written by hand from the public definition
//! (`specification/protocol/open_inference_grpc.proto` of the Open Inference Protocol, and Triton's `grpc_service.proto`
//! for its repository and statistics extensions), so that building needs no protobuf compiler. A method that is not here,
//! such as `ModelStreamInfer` and `ModelConfig`, answers `UNIMPLEMENTED`.

mod calls;
mod counted;
mod frugal;
mod message;
mod tensor;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Status};

use super::access::{Peer, Right};
use super::refusal::{NO_SHARED_MEMORY, Refusal};
use super::{Api, Door, HEAD_TIMEOUT};
use counted::Counted;
use frugal::Frugal;
use message::InferRequest;

/// Bytes of a message beside its tensors: names, shapes and parameters of the most tensors that are taken.
const FRAME_BYTES_MAX: usize = 64 * 1024;

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.status {
            StatusCode::BAD_REQUEST => Code::InvalidArgument,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::INTERNAL_SERVER_ERROR => Code::Internal,
            _ => Code::Unknown,
        };
        Self::new(code, refusal.error)
    }
}

impl Api {
    /// Serves gRPC to connections that come in by `door` until `stop` is done; connections still open are then dropped.
    pub async fn serve_grpc(self, door: Door, stop: impl Future<Output = ()>) {
        self.connections(door, stop, |api, stream, peer| async move {
            let streams = u32::try_from(api.limits.requests_max).unwrap_or(u32::MAX);
            let api = Arc::new(api);
            let service = service_fn(move |request| {
                let api = Arc::clone(&api);
                async move { Ok::<_, Infallible>(answer(&api, peer, request).await) }
            });
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(HEAD_TIMEOUT)
                .max_concurrent_streams(streams)
                .serve_connection(TokioIo::new(stream), service)
                .await
        })
        .await;
    }
}

async fn answer(api: &Arc<Api>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let method = path.strip_prefix("/inference.GRPCInferenceService/").unwrap_or_default();
    let needed = match method {
        "ServerLive" | "ServerReady" => Right::Nothing,
        "RepositoryModelLoad" | "RepositoryModelUnload" => Right::Administer,
        _ => Right::Use,
    };
    if let Err(refusal) = api.access.check(peer, request.headers(), needed) {
        return Status::from(refusal).into_http();
    }
    let (head, body) = request.into_parts();
    let (request, held) = match Counted::new(body, api) {
        Ok((body, held)) => (Request::from_parts(head, body), held),
        Err(refusal) => return Status::from(refusal).into_http(),
    };
    match method {
        "ServerLive" => unary(api, request, calls::server_live).await,
        "ServerReady" => unary(api, request, calls::server_ready).await,
        "ServerMetadata" => unary(api, request, calls::server_metadata).await,
        "ModelReady" => unary(api, request, calls::model_ready).await,
        "ModelMetadata" => unary(api, request, calls::model_metadata).await,
        "ModelStatistics" => unary(api, request, calls::model_statistics).await,
        "ModelInfer" => match api.enter() {
            Ok(place) => infer(api, request, Arc::new((place, held))).await,
            Err(refusal) => Status::from(refusal).into_http(),
        },
        "RepositoryIndex" => unary(api, request, calls::repository_index).await,
        "RepositoryModelLoad" => unary(api, request, calls::load).await,
        "RepositoryModelUnload" => unary(api, request, calls::unload).await,
        _ if method.contains("SharedMemory") => Status::unimplemented(NO_SHARED_MEMORY).into_http(),
        _ => Status::unimplemented(format!("{path:?} is not offered")).into_http(),
    }
}

/// Reads one message, has it answered, writes one message.
async fn unary<Q, A>(
    api: &Api,
    request: Request<Counted>,
    call: impl AsyncFn(&Api, Q) -> Result<A, Refusal>,
) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    let call = &call;
    let service = tower::service_fn(move |request: tonic::Request<Q>| async move {
        call(api, request.into_inner()).await.map(tonic::Response::new).map_err(Status::from)
    });
    grpc(api).unary(service, request).await
}

/// The same for inference, which keeps its `room` until it is answered.
async fn infer(
    api: &Api,
    request: Request<Counted>,
    room: Arc<impl Send + Sync + 'static>,
) -> Response<Body> {
    let room = &room;
    let service = tower::service_fn(move |request: tonic::Request<InferRequest>| async move {
        let answer = calls::model_infer(api, request.into_inner(), Arc::clone(room)).await;
        answer.map(tonic::Response::new).map_err(Status::from)
    });
    grpc(api).unary(service, request).await
}

fn grpc<A: Message + 'static, Q: Message + Default + 'static>(api: &Api) -> Grpc<Frugal<A, Q>> {
    let bytes_max = api.limits.body_bytes_max.saturating_add(FRAME_BYTES_MAX);
    Grpc::new(Frugal::new(bytes_max))
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(usize::MAX)
}
