//! Programs of the agent: taking them in, listing them, and saying which devices are to run which.
use std::collections::BTreeSet;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dunlin_protocol::{ClassName, GroupId, PROGRAM_BYTES_MAX, PROGRAM_REACH_S, ReleaseId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::body::takes;
use super::{ApiError, ApiResult, AppState, shape};
use crate::clock;
use crate::keys::Addition;
use crate::registry::ProgramPush;
use crate::store::{ProgramOrder, ProgramRow, ReleaseState, Store};

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(takes(OpenApiRouter::new().routes(routes!(push)), PROGRAM_BYTES_MAX as usize))
        .routes(routes!(list))
        .routes(routes!(order))
}

/// What is said of a program.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct About {
    /// Target triple that it was built for.
    triple: String,
    /// Release of the agent that it is.
    agent: String,
    /// Hardware classes it is for, separated by commas; none means any.
    classes: Option<String>,
}

/// A program.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProgramView {
    /// Where it stands.
    pub state: ReleaseState,
    /// The program.
    pub program: ProgramRow,
    /// The target for the offline keys to sign.
    pub target: Addition,
    /// Orders to run it.
    pub orders: Vec<ProgramOrder>,
}

/// Which devices are to run a program.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OrderBody {
    /// Those of this group; absent means all that it was built for.
    #[schema(value_type = Option<String>)]
    pub group: Option<GroupId>,
    /// So many of them before all others.
    pub canaries: u32,
    /// How long it has on a device to reach this controller, seconds.
    pub reach_s: u64,
}

fn parse<T: std::str::FromStr<Err = dunlin_protocol::IdError>>(text: &str) -> ApiResult<T> {
    text.parse().map_err(|error: dunlin_protocol::IdError| ApiError::bad_request(error.to_string()))
}

/// Every program with where it stands and what is ordered.
async fn views(state: &AppState) -> ApiResult<Vec<ProgramView>> {
    let (approvals, floors) = (state.repos.programs()?, state.repos.release_floors()?);
    let approved = |program: &ProgramRow| {
        approvals.get(&program.release).is_some_and(|approval| approval.is_of(program))
    };
    let orders = state.store.program_orders().await?;
    let view = |program: ProgramRow| {
        let release = &program.release;
        let withdrawn = floors.get(&release.model).is_some_and(|floor| release.version < *floor);
        let of = orders.iter().filter(|order| order.release == *release).cloned();
        ProgramView {
            state: match (withdrawn, approved(&program)) {
                (true, _) => ReleaseState::Withdrawn,
                (false, true) => ReleaseState::Approved,
                (false, false) => ReleaseState::Pending,
            },
            orders: of.collect(),
            target: program.addition(),
            program,
        }
    };
    Ok(state.store.programs().await?.into_iter().map(view).collect())
}

#[utoipa::path(get, path = "/v1/programs", tag = "programs", responses((status = 200, body = Vec<ProgramView>)))]
async fn list(State(state): State<AppState>) -> ApiResult<Json<Vec<ProgramView>>> {
    Ok(Json(views(&state).await?))
}

#[utoipa::path(post, path = "/v1/programs", tag = "programs", params(About), request_body(content = shape::Binary, content_type = "application/octet-stream", description = "the program, an ELF executable"),
    responses((status = 201, description = "the target for the offline keys to sign", body = Addition), (status = 409, description = "the same program is a release already"), (status = 422)))]
async fn push(
    State(state): State<AppState>,
    caller: Caller,
    Query(about): Query<About>,
    body: Bytes,
) -> ApiResult<Response> {
    let classes = about.classes.unwrap_or_default();
    let classes = classes.split(',').filter(|class| !class.is_empty()).map(parse::<ClassName>);
    let push = ProgramPush {
        triple: about.triple,
        agent: about.agent,
        classes: classes.collect::<ApiResult<BTreeSet<_>>>()?,
        content: body,
    };
    let row = state.registry.push_program(push, (&caller.name, &caller.signed())).await?;
    Ok((StatusCode::CREATED, Json(row.addition())).into_response())
}

#[utoipa::path(post, path = "/v1/programs/{release}/orders", tag = "programs", params(("release" = String, Path)), request_body = OrderBody,
    responses((status = 200, description = "the order", body = ProgramOrder), (status = 404), (status = 409, description = "it is not approved")))]
async fn order(
    State(state): State<AppState>,
    caller: Caller,
    Path(text): Path<String>,
    Json(body): Json<OrderBody>,
) -> ApiResult<Json<ProgramOrder>> {
    let release: ReleaseId = parse(&text)?;
    if !PROGRAM_REACH_S.contains(&body.reach_s) {
        let (least, most) = PROGRAM_REACH_S.into_inner();
        return Err(ApiError::bad_request(format!("give it {least} to {most} seconds")));
    }
    if let Some(group) = &body.group
        && !state.store.groups().await?.contains_key(group.as_str())
    {
        return Err(ApiError::not_found("group", group));
    }
    let mut change = state.audit.begin().await?;
    let all = views(&state).await?;
    let view = all.iter().find(|view| view.program.release == release);
    let view = view.ok_or_else(|| ApiError::not_found("program", &release))?;
    if view.state != ReleaseState::Approved {
        let error = format!("the program {release} is {}", view.state);
        return Err(ApiError::conflict(error).hint("see `dunlin agent approve`"));
    }
    let order = ProgramOrder {
        release,
        group: body.group,
        canaries: body.canaries,
        reach_ms: body.reach_s * 1000,
        made_by: caller.name.clone(),
        made_ms: clock::wall_ms(),
    };
    let mut orders = all.iter().flat_map(|view| &view.orders);
    let before = orders.find(|held| held.release.model == order.release.model && held.group == order.group);
    let before = before.map_or(Value::Null, |held| json!(held));
    Store::program_order_put(change.tx(), &order).await?;
    change.commit(&caller.signed(), "agent.order", before, json!(order)).await?;
    state.wake.planner.notify_one();
    Ok(Json(order))
}
