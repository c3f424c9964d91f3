//! Models: pushing, listing, aliases and approval.
use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use dunlin_engine::prove::ProveError;
use dunlin_protocol::{
    Bundle, ClassName, Digest, FeatureMeta, GoldenSet, ModelName, ReleaseId, TaskId, TaskPolicy, TaskType,
};
use dunlin_trust::metadata::{Kind, Targets};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::body::takes;
use super::{ApiError, ApiResult, AppState, shape};
use crate::keys::Addition;
use crate::registry::{BLOB_BYTES_MAX, POLICY_BYTES_MAX, Push, RegistryError};
use crate::store::{ReleaseRow, ReleaseState};

/// Largest body of a push: base64 of the largest model with its samples.
const PUSH_BYTES_MAX: usize = BLOB_BYTES_MAX / 3 * 4 + (64 << 20);
/// Largest targets file: what devices accept.
const TARGETS_BYTES_MAX: usize = Targets::BYTES_MAX;
/// Longest alias.
const ALIAS_MAX: usize = 64;

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    let only = |routes| OpenApiRouter::new().routes(routes);
    OpenApiRouter::new()
        .merge(takes(only(routes!(push)), PUSH_BYTES_MAX))
        .merge(takes(only(routes!(put_policy)), POLICY_BYTES_MAX))
        .merge(takes(only(routes!(approve)), TARGETS_BYTES_MAX))
        .routes(routes!(releases))
        .routes(routes!(release))
        .routes(routes!(aliases))
        .routes(routes!(set_alias))
        .routes(routes!(pending))
        .routes(routes!(current_targets))
        .routes(routes!(policy))
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => error.into(),
            RegistryError::Repo(error) => error.into(),
            RegistryError::Engine(error) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("the model is refused ({}): {error}", error.reason()),
            )
            .hint("`dunlin model check FILE` says the same without a controller"),
            RegistryError::Import(error) => {
                let reason = error.reason();
                let text = match error {
                    ProveError::Failed { detail, .. } => detail,
                    other @ (ProveError::Start { .. }
                    | ProveError::Timeout { .. }
                    | ProveError::Crashed { .. }) => other.to_string(),
                };
                Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    format!("the model is refused ({reason}): {text}"),
                )
                .hint("`dunlin model check FILE` says the same without a controller")
            }
            RegistryError::Proof(error) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("the model did not pass its proof ({}): {error}", error.reason()),
            ),
            RegistryError::Refused(_) | RegistryError::Claim(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            RegistryError::Blob { .. }
            | RegistryError::File { .. }
            | RegistryError::Digest { .. }
            | RegistryError::Learn(_) => Self::internal(error),
        }
    }
}

/// A model to be taken in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PushBody {
    /// The task it is for.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// `classification`, `regression`, ...
    #[schema(value_type = shape::TaskType)]
    pub task_type: TaskType,
    /// The ONNX file, base64.
    #[schema(value_type = String)]
    pub onnx: dunlin_protocol::Bytes,
    /// Rows of the first input, from real data.
    #[serde(default)]
    pub samples: Vec<Vec<f32>>,
    /// Golden vectors of the publisher's runtime; without outputs, this engine answers their inputs.
    #[serde(default)]
    #[schema(value_type = Option<shape::GoldenSet>)]
    pub golden: Option<GoldenSet>,
    /// Features of the first input, with their units.
    #[serde(default)]
    #[schema(value_type = Vec<shape::FeatureMeta>)]
    pub features: Vec<FeatureMeta>,
    /// Class names.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Validation metrics, parts per million.
    #[serde(default)]
    pub metrics: BTreeMap<String, i64>,
    /// SPDX licence expression.
    #[serde(default)]
    pub licence: String,
    /// Hardware classes it is for; none means any.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub classes: BTreeSet<ClassName>,
}

/// A release.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReleaseView {
    /// `name@version`.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// Where it stands.
    pub state: ReleaseState,
    /// Digest of the manifest.
    #[schema(value_type = String)]
    pub manifest: Digest,
    /// The manifest.
    #[schema(value_type = shape::Bundle)]
    pub bundle: Bundle,
    /// The target for the offline keys to sign.
    pub target: Addition,
    /// Who took it in.
    pub created_by: String,
    /// When, Unix milliseconds.
    pub created_ms: u64,
    /// When signed targets first listed it.
    pub approved_ms: Option<u64>,
    /// When it was withdrawn.
    pub withdrawn_ms: Option<u64>,
}

