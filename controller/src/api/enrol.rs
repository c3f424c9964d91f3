//! How a device joins: an operator makes a claim, the device trades its secret for a certificate, once.
use std::collections::BTreeSet;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dunlin_protocol::{ClaimToken, DeviceId, EnrolRequest, EnrolResponse, GroupId, Validity};
use dunlin_trust::{RepoKind, sha256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::body::takes;
use super::{ApiError, ApiResult, AppState, admissions, shape};
use crate::audit::Change;
use crate::clock;
use crate::identity::{CONTROLLER, IdentityError, Issued};
use crate::init::{secret, short_id};
use crate::repo::RepoError;
use crate::store::{Claim, NewDevice, Store, key_id};

/// Validity of a claim unless the operator says otherwise.
pub(super) const CLAIM_S: u64 = 24 * 3600;
/// Longest validity: a claim that lies about for longer is a leak.
const CLAIM_S_MAX: u64 = 90 * 24 * 3600;

/// Largest request to enrol: a profile with its operators and a certificate request.
pub(super) const ENROL_BYTES_MAX: usize = 64 * 1024;

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
    let enrolment = takes(OpenApiRouter::new().routes(routes!(enrol)), ENROL_BYTES_MAX);
    OpenApiRouter::new().routes(routes!(claims, claim)).merge(enrolment)
}

fn repo_error(error: RepoError) -> ApiError {
    if matches!(error, RepoError::NotSetUp) {
        ApiError::conflict(error.to_string())
    } else {
        ApiError::internal(error)
    }
}

pub(super) fn identity_error(error: IdentityError) -> ApiError {
    if matches!(error, IdentityError::Request(_)) {
        ApiError::bad_request(error.to_string())
    } else {
        ApiError::internal(error)
    }
}

#[utoipa::path(get, path = "/v1/claims", tag = "devices", responses((status = 200, body = Vec<Claim>)))]
async fn claims(State(state): State<AppState>) -> ApiResult<Json<Vec<Claim>>> {
    Ok(Json(state.store.claims().await?))
}

#[utoipa::path(post, path = "/v1/claims", tag = "devices", request_body = NewClaim, responses((status = 200, body = MadeClaim), (status = 409)))]
async fn claim(
    State(state): State<AppState>,
    caller: Caller,
    Json(new): Json<NewClaim>,
) -> ApiResult<Json<MadeClaim>> {
    let valid_s = validity(new.valid_s.unwrap_or(CLAIM_S))?;
    refuse_reserved(new.device.as_ref())?;
    let secret = secret();
    let token = token(&state, &secret)?;
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
    let mut change = state.audit.begin().await?;
    Store::claim_add(change.tx(), &row, &sha256(secret.as_bytes())).await?;
    change.commit(&caller.signed(), "claim.create", Value::Null, json!(row)).await?;
    Ok(Json(MadeClaim { id: row.id, token: token.to_string(), expires_ms: row.expires_ms }))
}

/// The text a device is given.
pub(super) fn token(state: &AppState, secret: &str) -> ApiResult<ClaimToken> {
    let endpoints =
        state.identity.endpoints().ok_or_else(|| ApiError::conflict("the controller is still starting"))?;
    Ok(ClaimToken {
        url: endpoints.api_url.clone(),
        ca: state.identity.ca_pin(),
        image_root: state.repos.pin(RepoKind::Image).map_err(repo_error)?,
        director_root: state.repos.pin(RepoKind::Director).map_err(repo_error)?,
        secret: secret.to_owned(),
    })
}

pub(super) fn validity(valid_s: u64) -> ApiResult<u64> {
    if (1..=CLAIM_S_MAX).contains(&valid_s) {
        return Ok(valid_s);
    }
    Err(ApiError::bad_request(format!("a claim is valid for 1 to {CLAIM_S_MAX} seconds")))
}

pub(super) fn refuse_reserved(device: Option<&DeviceId>) -> ApiResult<()> {
    match device {
        Some(device) if device.as_str() == CONTROLLER => {
            Err(ApiError::bad_request(format!("{CONTROLLER:?} is the controller's own name")))
        }
        Some(_) | None => Ok(()),
    }
}

