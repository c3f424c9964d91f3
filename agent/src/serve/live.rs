//! What one task counts and remembers while it serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_monitor::window::{Accumulator, Observation};
use dunlin_protocol::{Indicator, Now, ReasonCode, ReleaseId, ResourceUse, Samples, TaskId, Window};

use super::guard::Watch;
use super::memory::{FEATURES_MAX, Memory, Prediction};
use super::resident::{Made, Serving};
use super::sampling::{Row, Sampler};

/// Most windows open at one time: champion, fallback, baseline, the same of the generation before, and late labels.
const WINDOWS_MAX: usize = 16;
/// Most characters of a failure's text in a report.
const DETAIL_MAX: usize = 200;

/// One window a release and stretch of its life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) release: Option<ReleaseId>,
    pub(super) generation: u64,
    pub(super) probation: bool,
}

/// One answered request, to be counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered<'a> {
    pub(super) key: &'a Key,
    pub(super) model: &'a Serving,
    pub(super) made: &'a Made,
    pub(super) other: Option<(&'a Serving, &'a Made)>,
    pub(super) id: &'a str,
    /// Features of all rows; empty if the first input is not `FP32`.
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    pub(super) now: Now,
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
}

impl Live {
    pub(super) fn new(task: TaskId) -> Self {
        Self {
            task,
            windows: BTreeMap::new(),
            memory: Memory::default(),
            sampler: None,
            watch: Watch::new(),
            fallen: Vec::new(),
            events: BTreeMap::new(),
        }
    }

    fn window(
        &mut self,
        key: &Key,
        model: Option<&Serving>,
        classes: usize,
        now: Now,
    ) -> Option<&mut Accumulator> {
        if self.windows.len() >= WINDOWS_MAX && !self.windows.contains_key(key) {
            return None;
        }
        let task = self.task.clone();
        Some(self.windows.entry(key.clone()).or_insert_with(|| {
            let profile = model
                .and_then(|m| m.resident.profile.as_ref().map(Arc::as_ref))
                .map(|(p, digest)| (p, *digest));
            Accumulator::new(task, key.release.clone(), key.generation, classes, key.probation, profile, now)
        }))
    }

    /// Counts an answer row by row, remembers it for its label, and considers it as a sample.
    pub(super) fn answered(&mut self, done: &Answered<'_>) {
        let Answered { key, model, made, other, id, x, rows, now } = *done;
        let width = made.scores.len() / rows.max(1);
        let columns = x.len() / rows.max(1);
        let classes = model.classes();
        for row in 0..rows {
            let scores = &made.scores[row * width..(row + 1) * width];
            let features = &x[row * columns..(row + 1) * columns];
            let class = model.class(scores);
            let confidence = class.and_then(|c| scores.get(c as usize)).copied().unwrap_or(f32::NAN);
            let other_class = other.and_then(|(other, made)| {
                let width = made.scores.len() / rows.max(1);
                other
                    .class(&made.scores[row * width..(row + 1) * width])
                    .map(|class| (other.release(), class))
            });
            let same = other_class.zip(class).map(|((release, theirs), ours)| (release, theirs == ours));
            if let Some(window) = self.window(key, Some(model), classes, now) {
                let latency_us = made.latency_us() / rows.max(1) as u64;
                window.observe(&Observation { latency_us, failed: false, class, confidence, features });
                if let Some((release, same)) = same {
                    window.pair(release, same);
                }
            }
            if let Some((_, same)) = same {
                self.watch.paired(same);
            }
            let Some(predicted) = class else { continue };
            let row_id = if rows == 1 { id.to_owned() } else { format!("{id}.{row}") };
            if let Some(sampler) = &mut self.sampler {
                sampler.consider(
                    &Row { id: &row_id, release: model.release(), x: features, predicted, scores },
                    now,
                );
            }
            let kept = if self.sampler.is_some() && columns <= FEATURES_MAX {
                features.to_vec()
            } else {
                Vec::new()
            };
            let other = other_class.map(|(release, class)| (release.clone(), class));
            self.memory
                .keep(row_id, Prediction { release: model.release().clone(), predicted, other, x: kept });
        }
    }

    /// Counts rows that the baseline answered.
    pub(super) fn constant(&mut self, key: &Key, class: u32, classes: usize, rows: usize, now: Now) {
        if let Some(window) = self.window(key, None, classes, now) {
            for _ in 0..rows {
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

    /// Counts rows that a model failed on, and keeps the fact for the next report.
    pub(super) fn failed(
        &mut self,
        key: &Key,
        model: &Serving,
        rows: usize,
        x: &[f32],
        detail: &str,
        now: Now,
    ) {
        let columns = x.len() / rows.max(1);
        if let Some(window) = self.window(key, Some(model), model.classes(), now) {
            for row in 0..rows {
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
        self.tell(model.release(), ReasonCode::ModelFailed, detail, now);
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

    /// Looks at the prediction a label is for, without taking it.
    pub(super) fn predicted(&self, id: &str) -> Option<&Prediction> {
        self.memory.get(id)
    }

    /// Counts a late label in the window of the release that predicted, as `key` says.
    pub(super) fn label(
        &mut self,
        id: &str,
        label: u32,
        key: &Key,
        model: Option<&Serving>,
        classes: usize,
        now: Now,
    ) {
        let Some(prediction) = self.memory.take(id) else { return };
        if let Some(window) = self.window(key, model, classes, now) {
            window.label(label, prediction.predicted);
            if let Some((other, theirs)) = &prediction.other {
                window.pair_label(other, prediction.predicted == label, *theirs == label);
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
