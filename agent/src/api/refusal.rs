//! Refusals: a status and one line for people, as `{"error": ...}`.

use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use super::Answered;
use crate::serve::{FeedbackError, InferError};

/// Said to whoever would register shared memory.
pub(super) const NO_SHARED_MEMORY: &str =
    "this server shares no memory with its clients: send tensors in the body of the request";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    /// 400.
    pub(super) fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 404.
    pub(super) fn missing(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    pub(super) fn answer(&self) -> Answered {
        let mut answer = json(self.status, &serde_json::json!({ "error": self.error }));
        if self.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

impl From<InferError> for Refusal {
    fn from(error: InferError) -> Self {
        let status = match &error {
            InferError::UnknownTask(_) | InferError::UnknownVersion { .. } => StatusCode::NOT_FOUND,
            InferError::Input(_) | InferError::Unloaded(_) => StatusCode::BAD_REQUEST,
            InferError::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            InferError::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            InferError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<FeedbackError> for Refusal {
    fn from(error: FeedbackError) -> Self {
        let status = match &error {
            FeedbackError::UnknownTask(_) | FeedbackError::UnknownRequest(_) => StatusCode::NOT_FOUND,
            FeedbackError::UnknownClass { .. } => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Answered {
    with(status, "application/json", body.to_string().into_bytes())
}

/// An answer of any type.
pub(super) fn with(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Answered {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
