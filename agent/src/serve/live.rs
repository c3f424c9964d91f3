//! What one task counts and remembers while it serves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use dunlin_monitor::window::{Accumulator, Observation};
use dunlin_protocol::{Indicator, Now, ReasonCode, ReleaseId, ResourceUse, Samples, TaskId, Window};

use super::asked::Asked;
use super::guard::Watch;
use super::memory::{FEATURES_MAX, Memory, Prediction};
use super::resident::{Made, Serving};
use super::sampling::{Row, Sampler};

/// Most windows open at one time: champion, fallback, members, baseline, the same of the generation before, and late labels.
const WINDOWS_MAX: usize = 40;
/// Most characters of a failure's text in a report.
const DETAIL_MAX: usize = 200;

/// One window a release and stretch of its life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) release: Option<ReleaseId>,
    pub(super) generation: u64,
    pub(super) probation: bool,
}

/// What one member made of a request, to be counted.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) key: Key,
    pub(super) model: Arc<Serving>,
    /// Scores of its last output, row after row.
    pub(super) scores: Vec<f32>,
    pub(super) latency_us: u64,
    pub(super) asked: Arc<Asked>,
}

/// An answer that is not counted yet.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) done: Answered,
    /// Whether it is the champion's.
    pub(super) leads: bool,
    /// What it is compared with, unless it is the first.
    pub(super) principal: Option<Principal>,
}

/// Whose answer others are compared with: a release and its class of each row.
#[derive(Debug, Clone)]
pub(super) struct Principal {
    pub(super) release: ReleaseId,
    pub(super) classes: Vec<Option<u32>>,
}

impl Answered {
    pub(super) fn new(key: Key, model: &Arc<Serving>, made: &Made, asked: &Arc<Asked>) -> Self {
        let (model, asked) = (Arc::clone(model), Arc::clone(asked));
        Self { key, model, scores: made.scores.clone(), latency_us: made.latency_us(), asked }
    }

    fn scores(&self, row: usize) -> &[f32] {
        let width = self.scores.len() / self.asked.rows.max(1);
        &self.scores[row * width..(row + 1) * width]
    }

    fn class(&self, row: usize) -> Option<u32> {
        self.model.class(self.scores(row))
    }

    fn features(&self, row: usize) -> &[f32] {
        let Asked { x, rows, .. } = self.asked.as_ref();
        let columns = x.len() / (*rows).max(1);
        &x[row * columns..(row + 1) * columns]
    }

    fn row_id(&self, row: usize) -> String {
        let id = &self.asked.id;
        if self.asked.rows == 1 { id.clone() } else { format!("{id}.{row}") }
    }

    pub(super) fn principal(&self) -> Principal {
        let classes = (0..self.asked.rows).map(|row| self.class(row)).collect();
        Principal { release: self.model.release().clone(), classes }
    }
}

#[derive(Debug)]
pub(super) struct Live {
    task: TaskId,
    windows: BTreeMap<Key, Accumulator>,
    memory: Memory,
    pub(super) sampler: Option<Sampler>,
    pub(super) watch: Watch,
    /// Designated members that were taken out, to be told to whoever decides what serves.
    pub(super) fallen: Vec<(ReleaseId, String)>,
    /// By release and reason code.
    events: BTreeMap<(ReleaseId, &'static str), Indicator>,
    /// Empty; what is noted while other notes are counted goes into its room.
    spare: Vec<Noted>,
}

impl Live {
    pub(super) fn new(task: TaskId) -> Self {
        Self {
            task,
            windows: BTreeMap::new(),
            memory: Memory::default(),
            sampler: None,
            watch: Watch::new(0),
            fallen: Vec::new(),
            events: BTreeMap::new(),
            spare: Vec::new(),
        }
    }

