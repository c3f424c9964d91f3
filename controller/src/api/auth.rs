//! Who asks: operators by bearer token, devices by client certificate.
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use dunlin_protocol::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ApiError, ApiResult, AppState, limit};
use crate::identity::Presented;

/// What a token allows. `admin` contains all others; every token may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Read.
    Viewer,
    /// Devices, groups, claims, labels, pause and abort of roll-outs.
    Operator,
    /// Models, policies, roll-outs, retraining.
    Releaser,
    /// Tokens, audit, and everything else.
    Admin,
}

impl Scope {
    const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Releaser, Self::Admin];

    /// The scope as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Releaser => "releaser",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no scope; use viewer, operator, releaser or admin"))
    }
}

/// An operator, known by a token. As an extractor it refuses requests without a valid one.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Id of the token.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What the token allows.
    pub scopes: BTreeSet<Scope>,
}

impl Caller {
    /// What the audit log calls them: a name may be given to several tokens, one after the other.
    pub fn signed(&self) -> String {
        format!("{} ({})", self.name, self.id)
    }

    /// Refuses the request if the token does not allow `scope`.
    pub fn require(&self, scope: Scope) -> ApiResult<()> {
        self.require_any(&[scope])
    }

    /// Refuses the request if the token allows none of these.
    pub fn require_any(&self, scopes: &[Scope]) -> ApiResult<()> {
        let has = |scope: &Scope| *scope == Scope::Viewer || self.scopes.contains(scope);
        if self.scopes.contains(&Scope::Admin) || scopes.iter().any(has) {
            return Ok(());
        }
        let names: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
        let name = names.join(" or ");
        let first = names.first().unwrap_or(&"admin");
        let hint = format!(
            "ask an administrator for a token with the scope {name}: dunlin token create NAME --scope {first}"
        );
        Err(ApiError::forbidden(format!("the token {:?} does not have the scope {name}", self.name))
            .hint(hint))
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> ApiResult<Self> {
        if let Some(caller) = parts.extensions.get::<Self>() {
            return Ok(caller.clone());
        }
        let token =
            parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let hint = "give a token: --token or DUNLIN_TOKEN; `dunlin init` printed the first one";
        let token = token.ok_or_else(|| ApiError::unauthorised("this request needs a token").hint(hint))?;
        let address = limit::address(parts);
        state.limits.secret(address)?;
        let found = state.store.caller(token, crate::clock::wall_ms()).await?;
        found.ok_or_else(|| {
            state.limits.wrong(address);
            ApiError::unauthorised("the token is unknown, revoked or expired").hint(hint)
        })
    }
}

/// The device that asks, by the certificate that the TLS handshake verified; `None` if it showed none.
#[derive(Debug, Clone, Default)]
pub struct Peer(pub Option<DeviceId>);

impl Peer {
    /// The device, or a refusal.
    pub fn device(self) -> ApiResult<DeviceId> {
        let hint = "devices come with the certificate they were given at enrolment";
        self.0.ok_or_else(|| ApiError::unauthorised("this request needs a device certificate").hint(hint))
    }
}

impl FromRequestParts<AppState> for Peer {
    type Rejection = ApiError;

    /// A certificate counts while its device is active and has the key that it names: a board that was enrolled
    /// anew has another one.
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> ApiResult<Self> {
        let Some(Presented { device, spki }) = parts.extensions.get().cloned() else {
            return Ok(Self(None));
        };
        match state.store.device_key(&device).await? {
            Some(key) if key == spki => Ok(Self(Some(device))),
            Some(_) => Err(ApiError::forbidden(format!("the certificate is of a former key of {device}"))),
            None => Err(ApiError::forbidden(format!("the device {device} is revoked or unknown"))),
        }
    }
}
