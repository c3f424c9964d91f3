//! The repositories over HTTP: the static TUF layout, and the composite check.
//!
//! Image metadata is public, as Uptane has it: all of it is signed, and anyone may verify it. A device's
//! director metadata and the contents of targets are for that device and for operators.
use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use dunlin_protocol::{DeviceId, ReleaseId, RepoVersions, cbor};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::blobs::stream_blob;
use super::readable::Reader;
use super::{ApiError, ApiResult, AppState, shape};
use crate::clock;
use crate::repo::{RepoError, Repos};

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(check))
        .routes(routes!(image_file))
        .routes(routes!(director_file))
        .routes(routes!(target_file))
}

impl From<RepoError> for ApiError {
    fn from(error: RepoError) -> Self {
        match error {
            RepoError::NotSetUp
            | RepoError::AlreadySetUp
            | RepoError::Generation { .. }
            | RepoError::Immutable(_) => Self::conflict(error.to_string()),
            RepoError::NotApproved(_) => Self::conflict(error.to_string()).hint("see `dunlin model approve`"),
            RepoError::Name(_) | RepoError::NotDelegated(_) | RepoError::RoleMissing(_) => {
                Self::bad_request(error.to_string())
            }
            RepoError::Trust { attempted, source } => {
                Self::bad_request(format!("could not {attempted}: {source}"))
                    .hint("a device would refuse it for the same reason")
            }
            RepoError::File { .. }
            | RepoError::Damaged { .. }
            | RepoError::Keys(_)
            | RepoError::ForeignKey(_) => Self::internal(error),
        }
    }
}

/// Query of the composite check.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CheckQuery {
    /// The device; one that shows its certificate need not name itself.
    d: Option<String>,
    /// Versions it holds of the image repository: `root.timestamp.snapshot.targets.retrained`, 0 for none.
    i: String,
    /// Versions it holds of its director repository: `root.timestamp.snapshot.targets`.
    o: String,
    /// What it says of the roles of single tasks that it holds: 16 hexadecimal digits over those of its own tasks, nothing for
    /// none. It then gets those of its own tasks, if that is not so; without it, all there are.
    r: Option<String>,
}

/// Reads versions joined by dots; what is left out counts as not held.
fn versions(text: &str) -> ApiResult<RepoVersions> {
    let bad = || {
        ApiError::bad_request(format!("{text:?} are no versions"))
            .hint("write them root.timestamp.snapshot.targets.retrained")
    };
    let mut parts = text.split('.').map(u64::from_str);
    let mut next = || parts.next().unwrap_or(Ok(0)).map_err(|_| bad());
    let versions = RepoVersions {
        root: next()?,
        timestamp: next()?,
        snapshot: next()?,
        targets: next()?,
        retrained: next()?,
    };
    if parts.next().is_some() { Err(bad()) } else { Ok(versions) }
}

fn device_id(text: &str) -> ApiResult<DeviceId> {
    text.parse().map_err(|error: dunlin_protocol::IdError| ApiError::bad_request(error.to_string()))
}

/// Runs file work off the async threads.
async fn on_files<T: Send + 'static>(
    state: &AppState,
    work: impl FnOnce(&Repos) -> Result<T, RepoError> + Send + 'static,
) -> ApiResult<T> {
    let repos = state.repos.clone();
    let done = tokio::task::spawn_blocking(move || work(&repos)).await.map_err(ApiError::internal)?;
    Ok(done?)
}

/// What is new to a device: both fresh timestamps, and whatever differs from what it holds.
#[utoipa::path(get, path = "/v1/check", params(CheckQuery), tag = "repository",
    responses((status = 200, description = "metadata files, CBOR", content_type = "application/cbor", body = shape::Binary), (status = 404, description = "there is no such device")))]
