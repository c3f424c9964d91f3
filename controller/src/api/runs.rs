//! Retraining runs.
use axum::Json;
use axum::extract::{Path, Query, State};
use dunlin_protocol::TaskId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::{ApiError, ApiResult, AppState};
use crate::training::{self, RunDetail, RunRow, TrainingError, Wanted};

/// A run an operator asks for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRun {
    /// The task.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// A run to repeat: its dataset, seed and rules are used again, and nothing is rolled out.
    #[serde(default)]
    pub repeat: Option<String>,
}

/// What an operator may tell a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum RunOrder {
    /// End it.
    Cancel,
    /// Try the step it failed on again.
    Restart,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show)).routes(routes!(order))
}

impl From<TrainingError> for ApiError {
    fn from(error: TrainingError) -> Self {
        match error {
            TrainingError::Store(error) => error.into(),
            TrainingError::Refused(text) => Self::conflict(text),
            TrainingError::Registry(_) | TrainingError::Folder { .. } => Self::internal(error),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Of {
    task: Option<TaskId>,
}

#[utoipa::path(get, path = "/v1/runs", tag = "runs", params(("task" = Option<String>, Query)), responses((status = 200, body = Vec<RunRow>)))]
async fn list(State(state): State<AppState>, Query(of): Query<Of>) -> ApiResult<Json<Vec<RunRow>>> {
    Ok(Json(state.store.runs(of.task.as_ref()).await?))
}

#[utoipa::path(get, path = "/v1/runs/{id}", tag = "runs", params(("id" = String, Path)), responses((status = 200, body = RunDetail), (status = 404)))]
async fn show(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<RunDetail>> {
    Ok(Json(RunDetail { run: state.store.run(&id).await?, journal: state.store.journal(&id).await? }))
}

#[utoipa::path(post, path = "/v1/runs", tag = "runs", request_body = NewRun,
    responses((status = 200, body = RunRow), (status = 404), (status = 409)))]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Json(new): Json<NewRun>,
) -> ApiResult<Json<RunRow>> {
    let id =
        training::ask(&state, &new.task, (&caller.name, &caller.signed()), new.repeat.as_deref()).await?;
    Ok(Json(state.store.run(&id).await?))
}

#[utoipa::path(post, path = "/v1/runs/{id}/orders", tag = "runs", params(("id" = String, Path)), request_body = RunOrder,
    responses((status = 200, body = RunRow), (status = 404), (status = 409)))]
async fn order(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    Json(order): Json<RunOrder>,
) -> ApiResult<Json<RunRow>> {
    let by = caller.name.clone();
    let wanted = match order {
        RunOrder::Cancel => Wanted::Cancel { by },
        RunOrder::Restart => Wanted::Restart { by },
    };
    training::order(&state, &id, &wanted, &caller.signed()).await?;
    Ok(Json(state.store.run(&id).await?))
}
