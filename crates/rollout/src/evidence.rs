//! What a wave's gate stands on.
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use dunlin_protocol::ReleaseId;
use serde::{Deserialize, Serialize};

use crate::sequential::{Sample, Tally, design_effect, log_wealth};
use crate::{Member, Paired, Policy, Wave};

/// Fewer devices than this make the normal approximation of the device-level test worthless.
const DEVICES_MIN: usize = 10;
/// A device with fewer labelled inputs has no mean gain worth the name.
const LABELS_PER_DEVICE_MIN: u64 = 10;

/// What the decision counts as one observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A device's mean gain: the device-level test has the power the policy asks for.
    Device,
    /// A labelled input, deflated for dependence within a device: the device-level test is too weak.
    Input,
}

/// Paired evidence and both tests, in numbers. Logarithms are natural; a test is decided at `needed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// What decided.
    pub unit: Unit,
    /// Power of the device-level test for the policy's effect, parts per million; zero with too few devices.
    pub device_power_ppm: u32,
    /// Devices with enough labelled inputs for the device-level test.
    pub devices: usize,
    /// Counts over all devices of the wave.
    pub paired: Paired,
    /// Mean gain in accuracy, parts per million; negative is worse.
    pub gain_ppm: i64,
    /// By how much the inputs were deflated, in thousandths.
    pub design_effect_milli: u64,
    /// Logarithm of the evidence that the worst candidate is worse than what it replaces.
    pub harm: f64,
    /// Logarithm of the evidence that the candidates are not inferior by more than the margin.
    pub not_inferior: f64,
    /// What either must reach: `ln(2/α)`, as two units share `α`; for harm `ln k` is added with `k` candidates.
    pub needed: f64,
}

/// What the evidence says about quality.
#[derive(Debug, Clone, PartialEq)]
pub enum Quality {
    /// The wave does not gate it.
    NotGated,
    /// Not enough labelled inputs to judge.
    TooFew {
        /// Labelled inputs there are.
        have: u64,
        /// Labelled inputs the wave asks for.
        need: u64,
        /// What there is.
        evidence: Evidence,
    },
    /// This candidate is worse.
    Harmful(ReleaseId, Evidence),
    /// Neither is shown.
    Undecided(Evidence),
    /// Not inferior by more than the margin.
    NotInferior(Evidence),
}

fn share(ppm: u32) -> f64 {
    f64::from(ppm) / 1e6
}

/// Whether and how the candidates differ from what they replace on these devices.
pub(crate) fn assess<'a>(policy: &Policy, wave: &Wave, members: impl Iterator<Item = &'a Member>) -> Quality {
    let mut by_release: BTreeMap<&ReleaseId, Vec<Paired>> = BTreeMap::new();
    for member in members {
        if let Some(release) = member.progress.release() {
            by_release.entry(release).or_default().push(member.paired);
        }
    }
    let needed = libm::log(2.0 / share(wave.alpha_ppm));
    let all: Vec<Paired> = by_release.values().flatten().copied().collect();
    let pooled = Look::new(policy, wave, &all);
    #[allow(clippy::cast_precision_loss, reason = "candidates are few")]
    let candidates = libm::log(by_release.len().max(1) as f64);
    let worst = by_release
        .iter()
        .map(|(release, devices)| (*release, Look::new(policy, wave, devices).harm() - candidates))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let harm = worst.map_or(0.0, |(_, harm)| harm);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within a million, and no less than 1"
    )]
    let evidence = Evidence {
        unit: pooled.unit(),
        device_power_ppm: (pooled.power * 1e6) as u32,
        devices: pooled.sample.map_or(0, |(devices, _)| devices),
        paired: pooled.paired,
        gain_ppm: libm::round(pooled.paired.gain() * 1e6) as i64,
        design_effect_milli: (pooled.deflation * 1e3) as u64,
        harm,
        not_inferior: pooled.not_inferior(),
        needed,
    };
    let have = evidence.paired.n();
    match worst {
        // Harm is acted on from the first input on: the test is valid at every look.
        Some((release, harm)) if harm >= needed => Quality::Harmful(release.clone(), evidence),
        _ if wave.labels_min == 0 => Quality::NotGated,
        _ if have < wave.labels_min => Quality::TooFew { have, need: wave.labels_min, evidence },
        _ if evidence.not_inferior >= needed => Quality::NotInferior(evidence),
        _ => Quality::Undecided(evidence),
    }
}

