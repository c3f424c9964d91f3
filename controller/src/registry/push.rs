//! Models that people bring.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_engine::prove::Examined;
use dunlin_engine::{Inspection, Model, Rewrite, golden};
use dunlin_learn::rng::Rng;
use dunlin_protocol::{
    Bytes, ClassName, DType, Digest, FeatureMeta, GoldenSet, Lineage, ModelName, ReferenceProfile, TaskId,
    TaskType, TensorData, TensorSpec,
};

use super::intake::Parts;
use super::{Registry, RegistryError};
use crate::store::ReleaseRow;

/// Rows of golden vectors.
const GOLDEN_ROWS: usize = 32;
/// Elements of all golden inputs together: 32 rows of small tables, one row of a large image.
const GOLDEN_ELEMENTS_MAX: usize = 1 << 20;
/// Largest accepted difference of an answer on a device, parts per million.
const TOLERANCE_PPM: u32 = 1000;
/// Bins of a reference profile.
const PROFILE_BINS: usize = 64;

/// A model with what is known about it.
#[derive(Debug, Clone)]
pub struct Push {
    /// The task it is for.
    pub task: TaskId,
    /// What kind of task that is.
    pub task_type: TaskType,
    /// Its line.
    pub model: ModelName,
    /// The ONNX file.
    pub onnx: Vec<u8>,
    /// Rows of the first input, from real data: golden vectors and drift bins are made of them. Without them
    /// the golden inputs are random and there are no drift bins.
    pub samples: Vec<Vec<f32>>,
    /// Golden vectors made by the publisher's runtime; otherwise this engine's answers are taken.
    pub golden: Option<GoldenSet>,
    /// Features of the first input.
    pub features: Vec<FeatureMeta>,
    /// Class names.
    pub labels: Vec<String>,
    /// Validation metrics in parts per million.
    pub metrics: BTreeMap<String, i64>,
    /// SPDX licence expression.
    pub licence: String,
    /// Hardware classes it is for; none means any.
    pub classes: BTreeSet<ClassName>,
}

impl Registry {
    /// Takes a model in: rewritten for the engine, inspected, run and proven in a child process, then stored as the next release of its
    /// line. `who` brings it: the name that the release carries, and what the audit log calls them.
    ///
    /// # Errors
    /// The engine refuses it, it fails its proof, or what is said about it does not fit it.
    pub async fn push(&self, mut push: Push, who: (&str, &str)) -> Result<ReleaseRow, RegistryError> {
        if push.model.is_retrained() {
            return Err(RegistryError::Refused(format!(
                "names that begin with auto. belong to retrained models; choose another than {}",
                push.model
            )));
        }
        if push.model.is_program() {
            return Err(RegistryError::Refused(format!(
                "names that begin with agent. belong to the agent's programs; choose another than {}",
                push.model
            )));
        }
        let brought = dunlin_trust::sha256(&push.onnx);
        let (onnx, Examined { inspection, rewritten }) =
            self.look_into(std::mem::take(&mut push.onnx)).await?;
        push.onnx = onnx;
        let features = check_form(&push, &inspection)?;
        let golden = match push.golden.clone() {
            Some(golden) => golden,
            None => self.make_golden(&push, &inspection).await?,
        };
        let proof = self.prove(&push.onnx, &golden, None).await?;
        let parts = Parts {
            profile: (!push.samples.is_empty()).then(|| profile(&features, &push.samples)),
            model: push.model,
            task: push.task,
            task_type: push.task_type,
            family: "imported".to_owned(),
            onnx: push.onnx,
            inspection,
            golden,
            features,
            labels: push.labels,
            proof,
            metrics: push.metrics,
            lineage: Lineage {
                run: "import".to_owned(),
                dataset: None,
                code: origin(&rewritten, brought),
                seed: 0,
            },
            licence: push.licence,
            classes: push.classes,
        };
        self.release(parts, "model.push", who).await
    }

    /// The engine's own answers, asked for only after a child process came through the same inputs.
    async fn make_golden(&self, push: &Push, inspection: &Inspection) -> Result<GoldenSet, RegistryError> {
        let inputs = inputs(inspection, &push.samples)?;
        self.survive(&push.onnx, &inputs).await?;
        let onnx = push.onnx.clone();
        let made = tokio::task::spawn_blocking(move || {
            let model = Model::load(&onnx, None)?;
            golden(&model, inputs, TOLERANCE_PPM)
        });
        Ok(made.await.expect("the engine returns its errors")?)
    }
}

/// What a manifest says about where the model's file comes from; nothing if it is the very file that was brought.
fn origin(rewritten: &[Rewrite], brought: Digest) -> String {
    if rewritten.is_empty() { String::new() } else { format!("rewritten from sha256:{brought}") }
}

/// Elements of one row of an input; every dimension but the first must be fixed.
fn row_len(spec: &TensorSpec) -> Result<usize, RegistryError> {
    let rest = spec.shape.get(1..).unwrap_or_default();
    rest.iter()
        .map(|&dim| usize::try_from(dim).ok())
        .try_fold(1usize, |product, dim| product.checked_mul(dim?))
        .filter(|&len| (1..=GOLDEN_ELEMENTS_MAX).contains(&len))
        .ok_or_else(|| {
            RegistryError::Refused(format!(
                "input {:?} of shape {:?}: only the first dimension may be open",
                spec.name, spec.shape
            ))
        })
}

