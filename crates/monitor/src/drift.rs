//! Whether inputs moved away from the reference: two-sample statistics on counts, with thresholds from their null
//! distributions and a least size of the effect.
//!
//! Folklore thresholds on fixed bins are false-alarm machines: PSI over 0.1 flags half of all features that did not
//! move at 200 samples. So every statistic comes with its probability under "nothing changed", features are judged
//! together (Benjamini and Hochberg 1995), and a feature counts as drifted only if its p-value survives that *and*
//! its Kolmogorov-Smirnov distance is worth a name. The sample size is deflated by the inputs' autocorrelation,
//! `n (1 - ρ) / (1 + ρ)`, because a thousand readings of one slow sensor are not a thousand samples.
//!
//! Assumed: the reference rows are independent; dependence inside the window is first-order. A Kolmogorov-Smirnov
//! test on bins is conservative: it misses what moves inside one bin and never alarms because of bins.
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{ReferenceFeature, ReferenceProfile};
use serde::{Deserialize, Serialize};

use crate::profile::{self, ProfileError};
use crate::special::{chi_square_survival, kolmogorov_q};
use crate::summary::FeatureCounts;

/// Least expected count of a bin in the smaller sample; neighbours are joined until they reach it. At λ expected
/// counts the mean of 8 JSD is `1 + 3/(8 λ)` times its limit's: with 64 bins of 6 that doubles the false alarms,
/// with 20 it is lost in the noise. At the smallest sample that is judged, 200, it leaves ten bins.
pub const EXPECTED_MIN: f64 = 20.0;

/// When inputs count as drifted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// False discovery rate over the features of one profile.
    pub false_discovery: f64,
    /// Least Kolmogorov-Smirnov distance of a feature that counts as drifted.
    pub distance_min: f64,
    /// Least share of drifted features that makes the data set drifted.
    pub share_min: f64,
    /// Least effective sample size to judge at all.
    pub effective_min: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { false_discovery: 0.01, distance_min: 0.1, share_min: 0.3, effective_min: 200.0 }
    }
}

/// Why counts can not be compared with a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriftError {
    /// The profile is broken.
    #[error("comparing counts with a reference profile")]
    Profile(#[from] ProfileError),
    /// Counts on other bins.
    #[error("comparing {counts} counts with a reference profile of {bins} bins")]
    Bins {
        /// Counts given.
        counts: usize,
        /// Bins of the profile.
        bins: usize,
    },
}

/// A statistic with its p-value: the probability of one at least as large if nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// The statistic.
    pub value: f64,
    /// The p-value.
    pub p: f64,
}

/// One feature beside its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureDrift {
    /// Name.
    pub name: String,
    /// Kolmogorov-Smirnov distance, not a number above 1.
    pub ks: Test,
    /// The Kolmogorov-Smirnov p-value adjusted for the number of features.
    pub ks_p_adjusted: f64,
    /// Jensen-Shannon distance (natural logarithm), the square root of the divergence.
    pub js: Test,
    /// Population stability index, half a count added to every bin.
    pub psi: Test,
    /// Pearson's chi-square.
    pub chi_square: Test,
    /// Share of values outside the reference's range, or missing.
    pub outside: f64,
    /// Whether the adjusted p-value and the distance both pass the limits.
    pub drifted: bool,
}

/// All features beside their reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rows counted.
    pub n: u64,
    /// What they are worth after deflation by autocorrelation.
    pub n_effective: f64,
    /// By feature, in the profile's order.
    pub features: Vec<FeatureDrift>,
    /// Share of drifted features.
    pub share: f64,
    /// Whether that share reaches the limit.
    pub drifted: bool,
}

impl Report {
    /// Drifted features, the farthest first.
    pub fn worst(&self) -> Vec<&FeatureDrift> {
        let mut drifted: Vec<_> = self.features.iter().filter(|feature| feature.drifted).collect();
        drifted.sort_by(|a, b| b.ks.value.total_cmp(&a.ks.value).then_with(|| a.name.cmp(&b.name)));
        drifted
    }
}

/// What can be said about counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Too few samples to say anything; pool them with others on the same profile.
    TooFew {
        /// Effective sample size.
        n_effective: f64,
        /// What the limits ask for.
        needed: f64,
    },
    /// Compared.
    Judged(Report),
}

/// `n (1 - ρ) / (1 + ρ)`; negative autocorrelation is not credited.
pub fn effective(n: u64, autocorrelation_ppm: i64) -> f64 {
    let rho = (autocorrelation_ppm as f64 / 1e6).clamp(0.0, 0.999);
    n as f64 * (1.0 - rho) / (1.0 + rho)
}

