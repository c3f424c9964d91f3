//! One model with inputs and the answers that belong to them.
use std::path::Path;

use anyhow::{Context, Result, bail};
use dunlin_engine::onnx_pb::TensorProto;
use dunlin_engine::onnx_pb::tensor_proto::DataType;
use dunlin_engine::{EngineError, Model, import};
use dunlin_protocol::{Bytes, DType, TensorData};
use prost::Message;
use serde::Deserialize;

use crate::clock::{Clock, Pair};
use crate::strict;

/// Largest accepted `|a - b| / max(1, |b|)`: what sums of the same numbers in another order differ by.
pub(crate) const TOLERANCE: f64 = 1e-4;
/// The same for float16 models, which are computed in float32 here.
pub(crate) const TOLERANCE_HALF: f64 = 1e-2;
/// The same for quantised models: some values lie on the edge of two steps, and the sums before them differ.
pub(crate) const TOLERANCE_STEPS: f64 = 5e-2;
/// Steps of 8 bits.
const STEPS: f64 = 255.0;

/// What `models.py` says about a case.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Meta {
    #[serde(default)]
    pub(crate) exporter: String,
    #[serde(default)]
    pub(crate) model: String,
    /// Why the exporter failed.
    pub(crate) failed: Option<String>,
    /// Whether it is held to single steps of 8 bits and to the class of every row.
    #[serde(default)]
    pub(crate) strict: bool,
    /// The operators (`domain/Name`) of a case of one operator, or of what it is a short word for; empty for a whole model.
    #[serde(default)]
    pub(crate) single: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The same answers; with the largest difference, and how long one row takes if that was measured.
    Equal { difference: f64, times: Option<Pair> },
    /// Not taken, and why.
    Refused(String),
    /// Taken, and answered otherwise.
    Wrong(String),
    /// There is no model: the exporter or ONNX Runtime failed.
    Missing(String),
}

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) meta: Meta,
    pub(crate) outcome: Outcome,
    /// Operators that were rewritten.
    pub(crate) rewritten: Vec<String>,
    /// Rows whose class is known and was answered, and all rows whose class is known.
    pub(crate) right: (usize, usize),
}

impl Case {
    pub(crate) fn run(folder: &Path, clock: Option<&mut Clock>) -> Result<Self> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut meta: Meta = match std::fs::read(folder.join("meta.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(_) => Meta::default(),
        };
        if meta.model.is_empty() {
            meta.model = name;
        }
        if let Some(failed) = &meta.failed {
            let outcome = Outcome::Missing(failed.clone());
            return Ok(Self::without_answers(meta, outcome, Vec::new()));
        }
        let onnx = std::fs::read(folder.join("model.onnx"))
            .with_context(|| format!("{} holds no model", folder.display()))?;
        let (inputs, wanted) = (
            tensors(&folder.join("test_data_set_0"), "input")?,
            tensors(&folder.join("test_data_set_0"), "output")?,
        );
        let taken = import(&onnx).and_then(|imported| Ok((Model::load(&imported.onnx, None)?, imported)));
        let (model, imported) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                let why = if meta.single.is_empty() { error.to_string() } else { form(&error) };
                return Ok(Self::without_answers(meta, Outcome::Refused(why), Vec::new()));
            }
        };
        let rewritten: Vec<String> = imported.rewritten.into_iter().map(|one| one.what).collect();
        let named: Vec<TensorData> = model
            .inputs()
            .iter()
            .zip(inputs)
            .map(|(spec, tensor)| TensorData { name: spec.name.clone(), ..widened(tensor, spec.datatype) })
            .collect();
        let answers = match model.run(&named) {
            Ok(answers) => answers,
            Err(error) if error.is_input() => {
                let why = "a request that is no batch of rows".to_owned();
                return Ok(Self::without_answers(meta, Outcome::Refused(why), rewritten));
            }
            Err(error) => {
                let why = format!("taken, and then {error}");
                return Ok(Self::without_answers(meta, Outcome::Wrong(why), rewritten));
            }
        };
        let outcome = match compare(&answers, &wanted, tolerance(&rewritten), meta.strict) {
            // Nothing of a request stays behind in the model.
            Ok(_) if model.run(&named)? != answers => {
                Outcome::Wrong("the same request is answered otherwise the second time".to_owned())
            }
            Ok(difference) => {
                let timed = clock.map(|clock| clock.pair(folder, &model, &named)).transpose()?;
                Outcome::Equal { difference, times: timed.flatten() }
            }
            Err(error) => Outcome::Wrong(format!("{error:#}")),
        };
        let right = match std::fs::read(folder.join("test_data_set_0/labels.pb")) {
            Ok(bytes) => {
                let labels = tensor(&TensorProto::decode(bytes.as_slice())?)?;
                let scores = answers.last().and_then(numbers).context("the last output holds no scores")?;
                strict::right(&scores, &labels)?
            }
            Err(_) => (0, 0),
        };
        Ok(Self { meta, outcome, rewritten, right })
    }

    fn without_answers(meta: Meta, outcome: Outcome, rewritten: Vec<String>) -> Self {
        Self { meta, outcome, rewritten, right: (0, 0) }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let what = match &self.outcome {
            Outcome::Equal { difference, times } => {
                let ratio = times.map(|pair| format!("  {:.2} x the time", pair.ratio())).unwrap_or_default();
                format!("equal     {difference:.0e}{ratio}")
            }
            Outcome::Refused(why) => format!("refused   {why}"),
            Outcome::Wrong(why) => format!("WRONG     {why}"),
            Outcome::Missing(why) => format!("no model  {why}"),
        };
        format!("{:24} {:60} {what}", self.meta.exporter, self.meta.model)
    }
}

