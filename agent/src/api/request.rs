//! Reading inference requests: JSON, JSON with binary tensors, and raw.

use std::fmt;
use std::marker::PhantomData;

use dunlin_engine::json;
use dunlin_protocol::{DType, TensorData, TensorSpec};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Limits;
use super::refusal::Refusal;

/// Longest request id kept for late labels.
const ID_BYTES_MAX: usize = 128;
/// The type of bodies that are not all JSON.
pub(super) const OCTETS: &str = "application/octet-stream";
/// Says how many bytes of the body are JSON; what follows are tensors. Zero: the whole body is one tensor.
pub(super) const JSON_LENGTH: &str = "inference-header-content-length";

#[derive(Debug, Deserialize)]
struct Wire<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow, deserialize_with = "few")]
    inputs: Vec<WireInput<'a>>,
    #[serde(default, deserialize_with = "few_or_none")]
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
    #[serde(default)]
    shared_memory_region: Option<IgnoredAny>,
    #[serde(default)]
    classification: Option<IgnoredAny>,
    #[serde(default)]
    sequence_id: Option<IgnoredAny>,
    #[serde(default)]
    sequence_start: Option<IgnoredAny>,
    #[serde(default)]
    sequence_end: Option<IgnoredAny>,
}

/// Parameters of extensions that are not offered: silence would give another answer than the one asked for. All others are
/// ignored.
const REFUSED: [&str; 5] =
    ["shared_memory_region", "classification", "sequence_id", "sequence_start", "sequence_end"];

/// Refuses parameters that would change the answer, were they known here.
pub(super) fn supported(what: &str, mut names: impl Iterator<Item = impl AsRef<str>>) -> Result<(), Refusal> {
    match names.find(|name| REFUSED.contains(&name.as_ref())) {
        Some(name) => Err(Refusal::bad(format!("{what}: the parameter {} is not supported", name.as_ref()))),
        None => Ok(()),
    }
}

impl Parameters {
    fn check(&self, what: &str) -> Result<(), Refusal> {
        // In the order of `REFUSED`.
        let there = [
            self.shared_memory_region,
            self.classification,
            self.sequence_id,
            self.sequence_start,
            self.sequence_end,
        ];
        supported(what, REFUSED.iter().zip(there).filter_map(|(name, there)| there.map(|_| name)))
    }
}

#[derive(Debug, Deserialize)]
struct WireInput<'a> {
    name: String,
    #[serde(deserialize_with = "few")]
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Option<Parameters>,
    /// As it stands in the body: it is read once the type is known, which may come behind it.
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct WireOutput {
    name: String,
    #[serde(default)]
    parameters: Option<Parameters>,
}

/// Most entries of the lists of a request, which take more memory than their text: above every bound of tensors that can be
/// configured, and every number of dimensions.
const LIST_MAX: usize = 1024;

/// A list of no more than [`LIST_MAX`].
struct Few<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {LIST_MAX}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    if all.len() == LIST_MAX {
                        return Err(A::Error::invalid_length(LIST_MAX + 1, &self));
                    }
                    all.push(item);
                }
                Ok(all)
            }
        }

        from.deserialize_seq(List(PhantomData)).map(Self)
    }
}

/// Reads a list of no more than [`LIST_MAX`].
pub(super) fn few<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Few::deserialize(from).map(|Few(all)| all)
}

fn few_or_none<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    Option::<Few<T>>::deserialize(from).map(|few| few.map(|Few(all)| all))
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

/// How a body is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// All JSON.
    Json,
    /// So many bytes of JSON, then tensors.
    Binary(usize),
    /// The one input and nothing else.
    Raw,
}

/// What the headers say of the body.
pub(super) fn layout(headers: &HeaderMap) -> Result<Layout, Refusal> {
    if let Some(coding) = headers.get(CONTENT_ENCODING).filter(|coding| coding.as_bytes() != b"identity") {
        let error = format!("the content coding {coding:?} is not read here: send the body as it is");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
    }
    let Some(value) = headers.get(JSON_LENGTH) else {
        let raw = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == OCTETS.as_bytes());
        return Ok(if raw { Layout::Raw } else { Layout::Json });
    };
    match value.to_str().ok().and_then(|text| text.trim().parse().ok()) {
        Some(0) => Ok(Layout::Raw),
        Some(length) => Ok(Layout::Binary(length)),
        None => Err(Refusal::bad("Inference-Header-Content-Length is no length")),
    }
}