#[utoipa::path(
    post, path = "/v1/enrol", tag = "devices", request_body = shape::EnrolRequest,
    responses((status = 200, body = shape::EnrolResponse), (status = 202, description = "an operator decides", body = shape::EnrolWaiting), (status = 401), (status = 403), (status = 409), (status = 429)),
)]
async fn enrol(
    State(state): State<AppState>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Json(request): Json<EnrolRequest>,
) -> ApiResult<Response> {
    state.limits.enrol(from.ip())?;
    let now_ms = clock::wall_ms();
    let ask = "ask the operator for a new claim: dunlin device claim";
    let hash = sha256(request.secret.as_bytes());
    let Some(claim) = state.store.claim_of(&hash).await? else {
        let Some(batch) = state.store.batch_of(&hash).await? else {
            state.limits.wrong(from.ip());
            return Err(ApiError::unauthorised("the claim is unknown").hint(ask));
        };
        return admissions::enrol(&state, &batch, request, from.ip()).await;
    };
    let spent = || ApiError::conflict("the claim was used or is expired").hint(ask);
    if claim.expires_ms <= now_ms {
        return Err(spent());
    }
    if let Some(device) = &claim.used_by {
        return again(&state, device, &request.csr_pem).await.map_err(|_| spent());
    }
    let device = claim.device.clone().or(request.device);
    let device = device.ok_or_else(|| {
        ApiError::bad_request("neither the claim nor the request names the device")
            .hint("set device.id in agent.toml")
    })?;
    refuse_reserved(Some(&device))?;
    let valid_s = state.config.identity.device_valid_s;
    let issued =
        state.identity.issue_device(&device, &request.csr_pem, valid_s, now_ms).map_err(identity_error)?;
    let new = NewDevice { issued: &issued, profile: &request.profile };
    let mut change = state.audit.begin().await?;
    let before = Store::enrol(change.tx(), &claim, &device, &new, now_ms).await?;
    enrolled(change, &format!("claim {}", claim.id), &device, before, &new).await?;
    welcome(&state, &device, issued).await
}

/// Commits an enrolment with its row; `before` is the id of the key that the device had.
pub(super) async fn enrolled(
    change: Change,
    by: &str,
    device: &DeviceId,
    before: Option<String>,
    new: &NewDevice<'_>,
) -> ApiResult<()> {
    let before = before.map(|key| json!({ "device": device, "key": key }));
    let NewDevice { issued, profile } = new;
    let after = json!({ "device": device, "key": key_id(&issued.spki), "serial": issued.serial, "class": profile.class });
    change.commit(by, "device.enrol", json!(before), after).await?;
    Ok(())
}

/// What follows once a device is in the database.
pub(super) async fn welcome(state: &AppState, device: &DeviceId, issued: Issued) -> ApiResult<Response> {
    // A session of the key that was there before ends; the new key may come.
    state.broker.shut_out(device).await;
    state.broker.let_in(device);
    state.wake.lists.notify_one();
    state.wake.planner.notify_one();
    let valid = Validity { from_ms: issued.from_ms, until_ms: issued.until_ms };
    Ok(Json(response(state, device, issued.pem, Some(valid))?).into_response())
}

/// The answer that a device got already, for the key that it enrolled with and no other.
pub(super) async fn again(state: &AppState, device: &DeviceId, csr_pem: &str) -> ApiResult<Response> {
    let key = state.identity.request_key(csr_pem).map_err(identity_error)?;
    let known = state.store.certificate_of(device).await?.filter(|(spki, _)| *spki == key);
    let (_, pem) = known.ok_or_else(|| ApiError::conflict("another key came with this claim"))?;
    // What followed the first time, in case an error cut it short.
    state.broker.let_in(device);
    state.wake.lists.notify_one();
    let newest = state.store.certificates(device, 1).await?.into_iter().next();
    let valid = newest.map(|row| Validity { from_ms: row.issued_ms, until_ms: row.until_ms });
    Ok(Json(response(state, device, pem, valid)?).into_response())
}

fn response(
    state: &AppState,
    device: &DeviceId,
    certificate_pem: String,
    valid: Option<Validity>,
) -> ApiResult<EnrolResponse> {
    let endpoints =
        state.identity.endpoints().ok_or_else(|| ApiError::conflict("the controller is still starting"))?;
    let root = |kind| {
        let bytes = state.repos.first_root(kind).map_err(repo_error)?;
        String::from_utf8(bytes.0)
            .map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "a root is not text"))
    };
    Ok(EnrolResponse {
        device: device.clone(),
        certificate_pem,
        ca_pem: state.identity.ca_pem().to_owned(),
        mqtt_host: endpoints.mqtt_host.clone(),
        mqtt_port: endpoints.mqtt_port,
        image_root: root(RepoKind::Image)?,
        director_root: root(RepoKind::Director)?,
        valid,
    })
}
