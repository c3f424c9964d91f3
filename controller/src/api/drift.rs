//! Where inputs moved away from what the models were made on.
use axum::Json;
use axum::extract::{Query, State};
use dunlin_monitor::vote::Verdict;
use dunlin_protocol::TaskId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiResult, AppState};
use crate::evidence::{DRIFT, Drift, SENSOR_SUSPECT};
use crate::store::Alert;

/// Open alerts looked through.
const ALERTS_MAX: u64 = 10_000;
/// Subjects of one release that are reported in full. Each has a row per feature, and a fleet has thousands.
const FINDINGS_MAX: usize = 32;

/// What is known of drift.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DriftState {
    /// Open alerts of drift and of suspect sensors, the newest first.
    pub alerts: Vec<Alert>,
    /// The last judgement of each release that was judged lately.
    pub releases: Vec<ReleaseDrift>,
}

/// The last judgement of the inputs of one release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseDrift {
    /// The task.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// Subjects that were judged; `findings` names the drifted ones first, and only so many.
    pub judged: usize,
    /// Where, how much, and each feature with its distances and probabilities.
    #[serde(flatten)]
    pub drift: Drift,
}

impl ReleaseDrift {
    fn new(task: TaskId, mut drift: Drift) -> Self {
        let judged = drift.findings.len();
        drift.findings.sort_by_key(|finding| match finding.verdict {
            Verdict::Drifted => 0,
            Verdict::Stable => 1,
            Verdict::Learning => 2,
        });
        drift.findings.truncate(FINDINGS_MAX);
        Self { task, judged, drift }
    }
}

#[derive(Debug, Deserialize)]
struct Of {
    task: Option<TaskId>,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(show))
}

#[utoipa::path(get, path = "/v1/drift", tag = "system", params(("task" = Option<String>, Query, description = "Of this task only")),
    responses((status = 200, body = DriftState), (status = 404)))]
async fn show(State(state): State<AppState>, Query(of): Query<Of>) -> ApiResult<Json<DriftState>> {
    if let Some(task) = &of.task {
        state.store.task(task).await?;
    }
    let about = of.task.as_ref().map(|task| format!("task:{task} "));
    let mut alerts = state.store.alerts(true, ALERTS_MAX).await?;
    alerts.retain(|alert| {
        [DRIFT, SENSOR_SUSPECT].contains(&alert.kind.as_str())
            && about.as_ref().is_none_or(|about| alert.subject.starts_with(about))
    });
    let drifts = state.ledgers.drift(of.task.as_ref()).await;
    let releases = drifts.into_iter().map(|(task, drift)| ReleaseDrift::new(task, drift)).collect();
    Ok(Json(DriftState { alerts, releases }))
}