    /// Counts what was noted, in this order.
    pub(super) fn count(&mut self, noted: &Mutex<Vec<Noted>>) {
        let mut taken = std::mem::take(&mut self.spare);
        std::mem::swap(&mut taken, &mut *noted.lock().unwrap_or_else(PoisonError::into_inner));
        for Noted { done, leads, principal } in taken.drain(..) {
            if leads && self.watch.is_of(done.key.generation) {
                self.watch.answered(done.asked.rows as u64, done.latency_us);
            }
            match &principal {
                Some(principal) => self.fellow(&done, principal),
                None => self.answered(&done),
            }
        }
        self.spare = taken;
    }

    fn window(
        &mut self,
        key: &Key,
        model: Option<&Serving>,
        classes: usize,
        now: Now,
    ) -> Option<&mut Accumulator> {
        if !self.windows.contains_key(key) {
            if self.windows.len() >= WINDOWS_MAX {
                return None;
            }
            let profile = model
                .and_then(|m| m.resident.profile.as_ref().map(Arc::as_ref))
                .map(|(p, digest)| (p, *digest));
            let (task, release) = (self.task.clone(), key.release.clone());
            let opened =
                Accumulator::new(task, release, key.generation, classes, key.probation, profile, now);
            self.windows.insert(key.clone(), opened);
        }
        self.windows.get_mut(key)
    }

    fn observe(&mut self, done: &Answered, row: usize, against: Option<(&ReleaseId, u32)>) {
        let class = done.class(row);
        let confidence = class.and_then(|c| done.scores(row).get(c as usize)).copied().unwrap_or(f32::NAN);
        let (model, asked) = (&done.model, &done.asked);
        let latency_us = done.latency_us / asked.rows.max(1) as u64;
        let Some(window) = self.window(&done.key, Some(model), model.classes(), asked.now) else { return };
        let features = done.features(row);
        window.observe(&Observation { latency_us, failed: false, class, confidence, features });
        if let (Some((release, theirs)), Some(ours)) = (against, class) {
            window.pair(release, theirs == ours);
        }
    }

    /// Counts an answer row by row, remembers it for its label, and considers it as a sample.
    fn answered(&mut self, done: &Answered) {
        for row in 0..done.asked.rows {
            self.observe(done, row, None);
            let Some(predicted) = done.class(row) else { continue };
            let (row_id, release, x) = (done.row_id(row), done.model.release(), done.features(row));
            if let Some(sampler) = &mut self.sampler {
                sampler.consider(
                    &Row { id: &row_id, release, x, predicted, scores: done.scores(row) },
                    done.asked.now,
                );
            }
            let keep = self.sampler.is_some() && x.len() <= FEATURES_MAX;
            let kept = if keep { x.to_vec() } else { Vec::new() };
            let (release, other, fellows) = (release.clone(), None, Vec::new());
            self.memory.keep(row_id, Prediction { release, predicted, other, fellows, x: kept });
        }
    }

    /// Counts what a further member made of a request in that member's own window, beside what the principal made.
    fn fellow(&mut self, done: &Answered, principal: &Principal) {
        for (row, theirs) in principal.classes.iter().enumerate().take(done.asked.rows) {
            self.observe(done, row, theirs.map(|class| (&principal.release, class)));
            let (Some(class), Some(kept)) = (done.class(row), self.memory.get_mut(&done.row_id(row))) else {
                continue;
            };
            let release = done.model.release();
            if kept.release == principal.release && kept.fellows.iter().all(|(known, _)| known != release) {
                kept.fellows.push((release.clone(), class));
            }
        }
    }

    /// Counts in the champion's window what the champion before it made of the same request. `key` and `model` are the
    /// champion's.
    pub(super) fn previous(&mut self, key: &Key, model: &Serving, principal: &Principal, done: &Answered) {
        if !self.watch.is_of(key.generation) {
            return;
        }
        self.watch.previous(done.latency_us);
        for (row, ours) in principal.classes.iter().enumerate().take(done.asked.rows) {
            let (Some(ours), Some(theirs)) = (*ours, done.class(row)) else { continue };
            self.watch.paired(ours == theirs);
            if let Some(window) = self.window(key, Some(model), model.classes(), done.asked.now) {
                window.pair(done.model.release(), ours == theirs);
            }
            if let Some(kept) = self.memory.get_mut(&done.row_id(row))
                && kept.release == principal.release
            {
                kept.other = Some((done.model.release().clone(), theirs));
            }
        }
    }

