//! Windows of one release, added up. The sum is exact, associative and commutative: it does not matter in which
//! order windows arrive, nor whether a device's sums or a group's are taken first.
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use dunlin_protocol::{Counts, Digest, ReleaseId, Window};

use crate::rate::Rate;
use crate::sketch::DdSketch;
use crate::window::{CLASSES_MAX, CONFIDENCE_BINS, CONFUSION_CLASSES_MAX};

/// Most feature bins of one window: far more than a profile of 2,048 features that still fits a message.
pub const FEATURE_BINS_MAX: usize = 256 * 1024;
/// Most releases and profiles that one sum keeps apart; what comes beyond is refused, so that a hostile device can
/// not grow a sum without end.
pub const KEYS_MAX: usize = 64;

/// Why a window can not be added. Nothing of it was counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The latency sketch is malformed.
    #[error("reading the latency sketch of a window: malformed")]
    Latency,
    /// The named counts are malformed or too many.
    #[error("reading the {0} counts of a window: malformed or too many")]
    Counts(&'static str),
    /// Counts that contradict one another.
    #[error("checking the counts of a window: {0}")]
    Contradiction(&'static str),
    /// The window names more releases or profiles than a sum keeps apart.
    #[error("adding a window: already {KEYS_MAX} different {0}")]
    TooMany(&'static str),
}

/// Counts on the bins of one reference profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeatureCounts {
    /// Requests of the windows that counted, failed ones included.
    pub n: u64,
    /// Counts in the profile's flat layout.
    pub counts: Vec<u64>,
    /// Sum over windows of requests times autocorrelation.
    weighted_ppm: i128,
}

impl FeatureCounts {
    /// Counts of `n` requests with this autocorrelation, parts per million.
    pub fn new(n: u64, counts: Vec<u64>, autocorrelation_ppm: i64) -> Self {
        let ppm = autocorrelation_ppm.clamp(-1_000_000, 1_000_000);
        Self { n, counts, weighted_ppm: i128::from(ppm) * i128::from(n) }
    }

    /// Mean lag-1 autocorrelation, weighted by requests, parts per million.
    pub fn autocorrelation_ppm(&self) -> i64 {
        if self.n == 0 {
            return 0;
        }
        i64::try_from(self.weighted_ppm / i128::from(self.n)).unwrap_or(0)
    }

    /// Adds counts on the same bins.
    pub fn merge(&mut self, other: &Self) {
        self.n = self.n.saturating_add(other.n);
        self.weighted_ppm = self.weighted_ppm.saturating_add(other.weighted_ppm);
        add(&mut self.counts, &other.counts);
    }
}

/// Sums of paired evidence against one other release; see [`dunlin_protocol::PairCounts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Inputs both answered.
    pub n: u64,
    /// Of those, answers that differ.
    pub disagree: u64,
    /// Labelled inputs both got right.
    pub both_right: u64,
    /// Labelled inputs only this release got right.
    pub only_this: u64,
    /// Labelled inputs only the other release got right.
    pub only_other: u64,
    /// Labelled inputs both got wrong.
    pub both_wrong: u64,
}

impl Pairs {
    /// Labelled inputs.
    pub fn labelled(self) -> u64 {
        [self.both_right, self.only_this, self.only_other, self.both_wrong]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Adds the pairs of another stretch or device.
    pub fn merge(&mut self, other: Self) {
        self.n = self.n.saturating_add(other.n);
        self.disagree = self.disagree.saturating_add(other.disagree);
        self.both_right = self.both_right.saturating_add(other.both_right);
        self.only_this = self.only_this.saturating_add(other.only_this);
        self.only_other = self.only_other.saturating_add(other.only_other);
        self.both_wrong = self.both_wrong.saturating_add(other.both_wrong);
    }
}

/// The sum of windows of one release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Windows added.
    pub windows: u64,
    /// Requests, failed ones included.
    pub n: u64,
    /// Failed requests.
    pub errors: u64,
    /// Latency of answered requests, microseconds.
    pub latency_us: DdSketch,
    /// Answers by confidence in 20 equal bins; empty if there are none.
    pub confidence: Vec<u64>,
    /// Answers by predicted class.
    pub classes: Vec<u64>,
    /// Labels by (true class, predicted class), none of them zero.
    pub confusion: BTreeMap<(u32, u32), u64>,
    /// Paired evidence by the other release.
    pub pairs: BTreeMap<ReleaseId, Pairs>,
    /// Input counts by profile and number of bins: counts that do not fit a profile stay apart from those that do.
    features: BTreeMap<(Digest, usize), FeatureCounts>,
    /// Earliest start and latest end of the windows with wall times, Unix milliseconds.
    pub span_ms: Option<(u64, u64)>,
}

