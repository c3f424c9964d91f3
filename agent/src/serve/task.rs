use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use dunlin_engine::floats;
use dunlin_protocol::{
    DType, Indicator, Now, ReleaseId, ResourceUse, Samples, TaskId, TaskPolicy, TensorData, TensorSpec,
    Window,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::answer::{Answer, AnsweredBy, FeedbackError, InferError};
use super::baseline;
use super::guard::{Guard, Watch};
use super::live::{Answered, Key, Live};
use super::resident::{Resident, Serving, Unable};
use super::sampling::Sampler;

/// A task's part in the line-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// Answers.
    Champion,
    /// Answers when the champion can not.
    Fallback,
    /// The champion before this one, kept warm in probation.
    Previous,
}

/// A loaded member of a line-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its part.
    pub role: MemberRole,
    /// Its release.
    pub release: ReleaseId,
    /// Inputs it takes.
    pub inputs: Vec<TensorSpec>,
    /// Outputs it gives.
    pub outputs: Vec<TensorSpec>,
    /// Expected latency of one row, microseconds.
    pub row_us: u64,
}

/// What a task serves at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// The task.
    pub task: TaskId,
    /// Its loaded models, the champion first.
    pub members: Vec<Member>,
    /// Generation of the assignment in force.
    pub generation: u64,
    /// Whether the champion is in probation.
    pub probation: bool,
    /// Whether there is a constant to answer with when no model can.
    pub baseline: bool,
    /// Requests answered since the agent started, by champion, fallback, baseline and named member.
    pub answered: [u64; 4],
    /// Runs of models that failed since the agent started.
    pub failed: u64,
}

impl TaskView {
    /// Whether a request would be answered.
    pub fn is_ready(&self) -> bool {
        self.baseline || !self.members.is_empty()
    }
}

/// What a task runs; replaced whole.
#[derive(Debug, Clone, Default)]
struct LineUp {
    champion: Option<Arc<Serving>>,
    fallback: Option<Arc<Serving>>,
    previous: Option<Arc<Serving>>,
    policy: Option<Arc<TaskPolicy>>,
    generation: u64,
    probation: bool,
}

impl LineUp {
    fn members(&self) -> impl Iterator<Item = (MemberRole, &Arc<Serving>)> {
        let champion = self.champion.iter().map(|m| (MemberRole::Champion, m));
        let fallback = self.fallback.iter().map(|m| (MemberRole::Fallback, m));
        champion.chain(fallback).chain(self.previous.iter().map(|m| (MemberRole::Previous, m)))
    }

    fn key(&self, release: Option<ReleaseId>) -> Key {
        let probation = self.probation
            && release.is_some()
            && self.champion.as_ref().map(|c| c.release()) == release.as_ref();
        Key { release, generation: self.generation, probation }
    }

    fn classes(&self) -> usize {
        let of_policy = || self.policy.as_ref().map_or(0, |p| p.labels.len());
        self.champion.as_ref().map(|c| c.classes()).filter(|n| *n > 0).unwrap_or_else(of_policy)
    }
}

#[derive(Debug)]
pub(super) struct Task {
    task: TaskId,
    lineup: RwLock<Arc<LineUp>>,
    live: Mutex<Live>,
    answered: [AtomicU64; 4],
    failed: AtomicU64,
}

impl Task {
    pub(super) fn new(task: TaskId) -> Self {
        let live = Mutex::new(Live::new(task.clone()));
        Self {
            task,
            lineup: RwLock::default(),
            live,
            answered: Default::default(),
            failed: AtomicU64::new(0),
        }
    }