/// Reads a request with a JSON part of `json_length` bytes, or all JSON.
pub(super) fn read(body: &[u8], json_length: Option<usize>, limits: &Limits) -> Result<Inference, Refusal> {
    let json_length = json_length.unwrap_or(body.len());
    let Some((text, mut rest)) = body.split_at_checked(json_length) else {
        return Err(Refusal::bad(format!(
            "the body has {} bytes, its JSON alone should have {json_length}",
            body.len()
        )));
    };
    let wire: Wire<'_> =
        serde_json::from_slice(text).map_err(|e| Refusal::bad(format!("reading the request: {e}")))?;
    ports(wire.inputs.len().max(wire.outputs.as_ref().map_or(0, Vec::len)), limits)?;
    let id = id(wire.id.unwrap_or_default())?;
    if let Some(parameters) = &wire.parameters {
        parameters.check("the request")?;
    }
    for output in wire.outputs.iter().flatten() {
        if let Some(parameters) = &output.parameters {
            parameters.check("an output")?;
        }
    }
    let inputs =
        wire.inputs.into_iter().map(|wire| input(wire, &mut rest, limits)).collect::<Result<Vec<_>, _>>()?;
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

/// Refuses more tensors than are read.
pub(super) fn ports(n: usize, limits: &Limits) -> Result<(), Refusal> {
    let max = limits.tensors_max;
    if n > max {
        return Err(Refusal::bad(format!("a request has at most {max} inputs and outputs")));
    }
    Ok(())
}

/// The id of a request, if it has one.
pub(super) fn id(id: String) -> Result<Option<String>, Refusal> {
    if id.len() > ID_BYTES_MAX {
        return Err(Refusal::bad(format!("the id is over {ID_BYTES_MAX} bytes")));
    }
    Ok(Some(id).filter(|id| !id.is_empty()))
}

/// The type of that name.
pub(super) fn datatype(input: &str, name: &str) -> Result<DType, Refusal> {
    let found = DType::ALL.into_iter().find(|kind| kind.as_str() == name);
    found.ok_or_else(|| {
        let name: String = name.chars().take(20).collect();
        let advice = if name == "BF16" { ": send it as FP32" } else { "" };
        Refusal::bad(format!("input {input:?}: {name:?} is no datatype that is taken here{advice}"))
    })
}

/// Number of elements of a shape, if it is not beyond what a request can hold.
pub(super) fn count(input: &str, shape: &[u64], limits: &Limits) -> Result<usize, Refusal> {
    let all = shape.iter().try_fold(1_u64, |all, &d| all.checked_mul(d));
    all.filter(|&n| n <= limits.body_bytes_max as u64)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| Refusal::bad(format!("input {input:?}: its shape is too large")))
}

/// Refuses data that is not `elements` values.
pub(super) fn fits(input: &str, kind: DType, data: &[u8], elements: usize) -> Result<(), Refusal> {
    let fits = match kind.size() {
        Some(size) => size.checked_mul(elements) == Some(data.len()),
        None => {
            let mut found = 0;
            json::elements(data).all(|element| {
                found += 1;
                element.is_some()
            }) && found == elements
        }
    };
    if fits {
        return Ok(());
    }
    Err(Refusal::bad(format!(
        "input {input:?} holds {} bytes, which are not {elements} values of {}",
        data.len(),
        kind.as_str()
    )))
}

fn input(wire: WireInput<'_>, rest: &mut &[u8], limits: &Limits) -> Result<TensorData, Refusal> {
    let name: String = wire.name.chars().take(100).collect();
    let datatype = datatype(&name, &wire.datatype)?;
    let elements = count(&name, &wire.shape, limits)?;
    if let Some(parameters) = &wire.parameters {
        parameters.check(&format!("input {name:?}"))?;
    }
    let data = match (wire.parameters.and_then(|p| p.binary_data_size), wire.data) {
        (Some(size), None) => {
            let (own, after) = rest.split_at_checked(size).ok_or_else(|| {
                Refusal::bad(format!("input {name:?}: {size} bytes are announced, {} are there", rest.len()))
            })?;
            *rest = after;
            own.to_vec()
        }
        (None, Some(data)) => json::read(datatype, data.get(), elements)
            .map_err(|problem| Refusal::bad(format!("input {name:?}: {problem}")))?,
        (Some(_), Some(_)) => {
            return Err(Refusal::bad(format!("input {name:?} has both data and binary data")));
        }
        (None, None) => return Err(Refusal::bad(format!("input {name:?} has no data"))),
    };
    fits(&name, datatype, &data, elements)?;
    Ok(TensorData { name: wire.name, datatype, shape: wire.shape, data: data.into() })
}

/// Reads a raw request: the whole body is the one input of the model, batch 1, and all outputs are binary. For an input of
/// one text it is that text, without its length.
pub(super) fn raw(body: &[u8], inputs: &[TensorSpec]) -> Result<Inference, Refusal> {
    let [spec] = inputs else {
        return Err(Refusal::bad(format!(
            "a raw request serves models with one input, this one has {}",
            inputs.len()
        )));
    };
    let shape: Vec<u64> =
        spec.shape.iter().enumerate().map(|(i, &d)| if i == 0 { 1 } else { d.unsigned_abs() }).collect();
    let elements: u64 = shape.iter().product();
    let wrong = |problem: String| Refusal::bad(format!("input {:?} {problem}", spec.name));
    let data = match (spec.datatype.size(), u32::try_from(body.len())) {
        (Some(size), _) if size as u64 * elements == body.len() as u64 => body.to_vec(),
        (Some(_), _) => {
            return Err(wrong(format!("holds {} bytes, which is not shape {shape:?}", body.len())));
        }
        (None, Ok(length)) if elements == 1 => [&length.to_le_bytes(), body].concat(),
        (None, _) => return Err(wrong(format!("takes {elements} texts, a raw request is one"))),
    };
    let input = TensorData { name: spec.name.clone(), datatype: spec.datatype, shape, data: data.into() };
    Ok(Inference { id: None, inputs: vec![input], outputs: None, binary: true })
}
