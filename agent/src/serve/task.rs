use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use dunlin_protocol::{
    Indicator, Now, ReasonCode, ReleaseId, ResourceUse, Samples, TaskId, TaskPolicy, Window,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::answer::{Answer, AnsweredBy, FeedbackError, InferError};
use super::asked::{Asked, run};
use super::baseline;
use super::guard::{Guard, Watch};
use super::lineup::LineUp;
use super::live::{Answered, Key, Live};
use super::pool::Pool;
use super::resident::{Made, Resident, Serving, Unable};
use super::sampling::Sampler;
use super::tally::Spent;
use super::view::{Member, TaskView};

#[derive(Debug)]
pub(super) struct Task {
    task: TaskId,
    lineup: RwLock<Arc<LineUp>>,
    live: Mutex<Live>,
    answered: [AtomicU64; 4],
    failed: AtomicU64,
    /// Rows answered.
    rows: AtomicU64,
    /// Whether `live` names a fallen member: asked after every request, so that it needs no lock.
    fallen: AtomicBool,
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
            rows: AtomicU64::new(0),
            fallen: AtomicBool::new(false),
        }
    }

    pub(super) fn id(&self) -> &TaskId {
        &self.task
    }

    pub(super) fn count_rows(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows answered since the task was first heard of.
    pub(super) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub(super) fn lineup(&self) -> Arc<LineUp> {
        self.lineup.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the line-up by what `change` makes of it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut LineUp) -> T) -> T {
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
            lineup.unloaded.clear();
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

    /// Takes all models out of memory.
    pub(super) fn unload(&self) {
        self.change(|lineup| {
            let releases: Vec<_> = lineup.members().map(|(_, m)| m.release().clone()).collect();
            lineup.unloaded.extend(releases);
            (lineup.champion, lineup.fallback, lineup.previous) = (None, None, None);
        });
    }

    pub(super) fn guard(&self) -> Option<Guard> {
        self.lineup().champion.as_ref()?;
        Some(self.live().watch.guard())
    }

    /// Answers a request: by the member it names, else by the first of the line-up that can. Without `pool` all is done
    /// on this thread.
    pub(super) async fn answer(
        &self,
        pool: Option<&Pool>,
        version: Option<&ReleaseId>,
        asked: Asked,
    ) -> Result<Answer, InferError> {
        let lineup = self.lineup();
        if !lineup.unloaded.is_empty() {
            return Err(InferError::Unloaded(self.task.clone()));
        }
        let asked = Arc::new(asked);
        if let Some(version) = version.filter(|v| lineup.champion.as_ref().is_none_or(|c| c.release() != *v))
        {
            return self.named(&lineup, pool, version, &asked).await;
        }
        let champion = lineup.champion.iter().map(|m| (AnsweredBy::Champion, m));
        let fallback = lineup.fallback.iter().filter(|_| version.is_none());
        let members = champion.chain(fallback.map(|m| (AnsweredBy::Fallback, m)));
        let mut failed = None;
        for (by, model) in members.filter(|(_, m)| m.strikes.out().is_none()) {
            let key = lineup.key(Some(model.release().clone()));
            let previous = lineup.previous.as_ref().filter(|_| by == AnsweredBy::Champion);
            let ran = run(pool, model, previous, &asked).await?;
            let detail = match ran.made {
                Ok(made) => {
                    self.answered(by, &key, model, &made, ran.other.as_ref(), &asked);
                    return Ok(Answer {
                        by,
                        release: Some(model.release().clone()),
                        generation: lineup.generation,
                        rows: asked.rows as u64,
                        queue_ns: ran.queue_ns,
                        infer_ns: made.latency_ns,
                        outputs: made.outputs,
                    });
                }
                Err(Unable::Input(problem)) if by == AnsweredBy::Champion => {
                    return Err(InferError::Input(problem));
                }
                Err(Unable::Input(detail) | Unable::Failed(detail)) => detail,
            };
            self.failed(by, &key, model, &asked, &detail, ran.spent_ns);
            failed = Some(detail);
        }
        match (version, failed) {
            // Who names a version wants that one or none.
            (Some(_), detail) => Err(InferError::Failed {
                task: self.task.clone(),
                detail: detail.unwrap_or_else(|| "it has failed too often and is not asked".into()),
            }),
            (None, _) => self.constant(&lineup, asked.rows, asked.now),
        }
    }

    /// Counts an answer of the line-up.
    fn answered(
        &self,
        by: AnsweredBy,
        key: &Key,
        model: &Serving,
        made: &Made,
        other: Option<&(Arc<Serving>, Made)>,
        asked: &Asked,
    ) {
        model.strikes.answered();
        let mut live = self.live();
        if by == AnsweredBy::Champion {
            live.watch.answered(asked.rows as u64, made.latency_us());
        }
        if let Some((_, made)) = other {
            live.watch.previous(made.latency_us());
        }
        let other = other.map(|(other, made)| (other.as_ref(), made));
        let Asked { id, x, rows, now, .. } = asked;
        live.answered(&Answered { key, model, made, other, id, x, rows: *rows, now: *now });
        drop(live);
        self.count(by);
    }

    /// Counts a failure of a member, and takes it out if it is one too many.
    fn failed(&self, by: AnsweredBy, key: &Key, model: &Serving, asked: &Asked, detail: &str, spent_ns: u64) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        model.tally().failed(spent_ns);
        let mut live = self.live();
        if by == AnsweredBy::Champion {
            live.watch.failed(asked.rows as u64);
        }
        live.failed(key, model, asked.rows, &asked.x, detail, asked.now);
        // What is not a number goes in and comes out: that is no fault of the model.
        if asked.x.iter().all(|x| x.is_finite()) && model.strikes.strike(detail) {
            let detail = format!("failed too often, at last: {detail}");
            tracing::error!(task = %self.task, release = %model.release(), detail, "a member is taken out");
            live.tell(model.release(), ReasonCode::Quarantined, &detail, asked.now);
            if by == AnsweredBy::Champion || by == AnsweredBy::Fallback {
                live.fallen.push((model.release().clone(), detail));
                self.fallen.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether a designated member was taken out that nobody has asked about yet.
    pub(super) fn has_fallen(&self) -> bool {
        self.fallen.load(Ordering::Relaxed)
    }

    /// The members that were taken out since this was last asked, and why.
    pub(super) fn fallen(&self) -> Vec<(TaskId, ReleaseId, String)> {
        if !self.fallen.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let fallen = std::mem::take(&mut self.live().fallen);
        fallen.into_iter().map(|(release, detail)| (self.task.clone(), release, detail)).collect()
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
        Ok(Answer {
            outputs,
            by: AnsweredBy::Baseline,
            release: None,
            generation: lineup.generation,
            rows: rows as u64,
            queue_ns: 0,
            infer_ns: 0,
        })
    }

    /// One member answers for itself: nothing is counted in windows, so that they tell of the line-up's traffic.
    async fn named(
        &self,
        lineup: &LineUp,
        pool: Option<&Pool>,
        version: &ReleaseId,
        asked: &Arc<Asked>,
    ) -> Result<Answer, InferError> {
        let unknown = || InferError::UnknownVersion { task: self.task.clone(), version: version.to_string() };
        let model = lineup.members().map(|(_, m)| m).find(|m| m.release() == version).ok_or_else(unknown)?;
        let failed = |detail| InferError::Failed { task: self.task.clone(), detail };
        if let Some(out) = model.strikes.out() {
            return Err(failed(out.to_owned()));
        }
        let ran = run(pool, model, None, asked).await?;
        match ran.made {
            Ok(made) => {
                self.count(AnsweredBy::Named);
                Ok(Answer {
                    by: AnsweredBy::Named,
                    release: Some(version.clone()),
                    generation: lineup.generation,
                    rows: asked.rows as u64,
                    queue_ns: ran.queue_ns,
                    infer_ns: made.latency_ns,
                    outputs: made.outputs,
                })
            }
            Err(Unable::Input(problem)) => Err(InferError::Input(problem)),
            Err(Unable::Failed(detail)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                model.tally().failed(ran.spent_ns);
                Err(failed(detail))
            }
        }
    }

    /// Counts where the time of an answered request went.
    pub(super) fn tally(&self, release: &ReleaseId, rows: u64, spent: &Spent, wall_ms: Option<u64>) {
        let lineup = self.lineup();
        // A member that was swapped out meanwhile has no counters any more.
        if let Some((_, model)) = lineup.members().find(|(_, m)| m.release() == release) {
            model.tally().answered(rows, spent, wall_ms);
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
                out: m.strikes.out().map(str::to_owned),
                tally: m.tally().clone(),
            })
            .collect();
        TaskView {
            task: self.task.clone(),
            members,
            unloaded: lineup.unloaded.clone(),
            generation: lineup.generation,
            probation: lineup.probation,
            baseline: lineup.policy.as_ref().is_some_and(|p| baseline::answer(p, "", 1).is_some()),
            answered: std::array::from_fn(|i| self.answered[i].load(Ordering::Relaxed)),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// A seed no outsider can guess, so that nobody can choose what is sampled.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness sampling goes on, from a fixed seed.
    let drawn = SystemRandom::new().fill(&mut bytes);
    if drawn.is_ok() { u64::from_le_bytes(bytes) } else { 0 }
}