impl From<ReleaseRow> for ReleaseView {
    fn from(row: ReleaseRow) -> Self {
        Self {
            release: row.bundle.release.clone(),
            state: row.state,
            manifest: row.sha256,
            target: row.addition(),
            bundle: row.bundle,
            created_by: row.created_by,
            created_ms: row.created_ms,
            approved_ms: row.approved_ms,
            withdrawn_ms: row.withdrawn_ms,
        }
    }
}

/// Which releases to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Of this task only.
    task: Option<String>,
    /// Of this model line only.
    model: Option<String>,
}

/// A release whose state changed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// `name@version`.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// Its new state.
    pub state: ReleaseState,
}

/// Where an alias points.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AliasBody {
    /// Version of the line.
    pub version: u32,
}

/// An alias and the release that it points at.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Alias {
    /// The alias.
    pub alias: String,
    /// `name@version`.
    #[schema(value_type = String)]
    pub release: ReleaseId,
}

fn id<T: std::str::FromStr<Err = dunlin_protocol::IdError>>(text: &str) -> ApiResult<T> {
    text.parse().map_err(|error: dunlin_protocol::IdError| ApiError::bad_request(error.to_string()))
}

#[utoipa::path(post, path = "/v1/models/{model}/releases", tag = "models", params(("model" = String, Path)), request_body = PushBody,
    responses((status = 201, body = ReleaseView), (status = 409, description = "the same model is a release already"), (status = 422, description = "refused by engine or proof")))]
async fn push(
    State(state): State<AppState>,
    caller: Caller,
    Path(model): Path<String>,
    Json(body): Json<PushBody>,
) -> ApiResult<Response> {
    let push = Push {
        task: body.task,
        task_type: body.task_type,
        model: id::<ModelName>(&model)?,
        onnx: body.onnx.0,
        samples: body.samples,
        golden: body.golden,
        features: body.features,
        labels: body.labels,
        metrics: body.metrics,
        licence: body.licence,
        classes: body.classes,
    };
    let view = ReleaseView::from(state.registry.push(push, (&caller.name, &caller.signed())).await?);
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

#[utoipa::path(get, path = "/v1/releases", tag = "models", params(Filter), responses((status = 200, body = Vec<ReleaseView>)))]
async fn releases(
    State(state): State<AppState>,
    Query(filter): Query<Filter>,
) -> ApiResult<Json<Vec<ReleaseView>>> {
    let model = filter.model.as_deref().map(id::<ModelName>).transpose()?;
    let task = filter.task.as_deref().map(id::<TaskId>).transpose()?;
    let rows = state.store.releases(model.as_ref(), task.as_ref()).await?;
    Ok(Json(rows.into_iter().map(ReleaseView::from).collect()))
}

#[utoipa::path(get, path = "/v1/releases/{release}", tag = "models", params(("release" = String, Path, description = "`name@version`, or `name@alias`")),
    responses((status = 200, body = ReleaseView), (status = 404)))]
async fn release(State(state): State<AppState>, Path(text): Path<String>) -> ApiResult<Json<ReleaseView>> {
    let release = match text.split_once('@') {
        Some((model, alias)) if alias.parse::<u32>().is_err() => {
            let model: ModelName = id(model)?;
            let version = state.store.aliases(&model).await?.get(alias).copied();
            ReleaseId { model, version: version.ok_or_else(|| ApiError::not_found("alias", &text))? }
        }
        Some(_) | None => id(&text)?,
    };
    let row = state.store.release(&release).await?.ok_or_else(|| ApiError::not_found("release", release))?;
    Ok(Json(row.into()))
}

#[utoipa::path(get, path = "/v1/models/{model}/aliases", tag = "models", params(("model" = String, Path)), responses((status = 200, body = BTreeMap<String, u32>)))]
async fn aliases(
    State(state): State<AppState>,
    Path(model): Path<String>,
) -> ApiResult<Json<BTreeMap<String, u32>>> {
    Ok(Json(state.store.aliases(&id(&model)?).await?))
}

#[utoipa::path(put, path = "/v1/models/{model}/aliases/{alias}", tag = "models", params(("model" = String, Path), ("alias" = String, Path)),
    request_body = AliasBody, responses((status = 200, body = Alias), (status = 404)))]
