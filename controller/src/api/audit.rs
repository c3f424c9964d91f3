//! The audit log, read only.
use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiResult, AppState};
use crate::audit::{Entry, Head};

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
    OpenApiRouter::new().routes(routes!(entries)).routes(routes!(head))
}

/// The head of the log, signed, to be kept elsewhere: `dunlin audit verify --head` finds by it what was cut off or
/// written anew since.
#[utoipa::path(get, path = "/v1/audit/head", tag = "audit", responses((status = 200, body = Head), (status = 404)))]
async fn head(State(state): State<AppState>) -> ApiResult<Json<Head>> {
    Ok(Json(state.audit.head().await?.ok_or_else(|| ApiError::not_found("row in", "the audit log"))?))
}

#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Page), responses((status = 200, body = Vec<Entry>)))]
async fn entries(State(state): State<AppState>, Query(page): Query<Page>) -> ApiResult<Json<Vec<Entry>>> {
    Ok(Json(state.store.audit_entries(page.after, page.limit.unwrap_or(ROWS_MAX).min(ROWS_MAX)).await?))
}