/// Both tests on one set of devices.
struct Look {
    paired: Paired,
    tally: Tally,
    deflation: f64,
    sample: Option<(usize, Sample)>,
    power: f64,
    power_min: f64,
    margin: f64,
    effect: f64,
}

impl Look {
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    fn new(policy: &Policy, wave: &Wave, devices: &[Paired]) -> Self {
        let mut paired = Paired::default();
        devices.iter().for_each(|device| paired.add(device));
        let n = (paired.n() as f64).max(1.0);
        let second_moment = (paired.only_new + paired.only_old) as f64 / n;
        let gains: Vec<(f64, u64)> =
            devices.iter().filter(|d| d.n() > 0).map(|d| (d.gain(), d.n())).collect();
        let deflation = design_effect(&gains, second_moment, share(policy.correlation_ppm));
        let tally = Tally {
            gained: paired.only_new as f64 / deflation,
            lost: paired.only_old as f64 / deflation,
            tied: (paired.both_right + paired.both_wrong) as f64 / deflation,
        };
        let sample = sample(&gains, second_moment);
        let effect = share(policy.effect_ppm);
        // Half of alpha belongs to either unit.
        let power =
            sample.map_or(0.0, |(_, sample)| sample.power(effect, effect, share(wave.alpha_ppm) / 2.0));
        let power_min = share(policy.power_ppm_min);
        Self { paired, tally, deflation, sample, power, power_min, margin: share(policy.margin_ppm), effect }
    }

    /// The sample, if the device-level test is the one that decides.
    fn deciding(&self) -> Option<Sample> {
        self.sample.map(|(_, sample)| sample).filter(|_| self.power >= self.power_min)
    }

    fn unit(&self) -> Unit {
        if self.deciding().is_some() { Unit::Device } else { Unit::Input }
    }

    fn harm(&self) -> f64 {
        match self.deciding() {
            Some(sample) if sample.mean < 0.0 => sample.log_ratio(0.0, self.effect),
            Some(_) => 0.0,
            None => log_wealth(self.tally.mirrored(), 0.0),
        }
    }

    fn not_inferior(&self) -> f64 {
        match self.deciding() {
            Some(sample) if sample.mean > -self.margin => sample.log_ratio(-self.margin, self.effect),
            Some(_) => 0.0,
            None => log_wealth(self.tally, -self.margin),
        }
    }
}

/// Mean and variance of the devices' gains. The variance is not taken smaller than chance alone would make
/// it, as a handful of equal devices would else look infinitely sure.
#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn sample(gains: &[(f64, u64)], second_moment: f64) -> Option<(usize, Sample)> {
    let devices: Vec<&(f64, u64)> = gains.iter().filter(|(_, n)| *n >= LABELS_PER_DEVICE_MIN).collect();
    if devices.len() < DEVICES_MIN {
        return None;
    }
    let n = devices.len() as f64;
    let inputs: f64 = devices.iter().map(|(_, n)| *n as f64).sum();
    let mean = devices.iter().map(|(gain, _)| gain).sum::<f64>() / n;
    let seen = devices.iter().map(|(gain, _)| (gain - mean) * (gain - mean)).sum::<f64>() / (n - 1.0);
    let chance = second_moment.max(1.0 / inputs) / (inputs / n);
    Some((devices.len(), Sample { n, mean, variance: seen.max(chance) }))
}
