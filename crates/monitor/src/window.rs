//! One open window: what a device counts about one task and release, in memory fixed by profile and classes.
use alloc::vec::Vec;

use dunlin_protocol::{
    Confusion, Counts, Digest, Now, PairCounts, ReferenceProfile, ReleaseId, ResourceUse, TaskId, Window,
};

use crate::profile::Binner;
use crate::sketch::DdSketch;

/// Equal bins of [0, 1] that confidence is counted on.
pub const CONFIDENCE_BINS: usize = 20;
/// Most predicted classes counted one by one; beyond them nothing but latency and inputs is counted by class.
pub const CLASSES_MAX: usize = 1024;
/// Most classes with a full confusion table (4,096 counts). With more, labels are counted as two classes:
/// row 0 holds the right and the wrong answers, so that the diagonal over the sum is the accuracy in every case.
pub const CONFUSION_CLASSES_MAX: usize = 64;

/// One answered request, as the engine saw it.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// Time the model took, microseconds.
    pub latency_us: u64,
    /// Whether the model failed to answer; then class, confidence and latency mean nothing.
    pub failed: bool,
    /// The predicted class, if the task has classes.
    pub class: Option<u32>,
    /// Score of the predicted class in [0, 1]; anything else is not counted.
    pub confidence: f32,
    /// Features in the profile's order; a slice of another length is not counted.
    pub features: &'a [f32],
}

/// Sums that give one feature's lag-1 autocorrelation, about its first value so that they stay small.
#[derive(Debug, Clone, Copy, Default)]
struct Lag {
    origin: f64,
    last: Option<f64>,
    n: f64,
    sum: f64,
    squares: f64,
    products: f64,
}

impl Lag {
    fn add(&mut self, x: f32) {
        if !x.is_finite() {
            // A gap: the next value has no neighbour.
            self.last = None;
            return;
        }
        if self.n == 0.0 {
            self.origin = f64::from(x);
        }
        let x = f64::from(x) - self.origin;
        if let Some(last) = self.last {
            self.products += x * last;
        }
        self.last = Some(x);
        self.n += 1.0;
        self.sum += x;
        self.squares += x * x;
    }

    /// `None` for a constant or for fewer than three values.
    fn correlation(&self) -> Option<f64> {
        if self.n < 3.0 {
            return None;
        }
        let mean = self.sum / self.n;
        let variance = self.squares / self.n - mean * mean;
        let covariance = self.products / (self.n - 1.0) - mean * mean;
        (variance > 1e-12 * self.squares / self.n).then(|| (covariance / variance).clamp(-1.0, 1.0))
    }
}

#[derive(Debug)]
struct Inputs {
    binner: Binner,
    digest: Digest,
    counts: Vec<u64>,
    lags: Vec<Lag>,
}

/// Counts of one window while it is open.
#[derive(Debug)]
pub struct Accumulator {
    task: TaskId,
    release: Option<ReleaseId>,
    generation: u64,
    probation: bool,
    start: Now,
    n: u64,
    errors: u64,
    latency: DdSketch,
    confidence: [u64; CONFIDENCE_BINS],
    classes: Vec<u64>,
    true_classes: usize,
    confusion: Vec<u64>,
    pair: Option<PairCounts>,
    inputs: Option<Inputs>,
}

impl Accumulator {
    /// Opens a window. `classes` is zero for tasks without classes; `profile` comes with the digest of its blob.
    pub fn new(
        task: TaskId,
        release: Option<ReleaseId>,
        generation: u64,
        classes: usize,
        probation: bool,
        profile: Option<(&ReferenceProfile, Digest)>,
        now: Now,
    ) -> Self {
        let inputs = profile.map(|(profile, digest)| {
            let binner = Binner::new(profile);
            let counts = alloc::vec![0; binner.bins()];
            let lags = alloc::vec![Lag::default(); binner.features()];
            Inputs { binner, digest, counts, lags }
        });
        Self {
            task,
            release,
            generation,
            probation,
            start: now,
            n: 0,
            errors: 0,
            latency: DdSketch::new(),
            confidence: [0; CONFIDENCE_BINS],
            classes: alloc::vec![0; if classes > CLASSES_MAX { 0 } else { classes }],
            true_classes: classes,
            confusion: Vec::new(),
            pair: None,
            inputs,
        }
    }

    /// Whether nothing at all was counted.
    pub fn is_empty(&self) -> bool {
        self.n == 0 && self.confusion.is_empty() && self.pair.is_none()
    }

    /// Requests so far, failed ones included.
    pub fn requests(&self) -> u64 {
        self.n
    }

