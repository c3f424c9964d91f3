//! What is served: metadata and readiness.

use dunlin_protocol::{ReleaseId, TaskId, TensorSpec};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::refusal::{self, Refusal};
use super::{Answered, Api};
use crate::serve::{Member, TaskView};

/// What this server knows beyond the protocol's core.
pub(super) const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "model_repository", "statistics", "dunlin_feedback", "dunlin_explain"];

pub(super) fn server() -> Value {
    json!({ "name": "dunlin-agent", "version": crate::VERSION, "extensions": EXTENSIONS })
}

pub(super) fn task(name: &str) -> Result<TaskId, Refusal> {
    name.parse().map_err(|_| {
        Refusal::missing(format!(
            "there is no model {:?} on this device",
            name.chars().take(100).collect::<String>()
        ))
    })
}

pub(super) fn view(api: &Api, name: &str) -> Result<TaskView, Refusal> {
    let task = task(name)?;
    api.serving
        .view_of(&task)
        .ok_or_else(|| Refusal::missing(format!("there is no model {task:?} on this device")))
}

/// The loaded member that a version names: a release, or its number where that is unambiguous.
pub(super) fn member<'a>(view: &'a TaskView, version: &str) -> Result<&'a Member, Refusal> {
    let exact = version.parse::<ReleaseId>().ok();
    let is_named = |release: &ReleaseId| match &exact {
        Some(exact) => release == exact,
        None => version.parse() == Ok(release.version),
    };
    let mut named = view.members.iter().filter(|m| is_named(&m.release));
    // One release may have two parts: in probation the previous champion can be the fallback too.
    let first = named.next();
    match first.filter(|first| named.all(|other| other.release == first.release)) {
        Some(member) => Ok(member),
        None => {
            let why = view.absent().find(|(release, _)| is_named(release));
            Err(Refusal::missing(format!(
                "model {:?} has no version {:?} loaded{}",
                view.task,
                version.chars().take(100).collect::<String>(),
                why.map(|(_, why)| format!(": {why}")).unwrap_or_default()
            )))
        }
    }
}

pub(super) fn metadata(api: &Api, name: &str, version: Option<&str>) -> Result<Answered, Refusal> {
    let view = view(api, name)?;
    let chosen = match version {
        Some(version) => Some(member(&view, version)?),
        None => view.members.first(),
    };
    let ports = |specs: &[TensorSpec]| {
        specs
            .iter()
            .map(|s| json!({ "name": s.name, "datatype": s.datatype.as_str(), "shape": s.shape }))
            .collect::<Vec<_>>()
    };
    let versions: Vec<String> = view.versions().into_iter().map(ToString::to_string).collect();
    let body = json!({
        "name": view.task.as_str(),
        "versions": versions,
        "platform": "onnx_onnxv1",
        "inputs": chosen.map(|m| ports(&m.inputs)).unwrap_or_default(),
        "outputs": chosen.map(|m| ports(&m.outputs)).unwrap_or_default(),
    });
    Ok(refusal::json(StatusCode::OK, &body))
}

pub(super) fn model_ready(api: &Api, name: &str, version: Option<&str>) -> Result<Answered, Refusal> {
    let view = view(api, name)?;
    if let Some(version) = version {
        if let Some(out) = &member(&view, version)?.out {
            return Err(Refusal::bad(format!("version {version:?} of model {name:?} is not ready: {out}")));
        }
    } else if !view.is_ready() {
        return Err(Refusal::bad(format!("model {name:?} is not ready")));
    }
    Ok(refusal::json(StatusCode::OK, &json!({ "name": view.task.as_str(), "ready": true })))
}

/// The tasks that would not be answered. One that an administrator unloaded is not waited for.
pub(super) fn waiting(api: &Api) -> Vec<String> {
    let of = |view: &TaskView| (!view.is_ready() && view.unloaded.is_empty()).then(|| view.task.to_string());
    api.serving.view().iter().filter_map(of).collect()
}

/// Ready if every task that is known would be answered.
pub(super) fn ready(api: &Api) -> Answered {
    let waiting = waiting(api);
    if waiting.is_empty() {
        return refusal::json(StatusCode::OK, &json!({ "ready": true }));
    }
    Refusal::bad(format!("not ready: {}", waiting.join(", "))).answer()
}
