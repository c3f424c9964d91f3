//! Many devices at once: a batch token, its serial list, and the queue of those that wait for an operator.
use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use dunlin_protocol::{DeviceId, EnrolRequest, EnrolWaiting, GroupId};
use dunlin_trust::sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::enrol::{CLAIM_S, MadeClaim, enrolled, identity_error, refuse_reserved, token, validity, welcome};
use super::{ApiError, ApiResult, AppState};
use crate::clock;
use crate::init::{secret, short_id};
use crate::store::{Admission, AdmissionState, Batch, Expected, NewDevice, Store, Verdict, key_id};

/// Devices on one list: a delivery of boards.
const LIST_MAX: usize = 10_000;
/// Devices that wait under one token: more than people look at.
const WAITING_MAX: u64 = 1000;
/// Longest serial number; boards have some 16 digits.
const SERIAL_BYTES_MAX: usize = 64;
/// When a device that waits asks again, seconds.
const ASK_AGAIN_S: u64 = 10;
/// Who decided when nobody had to.
const BY_LIST: &str = "list";

/// A batch to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewBatch {
    /// Groups of every device that comes with it.
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Devices that are admitted without an operator.
    pub list: Vec<Expected>,
    /// Devices beside those that may wait for an operator.
    pub waiting_max: u64,
    /// Seconds the token is valid.
    pub valid_s: Option<u64>,
}

/// How a device is approved.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Approval {
    /// Id it gets instead of the one it asks for.
    #[schema(value_type = Option<String>)]
    pub device: Option<DeviceId>,
}

/// A batch whose token admits nobody any more.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EndedBatch {
    /// Its id.
    pub ended: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Which {
    /// Those that were decided as well.
    #[serde(default)]
    all: bool,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(batches, batch))
        .routes(routes!(end_batch))
        .routes(routes!(admissions))
        .routes(routes!(approve))
        .routes(routes!(reject))
}

#[utoipa::path(get, path = "/v1/batches", tag = "devices", responses((status = 200, body = Vec<Batch>)))]
async fn batches(State(state): State<AppState>) -> ApiResult<Json<Vec<Batch>>> {
    Ok(Json(state.store.batches().await?))
}

#[utoipa::path(post, path = "/v1/batches", tag = "devices", request_body = NewBatch, responses((status = 200, body = MadeClaim), (status = 409, description = "a device or serial twice")))]
async fn batch(
    State(state): State<AppState>,
    caller: Caller,
    Json(new): Json<NewBatch>,
) -> ApiResult<Json<MadeClaim>> {
    let valid_s = validity(new.valid_s.unwrap_or(CLAIM_S))?;
    if new.list.len() > LIST_MAX || new.waiting_max > WAITING_MAX {
        return Err(ApiError::bad_request(format!(
            "a batch lists at most {LIST_MAX} devices and lets at most {WAITING_MAX} others wait"
        )));
    }
    if new.list.is_empty() && new.waiting_max == 0 {
        return Err(ApiError::bad_request("a batch that lists nobody and lets nobody wait is of no use"));
    }
    for expected in &new.list {
        serial(&expected.serial)?;
        refuse_reserved(Some(&expected.device))?;
    }
    let secret = secret();
    let token = token(&state, &secret)?;
    let now_ms = clock::wall_ms();
    let row = Batch {
        id: short_id(),
        groups: new.groups,
        waiting_max: new.waiting_max,
        created_by: caller.name.clone(),
        created_ms: now_ms,
        expires_ms: now_ms + valid_s * 1000,
    };
    let mut change = state.audit.begin().await?;
    Store::batch_add(change.tx(), &row, &sha256(secret.as_bytes()), &new.list).await?;
    let list = serde_json::to_vec(&new.list).expect("a list of ids is JSON");
    let after = json!({ "batch": row, "expected": new.list.len(), "list_sha256": sha256(&list) });
    change.commit(&caller.signed(), "batch.create", Value::Null, after).await?;
    Ok(Json(MadeClaim { id: row.id, token: token.to_string(), expires_ms: row.expires_ms }))
}