    /// Counts one request.
    pub fn observe(&mut self, seen: &Observation<'_>) {
        self.n += 1;
        if let Some(inputs) = &mut self.inputs
            && seen.features.len() == inputs.binner.features()
        {
            for (feature, (&x, lag)) in seen.features.iter().zip(&mut inputs.lags).enumerate() {
                inputs.counts[inputs.binner.flat(feature, x)] += 1;
                lag.add(x);
            }
        }
        if seen.failed {
            self.errors += 1;
            return;
        }
        self.latency.add(seen.latency_us as f64);
        if (0.0..=1.0).contains(&seen.confidence) {
            let bin = (seen.confidence * CONFIDENCE_BINS as f32) as usize;
            self.confidence[bin.min(CONFIDENCE_BINS - 1)] += 1;
        }
        if let Some(count) = seen.class.and_then(|class| self.classes.get_mut(class as usize)) {
            *count += 1;
        }
    }

    /// Counts a label that arrived: the true class beside the one that was predicted. Classes that the task does
    /// not have are not counted.
    pub fn label(&mut self, truth: u32, predicted: u32) {
        let classes = self.true_classes;
        let (row, column) = (truth as usize, predicted as usize);
        if row >= classes || column >= classes {
            return;
        }
        let (side, row, column) = if classes > CONFUSION_CLASSES_MAX {
            (2, 0, usize::from(row != column))
        } else {
            (classes, row, column)
        };
        self.confusion.resize(side * side, 0);
        self.confusion[row * side + column] += 1;
    }

    /// Counts an input that `other` answered too, and whether the answers are the same.
    pub fn pair(&mut self, other: &ReleaseId, same: bool) {
        if let Some(pair) = self.paired_with(other) {
            pair.n += 1;
            pair.disagree += u64::from(!same);
        }
    }

    /// Counts a labelled input that both answered, by who was right.
    pub fn pair_label(&mut self, other: &ReleaseId, this_right: bool, other_right: bool) {
        if let Some(pair) = self.paired_with(other) {
            match (this_right, other_right) {
                (true, true) => pair.both_right += 1,
                (true, false) => pair.only_this += 1,
                (false, true) => pair.only_other += 1,
                (false, false) => pair.both_wrong += 1,
            }
        }
    }

    /// A window pairs with one release, the first that is named: evidence against two is never mixed.
    fn paired_with(&mut self, other: &ReleaseId) -> Option<&mut PairCounts> {
        let pair = self.pair.get_or_insert_with(|| PairCounts {
            other: other.clone(),
            n: 0,
            disagree: 0,
            both_right: 0,
            only_this: 0,
            only_other: 0,
            both_wrong: 0,
        });
        (pair.other == *other).then_some(pair)
    }

    /// Closes the window. It carries wall times if the time is known at its end; the start then follows from the
    /// clock that never steps.
    pub fn close(self, now: Now, resources: ResourceUse) -> Window {
        let elapsed = now.mono_ms.saturating_sub(self.start.mono_ms);
        let end_ms = now.wall_ms.unwrap_or(now.mono_ms);
        let side = if self.true_classes > CONFUSION_CLASSES_MAX { 2 } else { self.true_classes };
        let confusion = if self.confusion.is_empty() {
            Confusion::default()
        } else {
            Confusion { classes: u32::try_from(side).unwrap_or(0), counts: Counts::pack(&self.confusion) }
        };
        let autocorrelation_ppm = self.inputs.as_ref().map_or(0, autocorrelation_ppm);
        let (profile, features) = match &self.inputs {
            Some(inputs) => (Some(inputs.digest), Counts::pack(&inputs.counts)),
            None => (None, Counts::default()),
        };
        let answered = self.n > self.errors;
        Window {
            task: self.task,
            release: self.release,
            generation: self.generation,
            start_ms: end_ms.saturating_sub(elapsed),
            end_ms,
            wall: now.wall_ms.is_some(),
            n: self.n,
            errors: self.errors,
            probation: self.probation,
            latency_us: self.latency.to_wire(),
            confidence: if answered { Counts::pack(&self.confidence) } else { Counts::default() },
            classes: if answered { Counts::pack(&self.classes) } else { Counts::default() },
            confusion,
            pair: self.pair,
            profile,
            features,
            autocorrelation_ppm,
            resources,
        }
    }
}

/// Mean over the features that vary, parts per million.
fn autocorrelation_ppm(inputs: &Inputs) -> i64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for r in inputs.lags.iter().filter_map(Lag::correlation) {
        sum += r;
        n += 1.0;
    }
    if n > 0.0 { libm::round(sum / n * 1e6) as i64 } else { 0 }
}

#[cfg(test)]
#[path = "window/tests.rs"]
mod tests;
