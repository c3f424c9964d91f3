//! Who may ask what: one table for every route, judged before a body is read. A route that is not in it is closed.
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::auth::{Caller, Scope};
use super::{ApiError, ApiResult, AppState};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody; what is served is public, or the handler asks for a secret of its own.
    Everybody,
    /// A device by its certificate, which the handler holds to what is its own; or an operator who may read.
    DeviceOrViewer,
    /// A token with one of these roles, or an administrator's.
    Role(&'static [Scope]),
}

use Access::{DeviceOrViewer, Everybody, Role};

const VIEWER: Access = Role(&[Scope::Viewer]);
const OPERATOR: Access = Role(&[Scope::Operator]);
const RELEASER: Access = Role(&[Scope::Releaser]);
const ADMIN: Access = Role(&[Scope::Admin]);
/// Which of the two, depends on the order given.
const EITHER: Access = Role(&[Scope::Operator, Scope::Releaser]);

/// Every route of the API with who may use it.
pub const ROUTES: &[(&str, &str, Access)] = &[
    ("GET", "/v1/health", Everybody),
    ("GET", "/v1/image/{file}", Everybody),
    ("POST", "/v1/enrol", Everybody),
    ("POST", "/v1/renew", Everybody),
    ("GET", "/v1/check", DeviceOrViewer),
    ("GET", "/v1/director/{device}/{file}", DeviceOrViewer),
    ("GET", "/v1/targets/{file}", DeviceOrViewer),
    ("GET", "/v1/blobs/{sha256}", DeviceOrViewer),
    ("GET", "/metrics", VIEWER),
    ("GET", "/v1/alerts", VIEWER),
    ("GET", "/v1/refused", VIEWER),
    ("GET", "/v1/drift", VIEWER),
    ("GET", "/v1/devices", VIEWER),
    ("GET", "/v1/devices/{id}", VIEWER),
    ("GET", "/v1/devices/{device}/explain", VIEWER),
    ("GET", "/v1/devices/{id}/replies/{command}", VIEWER),
    ("GET", "/v1/groups", VIEWER),
    ("GET", "/v1/releases", VIEWER),
    ("GET", "/v1/releases/{release}", VIEWER),
    ("GET", "/v1/models/{model}/aliases", VIEWER),
    ("GET", "/v1/approvals/pending", VIEWER),
    ("GET", "/v1/approvals/current", VIEWER),
    ("GET", "/v1/policies/{task}", VIEWER),
    ("GET", "/v1/programs", VIEWER),
    ("GET", "/v1/tasks", VIEWER),
    ("GET", "/v1/tasks/{task}", VIEWER),
    ("GET", "/v1/rollouts", VIEWER),
    ("GET", "/v1/rollouts/{id}", VIEWER),
    ("GET", "/v1/rollouts/{id}/plans", VIEWER),
    ("GET", "/v1/runs", VIEWER),
    ("GET", "/v1/runs/{id}", VIEWER),
    ("POST", "/v1/export", OPERATOR),
    ("PUT", "/v1/devices/{id}/groups", OPERATOR),
    ("PUT", "/v1/devices/{id}/state", OPERATOR),
    ("POST", "/v1/devices/{id}/commands", OPERATOR),
    ("PUT", "/v1/groups/{id}", OPERATOR),
    ("DELETE", "/v1/groups/{id}", OPERATOR),
    ("GET", "/v1/claims", OPERATOR),
    ("POST", "/v1/claims", OPERATOR),
    ("GET", "/v1/batches", OPERATOR),
    ("POST", "/v1/batches", OPERATOR),
    ("DELETE", "/v1/batches/{id}", OPERATOR),
    ("GET", "/v1/admissions", OPERATOR),
    ("POST", "/v1/admissions/{id}/approve", OPERATOR),
    ("POST", "/v1/admissions/{id}/reject", OPERATOR),
    ("POST", "/v1/rollouts/{id}/orders", EITHER),
    ("POST", "/v1/models/{model}/releases", RELEASER),
    ("PUT", "/v1/models/{model}/aliases/{alias}", RELEASER),
    ("POST", "/v1/approvals", RELEASER),
    ("POST", "/v1/policies", RELEASER),
    ("POST", "/v1/blobs", RELEASER),
    ("POST", "/v1/programs", RELEASER),
    ("POST", "/v1/programs/{release}/orders", RELEASER),
    ("PUT", "/v1/tasks/{task}", RELEASER),
    ("POST", "/v1/rollouts", RELEASER),
    ("POST", "/v1/runs", RELEASER),
    ("POST", "/v1/runs/{id}/orders", RELEASER),
    ("GET", "/v1/tokens", ADMIN),
    ("POST", "/v1/tokens", ADMIN),
    ("DELETE", "/v1/tokens/{id}", ADMIN),
    ("GET", "/v1/audit", ADMIN),
    ("GET", "/v1/audit/head", ADMIN),
];

/// Who may use a route; nobody if it is not in the table.
pub fn of(method: &str, path: &str) -> Option<Access> {
    // HEAD is GET without its body (RFC 9110 §9.3.2).
    let method = if method == "HEAD" { "GET" } else { method };
    ROUTES.iter().find(|(m, p, _)| *m == method && *p == path).map(|(.., access)| *access)
}

/// Lets through who may use the route. The caller it found is there for the handler.
pub(super) async fn guard(State(state): State<AppState>, request: Request, next: Next) -> Response {
    match judge(&state, request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn judge(state: &AppState, request: Request) -> ApiResult<Request> {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(access) = of(request.method().as_str(), path) else {
        let error = format!("{path} does not take {}", request.method());
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, error).hint("see /v1/openapi.json"));
    };
    let Role(scopes) = access else { return Ok(request) };
    let (mut parts, body) = request.into_parts();
    let caller = Caller::from_request_parts(&mut parts, state).await?;
    caller.require_any(scopes)?;
    parts.extensions.insert(caller);
    Ok(Request::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_and_the_document_name_the_same_routes() {
        let document = serde_json::to_value(crate::api::document()).unwrap();
        let mut documented = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                documented.insert((method.to_uppercase(), path.clone()));
            }
        }
        let listed: Vec<_> = ROUTES.iter().map(|(m, p, _)| ((*m).to_owned(), (*p).to_owned())).collect();
        let distinct: BTreeSet<_> = listed.iter().cloned().collect();
        assert_eq!(distinct.len(), listed.len(), "a route is listed twice");
        assert_eq!(distinct, documented);
    }

    #[test]
    fn whoever_changes_something_has_more_than_a_viewers_role() {
        for (method, path, access) in ROUTES {
            let reads = *method == "GET" || ["/v1/enrol", "/v1/renew"].contains(path);
            assert!(
                reads || matches!(access, Role(scopes) if !scopes.contains(&Scope::Viewer)),
                "{method} {path}"
            );
        }
    }
}
