use core::fmt;

use dunlin_monitor::rate::Rate;
use serde::{Deserialize, Serialize};

use crate::{Device, Policy};

/// Rows of validation that a prediction counts for at most: they were not drawn where the model runs.
const PREDICTED_ROWS_MAX: f64 = 500.0;
/// Labels that a class counts for at most in the judgement of one of its devices.
const CLASS_LABELS_MAX: f64 = 500.0;
/// Labels that all of what was measured earlier counts for at most: it was true once, and may be again.
const EARLIER_LABELS_MAX: f64 = 500.0;
/// Nothing known at all: one right and one wrong answer.
const UNKNOWN: (f64, f64) = (1.0, 1.0);
/// Failures expected before any request: one in a hundred, on half a failure.
const FAILURE_PRIOR: (f64, f64) = (0.5, 49.5);
/// Requests from which a measured median counts.
const LATENCY_REQUESTS_MIN: u64 = 100;

/// What was measured in the field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Right answers among labelled ones.
    pub labels: Rate,
    /// Failed requests.
    pub failures: Rate,
    /// Median latency in service, microseconds.
    pub latency_us: Option<u64>,
    /// Median latency while proving, microseconds.
    pub proof_us: Option<u64>,
}

/// What the bundle says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicted {
    /// Accuracy in validation, parts per million.
    pub accuracy_ppm: Option<u32>,
    /// Rows it stands on.
    pub rows: u64,
    /// Median latency of one row, microseconds.
    pub latency_us: u64,
}

/// Right answers among labelled ones before the time that [`Measured`] is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// On this device.
    pub device: Rate,
    /// On the other devices of its class.
    pub class: Rate,
}

/// All that is known of a release where it would run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// On this device.
    pub device: Measured,
    /// On the other devices of its class.
    pub class: Measured,
    /// Before that.
    pub earlier: Earlier,
    /// In the bundle.
    pub predicted: Predicted,
}

/// Where a latency comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencySource {
    /// Measured in service on this device.
    Device,
    /// Measured while proving on this device.
    Proof,
    /// Measured in service on the class.
    Class,
    /// Predicted by the bundle.
    Predicted,
}

impl fmt::Display for LatencySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "measured here",
            Self::Proof => "measured while proving here",
            Self::Class => "measured on the class",
            Self::Predicted => "predicted",
        })
    }
}

/// A utility and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// What candidates are ranked by: the utility less one standard deviation.
    pub cautious: f64,
    /// Expected utility: the sum of the four parts.
    pub utility: f64,
    /// Standard deviation of the utility, from the accuracy's.
    pub deviation: f64,
    /// Expected share of right answers, shrunk; failures count as wrong.
    pub accuracy: f64,
    /// Labelled answers behind it, on the device and on the class.
    pub labels: (u64, u64),
    /// Earlier ones, on both.
    pub labels_earlier: u64,
    /// Part of the accuracy.
    pub accuracy_part: f64,
    /// Median latency, microseconds.
    pub latency_us: u64,
    /// Where that comes from.
    pub latency_source: LatencySource,
    /// Part of the latency, not positive.
    pub latency_part: f64,
    /// Part of the bundle's size, not positive.
    pub bytes_part: f64,
    /// Part of the energy proxy, not positive.
    pub energy_part: f64,
}

/// The best known median latency.
pub(crate) fn latency(evidence: &Evidence) -> (u64, LatencySource) {
    let served =
        |measured: &Measured| measured.latency_us.filter(|_| measured.failures.n >= LATENCY_REQUESTS_MIN);
    if let Some(us) = served(&evidence.device) {
        (us, LatencySource::Device)
    } else if let Some(us) = evidence.device.proof_us {
        (us, LatencySource::Proof)
    } else if let Some(us) = served(&evidence.class) {
        (us, LatencySource::Class)
    } else {
        (evidence.predicted.latency_us, LatencySource::Predicted)
    }
}

/// Mean and standard deviation of the accuracy: a beta posterior at each level, its mean the prior of the next
/// (prediction, class, device; in each of the latter what was earlier, then what is now) with a bounded weight. So what was
/// measured turns into doubt as it ages, and not back into the prediction.
fn accuracy(evidence: &Evidence) -> (f64, f64) {
    let mut prior = UNKNOWN;
    if let Some(ppm) = evidence.predicted.accuracy_ppm {
        let (share, rows) = (f64::from(ppm.min(1_000_000)) / 1e6, evidence.predicted.rows as f64);
        let weight = rows.min(PREDICTED_ROWS_MAX);
        prior = (prior.0 + share * weight, prior.1 + (1.0 - share) * weight);
    }
    let then_now =
        |prior, earlier, labels| observed(shrunk(observed(prior, earlier), EARLIER_LABELS_MAX), labels);
    let class = then_now(prior, evidence.earlier.class, evidence.class.labels);
    let device = then_now(shrunk(class, CLASS_LABELS_MAX), evidence.earlier.device, evidence.device.labels);
    let n = device.0 + device.1;
    let mean = device.0 / n;
    (mean, libm::sqrt(mean * (1.0 - mean) / (n + 1.0)))
}

