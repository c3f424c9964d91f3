//! How a device joins: an operator makes a claim, the device trades its secret for a certificate, once.
use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use dunlin_protocol::{ClaimToken, DeviceId, EnrolRequest, EnrolResponse, GroupId};
use dunlin_trust::{RepoKind, sha256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Caller, Scope};
use super::{ApiError, ApiResult, AppState};
use crate::clock;
use crate::identity::{CONTROLLER, IdentityError};
use crate::init::{secret, short_id};
use crate::repo::RepoError;
use crate::store::{Claim, NewDevice, key_id};

/// Validity of a claim unless the operator says otherwise.
const CLAIM_S: u64 = 24 * 3600;
/// Longest validity: a claim that lies about for longer is a leak.
const CLAIM_S_MAX: u64 = 90 * 24 * 3600;

/// A claim to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewClaim {
    /// Id the device will get; absent means that it may choose.
    #[schema(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    /// Groups it will belong to.
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Seconds the claim is valid.
    pub valid_s: Option<u64>,
}

/// A claim that was made; the only time its token is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeClaim {
    /// Id of the claim.
    pub id: String,
    /// What the device is given.
    pub token: String,
    /// Unix milliseconds.
    pub expires_ms: u64,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(claims, claim)).routes(routes!(enrol))
}

fn repo_error(error: RepoError) -> ApiError {
    if matches!(error, RepoError::NotSetUp) {
        ApiError::conflict(error.to_string())
    } else {
        ApiError::internal(error)
    }
}

#[utoipa::path(get, path = "/v1/claims", tag = "devices", responses((status = 200, body = Vec<Claim>)))]
async fn claims(State(state): State<AppState>, caller: Caller) -> ApiResult<Json<Vec<Claim>>> {
    caller.require(Scope::Operator)?;
    Ok(Json(state.store.claims().await?))
}

#[utoipa::path(post, path = "/v1/claims", tag = "devices", request_body = NewClaim, responses((status = 200, body = MadeClaim)))]
async fn claim(
    State(state): State<AppState>,
    caller: Caller,
    Json(new): Json<NewClaim>,
) -> ApiResult<Json<MadeClaim>> {
    caller.require(Scope::Operator)?;
    let valid_s = new.valid_s.unwrap_or(CLAIM_S);
    if !(1..=CLAIM_S_MAX).contains(&valid_s) {
        return Err(ApiError::bad_request(format!("a claim is valid for 1 to {CLAIM_S_MAX} seconds")));
    }
    refuse_reserved(new.device.as_ref())?;
    let endpoints =
        state.identity.endpoints().ok_or_else(|| ApiError::conflict("the controller is still starting"))?;
    let secret = secret();
    let token = ClaimToken {
        url: endpoints.api_url.clone(),
        ca: state.identity.ca_pin(),
        image_root: state.repos.pin(RepoKind::Image).map_err(repo_error)?,
        director_root: state.repos.pin(RepoKind::Director).map_err(repo_error)?,
        secret: secret.clone(),
    };
    let now_ms = clock::wall_ms();
    let row = Claim {
        id: short_id(),
        device: new.device,
        groups: new.groups,
        created_by: caller.name.clone(),
        created_ms: now_ms,
        expires_ms: now_ms + valid_s * 1000,
        used_ms: None,
        used_by: None,
    };
    state.store.claim_add(&row, &sha256(secret.as_bytes())).await?;
    state.audit.record(&caller.name, "claim.create", Value::Null, json!(row)).await?;
    Ok(Json(MadeClaim { id: row.id, token: token.to_string(), expires_ms: row.expires_ms }))
}

fn refuse_reserved(device: Option<&DeviceId>) -> ApiResult<()> {
    match device {
        Some(device) if device.as_str() == CONTROLLER => {
            Err(ApiError::bad_request(format!("{CONTROLLER:?} is the controller's own name")))
        }
        Some(_) | None => Ok(()),
    }
}

#[utoipa::path(
    post, path = "/v1/enrol", tag = "devices", request_body(content = Object, description = "EnrolRequest of the protocol"),
    responses((status = 200, description = "EnrolResponse of the protocol", body = Object), (status = 401), (status = 409)),
)]
async fn enrol(
    State(state): State<AppState>,
    Json(request): Json<EnrolRequest>,
) -> ApiResult<Json<EnrolResponse>> {
    let now_ms = clock::wall_ms();
    let ask = "ask the operator for a new claim: dunlin device claim";
    let claim = state.store.claim_of(&sha256(request.secret.as_bytes())).await?;
    let claim = claim.ok_or_else(|| ApiError::unauthorised("the claim is unknown").hint(ask))?;
    if claim.used_ms.is_some() || claim.expires_ms <= now_ms {
        return Err(ApiError::conflict("the claim was used or is expired").hint(ask));
    }
    let device = claim.device.clone().or(request.device);
    let device = device.ok_or_else(|| {
        ApiError::bad_request("neither the claim nor the request names the device")
            .hint("set device.id in agent.toml")
    })?;
    refuse_reserved(Some(&device))?;
    let endpoints = state
        .identity
        .endpoints()
        .ok_or_else(|| ApiError::conflict("the controller is still starting"))?
        .clone();
    let root = |kind| {
        let bytes = state.repos.first_root(kind).map_err(repo_error)?;
        String::from_utf8(bytes.0)
            .map_err(|_| ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "a root is not text"))
    };
    let (image_root, director_root) = (root(RepoKind::Image)?, root(RepoKind::Director)?);
    let (certificate_pem, spki) =
        state.identity.issue_device(&device, &request.csr_pem).map_err(|error| {
            if matches!(error, IdentityError::Request(_)) {
                ApiError::bad_request(error.to_string())
            } else {
                ApiError::internal(error)
            }
        })?;
    let new = NewDevice { spki: &spki, certificate_pem: &certificate_pem, profile: &request.profile };
    state.store.enrol(&claim, &device, &new, now_ms).await?;
    state.broker.let_in(&device);
    let after = json!({ "device": device, "key": key_id(&spki), "class": request.profile.class });
    state.audit.record(&format!("claim {}", claim.id), "device.enrol", Value::Null, after).await?;
    state.wake.planner.notify_one();
    Ok(Json(EnrolResponse {
        device,
        certificate_pem,
        ca_pem: state.identity.ca_pem().to_owned(),
        mqtt_host: endpoints.mqtt_host,
        mqtt_port: endpoints.mqtt_port,
        image_root,
        director_root,
    }))
}
