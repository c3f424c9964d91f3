//! How a device gets its next certificate: by the key it enrolled with, before or after the present one ends.
use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use dunlin_protocol::{RenewRequest, RenewResponse, Validity};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Peer;
use super::body::takes;
use super::enrol::{ENROL_BYTES_MAX, identity_error};
use super::{ApiError, ApiResult, AppState, shape};
use crate::clock;
use crate::store::Store;

/// Certificates looked at: the newest one tells when a device may have the next.
const NEWEST: u64 = 1;

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    takes(OpenApiRouter::new().routes(routes!(renew)), ENROL_BYTES_MAX)
}

/// The next certificate of a device, or the present one while that is young. The request is signed by the
/// device's key, which must be the one it enrolled with: what comes back is of no use to anybody else.
///
/// A device comes with its certificate; without one only after that has ended, and not longer after than the
/// configuration says.
#[utoipa::path(
    post, path = "/v1/renew", tag = "devices", request_body = shape::RenewRequest,
    responses((status = 200, body = shape::RenewResponse), (status = 403, description = "unknown, retired or revoked, or another key"), (status = 409, description = "the certificate is valid and was not shown, or ended too long ago"), (status = 429)),
)]
async fn renew(
    State(state): State<AppState>,
    peer: Peer,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Json(request): Json<RenewRequest>,
) -> ApiResult<Json<RenewResponse>> {
    state.limits.enrol(from.ip())?;
    let now_ms = clock::wall_ms();
    let device = request.device;
    let claim = "a device gets in again with a new claim: dunlin device claim --device ID";
    let refused = |error: String| ApiError::forbidden(error).hint(claim);
    let presented = peer.0.is_some();
    if let Some(own) = peer.0.filter(|own| *own != device) {
        return Err(ApiError::forbidden(format!("the certificate is of device {own}, not of {device}")));
    }
    let (spki, pem) = state
        .store
        .certificate_of(&device)
        .await?
        .ok_or_else(|| refused(format!("the device {device} is revoked or unknown")))?;
    let key = state.identity.request_key(&request.csr_pem).map_err(identity_error)?;
    if key != spki {
        tracing::warn!(%device, "a renewal with another key is refused");
        return Err(refused(format!("the request is not signed by the key that {device} enrolled with")));
    }
    let present = state.store.certificates(&device, NEWEST).await?.into_iter().next();
    let Some(present) = present else {
        return Err(refused(format!("no certificate of {device} is known")));
    };
    let settings = &state.config.identity;
    let lapsed = present.until_ms <= now_ms;
    if !presented && !lapsed {
        return Err(ApiError::conflict(format!("the certificate of {device} is valid still"))
            .hint("ask with it: the device proves itself by TLS"));
    }
    if now_ms.saturating_sub(present.until_ms) > settings.lapsed_s.saturating_mul(1000) {
        return Err(ApiError::conflict(format!("the certificate of {device} ended too long ago")).hint(claim));
    }
    let half_ms = present.until_ms.saturating_sub(present.issued_ms) / 2;
    if now_ms < present.issued_ms.saturating_add(half_ms) {
        let valid = Validity { from_ms: present.issued_ms, until_ms: present.until_ms };
        return Ok(Json(RenewResponse { certificate_pem: pem, valid }));
    }
    let issued = state
        .identity
        .issue_device(&device, &request.csr_pem, settings.device_valid_s, now_ms)
        .map_err(identity_error)?;
    let mut change = state.audit.begin().await?;
    Store::certificate_add(change.tx(), &device, &issued).await?;
    let before = json!({ "device": device, "serial": present.serial, "until_ms": present.until_ms });
    let after =
        json!({ "device": device, "serial": issued.serial, "until_ms": issued.until_ms, "lapsed": lapsed });
    change.commit(&format!("device {device}"), "device.renew", before, after).await?;
    let valid = Validity { from_ms: issued.from_ms, until_ms: issued.until_ms };
    Ok(Json(RenewResponse { certificate_pem: issued.pem, valid }))
}
