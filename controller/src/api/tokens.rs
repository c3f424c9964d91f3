//! Operator tokens.
use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Caller, Scope};
use super::{ApiError, ApiResult, AppState};
use crate::audit::ACTORS;
use crate::clock;
use crate::init::{secret, short_id};
use crate::store::{Store, TokenRow};

/// Longest name: it stands in every row of the audit log.
const NAME_MAX: usize = 64;

/// A token to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// What the audit log calls its holder.
    pub name: String,
    /// What it allows.
    pub scopes: BTreeSet<Scope>,
    /// Seconds it is valid; absent means until revoked.
    #[serde(default)]
    pub valid_s: Option<u64>,
}

/// A token that was made; the only time its secret is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    /// Id, to revoke it by.
    pub id: String,
    /// The token itself.
    pub token: String,
}

/// A token that counts for nothing any more.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RevokedToken {
    /// Its id.
    pub revoked: String,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}

#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses((status = 200, body = Vec<TokenRow>)))]
async fn list(State(state): State<AppState>) -> ApiResult<Json<Vec<TokenRow>>> {
    Ok(Json(state.store.tokens().await?))
}

#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = NewToken, responses((status = 200, body = MadeToken)))]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Json(new): Json<NewToken>,
) -> ApiResult<Json<MadeToken>> {
    if new.name.is_empty() || new.name.len() > NAME_MAX || new.name.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("a token's name has 1 to {NAME_MAX} characters")));
    }
    // What devices and claims do is logged under their names.
    let of_others = ["device ", "claim ", "batch "].iter().any(|prefix| new.name.starts_with(prefix));
    if of_others || ACTORS.contains(&new.name.as_str()) {
        return Err(ApiError::bad_request(format!("{:?} is what the audit log calls another", new.name))
            .hint("name the token after its holder"));
    }
    if new.scopes.is_empty() {
        return Err(ApiError::bad_request("a token without a scope is of no use")
            .hint("give at least --scope viewer"));
    }
    let now_ms = clock::wall_ms();
    let row = TokenRow {
        id: short_id(),
        name: new.name,
        scopes: new.scopes,
        created_ms: now_ms,
        expires_ms: new.valid_s.map(|seconds| now_ms.saturating_add(seconds.saturating_mul(1000))),
        revoked_ms: None,
    };
    let token = secret();
    let mut change = state.audit.begin().await?;
    Store::token_add(change.tx(), &row, &token).await?;
    change.commit(&caller.signed(), "token.create", Value::Null, json!(row)).await?;
    Ok(Json(MadeToken { id: row.id, token }))
}

#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), responses((status = 200, body = RevokedToken), (status = 404), (status = 409, description = "the last administrator's")))]
async fn revoke(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<RevokedToken>> {
    let now_ms = clock::wall_ms();
    let mut change = state.audit.begin().await?;
    let before = Store::token_revoke(change.tx(), &id, now_ms).await?;
    let after = json!({ "id": id, "revoked_ms": now_ms });
    change.commit(&caller.signed(), "token.revoke", json!(before), after).await?;
    Ok(Json(RevokedToken { revoked: id }))
}