impl Summary {
    /// The sum of no windows.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sum of one window.
    pub fn of(window: &Window) -> Result<Self, WindowError> {
        if window.errors > window.n {
            return Err(WindowError::Contradiction("more errors than requests"));
        }
        if window.end_ms < window.start_ms {
            return Err(WindowError::Contradiction("it ends before it starts"));
        }
        let confidence = unpack(&window.confidence, CONFIDENCE_BINS, "confidence")?;
        let classes = unpack(&window.classes, CLASSES_MAX, "class")?;
        let answered = window.n - window.errors;
        if total(&confidence) > answered || total(&classes) > answered {
            return Err(WindowError::Contradiction("more answers than requests"));
        }
        let mut features = BTreeMap::new();
        let counts = unpack(&window.features, FEATURE_BINS_MAX, "feature")?;
        if let Some(profile) = window.profile
            && !counts.is_empty()
        {
            let key = (profile, counts.len());
            features.insert(key, FeatureCounts::new(window.n, counts, window.autocorrelation_ppm));
        }
        let pairs = window.pair.iter().map(|pair| {
            let sums = Pairs {
                n: pair.n,
                disagree: pair.disagree.min(pair.n),
                both_right: pair.both_right,
                only_this: pair.only_this,
                only_other: pair.only_other,
                both_wrong: pair.both_wrong,
            };
            (pair.other.clone(), sums)
        });
        Ok(Self {
            windows: 1,
            n: window.n,
            errors: window.errors,
            latency_us: DdSketch::from_wire(&window.latency_us).ok_or(WindowError::Latency)?,
            confidence,
            classes,
            confusion: confusion(window)?,
            pairs: pairs.collect(),
            features,
            span_ms: window.wall.then_some((window.start_ms, window.end_ms)),
        })
    }

    /// Adds one window, or nothing of it.
    pub fn add(&mut self, window: &Window) -> Result<(), WindowError> {
        let one = Self::of(window)?;
        let room = |len: usize, known: bool| known || len < KEYS_MAX;
        if !one.pairs.keys().all(|key| room(self.pairs.len(), self.pairs.contains_key(key))) {
            return Err(WindowError::TooMany("releases to pair with"));
        }
        if !one.features.keys().all(|key| room(self.features.len(), self.features.contains_key(key))) {
            return Err(WindowError::TooMany("reference profiles"));
        }
        self.merge(&one);
        Ok(())
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        self.windows = self.windows.saturating_add(other.windows);
        self.n = self.n.saturating_add(other.n);
        self.errors = self.errors.saturating_add(other.errors);
        self.latency_us.merge(&other.latency_us);
        add(&mut self.confidence, &other.confidence);
        add(&mut self.classes, &other.classes);
        for (&cell, &count) in &other.confusion {
            let sum = self.confusion.entry(cell).or_default();
            *sum = sum.saturating_add(count);
        }
        for (release, &pairs) in &other.pairs {
            self.pairs.entry(release.clone()).or_default().merge(pairs);
        }
        for (&key, counts) in &other.features {
            self.features.entry(key).or_default().merge(counts);
        }
        self.span_ms = match (self.span_ms, other.span_ms) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, None) | (None, one) => one,
        };
    }

    /// Failed requests of all.
    pub fn error_rate(&self) -> Rate {
        Rate::new(self.errors, self.n)
    }

    /// Right answers of all labelled ones.
    pub fn accuracy(&self) -> Rate {
        let sum = |right_only: bool| {
            let cells = self.confusion.iter().filter(|((row, column), _)| !right_only || row == column);
            cells.fold(0u64, |sum, (_, &count)| sum.saturating_add(count))
        };
        Rate::new(sum(true), sum(false))
    }

    /// Mean of the F1 scores of the classes that occur, as truth or as prediction; `None` without labels. It means
    /// nothing where labels were folded (see [`CONFUSION_CLASSES_MAX`]).
    pub fn macro_f1(&self) -> Option<f64> {
        let mut by_class: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for (&(row, column), &count) in &self.confusion {
            let count = count as f64;
            if row == column {
                by_class.entry(row).or_default().0 += 2.0 * count;
            }
            by_class.entry(row).or_default().1 += count;
            by_class.entry(column).or_default().1 += count;
        }
        let sum: f64 = by_class.values().map(|(twice_right, seen)| twice_right / seen).sum();
        (!by_class.is_empty()).then(|| sum / by_class.len() as f64)
    }

    /// Input counts on the profile with this digest, which has `bins` bins.
    pub fn features(&self, profile: &Digest, bins: usize) -> Option<&FeatureCounts> {
        self.features.get(&(*profile, bins))
    }

    /// Forgets the input counts, which are most of a sum's memory.
    pub fn drop_features(&mut self) {
        self.features.clear();
    }

    /// Profiles that inputs were counted on.
    pub fn profiles(&self) -> impl Iterator<Item = &Digest> {
        self.features.keys().map(|(digest, _)| digest)
    }
}

fn confusion(window: &Window) -> Result<BTreeMap<(u32, u32), u64>, WindowError> {
    let side = window.confusion.classes;
    if side as usize > CONFUSION_CLASSES_MAX {
        return Err(WindowError::Counts("confusion"));
    }
    let cells = (side * side) as usize;
    let counts = window.confusion.counts.unpack(cells).ok_or(WindowError::Counts("confusion"))?;
    let cells = (0..side).flat_map(|row| (0..side).map(move |column| (row, column)));
    Ok(cells.zip(counts).filter(|&(_, count)| count > 0).collect())
}

/// As many counts as there are: each ends with the one byte whose top bit is clear.
fn unpack(counts: &Counts, max: usize, what: &'static str) -> Result<Vec<u64>, WindowError> {
    let len = counts.0.as_slice().iter().filter(|byte| **byte < 0x80).count();
    if len > max {
        return Err(WindowError::Counts(what));
    }
    counts.unpack(len).ok_or(WindowError::Counts(what))
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
}

fn add(sum: &mut Vec<u64>, other: &[u64]) {
    if sum.len() < other.len() {
        sum.resize(other.len(), 0);
    }
    sum.iter_mut().zip(other).for_each(|(sum, &count)| *sum = sum.saturating_add(count));
}

#[cfg(test)]
#[path = "summary/tests.rs"]
mod tests;
