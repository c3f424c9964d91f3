//! What each step of a run does.
use std::path::Path;
use std::sync::Arc;

use dunlin_pipeline::{Cause, Compared, Gain, GainVerdict, StepKind, compare};
use dunlin_protocol::{Digest, ReleaseId};
use dunlin_rollout::Plan;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use super::snapshot::{self, Pulled, folder};
use super::{RunRow, worker};
use crate::api::{AppState, rollouts};
use crate::clock;
use crate::registry::{Examined, RegistryError};
use crate::store::StoreError;

/// Why a step failed.
#[derive(Debug)]
pub(super) struct StepError {
    pub(super) text: String,
    /// Whether no other try can succeed.
    pub(super) fatal: bool,
}

impl StepError {
    pub(super) fn fatal(text: impl Into<String>) -> Self {
        Self { text: text.into(), fatal: true }
    }

    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self { text: text.into(), fatal: false }
    }

    pub(super) fn io(attempted: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |error| Self::passing(format!("could not {attempted} {}: {error}", path.display()))
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self::passing(error.to_string())
    }
}

impl From<RegistryError> for StepError {
    fn from(error: RegistryError) -> Self {
        let fatal = matches!(error, RegistryError::Claim(_) | RegistryError::Refused(_));
        Self { text: error.to_string(), fatal }
    }
}

/// How a step ended well.
pub(super) enum Outcome {
    Done(String),
    NoGain(String),
}

/// What a new model showed against the incumbent it would stand beside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Match {
    candidate: String,
    incumbent: Option<ReleaseId>,
    verdict: Option<GainVerdict>,
}

/// A run with what its steps share in memory; losing it costs time only.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) state: AppState,
    pub(super) run: RunRow,
    examined: Mutex<Option<Arc<Examined>>>,
}

impl Context {
    pub(super) fn new(state: AppState, run: RunRow) -> Self {
        Self { state, run, examined: Mutex::new(None) }
    }

    /// Does a step; `output` gives what an earlier one left.
    pub(super) async fn step(
        &self,
        step: StepKind,
        output: impl Fn(StepKind) -> Option<String>,
    ) -> Result<Outcome, StepError> {
        let left = |step: StepKind| {
            output(step).ok_or_else(|| StepError::fatal(format!("step {} left nothing", step.as_str())))
        };
        let pulled = || -> Result<Pulled, StepError> { read(&left(StepKind::Pull)?) };
        let dir = folder(&self.state, &self.run.id);
        match step {
            StepKind::Pull => {
                let pulled = snapshot::pull(&self.state, &self.run).await?;
                self.note(json!({ "dataset": pulled.dataset, "rows": pulled.rows, "seed": self.run.seed }))
                    .await?;
                Ok(Outcome::Done(write(&pulled)))
            }
            StepKind::Validate => {
                let job = snapshot::validate(&self.state, &self.run, &pulled()?).await?;
                self.note(json!({ "job": job })).await?;
                Ok(Outcome::Done(write(&job)))
            }
            StepKind::Search => {
                let wall_ms =
                    self.run.definition.retraining.as_ref().map_or(0, |retraining| retraining.worker_ms_max);
                worker::train(&dir, &self.state.config.training, wall_ms).await?;
                Ok(Outcome::Done(String::new()))
            }
            StepKind::Verify => {
                let examined = self.examined(&read(&left(StepKind::Validate)?)?, &pulled()?.dataset).await?;
                let candidates: Vec<_> = examined
                    .candidates
                    .iter()
                    .map(|one| {
                        let model = one.candidate.files.get(dunlin_learn::result::MODEL_FILE).map(|blob| blob.digest);
                        json!({ "id": one.candidate.id, "family": one.candidate.family, "config": one.candidate.config, "right": one.right,
                            "n": examined.holdout.rows(), "model": model, "targets": one.candidate.targets, "latency_us": one.candidate.latency_us })
                    })
                    .collect();
                let result = &examined.result;
                let facts = json!({ "code": result.code, "cpu": result.cpu, "dropped": result.dropped, "trials": result.trials, "candidates": candidates });
                self.note(facts).await?;
                if candidates.is_empty() {
                    return Ok(Outcome::NoGain("the search found no model that fits any device".into()));
                }
                Ok(Outcome::Done(candidates.len().to_string()))
            }
            StepKind::Compare => self.compare(&read(&left(StepKind::Validate)?)?, &pulled()?.dataset).await,
            StepKind::Register => {
                let examined = self.examined(&read(&left(StepKind::Validate)?)?, &pulled()?.dataset).await?;
                let winners: Vec<String> = read(&left(StepKind::Compare)?)?;
                let mut releases = Vec::with_capacity(winners.len());
                for candidate in &winners {
                    releases.push(
                        self.state
                            .registry
                            .register(&examined, candidate, &self.run.id)
                            .await?
                            .bundle
                            .release,
                    );
                }
                self.state.registry.publish_retrained(&releases, clock::wall_ms()).await?;
                self.note(json!({ "releases": releases })).await?;
                Ok(Outcome::Done(write(&releases)))
            }
            StepKind::RollOut => {
                let releases: Vec<ReleaseId> = read(&left(StepKind::Register)?)?;
                let id = format!("r-{}", self.run.id.trim_start_matches("run-"));
                let plan = Plan::new(
                    &id,
                    self.run.task.clone(),
                    releases,
                    &format!("retrained by {}: {}", self.run.id, describe(&self.run.cause)),
                );
                rollouts::start(
                    &self.state,
                    &plan,
                    &self.run.definition.rollout,
                    ("trainer", "trainer"),
                    Some(&self.run.id),
                )
                .await?;
                self.note(json!({ "rollout": id })).await?;
                Ok(Outcome::Done(id))
            }
        }
    }