/// The form that is refused, whatever node has it, and whatever its names and numbers are.
fn form(error: &EngineError) -> String {
    match error {
        EngineError::Unsupported { what, advice, .. } => {
            let words = what.split(' ').map(|word| match word.chars().next() {
                Some('"') => "…",
                Some('0'..='9') => "n",
                Some(_) | None => word,
            });
            format!("{}: {advice}", words.collect::<Vec<_>>().join(" "))
        }
        EngineError::Malformed(_)
        | EngineError::TooLarge { .. }
        | EngineError::Prepare(_)
        | EngineError::Input { .. }
        | EngineError::Run(_)
        | EngineError::Panicked { .. } => "as the runtime does not take it".to_owned(),
    }
}

fn tolerance(rewritten: &[String]) -> f64 {
    let any = |word: &str| rewritten.iter().any(|what| what.contains(word));
    if any("QLinear") || any("QuantizeLinear") {
        TOLERANCE_STEPS
    } else if any("float16") {
        TOLERANCE_HALF
    } else {
        TOLERANCE
    }
}

/// All `{kind}_0.pb`, `{kind}_1.pb`, ... of a folder.
fn tensors(folder: &Path, kind: &str) -> Result<Vec<TensorData>> {
    let mut all = Vec::new();
    while let Ok(bytes) = std::fs::read(folder.join(format!("{kind}_{}.pb", all.len()))) {
        all.push(tensor(&TensorProto::decode(bytes.as_slice())?)?);
    }
    Ok(all)
}

/// A tensor of a protobuf file; both of its forms.
fn tensor(proto: &TensorProto) -> Result<TensorData> {
    let raw = |typed: Vec<u8>| if proto.raw_data.is_empty() { typed } else { proto.raw_data.to_vec() };
    let small =
        |width: usize| raw(proto.int32_data.iter().flat_map(|n| n.to_le_bytes()[..width].to_vec()).collect());
    let unsigned = |width: usize| {
        raw(proto.uint64_data.iter().flat_map(|n| n.to_le_bytes()[..width].to_vec()).collect())
    };
    #[allow(clippy::wildcard_enum_match_arm, reason = "the enum is ONNX's and grows")]
    let (datatype, data) = match DataType::try_from(proto.data_type)? {
        DataType::Bool => (DType::Bool, small(1)),
        DataType::Uint8 => (DType::Uint8, small(1)),
        DataType::Int8 => (DType::Int8, small(1)),
        DataType::Uint16 => (DType::Uint16, small(2)),
        DataType::Int16 => (DType::Int16, small(2)),
        DataType::Float16 => (DType::Fp16, small(2)),
        DataType::Int32 => (DType::Int32, small(4)),
        DataType::Int64 => {
            (DType::Int64, raw(proto.int64_data.iter().flat_map(|n| n.to_le_bytes()).collect()))
        }
        DataType::Uint32 => (DType::Uint32, unsigned(4)),
        DataType::Uint64 => (DType::Uint64, unsigned(8)),
        DataType::Float => {
            (DType::Fp32, raw(proto.float_data.iter().flat_map(|x| x.to_le_bytes()).collect()))
        }
        DataType::Double => {
            (DType::Fp64, raw(proto.double_data.iter().flat_map(|x| x.to_le_bytes()).collect()))
        }
        DataType::String => {
            let texts = proto.string_data.iter();
            let with_length = |t: &Vec<u8>| [&(t.len() as u32).to_le_bytes()[..], t.as_slice()].concat();
            (DType::Bytes, texts.flat_map(with_length).collect())
        }
        other => bail!("tensors of type {} are not read", other.as_str_name()),
    };
    let shape = proto.dims.iter().map(|&d| d.max(0) as u64).collect();
    Ok(TensorData { name: proto.name.clone(), datatype, shape, data: Bytes(data) })
}

