//! Tasks: what is inferred where, by what, and when it is retrained; and why a device runs what it runs.
use axum::Json;
use axum::extract::{Path, Query, State};
use dunlin_protocol::{DeviceId, TaskId};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::{ApiError, ApiResult, AppState};
use crate::clock;
use crate::planner::{Decision, TaskDefinition, TaskRow};

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, put)).routes(routes!(explain))
}

#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", responses((status = 200, body = Vec<Object>)))]
async fn list(State(state): State<AppState>) -> ApiResult<Json<Vec<TaskRow>>> {
    Ok(Json(state.store.tasks().await?))
}

#[utoipa::path(get, path = "/v1/tasks/{task}", tag = "tasks", params(("task" = String, Path)),
    responses((status = 200, body = Object), (status = 404)))]
async fn show(State(state): State<AppState>, Path(task): Path<TaskId>) -> ApiResult<Json<TaskRow>> {
    Ok(Json(state.store.task(&task).await?))
}

#[utoipa::path(put, path = "/v1/tasks/{task}", tag = "tasks", params(("task" = String, Path)), request_body = Object,
    responses((status = 200, body = Object), (status = 400)))]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    Path(task): Path<TaskId>,
    Json(definition): Json<TaskDefinition>,
) -> ApiResult<Json<TaskRow>> {
    if definition.task != task {
        return Err(ApiError::bad_request(format!(
            "the definition is of task {}, not of {task}",
            definition.task
        )));
    }
    definition.check().map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        ApiError::bad_request(format!("{error}{cause}"))
    })?;
    let owner = if definition.owner.is_empty() { caller.name.clone() } else { definition.owner.clone() };
    let before = state.store.task_put(&definition, &owner, clock::wall_ms()).await?;
    state.audit.record(&caller.signed(), "task.put", json!(before), json!(definition)).await?;
    state.wake.planner.notify_one();
    state.wake.training.notify_one();
    Ok(Json(state.store.task(&task).await?))
}

#[derive(Debug, Deserialize)]
struct About {
    task: Option<TaskId>,
}

#[utoipa::path(get, path = "/v1/devices/{device}/explain", tag = "devices",
    params(("device" = String, Path), ("task" = Option<String>, Query)),
    responses((status = 200, description = "One decision per task: every candidate with its score or what removed it", body = Vec<Object>), (status = 404)))]
async fn explain(
    State(state): State<AppState>,
    Path(device): Path<DeviceId>,
    Query(about): Query<About>,
) -> ApiResult<Json<Vec<Decision>>> {
    state.store.device(&device).await?;
    let decisions = state.store.decisions(&device, about.task.as_ref()).await?;
    if decisions.is_empty() {
        let hint = "no task covers it, or the planner has not looked yet; see `dunlin task list`";
        return Err(ApiError::not_found("decision for device", &device).hint(hint));
    }
    Ok(Json(decisions))
}