    async fn note(&self, facts: serde_json::Value) -> Result<(), StepError> {
        Ok(self.state.store.run_facts(&self.run.id, &facts).await?)
    }

    async fn examined(&self, job: &Digest, dataset: &Digest) -> Result<Arc<Examined>, StepError> {
        let mut kept = self.examined.lock().await;
        if let Some(examined) = kept.as_ref() {
            return Ok(Arc::clone(examined));
        }
        let dir = folder(&self.state, &self.run.id);
        let examined = Arc::new(self.state.registry.examine(&dir, job, dataset).await?);
        *kept = Some(Arc::clone(&examined));
        Ok(examined)
    }

    /// Each candidate against the best incumbent of its family, or of all if its family is new: small devices
    /// run small families, and a model that is better than what they have must not be held back by one that
    /// they can not run. Alpha is shared among the candidates.
    async fn compare(&self, job: &Digest, dataset: &Digest) -> Result<Outcome, StepError> {
        let examined = self.examined(job, dataset).await?;
        if let Some(original) = &self.run.repeats {
            let first = self.state.store.run(original).await?.facts;
            let models = |facts: &serde_json::Value| -> Vec<serde_json::Value> {
                facts["candidates"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|candidate| candidate["model"].clone())
                    .collect()
            };
            let own = self.state.store.run(&self.run.id).await?.facts;
            let identical = models(&first) == models(&own);
            self.note(json!({ "identical": identical })).await?;
            return Ok(Outcome::NoGain(format!(
                "a repetition of {original}: the models are {}",
                if identical { "byte-identical" } else { "different" }
            )));
        }
        let gate =
            self.run.definition.retraining.as_ref().map(|retraining| retraining.gain).unwrap_or_default();
        let gate = Gain {
            alpha_ppm: (gate.alpha_ppm / u32::try_from(examined.candidates.len().max(1)).unwrap_or(1)).max(1),
            ..gate
        };
        let truth = &examined.holdout.y;
        let classes = |predictions: &[Option<u32>]| -> Vec<u32> {
            predictions.iter().map(|one| one.unwrap_or(u32::MAX)).collect()
        };
        let mut incumbents = Vec::new();
        for release in snapshot::incumbents(&self.state, &self.run).await? {
            let family =
                self.state.store.release(&release).await?.map(|row| row.bundle.family).unwrap_or_default();
            match self.state.registry.predictions(&release, &examined.holdout).await {
                Ok(predictions) => incumbents.push((release, family, classes(&predictions))),
                // One that can not even take these inputs has nothing to defend.
                Err(RegistryError::Refused(reason)) => {
                    tracing::warn!(%release, reason, "an incumbent is not compared")
                }
                Err(error) => return Err(error.into()),
            }
        }
        let right = |predictions: &[u32]| predictions.iter().zip(truth).filter(|(a, b)| a == b).count();
        let mut matches = Vec::new();
        for one in &examined.candidates {
            let family = one.candidate.family.as_str();
            let kin: Vec<_> = incumbents.iter().filter(|(_, of, _)| of == family).collect();
            let field = if kin.is_empty() { incumbents.iter().collect() } else { kin };
            let best = field.into_iter().max_by_key(|(_, _, predictions)| right(predictions));
            let verdict =
                best.map(|(_, _, old)| compare(&gate, &Compared::of(truth, &classes(&one.predictions), old)));
            matches.push(Match {
                candidate: one.candidate.id.clone(),
                incumbent: best.map(|(release, ..)| release.clone()),
                verdict,
            });
        }
        self.note(json!({ "matches": matches })).await?;
        // Without any incumbent whatever was learnt is a gain; the signed anchor set still bounds it.
        let won: Vec<_> = matches
            .iter()
            .zip(&examined.candidates)
            .filter(|(one, _)| one.verdict.is_none_or(|verdict| verdict.deploys()))
            .collect();
        // What devices would refuse is not sent to them.
        let bounds = snapshot::bounds(&self.state, &self.run)?;
        let mut winners = Vec::new();
        let mut anchors = Vec::new();
        for (one, candidate) in won {
            let right_ppm = self.state.registry.anchor_ppm(candidate, &bounds.anchor).await?;
            let least_ppm = bounds.anchor_score_ppm_min;
            anchors
                .push(json!({ "candidate": one.candidate, "right_ppm": right_ppm, "least_ppm": least_ppm }));
            if right_ppm >= least_ppm {
                winners.push(one.candidate.clone());
            }
        }
        self.note(json!({ "anchors": anchors })).await?;
        if winners.is_empty() {
            Ok(Outcome::NoGain(write(&json!({ "matches": matches, "anchors": anchors }))))
        } else {
            Ok(Outcome::Done(write(&winners)))
        }
    }
}

fn describe(cause: &Cause) -> &'static str {
    match cause {
        Cause::Accuracy { .. } => "accuracy fell below its limit",
        Cause::Drift(_) => "the inputs drifted",
        Cause::Cron { .. } => "its schedule was due",
        Cause::Labels { .. } => "enough new labels came in",
        Cause::Operator { .. } => "an operator asked",
    }
}

fn write<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("outputs of steps are JSON")
}

fn read<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, StepError> {
    serde_json::from_str(text)
        .map_err(|error| StepError::fatal(format!("an earlier step left something unreadable: {error}")))
}
