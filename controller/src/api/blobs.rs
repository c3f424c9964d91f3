//! Blobs: what devices fetch by its digest, and anchor sets on their way in.
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use dunlin_protocol::{Blob, Digest};
use futures_util::StreamExt;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::body::takes;
use super::range::{byte_range, satisfiable};
use super::readable::Reader;
use super::{ApiError, ApiResult, AppState, shape};
use crate::registry::BLOB_BYTES_MAX;

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    takes(OpenApiRouter::new().routes(routes!(put_blob)), BLOB_BYTES_MAX).routes(routes!(blob))
}

fn digest(text: &str) -> ApiResult<Digest> {
    text.parse().map_err(|_| {
        ApiError::bad_request(format!("{text:?} is no SHA-256 digest")).hint("use 64 lower-case hex digits")
    })
}

#[utoipa::path(post, path = "/v1/blobs", tag = "models", request_body(content = shape::Binary, content_type = "application/octet-stream", description = "any bytes: an anchor set"),
    responses((status = 201, description = "digest and length", body = shape::Blob), (status = 422)))]
async fn put_blob(State(state): State<AppState>, caller: Caller, body: Bytes) -> ApiResult<Response> {
    // A blob without its row, left where this is cut short, is of no use: no policy that was signed names it, and the same
    // upload is taken again.
    let blob: Blob = state.registry.blobs().put(body.to_vec()).await?;
    state.audit.record(&caller.signed(), "blob.upload", Value::Null, json!(blob)).await?;
    Ok((StatusCode::CREATED, Json(blob)).into_response())
}

/// A blob, to a device as part of what it is assigned.
#[utoipa::path(get, path = "/v1/blobs/{sha256}", tag = "models", params(("sha256" = String, Path)),
    responses((status = 200, description = "the blob", body = shape::Binary, content_type = "application/octet-stream"), (status = 206, description = "a range of it", body = shape::Binary, content_type = "application/octet-stream"), (status = 404), (status = 416)))]
async fn blob(
    State(state): State<AppState>,
    reader: Reader,
    Path(text): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    stream_blob(&state, &reader, &digest(&text)?, &headers).await
}

/// A blob, or the part of it that is asked for, to who may read it.
pub(super) async fn stream_blob(
    state: &AppState,
    reader: &Reader,
    sha256: &Digest,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    reader.may_read_blob(state, sha256).await?;
    let missing = || ApiError::not_found("blob", sha256);
    let length = state.registry.blobs().length(sha256).await?.ok_or_else(missing)?;
    let range = headers.get(RANGE).and_then(|value| value.to_str().ok()).and_then(byte_range);
    if let Some(range) = &range
        && !satisfiable(range, length)
    {
        let error = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the blob has {length} bytes"));
        return Ok(([(CONTENT_RANGE, format!("bytes */{length}"))], error).into_response());
    }
    let partial = range.is_some();
    let part = state.registry.blobs().stream(sha256, range).await?.ok_or_else(missing)?;
    let common = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (ETAG, format!("\"{sha256}\"")),
        (CONTENT_LENGTH, (part.range.end - part.range.start).to_string()),
    ];
    // A device that is shut out meanwhile gets no more of it.
    let (broker, device) = (state.broker.clone(), reader.device().cloned());
    let is_out = move || device.as_ref().is_some_and(|device| broker.is_shut_out(device.as_str()));
    let body = Body::from_stream(part.stream.take_while(move |_| std::future::ready(!is_out())));
    if partial {
        let content_range = format!("bytes {}-{}/{}", part.range.start, part.range.end - 1, part.length);
        return Ok(
            (StatusCode::PARTIAL_CONTENT, common, [(CONTENT_RANGE, content_range)], body).into_response()
        );
    }
    Ok((common, body).into_response())
}
