//! What the controller says about itself and the fleet as a whole.
use axum::Json;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiResult, AppState};
use crate::store::{Alert, DeviceState, RefusedRow};

/// Alerts of one answer at most.
const ALERTS_MAX: u64 = 500;

#[derive(Debug, Deserialize, IntoParams)]
struct Which {
    /// Only those that are not over.
    #[serde(default)]
    open: bool,
}

/// The controller is there.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Health {
    /// True; a controller that is not well answers with an error.
    pub ok: bool,
    /// Its release.
    pub version: &'static str,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(metrics))
        .routes(routes!(alerts))
        .routes(routes!(refused))
}

#[utoipa::path(get, path = "/v1/health", tag = "system", responses((status = 200, description = "the database answers", body = Health)))]
async fn health(State(state): State<AppState>) -> ApiResult<Json<Health>> {
    // Without the database this is an error, whose status says so.
    state.store.audit_last().await?;
    Ok(Json(Health { ok: true, version: env!("CARGO_PKG_VERSION") }))
}

#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, description = "Prometheus text format", body = String)))]
async fn metrics(State(state): State<AppState>) -> ApiResult<impl IntoResponse> {
    let devices = state.store.devices().await?;
    let active = devices.iter().filter(|device| device.state == DeviceState::Active);
    let online = active.clone().filter(|device| device.online).count();
    state.metrics.devices.set(i64::try_from(active.count()).unwrap_or(i64::MAX));
    state.metrics.devices_online.set(i64::try_from(online).unwrap_or(i64::MAX));
    Ok((
        [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        state.metrics.encode(),
    ))
}

#[utoipa::path(get, path = "/v1/alerts", tag = "system", params(Which), responses((status = 200, body = Vec<Alert>)))]
async fn alerts(State(state): State<AppState>, Query(which): Query<Which>) -> ApiResult<Json<Vec<Alert>>> {
    Ok(Json(state.store.alerts(which.open, ALERTS_MAX).await?))
}

#[utoipa::path(get, path = "/v1/refused", tag = "system", responses((status = 200, body = Vec<RefusedRow>)))]
async fn refused(State(state): State<AppState>) -> ApiResult<Json<Vec<RefusedRow>>> {
    Ok(Json(state.store.refused(None).await?))
}
