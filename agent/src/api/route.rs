//! From paths to answers.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;

use super::refusal::{Refusal, json, with};
use super::{Answered, Api, infer, metrics, models, request};

/// Answers one request; every refusal is `{"error": ...}`.
pub(super) async fn answer(api: &Api, request: Request<Incoming>) -> Answered {
    dispatch(api, request).await.unwrap_or_else(|refusal| refusal.answer())
}

async fn dispatch(api: &Api, request: Request<Incoming>) -> Result<Answered, Refusal> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let method = request.method().clone();
    match (&method, parts.as_slice()) {
        (&Method::POST, ["v2", "models", model, "infer"]) => infer::answer(api, model, None, request).await,
        (&Method::POST, ["v2", "models", model, "versions", version, "infer"]) => {
            infer::answer(api, model, Some(version), request).await
        }
        (&Method::POST, ["v2", "models", model, "feedback"]) => feedback(api, model, request).await,
        (&Method::GET, ["v2"]) => Ok(json(StatusCode::OK, &models::server())),
        (&Method::GET, ["v2", "health", "live"]) => {
            Ok(json(StatusCode::OK, &serde_json::json!({ "live": true })))
        }
        (&Method::GET, ["v2", "health", "ready"]) => Ok(models::ready(api)),
        (&Method::GET, ["v2", "models", model]) => models::metadata(api, model, None),
        (&Method::GET, ["v2", "models", model, "ready"]) => models::model_ready(api, model, None),
        (&Method::GET, ["v2", "models", model, "versions", version]) => {
            models::metadata(api, model, Some(version))
        }
        (&Method::GET, ["v2", "models", model, "versions", version, "ready"]) => {
            models::model_ready(api, model, Some(version))
        }
        (&Method::POST, ["v2", "repository", "index"]) => models::index(api, &request::body(request).await?),
        (&Method::POST, ["v2", "repository", "models", _, "load" | "unload"]) => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "what runs here is decided by signed assignments; load and unload are not offered",
        )),
        (&Method::GET, ["metrics"]) => Ok(with(
            StatusCode::OK,
            "text/plain; version=0.0.4",
            metrics::text(&api.serving.view()).into_bytes(),
        )),
        (method, parts) => other(api, method, &path, parts),
    }
}

fn other(api: &Api, method: &Method, path: &str, parts: &[&str]) -> Result<Answered, Refusal> {
    if let Some(body) = api.extra.as_ref().and_then(|extra| extra(method.as_str(), path)) {
        return Ok(json(StatusCode::OK, &body));
    }
    let known = matches!(
        parts,
        ["v2" | "metrics"]
            | ["v2", "health", "live" | "ready"]
            | ["v2", "repository", "index"]
            | ["v2", "models", _]
            | ["v2", "models", _, "infer" | "feedback" | "ready"]
            | ["v2", "models", _, "versions", _]
            | ["v2", "models", _, "versions", _, "infer" | "ready"]
    );
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
    let body = request::body(request).await?;
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
