//! Inference: from a request to the line-up and back.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dunlin_engine::json;
use dunlin_protocol::TensorData;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};

use super::body::{self, Whole};
use super::refusal::Refusal;
use super::request::{self, Inference, JSON_LENGTH, Layout, OCTETS, Wanted};
use super::{Answered, Api, models};
use crate::serve::Answer;

pub(super) async fn answer(
    api: &Api,
    name: &str,
    version: Option<&str>,
    request: Request<Incoming>,
) -> Result<Answered, Refusal> {
    let place = api.enter()?;
    let task = models::task(name)?;
    let layout = request::layout(request.headers())?;
    // Looking at the line-up costs more than a small request, so it is done for those that need it.
    let view = (version.is_some() || layout == Layout::Raw).then(|| models::view(api, name)).transpose()?;
    let named = match (&view, version) {
        (Some(view), Some(version)) => Some(models::member(view, version)?),
        (Some(_) | None, _) => None,
    };
    let Whole { bytes: body, held } = body::read(request, api).await?;
    let from = Instant::now();
    let asked = match layout {
        Layout::Json => request::read(&body, None, &api.limits)?,
        Layout::Binary(length) => request::read(&body, Some(length), &api.limits)?,
        Layout::Raw => {
            let member = named.or(view.as_ref().and_then(|view| view.members.first()));
            request::raw(&body, member.map(|m| m.inputs.as_slice()).unwrap_or_default())?
        }
    };
    drop(body);
    let version = named.map(|member| member.release.clone());
    let input_ns = nanos(from);
    let Inference { id, inputs, outputs, binary } = asked;
    let id = id.unwrap_or_else(fresh_id);
    let answer = api.answered(&task, version, &id, inputs, (place, held)).await?;
    let from = Instant::now();
    let chosen = choose(&answer, outputs, binary)?;
    let response = respond(name, &id, &answer, &chosen)?;
    api.serving.tally(&task, &answer, input_ns, nanos(from), (api.clock)().wall_ms);
    Ok(response)
}

pub(super) fn nanos(from: Instant) -> u64 {
    u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// An id that no earlier request of this or another start of the agent has.
pub(super) fn fresh_id() -> String {
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
pub(super) fn choose(
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

/// The version of an answer: a release, or the word for the constant.
pub(super) fn version(answer: &Answer) -> String {
    answer.release.as_ref().map_or_else(|| "baseline".to_owned(), ToString::to_string)
}

fn respond(
    name: &str,
    id: &str,
    answer: &Answer,
    outputs: &[(&TensorData, bool)],
) -> Result<Answered, Refusal> {
    let version = version(answer);
    let mut text = String::with_capacity(256);
    // Writing to a string does not fail.
    let _infallible = write!(
        text,
        "{{\"model_name\":\"{name}\",\"model_version\":\"{version}\",\"id\":{},\"parameters\":{{\"generation\":{},\"answered_by\":\"{}\"",
        quoted(id),
        answer.generation,
        answer.by.as_str(),
    );
    for (name, value) in answer.notes() {
        let _infallible = write!(text, ",\"{name}\":\"{value}\"");
    }
    text.push_str("},\"outputs\":[");
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
            json::write(output, &mut text)
                .map_err(|problem| Refusal::bad(format!("output {:?}: {problem}", output.name)))?;
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
    let kind = if binary { OCTETS } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if binary {
        response.headers_mut().insert(HeaderName::from_static(JSON_LENGTH), HeaderValue::from(length));
    }
    Ok(response)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
