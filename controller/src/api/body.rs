//! What routes take in, and refusals in the form of every other one.
use axum::Json;
use axum::body::to_bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;

use super::{AppState, ErrorBody};

/// Largest body unless a route says otherwise: a task's definition or a list of serial numbers.
pub(super) const BODY_BYTES_MAX: usize = 2 << 20;
/// Longest explanation of the framework that is passed on.
const TEXT_BYTES_MAX: usize = 4096;

/// Limits the bodies of a router's routes.
pub(super) fn takes(router: OpenApiRouter<AppState>, bytes_max: usize) -> OpenApiRouter<AppState> {
    let explain = map_response(move |response: Response| explained(response, bytes_max));
    router.layer(DefaultBodyLimit::max(bytes_max)).layer(explain)
}

/// A refusal by the framework (a body that is too long or of another form), as an [`ErrorBody`].
async fn explained(response: Response, bytes_max: usize) -> Response {
    let status = response.status();
    let plain =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !status.is_client_error() || !plain {
        return response;
    }
    let text = to_bytes(response.into_body(), TEXT_BYTES_MAX).await.unwrap_or_default();
    let body = if status == StatusCode::PAYLOAD_TOO_LARGE {
        ErrorBody {
            error: format!("the body is longer than the {bytes_max} bytes that this route takes"),
            hint: String::new(),
        }
    } else {
        ErrorBody { error: String::from_utf8_lossy(&text).into_owned(), hint: "see /v1/openapi.json".into() }
    };
    (status, Json(body)).into_response()
}