/// Compares counts with the profile they were counted on.
pub fn judge(
    reference: &ReferenceProfile,
    window: &FeatureCounts,
    limits: &Limits,
) -> Result<Judgement, DriftError> {
    profile::check(reference)?;
    let bins: usize = reference.features.iter().map(ReferenceFeature::bins).sum();
    if window.counts.len() != bins {
        return Err(DriftError::Bins { counts: window.counts.len(), bins });
    }
    // Every counted row is counted once by every feature.
    let first = reference.features.first().map_or(0, ReferenceFeature::bins);
    let n = total(&window.counts[..first]);
    let n_effective = effective(n, window.autocorrelation_ppm());
    if n_effective < limits.effective_min || reference.n == 0 {
        return Ok(Judgement::TooFew { n_effective, needed: limits.effective_min });
    }
    let deflation = n_effective / n as f64;
    let mut features = Vec::with_capacity(reference.features.len());
    let mut rest = window.counts.as_slice();
    for feature in &reference.features {
        let (counts, next) = rest.split_at(feature.bins());
        rest = next;
        features.push(compare(feature, counts, deflation));
    }
    adjust(&mut features);
    for feature in &mut features {
        let beyond_chance =
            feature.ks_p_adjusted <= limits.false_discovery && feature.ks.value > limits.distance_min;
        feature.drifted = beyond_chance || weaken::off(Defence::DriftEffect);
    }
    let drifted = features.iter().filter(|feature| feature.drifted).count();
    let share = if features.is_empty() { 0.0 } else { drifted as f64 / features.len() as f64 };
    Ok(Judgement::Judged(Report {
        n,
        n_effective,
        features,
        share,
        drifted: drifted > 0 && share >= limits.share_min,
    }))
}

/// Benjamini and Hochberg's adjusted p-values: a feature passes at rate `q` if its adjusted value is at most `q`.
fn adjust(features: &mut [FeatureDrift]) {
    let adjusted = benjamini_hochberg(&features.iter().map(|feature| feature.ks.p).collect::<Vec<_>>());
    features.iter_mut().zip(adjusted).for_each(|(feature, p)| feature.ks_p_adjusted = p);
}

/// Adjusted p-values in the order given: `min over j >= i of p(j) m / j` on the sorted ones.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = alloc::vec![1.0; p.len()];
    let mut least = 1.0f64;
    for (rank, &at) in order.iter().enumerate().rev() {
        least = least.min(p[at] * p.len() as f64 / (rank + 1) as f64);
        adjusted[at] = least;
    }
    adjusted
}

fn compare(feature: &ReferenceFeature, counts: &[u64], deflation: f64) -> FeatureDrift {
    let order = order(feature);
    // `profile::check` unpacked them before.
    let reference = feature.counts.unpack(feature.bins()).unwrap_or_default();
    let pairs: Vec<Pair> = order
        .iter()
        .map(|&bin| Pair { window: counts[bin] as f64, reference: reference[bin] as f64 })
        .collect();
    let size = Size::of(&pairs, deflation);
    let coarse = coarsen(&pairs, &size);
    let overflow = feature.edges.len().saturating_sub(1) + 1;
    let outside = counts[0] + counts[overflow] + counts[counts.len() - 1];
    FeatureDrift {
        name: feature.name.clone(),
        ks: kolmogorov_smirnov(&pairs, &size),
        ks_p_adjusted: 1.0,
        js: jensen_shannon(&coarse, &size),
        psi: population_stability(&coarse, &size),
        chi_square: chi_square(&coarse, &size),
        outside: if size.window > 0.0 { outside as f64 / size.window } else { 0.0 },
        drifted: false,
    }
}

/// Counts of one bin in both samples.
#[derive(Debug, Clone, Copy)]
struct Pair {
    window: f64,
    reference: f64,
}

/// Sample sizes.
#[derive(Debug, Clone, Copy)]
struct Size {
    window: f64,
    window_effective: f64,
    reference: f64,
}

impl Size {
    fn of(pairs: &[Pair], deflation: f64) -> Self {
        let window = pairs.iter().map(|pair| pair.window).sum::<f64>();
        Self {
            window,
            window_effective: window * deflation,
            reference: pairs.iter().map(|pair| pair.reference).sum(),
        }
    }

    fn is_empty(&self) -> bool {
        self.window <= 0.0 || self.reference <= 0.0
    }

    /// `1/n + 1/m`: the variance unit of a difference of shares.
    fn spread(&self) -> f64 {
        1.0 / self.window_effective + 1.0 / self.reference
    }

    fn shares(&self, pair: Pair) -> (f64, f64) {
        (pair.window / self.window, pair.reference / self.reference)
    }
}

