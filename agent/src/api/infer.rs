//! Inference: from a request to the line-up and back.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_protocol::TensorData;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};

use super::refusal::Refusal;
use super::request::{self, Inference, JSON_LENGTH, Wanted};
use super::{Answered, Api, json, models};
use crate::serve::Answer;

pub(super) async fn answer(
    api: &Api,
    name: &str,
    version: Option<&str>,
    request: Request<Incoming>,
) -> Result<Answered, Refusal> {
    let task = models::task(name)?;
    let version = version.map(|v| models::release(api, name, v)).transpose()?;
    let json_length = request::json_length(request.headers())?;
    let body = request::body(request).await?;
    let asked = if json_length == Some(0) {
        let view = api
            .serving
            .view_of(&task)
            .ok_or_else(|| Refusal::missing(format!("there is no model {task:?} on this device")))?;
        let inputs = view.members.first().map(|m| m.inputs.as_slice()).unwrap_or_default();
        request::raw(&body, inputs)?
    } else {
        request::read(&body, json_length)?
    };
    drop(body);
    let Inference { id, inputs, outputs, binary } = asked;
    let id = id.unwrap_or_else(fresh_id);
    let answer = api.serving.answer(&task, version, id.clone(), inputs, (api.clock)()).await?;
    let chosen = choose(&answer, outputs, binary)?;
    Ok(respond(name, &id, &answer, &chosen))
}

/// An id that no earlier request of this or another start of the agent has.
fn fresh_id() -> String {
    static START: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let start = START.get_or_init(|| {
        let mut bytes = [0; 8];
        let drawn = SystemRandom::new().fill(&mut bytes);
        if drawn.is_ok() { u64::from_le_bytes(bytes) } else { u64::from(std::process::id()) }
    });
    format!("{start:016x}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The outputs that go into the answer, and whether as binary.
fn choose(
    answer: &Answer,
    wanted: Option<Vec<Wanted>>,
    binary: bool,
) -> Result<Vec<(&TensorData, bool)>, Refusal> {
    let Some(wanted) = wanted else {
        return Ok(answer.outputs.iter().map(|output| (output, binary)).collect());
    };
    wanted
        .into_iter()
        .map(|w| {
            let found = answer.outputs.iter().find(|output| output.name == w.name);
            let missing = || {
                Refusal::bad(format!(
                    "the model has no output {:?}",
                    w.name.chars().take(100).collect::<String>()
                ))
            };
            found.map(|output| (output, w.binary)).ok_or_else(missing)
        })
        .collect()
}

fn respond(name: &str, id: &str, answer: &Answer, outputs: &[(&TensorData, bool)]) -> Answered {
    let version = answer.release.as_ref().map_or_else(|| "baseline".to_owned(), ToString::to_string);
    let mut text = String::with_capacity(256);
    // Writing to a string does not fail.
    let _infallible = write!(
        text,
        "{{\"model_name\":\"{name}\",\"model_version\":\"{version}\",\"id\":{},\"parameters\":{{\"generation\":{},\"answered_by\":\"{}\"}},\"outputs\":[",
        quoted(id),
        answer.generation,
        answer.by.as_str(),
    );
    let mut tail = Vec::new();
    for (i, (output, binary)) in outputs.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let (kind, shape) = (output.datatype.as_str(), &output.shape);
        let _infallible = write!(
            text,
            "{comma}{{\"name\":{},\"datatype\":\"{kind}\",\"shape\":{shape:?},",
            quoted(&output.name)
        );
        if *binary {
            let _infallible =
                write!(text, "\"parameters\":{{\"binary_data_size\":{}}}}}", output.data.0.len());
            tail.extend_from_slice(output.data.as_slice());
        } else {
            text.push_str("\"data\":");
            json::write(output, &mut text);
            text.push('}');
        }
    }
    text.push_str("]}");
    let length = text.len();
    let binary = outputs.iter().any(|(_, binary)| *binary);
    let mut body = text.into_bytes();
    body.append(&mut tail);
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::OK;
    let kind = if binary { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if binary {
        response.headers_mut().insert(HeaderName::from_static(JSON_LENGTH), HeaderValue::from(length));
    }
    response
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