async fn set_alias(
    State(state): State<AppState>,
    caller: Caller,
    Path((model, alias)): Path<(String, String)>,
    Json(body): Json<AliasBody>,
) -> ApiResult<Json<Alias>> {
    let sound = alias.len() <= ALIAS_MAX
        && alias.starts_with(|c: char| c.is_ascii_lowercase())
        && alias.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !sound {
        return Err(ApiError::bad_request(format!("{alias:?} is no alias"))
            .hint("use a-z, 0-9 and '-', beginning with a letter"));
    }
    let release = ReleaseId { model: id(&model)?, version: body.version };
    let mut change = state.audit.begin().await?;
    let before = state.store.alias_set(change.tx(), &release, &alias, crate::clock::wall_ms()).await?;
    let before = before.map(|version| ReleaseId { version, ..release.clone() });
    let before = json!({ "alias": alias, "release": before });
    change
        .commit(&caller.signed(), "model.alias", before, json!({ "alias": alias, "release": release }))
        .await?;
    Ok(Json(Alias { alias, release }))
}

#[utoipa::path(get, path = "/v1/approvals/pending", tag = "models", responses((status = 200, description = "targets that wait for offline signatures", body = Vec<Addition>)))]
async fn pending(State(state): State<AppState>) -> ApiResult<Json<Vec<Addition>>> {
    Ok(Json(state.registry.pending().await?))
}

/// Whose file is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Signers {
    /// The own signers of this task; without it, those of the top-level targets.
    task: Option<String>,
}

impl Signers {
    fn task(&self) -> ApiResult<Option<TaskId>> {
        self.task.as_deref().map(id).transpose()
    }
}

#[utoipa::path(get, path = "/v1/approvals/current", tag = "models", params(Signers), responses((status = 200, description = "the published targets, byte for byte", content_type = "application/json", body = shape::SignedFile), (status = 422, description = "nothing is published yet")))]
async fn current_targets(
    State(state): State<AppState>,
    Query(signers): Query<Signers>,
) -> ApiResult<Response> {
    let file = match signers.task()? {
        Some(task) => state.registry.current_role(&task)?,
        None => state.registry.current_targets()?,
    };
    Ok(([(CONTENT_TYPE, "application/json")], file).into_response())
}

#[utoipa::path(post, path = "/v1/approvals", tag = "models", params(Signers), request_body(content = shape::Binary, content_type = "application/octet-stream", description = "targets signed offline"),
    responses((status = 200, body = Vec<Changed>), (status = 400, description = "a device would refuse the file"), (status = 409), (status = 422)))]
async fn approve(
    State(state): State<AppState>,
    caller: Caller,
    Query(signers): Query<Signers>,
    body: Bytes,
) -> ApiResult<Json<Vec<Changed>>> {
    let changed = match signers.task()? {
        Some(task) => state.registry.approve_task(task, body.to_vec(), &caller.signed()).await?,
        None => state.registry.approve(body.to_vec(), &caller.signed()).await?,
    };
    state.wake.planner.notify_one();
    Ok(Json(changed.into_iter().map(|(release, state)| Changed { release, state }).collect()))
}

#[utoipa::path(post, path = "/v1/policies", tag = "models", request_body(content = shape::Binary, content_type = "application/octet-stream", description = "a task policy, JSON; its exact bytes are what is signed"),
    responses((status = 201, description = "the target for the offline keys to sign", body = Addition), (status = 422)))]
async fn put_policy(State(state): State<AppState>, caller: Caller, body: Bytes) -> ApiResult<Response> {
    let row = state.registry.policy(body.to_vec(), (&caller.name, &caller.signed())).await?;
    Ok((StatusCode::CREATED, Json(row.addition())).into_response())
}

#[utoipa::path(get, path = "/v1/policies/{task}", tag = "models", params(("task" = String, Path)), responses((status = 200, description = "the policy in force", body = shape::TaskPolicy), (status = 404)))]
async fn policy(State(state): State<AppState>, Path(task): Path<String>) -> ApiResult<Json<TaskPolicy>> {
    let row = state.store.policy_in_force(&id(&task)?).await?;
    Ok(Json(row.ok_or_else(|| ApiError::not_found("policy in force for the task", task))?.policy))
}