async fn check(
    State(state): State<AppState>,
    reader: Reader,
    Query(query): Query<CheckQuery>,
) -> ApiResult<Response> {
    let device = match (&query.d, &reader) {
        (Some(named), _) => device_id(named)?,
        (None, Reader::Device(own)) => own.clone(),
        (None, Reader::Operator) => return Err(ApiError::bad_request("d, the device, is missing")),
    };
    reader.may_read_of(&state, &device).await?;
    let (image, director) = (versions(&query.i)?, versions(&query.o)?);
    let check = on_files(&state, move |repos| {
        repos.check(&device, image, director, query.r.as_deref(), clock::wall_ms())
    })
    .await?;
    Ok(([(CONTENT_TYPE, "application/cbor")], cbor::encode(&check)).into_response())
}

/// A metadata file of the image repository.
#[utoipa::path(get, path = "/v1/image/{file}", params(("file" = String, Path, description = "`timestamp.json` or `N.role.json`")),
    tag = "repository", responses((status = 200, description = "the file, byte for byte", content_type = "application/json", body = shape::SignedFile), (status = 404)))]
async fn image_file(State(state): State<AppState>, Path(file): Path<String>) -> ApiResult<Response> {
    let name = file.clone();
    served(&file, on_files(&state, move |repos| repos.image_file(&name, clock::wall_ms())).await?)
}

/// A metadata file of a device's director repository.
#[utoipa::path(get, path = "/v1/director/{device}/{file}", tag = "repository",
    params(("device" = String, Path, description = "the device"), ("file" = String, Path, description = "`timestamp.json` or `N.role.json`")),
    responses((status = 200, description = "the file, byte for byte", content_type = "application/json", body = shape::SignedFile), (status = 404)))]
async fn director_file(
    State(state): State<AppState>,
    reader: Reader,
    Path((device, file)): Path<(String, String)>,
) -> ApiResult<Response> {
    let device = device_id(&device)?;
    reader.may_read_of(&state, &device).await?;
    let name = file.clone();
    served(&file, on_files(&state, move |repos| repos.director_file(&device, &name, clock::wall_ms())).await?)
}

/// The content of a target: a manifest, a policy, or a program. A device reads those of its assignment.
#[utoipa::path(get, path = "/v1/targets/{file}", tag = "repository",
    params(("file" = String, Path, description = "`{sha256}.{name}`")),
    responses(
        (status = 200, description = "the file, byte for byte; a program is sent as `/v1/blobs` sends it", content(
            (shape::Target = "application/json"), (shape::Binary = "application/octet-stream"))),
        (status = 206, description = "a range of a program", body = shape::Binary, content_type = "application/octet-stream"),
        (status = 404), (status = 416)))]
async fn target_file(
    State(state): State<AppState>,
    reader: Reader,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let (hex, target) = file.split_once('.').unwrap_or_default();
    if ReleaseId::from_program_name(target).is_some() {
        // It lies with the blobs.
        let digest = hex.parse().map_err(|_| ApiError::not_found("file", &file))?;
        return stream_blob(&state, &reader, &digest, &headers).await;
    }
    reader.may_read_target(&state, target).await?;
    let name = file.clone();
    served(&file, on_files(&state, move |repos| repos.target_file(&name)).await?)
}

/// A file, or 404. All but the timestamp never change under their name.
fn served(name: &str, content: Option<Vec<u8>>) -> ApiResult<Response> {
    let content = content.ok_or_else(|| ApiError::not_found("file", name))?;
    let cache = if name == "timestamp.json" { "no-cache" } else { "max-age=31536000, immutable" };
    Ok(([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, cache)], Bytes::from(content)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_a_device_writes_them() {
        let held = versions("1.22.3.4.5").unwrap();
        assert_eq!(held, RepoVersions { root: 1, timestamp: 22, snapshot: 3, targets: 4, retrained: 5 });
        assert_eq!(versions("1.0.0.0").unwrap(), RepoVersions { root: 1, ..RepoVersions::default() });
        for bad in ["", "a", "1.2.3.4.5.6", "-1.0.0.0", "1..2"] {
            assert!(versions(bad).is_err(), "{bad}");
        }
    }
}
