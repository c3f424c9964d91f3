use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use dunlin_protocol::{
    Indicator, Now, ReasonCode, ReleaseId, ResourceUse, Samples, TaskId, TaskPolicy, Window,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::answer::{AnsweredBy, FeedbackError, InferError};
use super::baseline;
use super::context::{Degrader, Reading};
use super::guard::{Guard, Watch};
use super::lineup::{Berth, Crew, LineUp, Slot};
use super::live::{Live, Noted};
use super::resident::{Resident, Serving};
use super::sampling::Sampler;
use super::view::{Member, MemberRole, TaskView};

mod traffic;

/// Most answers that wait to be counted: more than there are connections, so that each has time to count its own.
const NOTED_MAX: usize = 128;

#[derive(Debug)]
pub(super) struct Task {
    task: TaskId,
    lineup: RwLock<Arc<LineUp>>,
    live: Mutex<Live>,
    /// Answers that are not in `live` yet.
    noted: Mutex<Vec<Noted>>,
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
            noted: Mutex::default(),
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

    /// What is counted and remembered, of all that was noted.
    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.count(&self.noted);
        live
    }

    /// Has an answer counted by who next looks, or has time to.
    pub(super) fn note(&self, answer: Noted) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.push(answer);
        let full = noted.len() >= NOTED_MAX;
        drop(noted);
        if full {
            drop(self.live());
        }
    }

    /// How many answers wait to be counted.
    pub(super) fn noted(&self) -> usize {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Counts what was noted, unless somebody is at it.
    pub(super) fn settle(&self) {
        if self.noted() == 0 {
            return;
        }
        match self.live.try_lock() {
            Ok(mut live) => live.count(&self.noted),
            Err(TryLockError::Poisoned(live)) => live.into_inner().count(&self.noted),
            Err(TryLockError::WouldBlock) => {}
        }
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
        drop(place);
        // Models are freed without holding up requests. What is noted of them holds them too.
        drop(self.live());
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
        let output = crew.champion.model.outputs().last().map(|output| output.name.clone());
        let slot = Slot::new(crew, generation);
        self.change(|lineup| {
            lineup.output = output;
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
        let generation = self.lineup().slot.generation;
        self.live().watch = Watch::new(generation);
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

    /// Goes on without models: the baseline answers. What was counted stays, to be reported.
    pub(super) fn vacate(&self) {
        self.change(|lineup| {
            lineup.slot = Slot { generation: lineup.slot.generation, ..Slot::default() };
            lineup.previous = None;
            lineup.probation = false;
            lineup.unloaded.clear();
        });
        self.begin();
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
