//! Models that people bring.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_engine::prove::Examined;
use dunlin_engine::{Inspection, Model, Rewrite, golden};
use dunlin_protocol::{
    ClassName, Digest, FeatureMeta, GoldenSet, Lineage, ModelName, ReferenceProfile, TaskId, TaskType,
};

use super::drawn::{inputs, row_len};
use super::intake::Parts;
use super::{Registry, RegistryError};
use crate::store::ReleaseRow;

/// Rows of golden vectors.
const GOLDEN_ROWS: usize = 32;
/// Largest accepted difference of an answer on a device, where the publisher names none, parts per million.
pub(crate) const TOLERANCE_PPM: u32 = 1000;
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
    /// Golden vectors made by the publisher's runtime. Without outputs, this engine's answers to their inputs are taken;
    /// without any, inputs are made of the samples or drawn.
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
            Some(golden) if golden.outputs.is_empty() => self.answered(&push.onnx, golden).await?,
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

    /// Golden vectors without a publisher's.
    async fn make_golden(&self, push: &Push, inspection: &Inspection) -> Result<GoldenSet, RegistryError> {
        let wanted = if push.samples.is_empty() { GOLDEN_ROWS } else { GOLDEN_ROWS.min(push.samples.len()) };
        let (inspection, samples) = (inspection.clone(), push.samples.clone());
        let inputs =
            self.runnable(&push.onnx, move |reach| inputs(&inspection, &samples, wanted, reach)).await?;
        let golden =
            GoldenSet { format: 1, inputs, outputs: vec![], tolerance_ppm: TOLERANCE_PPM, labels: vec![] };
        self.answers(&push.onnx, golden).await
    }

    /// Golden vectors with the engine's own answers, asked for only after a child process came through the same inputs.
    async fn answered(&self, onnx: &[u8], golden: GoldenSet) -> Result<GoldenSet, RegistryError> {
        let given = golden.inputs.clone();
        self.runnable(onnx, move |_| Ok(given.clone())).await?;
        self.answers(onnx, golden).await
    }

    async fn answers(&self, onnx: &[u8], given: GoldenSet) -> Result<GoldenSet, RegistryError> {
        let onnx = onnx.to_vec();
        let made = tokio::task::spawn_blocking(move || {
            let model = Model::load(&onnx, None)?;
            golden(&model, given.inputs, given.tolerance_ppm)
        });
        Ok(made.await.expect("the engine returns its errors")?)
    }
}

/// What a manifest says about where the model's file comes from; nothing if it is the very file that was brought.
fn origin(rewritten: &[Rewrite], brought: Digest) -> String {
    if rewritten.is_empty() { String::new() } else { format!("rewritten from sha256:{brought}") }
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

fn profile(features: &[FeatureMeta], samples: &[Vec<f32>]) -> ReferenceProfile {
    let names: Vec<String> = features.iter().map(|feature| feature.name.clone()).collect();
    let columns: Vec<Vec<f32>> =
        (0..features.len()).map(|i| samples.iter().map(|row| row[i]).collect()).collect();
    dunlin_monitor::profile::build(&names, &columns, PROFILE_BINS)
}
