//! Reading inference requests: JSON, JSON with binary tensors, and raw.

use bytes::Bytes;
use dunlin_protocol::{DType, TensorData, TensorSpec};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::json;
use super::refusal::Refusal;

/// Largest request body: a batch of large images; what is kept of a request is less than this.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most inputs or wanted outputs of one request, far above any model's.
const PORTS_MAX: usize = 64;
/// Longest request id kept for late labels.
const ID_BYTES_MAX: usize = 128;
/// Says how many bytes of the body are JSON; what follows are tensors. Zero: the whole body is one tensor.
pub(super) const JSON_LENGTH: &str = "inference-header-content-length";

#[derive(Debug, Deserialize)]
struct Wire {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
    inputs: Vec<WireInput>,
    #[serde(default)]
    outputs: Option<Vec<WireOutput>>,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(default)]
    binary_data_output: Option<bool>,
    #[serde(default)]
    binary_data: Option<bool>,
    #[serde(default)]
    binary_data_size: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct WireInput {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(default)]
    data: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct WireOutput {
    name: String,
    #[serde(default)]
    parameters: Option<Parameters>,
}

/// An output that the caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) binary: bool,
}

/// An inference request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inference {
    pub(super) id: Option<String>,
    pub(super) inputs: Vec<TensorData>,
    /// The outputs wanted; `None` for all.
    pub(super) outputs: Option<Vec<Wanted>>,
    /// Whether outputs that are not named are wanted as binary.
    pub(super) binary: bool,
}

/// The whole body, if it is not too large.
pub(super) async fn body(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let too_large =
        || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is over {BODY_BYTES_MAX} bytes"));
    if request.body().size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Refusal::bad(format!("reading the body: {error}"))),
    }
}

/// Length of the JSON part, if the request has binary tensors.
pub(super) fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| Refusal::bad("Inference-Header-Content-Length is no length"))
}

/// Reads a request with a JSON part of `json_length` bytes, or all JSON.
pub(super) fn read(body: &[u8], json_length: Option<usize>) -> Result<Inference, Refusal> {
    let json_length = json_length.unwrap_or(body.len());
    let Some((text, mut rest)) = body.split_at_checked(json_length) else {
        return Err(Refusal::bad(format!(
            "the body has {} bytes, its JSON alone should have {json_length}",
            body.len()
        )));
    };
    let wire: Wire =
        serde_json::from_slice(text).map_err(|e| Refusal::bad(format!("reading the request: {e}")))?;
    if wire.inputs.len() > PORTS_MAX || wire.outputs.as_ref().is_some_and(|o| o.len() > PORTS_MAX) {
        return Err(Refusal::bad(format!("a request has at most {PORTS_MAX} inputs and outputs")));
    }
    let id = wire.id.filter(|id| !id.is_empty());
    if id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return Err(Refusal::bad(format!("the id is over {ID_BYTES_MAX} bytes")));
    }
    let inputs = wire.inputs.into_iter().map(|wire| input(wire, &mut rest)).collect::<Result<Vec<_>, _>>()?;
    if !rest.is_empty() {
        return Err(Refusal::bad(format!("{} bytes follow the last tensor", rest.len())));
    }
    let binary = wire.parameters.and_then(|p| p.binary_data_output).unwrap_or(false);
    let outputs = wire.outputs.filter(|o| !o.is_empty()).map(|outputs| {
        let wanted = |o: WireOutput| Wanted {
            name: o.name,
            binary: o.parameters.and_then(|p| p.binary_data).unwrap_or(binary),
        };
        outputs.into_iter().map(wanted).collect()
    });
    Ok(Inference { id, inputs, outputs, binary })
}

fn input(wire: WireInput, rest: &mut &[u8]) -> Result<TensorData, Refusal> {
    let name: String = wire.name.chars().take(100).collect();
    let datatype = DType::ALL.into_iter().find(|kind| kind.as_str() == wire.datatype).ok_or_else(|| {
        Refusal::bad(format!(
            "input {name:?}: {:?} is no datatype",
            wire.datatype.chars().take(20).collect::<String>()
        ))
    })?;
    let elements =
        wire.shape
            .iter()
            .try_fold(1_u64, |all, &d| all.checked_mul(d))
            .filter(|&n| n <= BODY_BYTES_MAX as u64)
            .ok_or_else(|| Refusal::bad(format!("input {name:?}: its shape is too large")))? as usize;
    let data = match (wire.parameters.and_then(|p| p.binary_data_size), wire.data) {
        (Some(size), None) => {
            let (own, after) = rest.split_at_checked(size).ok_or_else(|| {
                Refusal::bad(format!("input {name:?}: {size} bytes are announced, {} are there", rest.len()))
            })?;
            *rest = after;
            own.to_vec()
        }
        (None, Some(data)) => json::read(datatype, &data, elements)
            .map_err(|problem| Refusal::bad(format!("input {name:?}: {problem}")))?,
        (Some(_), Some(_)) => {
            return Err(Refusal::bad(format!("input {name:?} has both data and binary data")));
        }
        (None, None) => return Err(Refusal::bad(format!("input {name:?} has no data"))),
    };
    if datatype.size().is_some_and(|size| size * elements != data.len()) {
        return Err(Refusal::bad(format!(
            "input {name:?} holds {} bytes, which is not shape {:?}",
            data.len(),
            wire.shape
        )));
    }
    Ok(TensorData { name: wire.name, datatype, shape: wire.shape, data: data.into() })
}

/// Reads a raw request: the whole body is the one input of the model, batch 1, and all outputs are binary.
pub(super) fn raw(body: &[u8], inputs: &[TensorSpec]) -> Result<Inference, Refusal> {
    let [spec] = inputs else {
        return Err(Refusal::bad(format!(
            "a raw request serves models with one input, this one has {}",
            inputs.len()
        )));
    };
    let shape: Vec<u64> =
        spec.shape.iter().enumerate().map(|(i, &d)| if i == 0 { 1 } else { d.unsigned_abs() }).collect();
    let bytes = spec.datatype.size().map(|size| size as u64 * shape.iter().product::<u64>());
    if bytes != Some(body.len() as u64) {
        return Err(Refusal::bad(format!(
            "input {:?} holds {} bytes, which is not shape {shape:?}",
            spec.name,
            body.len()
        )));
    }
    let input =
        TensorData { name: spec.name.clone(), datatype: spec.datatype, shape, data: body.to_vec().into() };
    Ok(Inference { id: None, inputs: vec![input], outputs: None, binary: true })
}