fn observed(prior: (f64, f64), rate: Rate) -> (f64, f64) {
    (prior.0 + rate.hits as f64, prior.1 + rate.n.saturating_sub(rate.hits) as f64)
}

fn shrunk(beta: (f64, f64), weight_max: f64) -> (f64, f64) {
    let scale = (weight_max / (beta.0 + beta.1)).min(1.0);
    (beta.0 * scale, beta.1 * scale)
}

fn failure_rate(evidence: &Evidence) -> f64 {
    let class = observed(FAILURE_PRIOR, evidence.class.failures);
    let (failed, answered) = observed(shrunk(class, CLASS_LABELS_MAX), evidence.device.failures);
    failed / (failed + answered)
}

/// Scores an eligible candidate. Every part is absolute, so that other candidates do not change it.
pub(crate) fn score(
    device: &Device<'_>,
    evidence: &Evidence,
    bundle_bytes: u64,
    limit_us: u64,
    policy: &Policy,
) -> Score {
    let weights = &policy.weights;
    let (right, deviation) = accuracy(evidence);
    let answered = 1.0 - failure_rate(evidence);
    let (latency_us, latency_source) = latency(evidence);
    let share = |used: u64, of: u64| used as f64 / of.max(1) as f64;
    let busy = latency_us as f64 * policy.requests_per_hour / 3.6e9;
    let accuracy_part = weights.accuracy * right * answered;
    let latency_part = -weights.latency * share(latency_us, limit_us);
    let bytes_part = -weights.bytes * share(bundle_bytes, device.profile.budgets.model_bytes_max);
    let energy_part = -weights.energy * busy;
    let utility = accuracy_part + latency_part + bytes_part + energy_part;
    let deviation = weights.accuracy * deviation * answered;
    Score {
        cautious: utility - deviation,
        utility,
        deviation,
        accuracy: right * answered,
        labels: (evidence.device.labels.n, evidence.class.labels.n),
        labels_earlier: evidence.earlier.device.plus(evidence.earlier.class).n,
        accuracy_part,
        latency_us,
        latency_source,
        latency_part,
        bytes_part,
        energy_part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(predicted_ppm: u32, class: Rate, device: Rate) -> Evidence {
        Evidence {
            predicted: Predicted { accuracy_ppm: Some(predicted_ppm), rows: 1000, latency_us: 100 },
            class: Measured { labels: class, ..Measured::default() },
            device: Measured { labels: device, ..Measured::default() },
            earlier: Earlier::default(),
        }
    }

    #[test]
    fn few_labels_do_not_swing_and_many_do() {
        let none = Rate::default();
        let mean = |class, device| accuracy(&evidence(900_000, class, device)).0;
        assert!((mean(none, none) - 0.9).abs() < 0.01);
        assert!(mean(none, Rate::new(0, 5)) > 0.88, "five wrong answers in a row");
        assert!((mean(none, Rate::new(3_000, 6_000)) - 0.5).abs() < 0.04);
        assert!((mean(Rate::new(60_000, 100_000), none) - 0.6).abs() < 0.01);
        assert!((mean(Rate::new(60_000, 100_000), Rate::new(4_500, 5_000)) - 0.87).abs() < 0.01);
    }

    #[test]
    fn what_was_measured_ages_into_doubt_and_not_into_trust() {
        let (none, bad) = (Rate::default(), Rate::new(3_000, 6_000));
        let now = accuracy(&evidence(950_000, none, bad));
        let aged = |device, class| {
            accuracy(&Evidence { earlier: Earlier { device, class }, ..evidence(950_000, none, none) })
        };
        for (mean, deviation) in [aged(bad, none), aged(none, bad)] {
            assert!((mean - now.0).abs() < 0.01, "the same is expected: {mean}");
            assert!(deviation > 3.0 * now.1, "and less surely: {deviation}");
        }
        let again = Evidence {
            earlier: Earlier { device: bad, class: bad },
            ..evidence(950_000, none, Rate::new(4_700, 5_000))
        };
        assert!(accuracy(&again).0 > 0.89, "what is measured now soon counts more");
    }

    #[test]
    fn nothing_known_is_wide() {
        let (mean, deviation) = accuracy(&Evidence::default());
        assert!(mean == 0.5 && deviation > 0.25);
    }

    #[test]
    fn latency_comes_from_the_nearest_measurement() {
        let mut all = evidence(900_000, Rate::default(), Rate::default());
        assert_eq!(latency(&all), (100, LatencySource::Predicted));
        all.class = Measured { latency_us: Some(200), failures: Rate::new(0, 100), ..Measured::default() };
        assert_eq!(latency(&all), (200, LatencySource::Class));
        all.device.proof_us = Some(300);
        assert_eq!(latency(&all), (300, LatencySource::Proof));
        all.device = Measured { latency_us: Some(400), failures: Rate::new(0, 99), ..all.device };
        assert_eq!(latency(&all).1, LatencySource::Proof);
        all.device.failures.n = 100;
        assert_eq!(latency(&all), (400, LatencySource::Device));
    }
}
