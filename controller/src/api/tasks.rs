//! Tasks: what is inferred where, by what, and when it is retrained; and why a device runs what it runs.
use axum::Json;
use axum::extract::{Path, Query, State};
use dunlin_protocol::{DeviceId, TaskId};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::{ApiError, ApiResult, AppState};
use crate::clock;
use crate::planner::{Decision, TaskDefinition, TaskRow};
use crate::store::Store;

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, put)).routes(routes!(explain))
}

#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", responses((status = 200, body = Vec<TaskRow>)))]
async fn list(State(state): State<AppState>) -> ApiResult<Json<Vec<TaskRow>>> {
    Ok(Json(state.store.tasks().await?))
}

#[utoipa::path(get, path = "/v1/tasks/{task}", tag = "tasks", params(("task" = String, Path)),
    responses((status = 200, body = TaskRow), (status = 404)))]
async fn show(State(state): State<AppState>, Path(task): Path<TaskId>) -> ApiResult<Json<TaskRow>> {
    Ok(Json(state.store.task(&task).await?))
}

#[utoipa::path(put, path = "/v1/tasks/{task}", tag = "tasks", params(("task" = String, Path)), request_body = TaskDefinition,
    responses((status = 200, body = TaskRow)))]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    Path(task): Path<TaskId>,
    Json(definition): Json<TaskDefinition>,
) -> ApiResult<Json<TaskRow>> {
    if definition.task != task {
        return Err(ApiError::bad_request(format!(
            "the definition is of task {}, not of {task}",
            definition.task
        )));
    }
    definition.check().map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        ApiError::bad_request(format!("{error}{cause}"))
    })?;
    lines_up(&state.store, &definition).await?;
    let owner = if definition.owner.is_empty() { caller.name.clone() } else { definition.owner.clone() };
    let mut change = state.audit.begin().await?;
    let before = state.store.task_put(change.tx(), &definition, &owner, clock::wall_ms()).await?;
    change.commit(&caller.signed(), "task.put", json!(before), json!(definition)).await?;
    state.wake.planner.notify_one();
    state.wake.training.notify_one();
    Ok(Json(state.store.task(&task).await?))
}

