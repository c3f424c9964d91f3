//! The HTTP API: one router from the modules beside this file, and what they share.
//!
//! Operators come with a bearer token ([`auth::Caller`]), devices with their client certificate
//! ([`auth::Peer`]). Who may use which route is one table, [`access::ROUTES`].
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::audit::Audit;
use crate::broker::BrokerHandle;
use crate::config::Config;
use crate::downlink::Downlink;
use crate::evidence::Ledgers;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::repo::Repos;
use crate::store::{Store, StoreError};

pub mod access;
pub mod admissions;
pub mod audit;
pub mod auth;
pub mod blobs;
mod body;
pub mod devices;
mod document;
pub mod drift;
pub mod enrol;
pub mod export;
pub mod limit;
pub mod models;
pub mod programs;
pub mod range;
mod readable;
pub mod renew;
pub mod repo;
pub mod rollouts;
pub mod runs;
pub(crate) mod shape;
pub mod system;
pub mod tasks;
pub mod tokens;

/// What every handler can reach. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The data folder.
    pub data: Arc<std::path::Path>,
    /// Database.
    pub store: Store,
    /// TUF repositories.
    pub repos: Arc<Repos>,
    /// Models and their blobs.
    pub registry: Arc<Registry>,
    /// Audit log.
    pub audit: Audit,
    /// Configuration as it was at the start.
    pub config: Arc<Config>,
    /// Certificates and addresses of this controller.
    pub identity: Arc<Identity>,
    /// What the windows of each task say, as of the last look.
    pub ledgers: Ledgers,
    /// Counters for `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Wakes background loops before their tick.
    pub wake: Wake,
    /// Sends signed messages to devices.
    pub downlink: Downlink,
    /// The broker, to end a revoked device's session.
    pub broker: BrokerHandle,
    /// How often strangers may knock.
    pub limits: Arc<limit::Limits>,
}

/// Wakes the loops that otherwise look at the world once a tick.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    /// The planner: something it plans by has changed.
    pub planner: Arc<tokio::sync::Notify>,
    /// The external broker's lists: somebody is kept out, or let in again.
    pub lists: Arc<tokio::sync::Notify>,
    /// The training supervisor: a trigger may be due or a run was asked for.
    pub training: Arc<tokio::sync::Notify>,
}

/// Every error of the API: status, what went wrong, what to do about it.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What went wrong.
    pub error: String,
    /// What to do; empty if there is nothing to say.
    pub hint: String,
    /// When to come again, if that is known.
    pub retry_after: Option<Duration>,
}

/// Body of every answer that is not a success.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: String,
    /// What to do.
    #[serde(default)]
    pub hint: String,
}

impl ApiError {
    /// An error with a status and a message.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: String::new(), retry_after: None }
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// 400: the request makes no sense.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 401: nobody we know.
    pub fn unauthorised(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error)
    }

    /// 403: known, but not allowed.
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    /// 404: `what` named `key` does not exist.
    pub fn not_found(what: &str, key: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what} {key}"))
    }

    /// 409: it is not in a state that allows this.
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// 429: not now.
    pub fn too_many(error: impl Into<String>, wait: Duration) -> Self {
        let wait = Duration::from_secs(wait.as_secs() + 1);
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, error);
        Self { retry_after: Some(wait), ..refusal }.hint(format!("come again in {} s", wait.as_secs()))
    }

    /// 500: our fault. The chain of causes goes to the log, the first message to the caller.
    pub fn internal(error: impl std::error::Error) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            chain = format!("{chain}: {cause}");
            source = cause.source();
        }
        tracing::error!(error = chain, "a request failed");
        if is_full(&error) {
            let text = format!("{error}: the controller's disk is full");
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, text)
                .hint("nothing was taken in; make room on the controller, then do it again");
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            .hint("the controller's log holds the cause")
    }
}

/// Whether a full disk is behind an error.
fn is_full(error: &dyn std::error::Error) -> bool {
    /// SQLite's code for it.
    const SQLITE_FULL: &str = "13";
    let full = |cause: &(dyn std::error::Error + 'static)| {
        let file = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let database = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
        matches!(file, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
            || database.is_some_and(|error| error.code().as_deref() == Some(SQLITE_FULL))
    };
    std::iter::successors(error.source(), |cause| cause.source()).any(full)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response =
            (self.status, Json(ErrorBody { error: self.error, hint: self.hint })).into_response();
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, wait.as_secs().into());
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            StoreError::Conflict(_) => Self::conflict(error.to_string()),
            StoreError::Sql { .. } | StoreError::Migrate(_) | StoreError::Corrupt { .. } => {
                Self::internal(error)
            }
        }
    }
}

/// Result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Dunlin controller",
        description = "Fleet of edge devices and the models they run.",
        // Said, as the macro otherwise takes what it finds in the environment of the compiler.
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(ErrorBody, shape::Failure))
)]
struct Document;

fn open_api_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(enrol::router())
        .merge(export::router())
        .merge(renew::router())
        .merge(admissions::router())
        .merge(devices::router())
        .merge(tokens::router())
        .merge(audit::router())
        .merge(system::router())
        .merge(drift::router())
        .merge(repo::router())
        .merge(models::router())
        .merge(blobs::router())
        .merge(programs::router())
        .merge(rollouts::router())
        .merge(runs::router())
        .merge(tasks::router())
}

/// The OpenAPI document of this build.
pub fn document() -> utoipa::openapi::OpenApi {
    document::completed(open_api_router().split_for_parts().1)
}

/// The whole API as one service.
pub fn router(state: AppState) -> axum::Router {
    let (router, document) = body::takes(open_api_router(), body::BODY_BYTES_MAX).split_for_parts();
    let document = Arc::new(document::completed(document));
    router
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), access::guard))
        .route(
            "/v1/openapi.json",
            axum::routing::get(move || {
                let document = Arc::clone(&document);
                async move { Json(document.as_ref().clone()) }
            }),
        )
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "there is no such path").hint("see /v1/openapi.json")
        })
        .with_state(state)
}
