//! Routes of `audit`.
use utoipa_axum::router::OpenApiRouter;

use super::AppState;

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
}
