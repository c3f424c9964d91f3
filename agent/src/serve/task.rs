use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use dunlin_protocol::{
    Indicator, Now, ReasonCode, ReleaseId, ResourceUse, Samples, TaskId, TaskPolicy, Window,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::answer::{Answer, AnsweredBy, FeedbackError, InferError};
use super::asked::{Asked, run};
use super::baseline;
use super::context::{Degrader, Reading};
use super::guard::{Guard, Watch};
use super::lineup::{Berth, Crew, LineUp, Slot};
use super::live::{Answered, Key, Live, Principal};
use super::pool::Pool;
use super::resident::{Made, Resident, Serving, Unable};
use super::sampling::Sampler;
use super::tally::Spent;
use super::turn::Turn;
use super::view::{Member, MemberRole, TaskView};

#[derive(Debug)]
pub(super) struct Task {
    task: TaskId,
    lineup: RwLock<Arc<LineUp>>,
    live: Mutex<Live>,
    answered: [AtomicU64; AnsweredBy::ALL.len()],
    failed: AtomicU64,
    /// Rows answered.
    rows: AtomicU64,
    surroundings: Mutex<Surroundings>,
    /// Whether a context rule holds: asked for every request, so that it needs no lock.
    degraded: AtomicBool,
    /// Requests whose record is being made.
    pub(super) beside: Arc<AtomicUsize>,
    /// Whether `live` names a fallen member: asked after every request, so that it needs no lock.
    fallen: AtomicBool,
}

/// Where the device stands, and what that means here.
#[derive(Debug, Default)]
struct Surroundings {
    reading: Reading,
    degrader: Degrader,
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
            surroundings: Mutex::default(),
            degraded: AtomicBool::new(false),
            beside: Arc::default(),
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

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn surroundings(&self) -> MutexGuard<'_, Surroundings> {
        self.surroundings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the line-up by what `change` makes of it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut LineUp) -> T) -> T {
        let mut place = self.lineup.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = LineUp::clone(&place);
        let result = change(&mut next);
        let before = std::mem::replace(&mut *place, Arc::new(next));
        // Models are freed without holding up requests.
        drop(place);
        drop(before);
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

    pub(super) fn switch(&self, crew: Crew, generation: u64, probation: bool) {
        let slot = Slot::new(crew, generation);
        self.change(|lineup| {
            let before = std::mem::replace(&mut lineup.slot, slot);
            let was_there = before.champion.as_ref().and_then(Berth::model).is_some();
            lineup.previous = (probation && was_there).then(|| before.warm());
            lineup.probation = probation;
            lineup.unloaded.clear();
        });
        self.begin();
    }

    /// What is counted of a champion, and the context rules, begin anew.
    fn begin(&self) {
        self.live().watch = Watch::new();
        self.follow();
    }

    /// Follows the context rules of the line-up; those that are the same go on to hold.
    fn follow(&self) {
        let lineup = self.lineup();
        let rules = &lineup.slot.conduct.context;
        let mut around = self.surroundings();
        if !around.degrader.follows(rules) {
            around.degrader = Degrader::new(rules);
            self.degraded.store(false, Ordering::Relaxed);
        }
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
                lineup.slot = previous;
                lineup.probation = false;
                true
            }
            None => false,
        });
        if done {
            self.begin();
        }
        done
    }

    /// Takes all models out of memory.
    pub(super) fn unload(&self) {
        self.change(|lineup| {
            let before = lineup.before().map(|m| m.release());
            let releases = lineup.slot.berths().map(Berth::release).chain(before);
            let releases: Vec<_> = releases.cloned().collect();
            lineup.unloaded.extend(releases);
            lineup.slot = Slot { generation: lineup.slot.generation, ..Slot::default() };
            lineup.previous = None;
        });
    }

    /// Takes the members that `keep` refuses out of the line-up and out of memory.
    pub(super) fn trim(&self, keep: impl Fn(&ReleaseId) -> bool) {
        self.change(|lineup| lineup.slot.trim(keep));
        self.follow();
    }

    /// The models in memory, but for those that failed too often.
    pub(super) fn residents(&self) -> Vec<Resident> {
        let lineup = self.lineup();
        let slots = std::iter::once(&lineup.slot).chain(&lineup.previous);
        let models = slots.flat_map(Slot::models).filter(|model| model.strikes.out().is_none());
        models.map(|model| model.resident.clone()).collect()
    }

    pub(super) fn guard(&self) -> Option<Guard> {
        self.lineup().champion()?;
        Some(self.live().watch.guard())
    }

    /// The member that a request would be given to, and the generation in force: the one it names, else the first that
    /// answers alone and is still asked.
    pub(super) fn asked(&self, version: Option<&ReleaseId>) -> Result<(Arc<Serving>, u64), InferError> {
        let lineup = self.lineup();
        if !lineup.unloaded.is_empty() {
            return Err(InferError::Unloaded(self.task.clone()));
        }
        let found = match version {
            Some(version) => {
                lineup.members().map(|(_, m)| m).find(|m| m.release() == version).ok_or_else(|| {
                    InferError::UnknownVersion { task: self.task.clone(), version: version.to_string() }
                })
            }
            None => {
                let degraded = self.degraded.load(Ordering::Relaxed);
                let of = |part| lineup.slot.of(part).filter_map(|seat| seat.berth.model());
                of(MemberRole::Smaller)
                    .filter(|_| degraded)
                    .chain(lineup.champion())
                    .chain(of(MemberRole::Fallback))
                    .find(|m| m.strikes.out().is_none())
                    .ok_or_else(|| InferError::NotReady(self.task.clone()))
            }
        };
        found.map(|member| (Arc::clone(member), lineup.slot.generation))
    }

    /// Whether anything here goes by where the device stands.
    pub(super) fn wants_reading(&self) -> bool {
        let lineup = self.lineup();
        let slot = &lineup.slot;
        !slot.conduct.context.is_empty() || slot.of(MemberRole::Shadow).next().is_some()
    }

    /// Takes a reading of the device. What follows from it is an event for the next report.
    pub(super) fn surrounded(&self, reading: Reading, now: Now) {
        let lineup = self.lineup();
        let mut around = self.surroundings();
        around.reading = reading;
        around.degrader.look(&reading, now.mono_ms);
        let holds = around.degrader.holds();
        drop(around);
        if self.degraded.swap(holds.is_some(), Ordering::Relaxed) == holds.is_some() {
            return;
        }
        let detail = match holds {
            Some(signals) => format!("a smaller member answers because of {signals}"),
            None => "the context is good again".to_owned(),
        };
        tracing::info!(task = %self.task, detail, "the context has changed");
        if let Some(champion) = lineup.champion() {
            self.live().tell(champion.release(), ReasonCode::Degraded, &detail, now);
        }
    }

    pub(super) fn reading(&self) -> Reading {
        self.surroundings().reading
    }

    /// Answers a request: by the member it names, else as the rule of the line-up says. Without `pool` all is done on
    /// this thread.
    pub(super) async fn answer(
        self: &Arc<Self>,
        pool: Option<&Pool>,
        version: Option<&ReleaseId>,
        asked: Asked,
    ) -> Result<Answer, InferError> {
        let lineup = self.lineup();
        if !lineup.unloaded.is_empty() {
            return Err(InferError::Unloaded(self.task.clone()));
        }
        let asked = Arc::new(asked);
        if let Some(version) = version.filter(|v| lineup.champion().is_none_or(|c| c.release() != *v)) {
            return self.named(&lineup, pool, version, &asked).await;
        }
        let degraded = self.degraded.load(Ordering::Relaxed);
        let mut turn = Turn::new(self, &lineup, pool, &asked);
        let answer = match version {
            Some(_) => turn.by_champion().await?,
            None => turn.by_rule(degraded).await?,
        };
        if let Some(answer) = answer {
            self.count(answer.by);
            if let Some(principal) = turn.principal.take() {
                self.go_beside(pool, &lineup, principal, &asked, degraded).await;
            }
            return Ok(answer);
        }
        // A constant in place of a model that is only busy would be a worse answer than to ask again.
        if !turn.refused.is_empty() {
            return Err(InferError::Overloaded);
        }
        match version {
            // Who names a version wants that one or none.
            Some(_) => Err(InferError::Failed {
                task: self.task.clone(),
                detail: turn.failed.unwrap_or_else(|| "it has failed too often and is not asked".into()),
            }),
            None => {
                let left_out = turn.left_out;
                Ok(Answer { left_out, ..self.constant(&lineup, &asked)? })
            }
        }
    }

    /// Counts what a member of the line-up answered, in comparison with `principal` unless it is the first itself; gives
    /// back what others are compared with. The champion is who `leads`.
    pub(super) fn answered(
        &self,
        leads: bool,
        key: &Key,
        model: &Serving,
        made: &Made,
        principal: Option<&Principal>,
        asked: &Asked,
    ) -> Principal {
        model.strikes.answered();
        let Asked { id, x, rows, now, .. } = asked;
        let done = Answered { key, model, made, id, x, rows: *rows, now: *now };
        let mut live = self.live();
        if leads {
            live.watch.answered(asked.rows as u64, made.latency_us());
        }
        match principal {
            Some(principal) => {
                live.fellow(&done, principal);
                principal.clone()
            }
            None => {
                live.answered(&done);
                done.principal()
            }
        }
    }

    /// Counts a failure of a member, and takes it out if it is one too many.
    pub(super) fn failed(
        &self,
        leads: bool,
        key: &Key,
        model: &Serving,
        asked: &Asked,
        detail: &str,
        spent_ns: u64,
    ) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        model.tally().failed(spent_ns);
        let mut live = self.live();
        if leads {
            live.watch.failed(asked.rows as u64);
        }
        live.failed(key, model, asked.rows, &asked.x, detail, asked.now);
        // What is not a number goes in and comes out: that is no fault of the model.
        if asked.x.iter().all(|x| x.is_finite()) && model.strikes.strike(detail) {
            let detail = format!("failed too often, at last: {detail}");
            tracing::error!(task = %self.task, release = %model.release(), detail, "a member is taken out");
            live.tell(model.release(), ReasonCode::Quarantined, &detail, asked.now);
            live.fallen.push((model.release().clone(), detail));
            self.fallen.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a member was taken out that nobody has asked about yet.
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

    fn constant(&self, lineup: &LineUp, asked: &Asked) -> Result<Answer, InferError> {
        let rows = asked.rows;
        let not_ready = || InferError::NotReady(self.task.clone());
        if rows == 0 || rows > dunlin_engine::ROWS_MAX {
            return Err(InferError::Input(format!(
                "{rows} rows; from 1 to {} are answered at once",
                dunlin_engine::ROWS_MAX
            )));
        }
        let policy = lineup.policy.as_deref().ok_or_else(not_ready)?;
        let name = lineup
            .champion()
            .and_then(|c| c.resident.model.outputs().last())
            .map_or("scores", |o| o.name.as_str());
        let classes = baseline::classes(policy, rows, &asked.x).ok_or_else(not_ready)?;
        let outputs = baseline::answer(policy, name, &classes);
        self.live().constant(&lineup.key(None), &classes, policy.labels.len(), asked.now);
        self.count(AnsweredBy::Baseline);
        Ok(Answer {
            outputs,
            by: AnsweredBy::Baseline,
            release: None,
            generation: lineup.slot.generation,
            voters: Vec::new(),
            left_out: Vec::new(),
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
        let failed = |detail| InferError::Failed { task: self.task.clone(), detail };
        if let Some(why) =
            lineup.slot.dismissed().find_map(|(release, why)| (release == version).then_some(why))
        {
            return Err(failed(why.to_owned()));
        }
        let model = lineup.members().map(|(_, m)| m).find(|m| m.release() == version).ok_or_else(unknown)?;
        if let Some(out) = model.strikes.out() {
            return Err(failed(out.to_owned()));
        }
        let ran = run(pool, lineup.wait(), model, None, asked).await?;
        match ran.made {
            Ok(made) => {
                self.count(AnsweredBy::Named);
                Ok(Answer {
                    by: AnsweredBy::Named,
                    release: Some(version.clone()),
                    generation: lineup.slot.generation,
                    voters: Vec::new(),
                    left_out: Vec::new(),
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
        if !live.remembers(id) {
            return Err(FeedbackError::UnknownRequest(id.chars().take(100).collect()));
        }
        let of = |release: &ReleaseId| {
            let model = lineup.members().map(|(_, m)| m).find(|m| m.release() == release);
            (lineup.key(Some(release.clone())), model.map(Arc::as_ref))
        };
        live.label(id, label, of, classes, now);
        Ok(())
    }

    pub(super) fn class_index(&self, name: &str) -> Option<u32> {
        let lineup = self.lineup();
        let of =
            |labels: &[String]| labels.iter().position(|l| l == name).and_then(|i| u32::try_from(i).ok());
        let champion = lineup.champion().and_then(|c| of(&c.resident.bundle.signature.labels));
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
        let away = |berth: &Berth| matches!(berth, Berth::Away(_)).then(|| berth.release().clone());
        let dismissed = lineup.slot.dismissed();
        TaskView {
            task: self.task.clone(),
            members,
            unloaded: lineup.unloaded.clone(),
            away: lineup.slot.berths().filter_map(away).collect(),
            dismissed: dismissed.map(|(release, why)| (release.clone(), why.to_owned())).collect(),
            generation: lineup.slot.generation,
            probation: lineup.probation,
            baseline: lineup.policy.as_ref().is_some_and(|p| baseline::classes(p, 1, &[]).is_some()),
            degraded: self.surroundings().degrader.holds(),
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
