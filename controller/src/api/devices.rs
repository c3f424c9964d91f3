//! Devices and groups.
use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Path, State};
use dunlin_protocol::{CmdBody, DeviceId, GroupId, Installed, ReleaseId, TaskId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::{ApiError, ApiResult, AppState, shape};
use crate::clock;
use crate::downlink;
use crate::store::{BootRow, CertificateRow, DeviceRow, DeviceState, GapRow, Happening, RefusedRow, Store};

/// Boots shown of one device.
const BOOTS_SHOWN: u64 = 10;
/// Gaps shown of one device.
const GAPS_SHOWN: u64 = 50;
/// Certificates shown of one device.
const CERTIFICATES_SHOWN: u64 = 5;
/// Outcomes and indicators shown of one device.
const HAPPENINGS_SHOWN: u64 = 50;

/// A device with what it runs and what happened to it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeviceDetail {
    /// The device.
    pub device: DeviceRow,
    /// What it runs, by task.
    #[schema(value_type = BTreeMap<String, shape::Installed>)]
    pub installed: BTreeMap<TaskId, Installed>,
    /// Its last boots, with what is missing of each.
    pub boots: Vec<BootRow>,
    /// What it declared lost, newest first.
    #[serde(default)]
    pub gaps: Vec<GapRow>,
    /// Messages in its name that were refused, by reason: forged, malformed, of another device.
    #[serde(default)]
    pub refused: Vec<RefusedRow>,
    /// Its certificates, newest first.
    #[serde(default)]
    pub certificates: Vec<CertificateRow>,
    /// Steps of updates, refusals and faults, newest first.
    pub happenings: Vec<Happening>,
}

/// A command for a device.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum DeviceCommand {
    /// Check for new metadata.
    Check,
    /// Send a full report.
    Report,
    /// Return to the previous release of a task.
    Rollback {
        /// The task.
        #[schema(value_type = String)]
        task: TaskId,
    },
    /// Forget that a release failed here.
    Retarget {
        /// The release.
        #[schema(value_type = String)]
        release: ReleaseId,
    },
}

/// A command that was sent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SentCommand {
    /// Id; the reply is at `/v1/devices/{id}/replies/{command}`.
    pub command: String,
}

/// A reply of a device to a command.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CommandReply {
    /// Reason code, `ok` if it was carried out.
    pub reason: String,
    /// The same for people.
    pub detail: String,
}

/// A change of a device's standing.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NewState {
    /// The state from now on.
    pub state: DeviceState,
}

/// A group that is there from now on.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MadeGroup {
    /// Its id.
    #[schema(value_type = String)]
    pub group: GroupId,
}

/// A group that is not there any more.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RemovedGroup {
    /// Its id.
    #[schema(value_type = String)]
    pub removed: GroupId,
}

/// The routes of this module.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(set_groups))
        .routes(routes!(set_state))
        .routes(routes!(command))
        .routes(routes!(reply))
        .routes(routes!(groups))
        .routes(routes!(add_group, remove_group))
}

fn parse<T: std::str::FromStr<Err = dunlin_protocol::IdError>>(text: &str) -> ApiResult<T> {
    text.parse().map_err(|error: dunlin_protocol::IdError| ApiError::bad_request(error.to_string()))
}

#[utoipa::path(get, path = "/v1/devices", tag = "devices", responses((status = 200, body = Vec<DeviceRow>)))]
async fn list(State(state): State<AppState>) -> ApiResult<Json<Vec<DeviceRow>>> {
    Ok(Json(state.store.devices().await?))
}

