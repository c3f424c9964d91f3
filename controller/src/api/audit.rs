//! The audit log, read only.
use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Caller, Scope};
use super::{ApiResult, AppState};
use crate::audit::Entry;

/// Rows of one answer at most.
const ROWS_MAX: u64 = 1000;

#[derive(Debug, Deserialize, IntoParams)]
struct Page {
    /// Rows after this number.
    #[serde(default)]
    after: u64,
    /// Rows at most.
    limit: Option<u64>,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(entries))
}

#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Page), responses((status = 200, body = Vec<Entry>)))]
async fn entries(
    State(state): State<AppState>,
    caller: Caller,
    Query(page): Query<Page>,
) -> ApiResult<Json<Vec<Entry>>> {
    caller.require(Scope::Admin)?;
    Ok(Json(state.store.audit_entries(page.after, page.limit.unwrap_or(ROWS_MAX).min(ROWS_MAX)).await?))
}