/// Checks samples, features and labels against the graph; returns the features, numbered if none are named.
fn check_form(push: &Push, inspection: &Inspection) -> Result<Vec<FeatureMeta>, RegistryError> {
    let refuse = |text: String| Err(RegistryError::Refused(text));
    let Some(first) = inspection.inputs.first() else { return refuse("the model has no input".to_owned()) };
    let width = row_len(first)?;
    if let Some(row) = push.samples.iter().find(|row| row.len() != width) {
        return refuse(format!("a sample has {} values, input {:?} takes {width}", row.len(), first.name));
    }
    if push.samples.iter().flatten().any(|value| !value.is_finite()) {
        return refuse("a sample holds a value that is not a finite number".to_owned());
    }
    if !push.features.is_empty() && push.features.len() != width {
        return refuse(format!(
            "{} features are named, input {:?} takes {width}",
            push.features.len(),
            first.name
        ));
    }
    if push.task_type == TaskType::Classification {
        let classes = inspection.outputs.last().and_then(|output| output.shape.last()).copied().unwrap_or(-1);
        if classes > 0 && !push.labels.is_empty() && classes as usize != push.labels.len() {
            return refuse(format!(
                "{} labels are named, the scores have {classes} classes",
                push.labels.len()
            ));
        }
    }
    if !push.features.is_empty() {
        return Ok(push.features.clone());
    }
    Ok((0..width).map(|i| FeatureMeta { name: format!("x{i}"), unit: String::new() }).collect())
}

fn inputs(inspection: &Inspection, samples: &[Vec<f32>]) -> Result<Vec<TensorData>, RegistryError> {
    let fixed = inspection.inputs.iter().find_map(|spec| spec.shape.first().copied().filter(|&dim| dim > 0));
    let widest =
        inspection.inputs.iter().map(row_len).collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(1);
    let wanted = if samples.is_empty() { GOLDEN_ROWS } else { GOLDEN_ROWS.min(samples.len()) };
    let rows = fixed.map_or(wanted.min(GOLDEN_ELEMENTS_MAX / widest).max(1), |dim| dim as usize);
    inspection
        .inputs
        .iter()
        .enumerate()
        .map(|(i, spec)| {
            if spec.datatype == DType::Bytes {
                return Ok(texts(spec, row_len(spec)? * rows, rows, &inspection.words));
            }
            input(spec, rows, if i == 0 { samples } else { &[] })
        })
        .collect()
}

/// `rows` rows spread over the samples, or random ones that are the same for the same model input.
fn input(spec: &TensorSpec, rows: usize, samples: &[Vec<f32>]) -> Result<TensorData, RegistryError> {
    let len = row_len(spec)?;
    let mut rng = Rng::new(0, &spec.name);
    let values: Vec<f32> = if samples.is_empty() {
        (0..rows * len).map(|_| (rng.unit() * 2.0 - 1.0) as f32).collect()
    } else {
        (0..rows).flat_map(|row| samples[row * samples.len() / rows].iter().copied()).collect()
    };
    let data: Vec<u8> = match spec.datatype {
        DType::Fp32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::Fp64 => values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect(),
        DType::Int64 => values.iter().flat_map(|value| (*value as i64).to_le_bytes()).collect(),
        DType::Int32 => values.iter().flat_map(|value| (*value as i32).to_le_bytes()).collect(),
        DType::Uint8 => values.iter().map(|value| value.abs() as u8).collect(),
        DType::Bool
        | DType::Uint16
        | DType::Uint32
        | DType::Uint64
        | DType::Int8
        | DType::Int16
        | DType::Fp16
        | DType::Bytes => {
            let text = format!(
                "input {:?} is {}: give golden vectors of your own with the model",
                spec.name,
                spec.datatype.as_str()
            );
            return Err(RegistryError::Refused(text));
        }
    };
    let shape =
        std::iter::once(rows as u64).chain(spec.shape.iter().skip(1).map(|&dim| dim as u64)).collect();
    Ok(TensorData { name: spec.name.clone(), datatype: spec.datatype, shape, data: Bytes(data) })
}

/// Words drawn at random, the same for the same input.
fn texts(spec: &TensorSpec, count: usize, rows: usize, words: &[String]) -> TensorData {
    let mut rng = Rng::new(0, &spec.name);
    let mut data = Vec::new();
    for _ in 0..count {
        let place = ((rng.unit() * words.len() as f64) as usize).min(words.len().saturating_sub(1));
        let word = words.get(place).map(String::as_str).unwrap_or_default();
        // Each text stands behind its length (Open Inference Protocol V2, binary tensor data).
        data.extend((word.len() as u32).to_le_bytes());
        data.extend(word.as_bytes());
    }
    let shape =
        std::iter::once(rows as u64).chain(spec.shape.iter().skip(1).map(|&dim| dim as u64)).collect();
    TensorData { name: spec.name.clone(), datatype: DType::Bytes, shape, data: Bytes(data) }
}

fn profile(features: &[FeatureMeta], samples: &[Vec<f32>]) -> ReferenceProfile {
    let names: Vec<String> = features.iter().map(|feature| feature.name.clone()).collect();
    let columns: Vec<Vec<f32>> =
        (0..features.len()).map(|i| samples.iter().map(|row| row[i]).collect()).collect();
    dunlin_monitor::profile::build(&names, &columns, PROFILE_BINS)
}