/// Bins in the order of the values they hold, missing ones last. An atom stands before the inner bin that begins
/// with it; inside a bin it stands after it.
fn order(feature: &ReferenceFeature) -> Vec<usize> {
    let inner = feature.edges.len().saturating_sub(1);
    let bins = (0..inner).map(|i| (feature.edges[i], 1u8, i + 1));
    let atoms = feature.atoms.iter().enumerate().map(|(i, &x)| (x, 0u8, inner + 2 + i));
    let mut middle: Vec<(f32, u8, usize)> = bins.chain(atoms).collect();
    middle.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let ends = [inner + 1, inner + 2 + feature.atoms.len()];
    core::iter::once(0).chain(middle.into_iter().map(|(_, _, bin)| bin)).chain(ends).collect()
}

/// Joins neighbours until each has [`EXPECTED_MIN`] expected counts in the smaller sample.
fn coarsen(pairs: &[Pair], size: &Size) -> Vec<Pair> {
    let smaller = size.window_effective.min(size.reference);
    let enough = |pair: &Pair| {
        // Both samples together estimate the common share; each weighs what it is worth.
        let together = pair.window * size.window_effective / size.window + pair.reference;
        together / (size.window_effective + size.reference) * smaller >= EXPECTED_MIN
    };
    let mut joined: Vec<Pair> = Vec::new();
    let mut open = Pair { window: 0.0, reference: 0.0 };
    for pair in pairs {
        open = Pair { window: open.window + pair.window, reference: open.reference + pair.reference };
        if enough(&open) {
            joined.push(open);
            open = Pair { window: 0.0, reference: 0.0 };
        }
    }
    match joined.last_mut() {
        Some(last) => {
            last.window += open.window;
            last.reference += open.reference;
        }
        None => joined.push(open),
    }
    joined
}

/// The largest difference of the distribution functions; p by Kolmogorov's limit `Q_KS(D sqrt(nm/(n+m)))`.
fn kolmogorov_smirnov(pairs: &[Pair], size: &Size) -> Test {
    if size.is_empty() {
        return Test { value: 0.0, p: 1.0 };
    }
    let (mut difference, mut distance) = (0.0f64, 0.0f64);
    for &pair in pairs {
        let (p, q) = size.shares(pair);
        difference += p - q;
        distance = distance.max(difference.abs());
    }
    Test { value: distance, p: kolmogorov_q(distance / libm::sqrt(size.spread())) }
}

/// The square root of `(KL(p|m) + KL(q|m)) / 2`, `m` the mean; `8 JSD / (1/n + 1/m) ~ χ²(B - 1)` if nothing changed.
fn jensen_shannon(pairs: &[Pair], size: &Size) -> Test {
    if size.is_empty() {
        return Test { value: 0.0, p: 1.0 };
    }
    let part = |share: f64, mean: f64| if share > 0.0 { share * libm::log(share / mean) } else { 0.0 };
    let sum: f64 = pairs
        .iter()
        .map(|&pair| {
            let (p, q) = size.shares(pair);
            let mean = 0.5 * (p + q);
            0.5 * (part(p, mean) + part(q, mean))
        })
        .sum();
    let divergence = sum.max(0.0);
    Test {
        value: libm::sqrt(divergence),
        p: chi_square_survival(8.0 * divergence / size.spread(), freedom(pairs)),
    }
}

/// `Σ (p - q) ln(p/q)` with half a count more in every bin; over `1/n + 1/m` it is `χ²(B - 1)` if nothing changed
/// (Yurdakul 2018).
fn population_stability(pairs: &[Pair], size: &Size) -> Test {
    if size.is_empty() {
        return Test { value: 0.0, p: 1.0 };
    }
    let half = 0.5 * pairs.len() as f64;
    let index: f64 = pairs
        .iter()
        .map(|pair| {
            let (p, q) = (
                (pair.window + 0.5) / (size.window + half),
                (pair.reference + 0.5) / (size.reference + half),
            );
            (p - q) * libm::log(p / q)
        })
        .sum();
    Test { value: index, p: chi_square_survival(index / size.spread(), freedom(pairs)) }
}

/// Pearson's statistic on the 2 x B table, the window's counts deflated.
fn chi_square(pairs: &[Pair], size: &Size) -> Test {
    if size.is_empty() {
        return Test { value: 0.0, p: 1.0 };
    }
    let all = size.window_effective + size.reference;
    let statistic: f64 = pairs
        .iter()
        .map(|pair| {
            let window = pair.window * size.window_effective / size.window;
            let expected = (window + pair.reference) * size.window_effective / all;
            let difference = window - expected;
            // What one row has too much the other has too little.
            if expected > 0.0 {
                difference * difference * (1.0 / expected + size.window_effective / size.reference / expected)
            } else {
                0.0
            }
        })
        .sum();
    Test { value: statistic, p: chi_square_survival(statistic, freedom(pairs)) }
}

fn freedom(pairs: &[Pair]) -> f64 {
    pairs.len() as f64 - 1.0
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
}

#[cfg(test)]
#[path = "drift/tests.rs"]
mod tests;