    fn lineup(&self) -> Arc<LineUp> {
        self.lineup.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the line-up by what `change` makes of it.
    fn change<T>(&self, change: impl FnOnce(&mut LineUp) -> T) -> T {
        let mut place = self.lineup.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = LineUp::clone(&place);
        let result = change(&mut next);
        *place = Arc::new(next);
        result
    }

    pub(super) fn set_policy(&self, policy: &TaskPolicy) {
        let before = self.lineup().policy.clone();
        if before.as_deref() == Some(policy) {
            return;
        }
        self.change(|lineup| lineup.policy = Some(Arc::new(policy.clone())));
        // A changed budget starts anew; the same one keeps what it has spent.
        if before.and_then(|p| p.samples.clone()) != policy.samples {
            let start = Now { mono_ms: 0, wall_ms: None };
            self.live().sampler = policy.samples.as_ref().map(|samples| Sampler::new(samples, seed(), start));
        }
    }

    pub(super) fn switch(
        &self,
        champion: Resident,
        fallback: Option<Resident>,
        generation: u64,
        probation: bool,
    ) {
        self.change(|lineup| {
            let before = lineup.champion.replace(Arc::new(Serving::new(champion)));
            lineup.previous = before.filter(|_| probation);
            lineup.fallback = fallback.map(|f| Arc::new(Serving::new(f)));
            lineup.generation = generation;
            lineup.probation = probation;
        });
        self.live().watch = Watch::new();
    }

    pub(super) fn commit(&self) {
        self.change(|lineup| {
            lineup.previous = None;
            lineup.probation = false;
        });
    }

    pub(super) fn rollback(&self) -> bool {
        let done = self.change(|lineup| match lineup.previous.take() {
            Some(previous) => {
                lineup.champion = Some(previous);
                lineup.probation = false;
                true
            }
            None => false,
        });
        if done {
            self.live().watch = Watch::new();
        }
        done
    }

    pub(super) fn guard(&self) -> Option<Guard> {
        self.lineup().champion.as_ref()?;
        Some(self.live().watch.guard())
    }

    /// What the line-up is expected to need for these inputs, microseconds.
    pub(super) fn expected_us(&self, inputs: &[TensorData]) -> u64 {
        let lineup = self.lineup();
        let row = lineup.champion.as_ref().map_or(0, |m| m.row_us())
            + lineup.previous.as_ref().map_or(0, |m| m.row_us());
        row.saturating_mul(rows(inputs) as u64)
    }

    pub(super) fn infer(
        &self,
        version: Option<&ReleaseId>,
        id: &str,
        inputs: &[TensorData],
        now: Now,
    ) -> Result<Answer, InferError> {
        let lineup = self.lineup();
        let rows = rows(inputs);
        // A first input that is no FP32 has no features to count; one that is not whole rows is refused by the model.
        let x = inputs
            .first()
            .filter(|t| t.datatype == DType::Fp32)
            .and_then(floats)
            .filter(|x| rows > 0 && x.len() % rows == 0);
        let x = x.unwrap_or_default();
        if let Some(version) = version.filter(|v| lineup.champion.as_ref().is_none_or(|c| c.release() != *v))
        {
            return self.named(&lineup, version, inputs, rows);
        }
        let champion = lineup.champion.iter().map(|m| (AnsweredBy::Champion, m));
        let fallback = lineup.fallback.iter().map(|m| (AnsweredBy::Fallback, m));
        for (by, model) in champion.chain(fallback) {
            let key = lineup.key(Some(model.release().clone()));
            let detail = match model.run(inputs, rows) {
                Ok(made) => {
                    let previous = lineup.previous.as_ref().filter(|_| by == AnsweredBy::Champion);
                    let other =
                        previous.and_then(|p| p.run(inputs, rows).ok().map(|made| (p.as_ref(), made)));
                    let mut live = self.live();
                    if by == AnsweredBy::Champion {
                        live.watch.answered(rows as u64, made.latency_us);
                    }
                    if let Some((_, made)) = &other {
                        live.watch.previous(made.latency_us);
                    }
                    let other = other.as_ref().map(|(other, made)| (*other, made));
                    live.answered(&Answered { key: &key, model, made: &made, other, id, x: &x, rows, now });
                    drop(live);
                    self.count(by);
                    return Ok(Answer {
                        outputs: made.outputs,
                        by,
                        release: Some(model.release().clone()),
                        generation: lineup.generation,
                    });
                }
                Err(Unable::Input(problem)) if by == AnsweredBy::Champion => {
                    return Err(InferError::Input(problem));
                }
                Err(Unable::Input(detail) | Unable::Failed(detail)) => detail,
            };
            self.failed.fetch_add(1, Ordering::Relaxed);
            let mut live = self.live();
            if by == AnsweredBy::Champion {
                live.watch.failed(rows as u64);
            }
            live.failed(&key, model, rows, &x, &detail, now);
        }
        self.constant(&lineup, rows, now)
    }

    fn constant(&self, lineup: &LineUp, rows: usize, now: Now) -> Result<Answer, InferError> {
        let not_ready = || InferError::NotReady(self.task.clone());
        if rows == 0 || rows > dunlin_engine::ROWS_MAX {
            return Err(InferError::Input(format!(
                "{rows} rows; from 1 to {} are answered at once",
                dunlin_engine::ROWS_MAX
            )));
        }
        let policy = lineup.policy.as_deref().ok_or_else(not_ready)?;
        let name = lineup
            .champion
            .as_ref()
            .and_then(|c| c.resident.model.outputs().last())
            .map_or("scores", |o| o.name.as_str());
        let outputs = baseline::answer(policy, name, rows).ok_or_else(not_ready)?;
        self.live().constant(&lineup.key(None), policy.baseline_class, policy.labels.len(), rows, now);
        self.count(AnsweredBy::Baseline);
        Ok(Answer { outputs, by: AnsweredBy::Baseline, release: None, generation: lineup.generation })
    }

    /// One member answers for itself: nothing is counted in windows, so that they tell of the line-up's traffic.
    fn named(
        &self,
        lineup: &LineUp,
        version: &ReleaseId,
        inputs: &[TensorData],
        rows: usize,
    ) -> Result<Answer, InferError> {
        let unknown = || InferError::UnknownVersion { task: self.task.clone(), version: version.to_string() };
        let model = lineup.members().map(|(_, m)| m).find(|m| m.release() == version).ok_or_else(unknown)?;
        match model.run(inputs, rows) {
            Ok(made) => {
                self.count(AnsweredBy::Named);
                Ok(Answer {
                    outputs: made.outputs,
                    by: AnsweredBy::Named,
                    release: Some(version.clone()),
                    generation: lineup.generation,
                })
            }
            Err(Unable::Input(problem)) => Err(InferError::Input(problem)),
            Err(Unable::Failed(detail)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                Err(InferError::Failed { task: self.task.clone(), detail })
            }
        }
    }

    fn count(&self, by: AnsweredBy) {
        self.answered[by as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn feedback(&self, id: &str, label: u32, now: Now) -> Result<(), FeedbackError> {
        let lineup = self.lineup();
        let classes = lineup.classes();
        if label as usize >= classes {
            return Err(FeedbackError::UnknownClass { task: self.task.clone(), class: label });
        }
        let mut live = self.live();
        let prediction = live
            .predicted(id)
            .ok_or_else(|| FeedbackError::UnknownRequest(id.chars().take(100).collect()))?;
        let release = prediction.release.clone();
        let model = lineup.members().map(|(_, m)| m).find(|m| *m.release() == release);
        live.label(id, label, &lineup.key(Some(release)), model.map(Arc::as_ref), classes, now);
        Ok(())
    }

    pub(super) fn class_index(&self, name: &str) -> Option<u32> {
        let lineup = self.lineup();
        let of =
            |labels: &[String]| labels.iter().position(|l| l == name).and_then(|i| u32::try_from(i).ok());
        let champion = lineup.champion.as_ref().and_then(|c| of(&c.resident.bundle.signature.labels));
        champion.or_else(|| lineup.policy.as_ref().and_then(|p| of(&p.labels)))
    }

    pub(super) fn close_windows(&self, now: Now, resources: &ResourceUse) -> Vec<Window> {
        self.live().close(now, resources)
    }

    pub(super) fn take_samples(&self) -> Vec<Samples> {
        self.live().samples()
    }

    pub(super) fn take_indicators(&self) -> Vec<Indicator> {
        self.live().indicators()
    }

    pub(super) fn view(&self) -> TaskView {
        let lineup = self.lineup();
        let members = lineup
            .members()
            .map(|(role, m)| Member {
                role,
                release: m.release().clone(),
                inputs: m.resident.model.inputs().to_vec(),
                outputs: m.resident.model.outputs().to_vec(),
                row_us: m.row_us(),
            })
            .collect();
        TaskView {
            task: self.task.clone(),
            members,
            generation: lineup.generation,
            probation: lineup.probation,
            baseline: lineup.policy.as_ref().is_some_and(|p| baseline::answer(p, "", 1).is_some()),
            answered: std::array::from_fn(|i| self.answered[i].load(Ordering::Relaxed)),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// Rows of a request: the first dimension of its first input.
fn rows(inputs: &[TensorData]) -> usize {
    inputs.first().and_then(|t| t.shape.first()).map_or(1, |&n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// A seed no outsider can guess, so that nobody can choose what is sampled.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness sampling goes on, from a fixed seed.
    let drawn = SystemRandom::new().fill(&mut bytes);
    if drawn.is_ok() { u64::from_le_bytes(bytes) } else { 0 }
}