#[utoipa::path(delete, path = "/v1/batches/{id}", tag = "devices", params(("id" = String, Path)), responses((status = 200, body = EndedBatch), (status = 404)))]
async fn end_batch(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<EndedBatch>> {
    let now_ms = clock::wall_ms();
    let mut change = state.audit.begin().await?;
    let before = Store::batch_end(change.tx(), &id, now_ms).await?;
    let after = json!({ "id": id, "expires_ms": before.expires_ms.min(now_ms) });
    change.commit(&caller.signed(), "batch.end", json!(before), after).await?;
    Ok(Json(EndedBatch { ended: id }))
}

#[utoipa::path(get, path = "/v1/admissions", tag = "devices", params(Which), responses((status = 200, body = Vec<Admission>)))]
async fn admissions(
    State(state): State<AppState>,
    Query(which): Query<Which>,
) -> ApiResult<Json<Vec<Admission>>> {
    Ok(Json(state.store.admissions(which.all).await?))
}

#[utoipa::path(post, path = "/v1/admissions/{id}/approve", tag = "devices", params(("id" = String, Path)), request_body = Approval, responses((status = 200, body = Admission), (status = 404), (status = 409)))]
async fn approve(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    Json(approval): Json<Approval>,
) -> ApiResult<Json<Admission>> {
    refuse_reserved(approval.device.as_ref())?;
    let verdict = Verdict::Approve { device: approval.device };
    decide(&state, &caller, &id, verdict).await
}

#[utoipa::path(post, path = "/v1/admissions/{id}/reject", tag = "devices", params(("id" = String, Path)), responses((status = 200, body = Admission), (status = 404), (status = 409)))]
async fn reject(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Admission>> {
    decide(&state, &caller, &id, Verdict::Reject).await
}

async fn decide(state: &AppState, caller: &Caller, id: &str, verdict: Verdict) -> ApiResult<Json<Admission>> {
    let what = match verdict {
        Verdict::Approve { .. } => "device.approve",
        Verdict::Reject => "device.reject",
    };
    let mut change = state.audit.begin().await?;
    let (before, after) =
        Store::admission_decide(change.tx(), id, &verdict, &caller.name, clock::wall_ms()).await?;
    change.commit(&caller.signed(), what, json!(before), json!(after)).await?;
    Ok(Json(after))
}

fn serial(text: &str) -> ApiResult<()> {
    if (1..=SERIAL_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("{text:?} is no serial number"))
        .hint(format!("use 1 to {SERIAL_BYTES_MAX} visible ASCII characters")))
}

/// Enrols a device that came with a batch token, if its serial number is expected or an operator approved it; else
/// it waits.
pub(super) async fn enrol(
    state: &AppState,
    batch: &Batch,
    request: EnrolRequest,
    address: IpAddr,
) -> ApiResult<Response> {
    let now_ms = clock::wall_ms();
    if batch.expires_ms <= now_ms {
        return Err(ApiError::conflict("the token is expired").hint("ask the operator for a new one"));
    }
    if let Some(text) = &request.serial {
        serial(text)?;
    }
    let key_id = key_id(&state.identity.request_key(&request.csr_pem).map_err(identity_error)?);
    let expected = match &request.serial {
        Some(serial) => state.store.expected(&batch.id, serial).await?,
        None => None,
    };
    let expected =
        expected.filter(|expected| expected.key_id.as_ref().is_none_or(|wanted| *wanted == key_id));
    let device = expected.as_ref().map(|expected| expected.device.clone()).or(request.device.clone());
    let device = device.ok_or_else(|| {
        ApiError::bad_request("neither the list nor the request names the device")
            .hint("give an id: dunlin-agent enrol --device ID")
    })?;
    refuse_reserved(Some(&device))?;
    let mut groups = batch.groups.clone();
    groups.extend(expected.iter().flat_map(|expected| expected.groups.clone()));
    let asked = Admission {
        id: short_id(),
        batch: batch.id.clone(),
        key_id: key_id.clone(),
        serial: request.serial.clone(),
        device,
        groups,
        class: request.profile.class.to_string(),
        address: address.to_string(),
        state: if expected.is_some() { AdmissionState::Approved } else { AdmissionState::Waiting },
        asked_ms: now_ms,
        decided_ms: expected.is_some().then_some(now_ms),
        decided_by: expected.is_some().then(|| BY_LIST.to_owned()),
    };
    let mut change = state.audit.begin().await?;
    let admission = Store::admission_ask(change.tx(), &asked, batch).await?;
    match admission.state {
        AdmissionState::Waiting => {
            if admission.id == asked.id {
                let by = format!("batch {}", batch.id);
                change.commit(&by, "device.wait", Value::Null, json!(admission)).await?;
            }
            let waiting = EnrolWaiting { id: admission.id, key_id, ask_again_s: ASK_AGAIN_S };
            let after = [(RETRY_AFTER, ASK_AGAIN_S.to_string())];
            Ok((StatusCode::ACCEPTED, after, Json(waiting)).into_response())
        }
        AdmissionState::Rejected => Err(ApiError::forbidden("an operator rejected this device")),
        AdmissionState::Admitted => {
            drop(change);
            // The answer to an earlier try was lost.
            super::enrol::again(state, &admission.device, &request.csr_pem).await
        }
        AdmissionState::Approved => {
            let valid_s = state.config.identity.device_valid_s;
            let issued = state
                .identity
                .issue_device(&admission.device, &request.csr_pem, valid_s, now_ms)
                .map_err(identity_error)?;
            let new = NewDevice { issued: &issued, profile: &request.profile };
            Store::admit(change.tx(), &admission, &new, now_ms).await?;
            let by = format!("batch {} ({})", batch.id, admission.decided_by.as_deref().unwrap_or(BY_LIST));
            enrolled(change, &by, &admission.device, None, &new).await?;
            welcome(state, &admission.device, issued).await
        }
    }
}
