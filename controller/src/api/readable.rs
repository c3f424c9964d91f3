use std::collections::BTreeSet;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use dunlin_protocol::{DeviceId, Digest, TaskPolicy};

use super::auth::{Caller, Peer, Scope};
use super::{ApiError, ApiResult, AppState};

/// Who reads artifacts: a device by its certificate, what it was assigned; else an operator by a token, all.
pub(super) enum Reader {
    Device(DeviceId),
    Operator,
}

impl FromRequestParts<AppState> for Reader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> ApiResult<Self> {
        if let Peer(Some(device)) = Peer::from_request_parts(parts, state).await? {
            return Ok(Self::Device(device));
        }
        Caller::from_request_parts(parts, state).await?.require(Scope::Viewer)?;
        Ok(Self::Operator)
    }
}

impl Reader {
    /// Refuses another device's files to a device, and those of a device that is not there to an operator: files
    /// are made for whoever is asked about.
    pub(super) async fn may_read_of(&self, state: &AppState, device: &DeviceId) -> ApiResult<()> {
        match self {
            Self::Device(own) if own != device => {
                Err(ApiError::forbidden(format!("the certificate is of device {own}, not of {device}")))
            }
            Self::Device(_) => Ok(()),
            Self::Operator => Ok(state.store.device(device).await.map(drop)?),
        }
    }

    /// Refuses a device the target called `name` unless it is assigned.
    pub(super) async fn may_read_target(&self, state: &AppState, name: &str) -> ApiResult<()> {
        match self {
            Self::Operator => Ok(()),
            Self::Device(device) => {
                refuse_unless(Readable::of(state, device).await?.names.contains(name), device)
            }
        }
    }

    /// Refuses a device a blob that is part of nothing it is assigned.
    pub(super) async fn may_read_blob(&self, state: &AppState, digest: &Digest) -> ApiResult<()> {
        match self {
            Self::Operator => Ok(()),
            Self::Device(device) => {
                refuse_unless(Readable::of(state, device).await?.blobs.contains(digest), device)
            }
        }
    }

    /// The device, if it is one.
    pub(super) fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::Device(device) => Some(device),
            Self::Operator => None,
        }
    }
}

/// Whether it exists is not told: the answer is the same.
fn refuse_unless(readable: bool, device: &DeviceId) -> ApiResult<()> {
    if readable {
        return Ok(());
    }
    Err(ApiError::forbidden(format!("this is no part of what {device} is assigned"))
        .hint("check for new metadata: the assignment may have changed"))
}

/// What a device may fetch: the releases of its present assignment with their files, the policies of its tasks with their
/// anchor sets, and the program that it is to run.
#[derive(Debug, Default)]
struct Readable {
    names: BTreeSet<String>,
    blobs: BTreeSet<Digest>,
}

impl Readable {
    async fn of(state: &AppState, device: &DeviceId) -> ApiResult<Self> {
        let mut readable = Self::default();
        let Some(assignment) = state.store.assignment(device).await? else { return Ok(readable) };
        if let Some(program) = &assignment.program {
            let name = program.release.program_name();
            readable.blobs.extend(state.repos.image()?.target(&name).map(|info| info.sha256));
            readable.names.insert(name);
        }
        for assigned in &assignment.tasks {
            readable.names.insert(TaskPolicy::target_name(&assigned.task));
            if let Some(row) = state.store.policy_in_force(&assigned.task).await? {
                readable.blobs.extend(row.policy.retrained.iter().map(|bounds| bounds.anchor.digest));
            }
            for release in assigned.lineup.releases() {
                readable.names.insert(release.target_name());
                if let Some(row) = state.store.release(release).await? {
                    readable.blobs.extend(row.bundle.blobs().map(|blob| blob.digest));
                }
            }
        }
        Ok(readable)
    }
}
