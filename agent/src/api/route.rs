//! From paths to answers.

use std::borrow::Cow;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;

use super::access::{Peer, Right};
use super::refusal::{NO_SHARED_MEMORY, Refusal, json, with};
use super::{Answered, Api, Residency, body, explain, infer, metrics, models, repository, statistics};

/// What ends the name of a model in the protocol's first version, where it is explained.
const EXPLAIN_V1: &str = ":explain";

/// Answers one request; every refusal is `{"error": ...}`.
pub(super) async fn answer(api: &Api, peer: Peer, request: Request<Incoming>) -> Answered {
    dispatch(api, peer, request).await.unwrap_or_else(|refusal| refusal.answer())
}

async fn dispatch(api: &Api, peer: Peer, request: Request<Incoming>) -> Result<Answered, Refusal> {
    let uri = request.uri().clone();
    let path = decoded(uri.path())?;
    let parts: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
    let needed = match parts.as_slice() {
        // Probes ask for these, and they tell nothing of the models.
        ["v2", "health", ..] => Right::Nothing,
        ["v2", "repository", "models", ..] => Right::Administer,
        _ => Right::Use,
    };
    api.access.check(peer, request.headers(), needed)?;
    let method = request.method().clone();
    if method == Method::POST {
        return posted(api, &parts, request).await;
    }
    if method != Method::GET {
        return other(api, &method, &parts);
    }
    match parts.as_slice() {
        ["v2"] => Ok(json(StatusCode::OK, &models::server())),
        ["v2", "health", "live"] => Ok(json(StatusCode::OK, &serde_json::json!({ "live": true }))),
        ["v2", "health", "ready"] => Ok(models::ready(api)),
        ["v2", "models", "stats"] => statistics::answer(api, None, None),
        ["v2", "models", model] => models::metadata(api, model, None),
        ["v2", "models", model, "ready"] => models::model_ready(api, model, None),
        ["v2", "models", model, "stats"] => statistics::answer(api, Some(model), None),
        ["v2", "models", model, "versions", version] => models::metadata(api, model, Some(version)),
        ["v2", "models", model, "versions", version, "ready"] => {
            models::model_ready(api, model, Some(version))
        }
        ["v2", "models", model, "versions", version, "stats"] => {
            statistics::answer(api, Some(model), Some(version))
        }
        ["metrics"] => Ok(with(
            StatusCode::OK,
            "text/plain; version=0.0.4",
            metrics::text(&api.serving.view()).into_bytes(),
        )),
        parts => other(api, &method, parts),
    }
}

async fn posted(api: &Api, parts: &[&str], request: Request<Incoming>) -> Result<Answered, Refusal> {
    match parts {
        ["v2", "models", model, "infer"] => infer::answer(api, model, None, request).await,
        ["v2", "models", model, "versions", version, "infer"] => {
            infer::answer(api, model, Some(version), request).await
        }
        ["v2", "models", model, "explain"] => explain::answer(api, model, None, request).await,
        ["v2", "models", model, "versions", version, "explain"] => {
            explain::answer(api, model, Some(version), request).await
        }
        ["v1", "models", verb] if verb.ends_with(EXPLAIN_V1) => {
            explain::answer_v1(api, verb.strip_suffix(EXPLAIN_V1).unwrap_or_default(), request).await
        }
        ["v2", "models", model, "feedback"] => feedback(api, model, request).await,
        ["v2", "repository", "index"] => repository::index(api, &body::read(request, api).await?.bytes),
        ["v2", "repository", "models", model, verb @ ("load" | "unload")] => {
            let wanted = if *verb == "load" { Residency::Loaded } else { Residency::Unloaded };
            repository::change(api, model, &body::read(request, api).await?.bytes, wanted).await
        }
        parts => other(api, &Method::POST, parts),
    }
}

/// The parts of a path. Clients write a release's `@` as `%40`.
fn decoded(path: &str) -> Result<Vec<Cow<'_, str>>, Refusal> {
    let parts = path.trim_start_matches('/').split('/').map(part).collect::<Option<_>>();
    parts.ok_or_else(|| Refusal::bad("the path is not well written"))
}

fn part(part: &str) -> Option<Cow<'_, str>> {
    let mut pieces = part.split('%');
    let first = pieces.next()?;
    if first.len() == part.len() {
        return Some(Cow::Borrowed(part));
    }
    let mut bytes = first.as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn other(api: &Api, method: &Method, parts: &[&str]) -> Result<Answered, Refusal> {
    if let ["v2", "systemsharedmemory" | "cudasharedmemory", ..] = parts {
        return Err(Refusal::bad(NO_SHARED_MEMORY));
    }
    let path = format!("/{}", parts.join("/"));
    if let Some(body) = api.extra.as_ref().and_then(|extra| extra(method.as_str(), &path)) {
        return Ok(json(StatusCode::OK, &body));
    }
    let known = matches!(
        parts,
        ["v2" | "metrics"]
            | ["v2", "health", "live" | "ready"]
            | ["v2", "repository", "index"]
            | ["v2", "repository", "models", _, "load" | "unload"]
            | ["v2", "models", _]
            | ["v2", "models", _, "infer" | "explain" | "feedback" | "ready" | "stats"]
            | ["v2", "models", _, "versions", _]
            | ["v2", "models", _, "versions", _, "infer" | "explain" | "ready" | "stats"]
    ) || matches!(parts, ["v1", "models", verb] if verb.ends_with(EXPLAIN_V1));
    let path: String = path.chars().take(200).collect();
    if known {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path:?} does not take {method}")));
    }
    Err(Refusal::missing(format!("there is nothing at {path:?}")))
}

/// A late label, by index or by name.
#[derive(Debug, Deserialize)]
struct Feedback {
    id: String,
    label: Label,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Label {
    Index(u32),
    Name(String),
}

async fn feedback(api: &Api, model: &str, request: Request<Incoming>) -> Result<Answered, Refusal> {
    let task = models::task(model)?;
    let body = body::read(request, api).await?.bytes;
    let feedback: Feedback =
        serde_json::from_slice(&body).map_err(|e| Refusal::bad(format!("reading the feedback: {e}")))?;
    let label = match feedback.label {
        Label::Index(index) => index,
        Label::Name(name) => api.serving.class_index(&task, &name).ok_or_else(|| {
            Refusal::bad(format!(
                "model {task:?} has no class {:?}",
                name.chars().take(100).collect::<String>()
            ))
        })?,
    };
    api.serving.feedback(&task, &feedback.id, label, (api.clock)())?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}
