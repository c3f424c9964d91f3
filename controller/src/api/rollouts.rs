//! Rollouts.
use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use dunlin_protocol::{ReleaseId, TaskId};
use dunlin_rollout::{Order, OrderError, Plan, Policy};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Caller, Scope};
use super::{ApiError, ApiResult, AppState, shape};
use crate::clock;
use crate::init::short_id;
use crate::planner::RolloutRow;
use crate::store::{Store, StoreError};

/// A rollout to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRollout {
    /// The task.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// Approved releases it brings; selection decides which of them a device gets.
    #[schema(value_type = Vec<String>)]
    pub releases: BTreeSet<ReleaseId>,
    /// Rules; absent means those of the task.
    #[serde(default)]
    #[schema(value_type = Option<shape::RolloutPolicy>)]
    pub policy: Option<Policy>,
    /// Why, for people.
    #[serde(default)]
    pub cause: String,
}

/// What an operator may tell a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum RolloutCommand {
    /// Open no further wave.
    Pause,
    /// Go on.
    Resume,
    /// Stop, and send the devices back to what they ran.
    Abort,
    /// Open it to every device at once, past all gates.
    Promote,
    /// Let a wave open that the policy holds for approval.
    Approve {
        /// Index of the wave.
        wave: usize,
    },
}

impl RolloutCommand {
    /// The roles of which one may tell a rollout so. Who may bring releases may also stop them.
    pub fn scopes(&self) -> &'static [Scope] {
        match self {
            Self::Pause | Self::Abort => &[Scope::Operator, Scope::Releaser],
            Self::Resume | Self::Promote | Self::Approve { .. } => &[Scope::Releaser],
        }
    }
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(plans))
        .routes(routes!(order))
}

#[utoipa::path(get, path = "/v1/rollouts", tag = "rollouts", responses((status = 200, body = Vec<RolloutRow>)))]
async fn list(State(state): State<AppState>) -> ApiResult<Json<Vec<RolloutRow>>> {
    Ok(Json(state.store.rollouts().await?))
}

#[utoipa::path(get, path = "/v1/rollouts/{id}", tag = "rollouts", params(("id" = String, Path)),
    responses((status = 200, body = RolloutRow), (status = 404)))]
async fn show(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<RolloutRow>> {
    Ok(Json(state.store.rollout(&id).await?))
}

#[utoipa::path(get, path = "/v1/rollouts/{id}/plans", tag = "rollouts", params(("id" = String, Path)),
    responses((status = 200, description = "Every generation, the first one first", body = Vec<shape::Plan>), (status = 404)))]
async fn plans(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<Vec<Plan>>> {
    state.store.rollout(&id).await?;
    Ok(Json(state.store.plans(&id).await?))
}

#[utoipa::path(post, path = "/v1/rollouts", tag = "rollouts", request_body = NewRollout,
    responses((status = 200, body = RolloutRow), (status = 404), (status = 409)))]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Json(new): Json<NewRollout>,
) -> ApiResult<Json<RolloutRow>> {
    let task = state.store.task(&new.task).await?;
    let policy = new.policy.unwrap_or(task.definition.rollout);
    policy.check().map_err(|error| ApiError::bad_request(error.to_string()))?;
    if new.releases.is_empty() {
        return Err(ApiError::bad_request("a rollout brings at least one release"));
    }
    let approvals = state.repos.approvals().map_err(ApiError::internal)?;
    for release in &new.releases {
        if !approvals.iter().any(|approval| approval.release == *release && approval.custom.task == new.task)
        {
            let error = format!("release {release} is not approved for task {}", new.task);
            return Err(ApiError::conflict(error)
                .hint("sign it offline and upload the targets: dunlin model approve"));
        }
        if task.definition.pool.contains(release) {
            return Err(ApiError::conflict(format!(
                "release {release} is in the pool of task {} already",
                new.task
            )));
        }
    }
    let plan = Plan::new(&format!("r-{}", short_id()), new.task, new.releases, &new.cause);
    start(&state, &plan, &policy, (&caller.name, &caller.signed()), None).await?;
    Ok(Json(state.store.rollout(&plan.rollout).await?))
}

/// Stores a rollout and lets it take the place of those of its task that are under way.
pub(crate) async fn start(
    state: &AppState,
    plan: &Plan,
    policy: &Policy,
    (by, signed): (&str, &str),
    run: Option<&str>,
) -> Result<bool, StoreError> {
    let mut change = state.audit.begin().await?;
    if !Store::rollout_add(change.tx(), plan, policy, by, run, clock::wall_ms()).await? {
        return Ok(false);
    }
    for old in state.store.rollouts().await? {
        if old.plan.task == plan.task && old.plan.rollout != plan.rollout && !old.plan.state.is_final() {
            let order = Order::Supersede { by: plan.rollout.clone() };
            let given = state.store.rollout_order(change.tx(), &old.plan.rollout, &order, clock::now());
            if let Err(error) = given.await? {
                tracing::debug!(%error, rollout = old.plan.rollout, "it ended by itself");
            }
        }
    }
    let after = json!({ "rollout": plan.rollout, "task": plan.task, "releases": plan.candidates, "cause": plan.cause });
    change.commit(signed, "rollout.create", serde_json::Value::Null, after).await?;
    state.wake.planner.notify_one();
    Ok(true)
}

#[utoipa::path(post, path = "/v1/rollouts/{id}/orders", tag = "rollouts", params(("id" = String, Path)), request_body = RolloutCommand,
    responses((status = 200, body = RolloutRow), (status = 404), (status = 409)))]
async fn order(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    Json(command): Json<RolloutCommand>,
) -> ApiResult<Json<RolloutRow>> {
    caller.require_any(command.scopes())?;
    let by = caller.name.clone();
    let order = match command.clone() {
        RolloutCommand::Pause => Order::Pause { by },
        RolloutCommand::Abort => Order::Abort { by },
        RolloutCommand::Resume => Order::Resume,
        RolloutCommand::Promote => Order::Promote,
        RolloutCommand::Approve { wave } => Order::Approve { wave },
    };
    let mut change = state.audit.begin().await?;
    let given = state.store.rollout_order(change.tx(), &id, &order, clock::now()).await?;
    let row = given.map_err(|error| match error {
        OrderError::Ended(_) | OrderError::Unfit { .. } => ApiError::conflict(error.to_string()),
        OrderError::Clock => ApiError::internal(error),
    })?;
    let before = json!({ "rollout": id, "state": row.plan.state.name(), "generation": row.plan.generation });
    change.commit(&caller.signed(), "rollout.order", before, json!(command)).await?;
    state.wake.planner.notify_one();
    Ok(Json(state.store.rollout(&id).await?))
}