/// Float16 as float32, where the model takes that instead.
fn widened(tensor: TensorData, wanted: DType) -> TensorData {
    if tensor.datatype != DType::Fp16 || wanted != DType::Fp32 {
        return tensor;
    }
    let wide = tensor.data.0.as_chunks::<2>().0.iter().map(|b| half(u16::from_le_bytes(*b)) as f32);
    let data = wide.flat_map(f32::to_le_bytes).collect();
    TensorData { datatype: DType::Fp32, data: Bytes(data), ..tensor }
}

/// The value of a float16 (IEEE 754, binary16).
fn half(bits: u16) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15, bits >> 10 & 0x1f, f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-24),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (1024.0 + fraction) * 2_f64.powi(i32::from(exponent) - 25),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// The largest difference of the answers; an error where they are not the same.
fn compare(answers: &[TensorData], wanted: &[TensorData], tolerance: f64, strict: bool) -> Result<f64> {
    if answers.len() != wanted.len() {
        bail!("{} outputs where {} belong", answers.len(), wanted.len());
    }
    let mut worst = 0.0_f64;
    for (got, want) in answers.iter().zip(wanted) {
        let name = &got.name;
        if got.shape != want.shape {
            bail!("output {name:?} has shape {:?} where {:?} belongs", got.shape, want.shape);
        }
        if got.datatype != want.datatype && (got.datatype, want.datatype) != (DType::Fp32, DType::Fp16) {
            bail!("output {name:?} is {} where {} belongs", got.datatype.as_str(), want.datatype.as_str());
        }
        // A step of 8 bits is a share of their whole range.
        let steps = matches!(want.datatype, DType::Int8 | DType::Uint8);
        match (numbers(got), numbers(want)) {
            (Some(got), Some(want)) if strict && steps => {
                let furthest = strict::steps(name, &got, &want)?;
                worst = worst.max(furthest / STEPS);
            }
            (Some(got), Some(want)) => {
                for (i, (a, b)) in got.iter().zip(&want).enumerate() {
                    let same = a == b || (a.is_nan() && b.is_nan());
                    let whole = if steps { STEPS } else { b.abs().max(1.0) };
                    let difference = if same { 0.0 } else { (a - b).abs() / whole };
                    if difference.is_nan() || difference > tolerance {
                        bail!("value {i} of output {name:?} is {a} where {b} belongs");
                    }
                    worst = worst.max(difference);
                }
            }
            _ if got.data != want.data => bail!("output {name:?} holds other values"),
            _ => {}
        }
    }
    // Scores come last.
    if let Some((got, want)) = answers.last().zip(wanted.last()).filter(|_| strict)
        && let (Some(got), Some(scores)) = (numbers(got), numbers(want))
    {
        let close = if matches!(want.datatype, DType::Int8 | DType::Uint8) { 1.0 } else { tolerance };
        let rows = want.shape.first().copied().unwrap_or(1) as usize;
        strict::classes(&got, &scores, rows, close)?;
    }
    Ok(worst)
}

/// The values of a float or 8-bit tensor; all else is compared byte by byte.
fn numbers(tensor: &TensorData) -> Option<Vec<f64>> {
    let bytes = tensor.data.0.as_slice();
    Some(match tensor.datatype {
        DType::Fp16 => bytes.as_chunks::<2>().0.iter().map(|b| half(u16::from_le_bytes(*b))).collect(),
        DType::Fp32 => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        DType::Fp64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        DType::Int8 => bytes.iter().map(|b| f64::from(*b as i8)).collect(),
        DType::Uint8 => bytes.iter().map(|b| f64::from(*b)).collect(),
        DType::Bool
        | DType::Uint16
        | DType::Uint32
        | DType::Uint64
        | DType::Int16
        | DType::Int32
        | DType::Int64
        | DType::Bytes => return None,
    })
}