    /// Counts rows that the baseline answered with these classes of so many.
    pub(super) fn constant(&mut self, key: &Key, answered: &[u32], classes: usize, now: Now) {
        if let Some(window) = self.window(key, None, classes, now) {
            for &class in answered {
                window.observe(&Observation {
                    latency_us: 0,
                    failed: false,
                    class: Some(class),
                    confidence: 1.0,
                    features: &[],
                });
            }
        }
    }

    /// Counts rows that a model failed on.
    pub(super) fn failed(&mut self, key: &Key, model: &Serving, asked: &Asked) {
        let Asked { x, rows, now, .. } = asked;
        let columns = x.len() / (*rows).max(1);
        if let Some(window) = self.window(key, Some(model), model.classes(), *now) {
            for row in 0..*rows {
                let features = &x[row * columns..(row + 1) * columns];
                window.observe(&Observation {
                    latency_us: 0,
                    failed: true,
                    class: None,
                    confidence: f32::NAN,
                    features,
                });
            }
        }
    }

    /// Keeps an event of a member for the next report; the same again is counted.
    pub(super) fn tell(&mut self, release: &ReleaseId, reason: ReasonCode, detail: &str, now: Now) {
        let key = (release.clone(), reason.as_str());
        let told = self.events.entry(key).or_insert_with(|| Indicator {
            reason,
            detail: String::new(),
            count: 0,
            at_ms: None,
        });
        told.detail = format!("{release} of {}: {detail}", self.task).chars().take(DETAIL_MAX).collect();
        told.count += 1;
        told.at_ms = now.wall_ms;
    }

    /// Whether the request of this id is remembered, so that a label can be counted.
    pub(super) fn remembers(&self, id: &str) -> bool {
        self.memory.get(id).is_some()
    }

    /// Counts a late label in the windows of all that predicted. `of` gives a release's key, model and classes.
    pub(super) fn label<'a>(
        &mut self,
        id: &str,
        label: u32,
        of: impl Fn(&ReleaseId) -> (Key, Option<&'a Serving>),
        classes: usize,
        now: Now,
    ) {
        let Some(prediction) = self.memory.take(id) else { return };
        let right = prediction.predicted == label;
        let (key, model) = of(&prediction.release);
        if let Some(window) = self.window(&key, model, classes, now) {
            window.label(label, prediction.predicted);
            if let Some((other, theirs)) = &prediction.other {
                window.pair_label(other, right, *theirs == label);
            }
        }
        for (fellow, theirs) in &prediction.fellows {
            let (key, model) = of(fellow);
            if let Some(window) = self.window(&key, model, classes, now) {
                window.label(label, *theirs);
                window.pair_label(&prediction.release, *theirs == label, right);
            }
        }
        if let Some(sampler) = &mut self.sampler
            && !sampler.label(id, label)
            && prediction.predicted != label
        {
            let row = Row {
                id,
                release: &prediction.release,
                x: &prediction.x,
                predicted: prediction.predicted,
                scores: &[],
            };
            sampler.flag(&row, label, now);
        }
    }

    pub(super) fn close(&mut self, now: Now, resources: &ResourceUse) -> Vec<Window> {
        let open = std::mem::take(&mut self.windows);
        open.into_values().filter(|w| !w.is_empty()).map(|w| w.close(now, resources.clone())).collect()
    }

    pub(super) fn samples(&mut self) -> Vec<Samples> {
        self.sampler.as_mut().map(|s| s.take(&self.task)).unwrap_or_default()
    }

    pub(super) fn indicators(&mut self) -> Vec<Indicator> {
        std::mem::take(&mut self.events).into_values().collect()
    }
}