/// Refuses a line-up with members that can not work beside the releases of the pool. Those that are not here yet may come
/// later; then the planner and the devices judge them.
async fn lines_up(store: &Store, definition: &TaskDefinition) -> ApiResult<()> {
    let TaskDefinition { task, lineup, pool, .. } = definition;
    if lineup.members.is_empty() {
        return Ok(());
    }
    let mut champions = Vec::new();
    for release in pool {
        let row = store.release(release).await?;
        champions.extend(row.map(|row| row.bundle).filter(|bundle| bundle.task == *task));
    }
    for member in &lineup.members {
        let release = &member.release;
        let Some(row) = store.release(release).await? else { continue };
        if row.bundle.task != *task {
            let of = &row.bundle.task;
            let error =
                format!("the member {release} of the line-up is made for the task {of}, not for {task}");
            let hint = format!("name a release of this task: `dunlin model list --task {task}`");
            return Err(ApiError::bad_request(error).hint(hint));
        }
        let conflict = |champion| lineup.conflict(member.role, &row.bundle, champion);
        if let Some(conflict) = champions.iter().find_map(conflict) {
            let error = format!(
                "the member {release} of the line-up {conflict}, so that they can not answer together"
            );
            let hint = format!(
                "name a member that goes with the pool, or take what differs from it out of the pool; `dunlin model show {release}` says what it takes and names"
            );
            return Err(ApiError::bad_request(error).hint(hint));
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct About {
    task: Option<TaskId>,
}

#[utoipa::path(get, path = "/v1/devices/{device}/explain", tag = "devices",
    params(("device" = String, Path), ("task" = Option<String>, Query)),
    responses((status = 200, description = "One decision per task: every candidate with its score or what removed it", body = Vec<Decision>), (status = 404)))]
async fn explain(
    State(state): State<AppState>,
    Path(device): Path<DeviceId>,
    Query(about): Query<About>,
) -> ApiResult<Json<Vec<Decision>>> {
    state.store.device(&device).await?;
    let decisions = state.store.decisions(&device, about.task.as_ref()).await?;
    if decisions.is_empty() {
        let hint = "no task covers it, or the planner has not looked yet; see `dunlin task list`";
        return Err(ApiError::not_found("decision for device", &device).hint(hint));
    }
    Ok(Json(decisions))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use dunlin_protocol::{
        Blob, Bundle, DType, Digest, Hard, Lineage, ModelName, ModelSignature, ReleaseId, TaskType,
        TensorSpec,
    };

    use super::*;
    use crate::store::test_store;

    /// Takes a release in that takes one FP32 input `x` of this width.
    async fn add(store: &Store, model: &str, task: &str, width: i64, labels: &[&str]) {
        let (model, task): (ModelName, TaskId) = (model.parse().unwrap(), task.parse().unwrap());
        let digest = dunlin_trust::sha256(model.as_str().as_bytes());
        let blob = Blob { digest: Digest([0; 32]), length: 1 };
        let port = TensorSpec { name: "x".into(), datatype: DType::Fp32, shape: vec![-1, width] };
        let bundle = |release: ReleaseId| Bundle {
            format: 1,
            release,
            task: task.clone(),
            task_type: TaskType::Classification,
            family: "imported".into(),
            model: blob,
            golden: blob,
            profile: None,
            signature: ModelSignature {
                inputs: vec![port],
                outputs: vec![],
                features: vec![],
                labels: labels.iter().map(ToString::to_string).collect(),
            },
            hard: Hard {
                arch: Default::default(),
                classes: Default::default(),
                ops: Default::default(),
                bundle_bytes: 1,
                ram_bytes: 1,
                min_agent: String::new(),
            },
            latency_us: 10,
            metrics: Default::default(),
            lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
            licence: String::new(),
        };
        let seal = |release| {
            let bundle = bundle(release);
            let manifest = serde_json::to_vec(&bundle).unwrap();
            let sha256 = dunlin_trust::sha256(&manifest);
            (bundle, manifest, sha256)
        };
        let mut tx = store.begin().await.unwrap();
        Store::release_add(&mut tx, &model, &task, &digest, "ann", 1, seal).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn refused(store: &Store, members: &str) -> Option<ApiError> {
        let text = format!(
            "task = \"meter\"\nlabels = [\"a\", \"b\"]\npool = [\"base@1\", \"later@1\"]\n[lineup]\nmembers = [{members}]"
        );
        let definition: TaskDefinition = toml::from_str(&text).unwrap();
        lines_up(store, &definition).await.err()
    }

    #[tokio::test]
    async fn members_that_can_not_answer_beside_the_pool_are_refused_with_what_differs() {
        let (_dir, store) = test_store().await;
        add(&store, "base", "meter", 4, &["a", "b"]).await;
        add(&store, "like", "meter", 4, &["a", "b"]).await;
        add(&store, "wide", "meter", 8, &["a", "b"]).await;
        add(&store, "other", "meter", 4, &["b", "a"]).await;
        add(&store, "turn", "valve", 4, &["a", "b"]).await;
        let voter =
            |release: &str| format!("{{ release = {release:?}, role = {{ voter = {{ weight_ppm = 1 }} }} }}");
        let meta = |release: &str| format!("{{ release = {release:?}, role = \"meta\" }}");

        for fine in [
            String::new(),
            voter("like@1"),
            voter("unknown@1"),
            // Two scores each of the champion and three voters make the eight that it takes.
            [voter("like@1"), voter("unknown@1"), voter("unknown@2"), meta("wide@1")].join(", "),
        ] {
            assert!(refused(&store, &fine).await.is_none(), "{fine}");
        }
        for (members, what) in [
            (voter("turn@1"), "turn@1 of the line-up is made for the task valve, not for meter"),
            (voter("other@1"), "other@1 of the line-up names other classes than base@1"),
            (voter("wide@1"), "wide@1 of the line-up takes \"x\" FP32 [8], and base@1 takes \"x\" FP32 [4]"),
            (
                meta("wide@1"),
                "wide@1 of the line-up takes \"x\" FP32 [8], and base@1 with the voters gives 2 scores",
            ),
        ] {
            let error = refused(&store, &members).await.unwrap();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert!(error.error.contains(what), "{}", error.error);
            assert!(error.hint.contains("`dunlin model "), "{}", error.hint);
        }
    }
}
