//! Metadata for devices without a network.
use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use dunlin_protocol::{Bytes, DeviceId, cbor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::{ApiError, ApiResult, AppState};
use crate::clock;
use crate::repo::EXPORT_DAYS_MAX;

/// Devices of one export at most: each costs two signatures while nothing else is published.
const DEVICES_MAX: usize = 1000;

/// What is to be carried.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExportRequest {
    /// For which devices.
    #[schema(value_type = BTreeSet<String>)]
    pub devices: BTreeSet<DeviceId>,
    /// For how many days it may be installed.
    pub days: u64,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(export))
}

#[utoipa::path(post, path = "/v1/export", tag = "repository", request_body = ExportRequest,
    responses((status = 200, description = "by device, the answer of a check in CBOR, base64", body = BTreeMap<String, String>), (status = 404)))]
async fn export(
    State(state): State<AppState>,
    caller: Caller,
    Json(request): Json<ExportRequest>,
) -> ApiResult<Json<BTreeMap<DeviceId, Bytes>>> {
    if request.devices.is_empty() || request.devices.len() > DEVICES_MAX {
        return Err(ApiError::bad_request(format!("an export is for 1 to {DEVICES_MAX} devices")));
    }
    if request.days == 0 || request.days > EXPORT_DAYS_MAX {
        return Err(ApiError::bad_request(format!("an export is good for 1 to {EXPORT_DAYS_MAX} days")));
    }
    for device in &request.devices {
        state.store.device(device).await?;
    }
    let (repos, devices, days) = (state.repos.clone(), request.devices.clone(), request.days);
    let signed = move || repos.export(&devices.into_iter().collect::<Vec<_>>(), days, clock::wall_ms());
    let checks = tokio::task::spawn_blocking(signed).await.map_err(ApiError::internal)??;
    state.audit.record(&caller.signed(), "export", Value::Null, json!(request)).await?;
    Ok(Json(checks.into_iter().map(|(device, check)| (device, Bytes(cbor::encode(&check)))).collect()))
}