#[utoipa::path(get, path = "/v1/devices/{id}", tag = "devices", params(("id" = String, Path)), responses((status = 200, body = DeviceDetail), (status = 404)))]
async fn show(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<DeviceDetail>> {
    let id: DeviceId = parse(&id)?;
    let device = state.store.device(&id).await?;
    let installed = state.store.installed(&id).await?;
    let boots = state.store.boots(&id, BOOTS_SHOWN).await?;
    Ok(Json(DeviceDetail {
        device,
        installed,
        boots,
        gaps: state.store.gaps(&id, GAPS_SHOWN).await?,
        refused: state.store.refused(Some(&id)).await?,
        certificates: state.store.certificates(&id, CERTIFICATES_SHOWN).await?,
        happenings: state.store.happenings(&id, HAPPENINGS_SHOWN).await?,
    }))
}

#[utoipa::path(put, path = "/v1/devices/{id}/groups", tag = "devices", params(("id" = String, Path)), request_body = Vec<String>, responses((status = 200, body = Vec<String>), (status = 404)))]
async fn set_groups(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    Json(groups): Json<BTreeSet<GroupId>>,
) -> ApiResult<Json<BTreeSet<GroupId>>> {
    let id: DeviceId = parse(&id)?;
    let mut change = state.audit.begin().await?;
    let before = state.store.device(&id).await?.groups;
    Store::device_set_groups(change.tx(), &id, &groups, clock::wall_ms()).await?;
    change
        .commit(
            &caller.signed(),
            "device.groups",
            json!({ "device": id, "groups": before }),
            json!({ "device": id, "groups": groups }),
        )
        .await?;
    state.wake.planner.notify_one();
    Ok(Json(groups))
}

#[utoipa::path(put, path = "/v1/devices/{id}/state", tag = "devices", params(("id" = String, Path)), request_body = NewState, responses((status = 200, body = NewState), (status = 404), (status = 409, description = "it was revoked")))]
async fn set_state(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    Json(new): Json<NewState>,
) -> ApiResult<Json<NewState>> {
    let id: DeviceId = parse(&id)?;
    let mut change = state.audit.begin().await?;
    let before = Store::device_set_state(change.tx(), &id, new.state).await?;
    let after = json!({ "device": id, "state": new.state });
    change.commit(&caller.signed(), "device.state", json!({ "device": id, "state": before }), after).await?;
    match new.state {
        DeviceState::Active => state.broker.let_in(&id),
        DeviceState::Retired | DeviceState::Revoked => state.broker.shut_out(&id).await,
    }
    state.wake.lists.notify_one();
    state.wake.planner.notify_one();
    Ok(Json(new))
}

#[utoipa::path(post, path = "/v1/devices/{id}/commands", tag = "devices", params(("id" = String, Path)), request_body = DeviceCommand, responses((status = 200, body = SentCommand), (status = 404), (status = 409, description = "it is not in service")))]
async fn command(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    Json(command): Json<DeviceCommand>,
) -> ApiResult<Json<SentCommand>> {
    let id: DeviceId = parse(&id)?;
    let device = state.store.device(&id).await?;
    if device.state != DeviceState::Active {
        return Err(ApiError::conflict(format!("the device {id} is {}", device.state.as_str())));
    }
    let body = match command.clone() {
        DeviceCommand::Check => CmdBody::Check,
        DeviceCommand::Report => CmdBody::Report,
        DeviceCommand::Rollback { task } => CmdBody::Rollback { task },
        DeviceCommand::Retarget { release } => CmdBody::Retarget { release },
    };
    let now_ms = clock::wall_ms();
    let pending = downlink::command(&id, body, now_ms);
    let mut change = state.audit.begin().await?;
    Store::keep_command(change.tx(), &pending, now_ms).await?;
    if let DeviceCommand::Retarget { release } = &command {
        Store::forgive(change.tx(), &id, release, now_ms).await?;
    }
    let after = json!({ "device": id, "command": command, "id": pending.cmd.id });
    change.commit(&caller.signed(), "device.command", Value::Null, after).await?;
    if matches!(command, DeviceCommand::Retarget { .. }) {
        state.wake.planner.notify_one();
    }
    // It is kept, so that the device gets it with its next session where it does not get it now.
    if let Err(error) = state.downlink.pending(&pending).await {
        tracing::warn!(error = &error as &dyn std::error::Error, device = %id, "a command waits");
    }
    Ok(Json(SentCommand { command: pending.cmd.id }))
}

#[utoipa::path(get, path = "/v1/devices/{id}/replies/{command}", tag = "devices", params(("id" = String, Path), ("command" = String, Path)), responses((status = 200, body = CommandReply), (status = 404)))]
async fn reply(
    State(state): State<AppState>,
    Path((id, command)): Path<(String, String)>,
) -> ApiResult<Json<CommandReply>> {
    let reply = state.store.reply(&parse(&id)?, &command).await?;
    let (reason, detail) = reply.ok_or_else(|| {
        ApiError::not_found("reply to the command", &command).hint("the device may be away; ask again later")
    })?;
    Ok(Json(CommandReply { reason, detail }))
}

#[utoipa::path(get, path = "/v1/groups", tag = "devices", responses((status = 200, description = "groups with their devices", body = BTreeMap<String, Vec<String>>)))]
async fn groups(State(state): State<AppState>) -> ApiResult<Json<BTreeMap<String, Vec<String>>>> {
    Ok(Json(state.store.groups().await?))
}

#[utoipa::path(put, path = "/v1/groups/{id}", tag = "devices", params(("id" = String, Path)), responses((status = 200, body = MadeGroup)))]
async fn add_group(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<MadeGroup>> {
    let id: GroupId = parse(&id)?;
    let mut change = state.audit.begin().await?;
    Store::group_add(change.tx(), &id, clock::wall_ms()).await?;
    change.commit(&caller.signed(), "group.create", Value::Null, json!({ "group": id })).await?;
    Ok(Json(MadeGroup { group: id }))
}

#[utoipa::path(delete, path = "/v1/groups/{id}", tag = "devices", params(("id" = String, Path)), responses((status = 200, body = RemovedGroup), (status = 404)))]
async fn remove_group(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<RemovedGroup>> {
    let id: GroupId = parse(&id)?;
    let mut change = state.audit.begin().await?;
    let members = state.store.groups().await?.remove(id.as_str()).unwrap_or_default();
    Store::group_remove(change.tx(), &id).await?;
    let before = json!({ "group": id, "devices": members });
    change.commit(&caller.signed(), "group.remove", before, Value::Null).await?;
    state.wake.planner.notify_one();
    Ok(Json(RemovedGroup { removed: id }))
}
