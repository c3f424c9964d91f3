//! The model repository extension: the index, load and unload.

use std::collections::BTreeMap;

use dunlin_protocol::ReasonCode;
use hyper::StatusCode;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::refusal::{self, Refusal};
use super::{Answered, Api, Residency, models};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    ready: bool,
}

/// One line of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) ready: bool,
    pub(super) reason: String,
}

impl Entry {
    /// The word of the protocol.
    pub(super) fn state(&self) -> &'static str {
        if self.ready { "READY" } else { "UNAVAILABLE" }
    }
}

/// What is in memory and what is not, task by task; with `ready` only what answers.
pub(super) fn entries(api: &Api, ready: bool) -> Vec<Entry> {
    let mut all = Vec::new();
    for view in api.serving.view() {
        let mut add = |version: String, ready: bool, reason: &str| {
            all.push(Entry { name: view.task.to_string(), version, ready, reason: reason.to_owned() });
        };
        for release in view.versions() {
            let parts = view.members.iter().filter(|member| member.release == *release);
            let out = parts.clone().all(|part| part.out.is_some());
            let why = parts.filter(|_| out).find_map(|part| part.out.as_deref());
            add(release.to_string(), !out, why.unwrap_or_default());
        }
        for (release, why) in view.absent() {
            add(release.to_string(), false, why);
        }
        if view.members.is_empty() && view.absent().next().is_none() {
            let reason = if view.baseline { "the constant baseline answers" } else { "nothing is installed" };
            add(String::new(), false, reason);
        }
    }
    all.retain(|entry| entry.ready || !ready);
    all
}

pub(super) fn index(api: &Api, body: &[u8]) -> Result<Answered, Refusal> {
    let wanted: Wanted = read(body, "index")?;
    let list = entries(api, wanted.ready)
        .iter()
        .map(|e| json!({ "name": e.name, "version": e.version, "state": e.state(), "reason": e.reason }))
        .collect();
    Ok(refusal::json(StatusCode::OK, &Value::Array(list)))
}

/// What a body asks for; an empty one asks for nothing in particular.
fn read<T: Default + for<'de> Deserialize<'de>>(body: &[u8], what: &str) -> Result<T, Refusal> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|e| Refusal::bad(format!("reading the {what} request: {e}")))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Change {
    parameters: BTreeMap<String, IgnoredAny>,
}

/// Refuses parameters that would bring a model or its configuration along: those come signed, by assignment.
pub(super) fn nothing_brought<'a>(mut names: impl Iterator<Item = &'a str>) -> Result<(), Refusal> {
    if names.any(|name| name == "config" || name.starts_with("file:")) {
        return Err(Refusal::bad(
            "models and their configuration come signed, by assignment: load takes neither files nor a config",
        ));
    }
    Ok(())
}

pub(super) async fn change(
    api: &Api,
    name: &str,
    body: &[u8],
    wanted: Residency,
) -> Result<Answered, Refusal> {
    let change: Change = read(body, "load")?;
    nothing_brought(change.parameters.keys().map(String::as_str))?;
    carry_out(api, name, wanted).await?;
    Ok(refusal::json(StatusCode::OK, &json!({})))
}

/// Loads or unloads. The caller has made sure that it is an administrator who asks.
pub(super) async fn carry_out(api: &Api, name: &str, wanted: Residency) -> Result<(), Refusal> {
    let task = models::task(name)?;
    let loader =
        api.loader.as_ref().ok_or_else(|| Refusal::bad("load and unload are not offered by this server"))?;
    tracing::info!(%task, ?wanted, "an administrator changes what is in memory");
    let reason = loader(task.clone(), wanted).await;
    if reason == ReasonCode::Ok {
        return Ok(());
    }
    if reason == ReasonCode::NothingToReturnTo {
        return Err(Refusal::missing(format!("no assignment names a model for {task:?} on this device")));
    }
    let doing = match wanted {
        Residency::Loaded => "loading",
        Residency::Unloaded => "unloading",
    };
    Err(Refusal::bad(format!("{doing} model {task:?}: {}", reason.meaning())))
}
