//! Tests that stay valid however often one looks.
//!
//! *Paired inputs.* Each labelled input that both releases answered is worth `x = +1` if only the candidate
//! was right, `-1` if only the previous release was, else `0`. Against the hypothesis `E[x] ≤ μ` the wealth
//! of a bettor who stakes the share `λ` on every input, `∏ (1 + λ(x - μ))` with `0 ≤ λ < 1/(1 + μ)`, is a
//! non-negative supermartingale, so by Ville's inequality it ever exceeds `1/α` with probability at most `α`
//! (Waudby-Smith, Ramdas 2024). The average over a grid of stakes is one too, and depends on counts alone.
//! For `μ = 0` this is the one-sided beta-binomial mixture on the discordant pairs, `θ = (1 + λ)/2`.
//!
//! *Devices.* The mixture sequential probability ratio test (Johari, Pekelis, Walsh 2017) on each device's
//! mean gain, normal mixture of scale `τ`.
use alloc::vec::Vec;

/// Stakes of the mixture. With 48 of them the best one on the grid is within 3 % of the best one at all.
const STAKES: u32 = 48;

/// Weighted counts of paired inputs. Weights below one stand for inputs that are not independent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tally {
    /// Inputs that only the candidate got right.
    pub gained: f64,
    /// Inputs that only the previous release got right.
    pub lost: f64,
    /// Inputs on which both were right or both wrong.
    pub tied: f64,
}

impl Tally {
    /// The same with candidate and previous release exchanged.
    pub fn mirrored(self) -> Self {
        Self { gained: self.lost, lost: self.gained, tied: self.tied }
    }
}

/// Natural logarithm of the mixture wealth against `E[x] ≤ mean_max`; `mean_max` in `(-1, 1)`.
///
/// To show that a candidate is worse, give the mirrored tally and 0; to show that it is not inferior by more
/// than `m`, give the tally and `-m`.
pub fn log_wealth(tally: Tally, mean_max: f64) -> f64 {
    let logs: Vec<f64> = (0..STAKES)
        .map(|i| {
            // Stakes spaced by squares: small edges need small stakes.
            let part = (f64::from(i) + 0.5) / f64::from(STAKES);
            let stake = part * part / (1.0 + mean_max);
            tally.gained * libm::log1p(stake * (1.0 - mean_max))
                + tally.tied * libm::log1p(-stake * mean_max)
                + tally.lost * libm::log1p(-stake * (1.0 + mean_max))
        })
        .collect();
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|log| libm::exp(log - top)).sum();
    top + libm::log(sum / f64::from(STAKES))
}

/// How much less `n` inputs say than `n` independent ones: `(gain_i, n_i)` by device.
///
/// Kish's `1 + (m - 1)ρ` with the assumed correlation, or, from `DEVICES_MIN` devices on, the ratio of the
/// variance between devices to that of independent inputs, whichever is larger; never below one.
#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub fn design_effect(devices: &[(f64, u64)], second_moment: f64, correlation: f64) -> f64 {
    /// Fewer devices say nothing about the variance between them.
    const DEVICES_MIN: usize = 5;
    let inputs: f64 = devices.iter().map(|(_, n)| *n as f64).sum();
    if inputs == 0.0 {
        return 1.0;
    }
    // Size-weighted mean cluster size, which is what matters for unequal clusters.
    let cluster = devices.iter().map(|(_, n)| (*n as f64) * (*n as f64)).sum::<f64>() / inputs;
    let assumed = 1.0 + (cluster - 1.0).max(0.0) * correlation;
    let mean = devices.iter().map(|(gain, n)| gain * *n as f64).sum::<f64>() / inputs;
    let independent = (second_moment - mean * mean) / inputs;
    let seen = if devices.len() >= DEVICES_MIN && independent > 0.0 {
        let k = devices.len() as f64;
        let between: f64 =
            devices.iter().map(|(gain, n)| (*n as f64 * (gain - mean)) * (*n as f64 * (gain - mean))).sum();
        k / (k - 1.0) * between / (inputs * inputs) / independent
    } else {
        1.0
    };
    assumed.max(seen).max(1.0)
}

/// A sample of one number per device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Devices.
    pub n: f64,
    /// Mean.
    pub mean: f64,
    /// Variance of one device.
    pub variance: f64,
}

impl Sample {
    /// Natural logarithm of the mSPRT's likelihood ratio against mean `at`, with mixture scale `tau`:
    /// `½ ln(V/(V + nτ²)) + n²τ²d²/(2V(V + nτ²))`.
    pub fn log_ratio(&self, at: f64, tau: f64) -> f64 {
        let (v, n, t2, d) = (self.variance, self.n, tau * tau, self.mean - at);
        0.5 * libm::log(v / (v + n * t2)) + n * n * t2 * d * d / (2.0 * v * (v + n * t2))
    }

    /// Half the width of the interval that holds the mean at every look with probability `1 - alpha`.
    pub fn half_width(&self, tau: f64, alpha: f64) -> f64 {
        let (v, n, t2) = (self.variance, self.n, tau * tau);
        libm::sqrt(v * (v + n * t2) / (n * n * t2) * libm::log((v + n * t2) / (v * alpha * alpha)))
    }

    /// Probability that a true shift of `effect` is seen at this look: `Φ((effect - w)/√(V/n))`, `w` the half
    /// width. Earlier looks can only add to it.
    pub fn power(&self, effect: f64, tau: f64, alpha: f64) -> f64 {
        normal_cdf((effect - self.half_width(tau, alpha)) / libm::sqrt(self.variance / self.n))
    }
}

fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z / core::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(gained: f64, lost: f64, tied: f64) -> Tally {
        Tally { gained, lost, tied }
    }

    #[test]
    fn no_evidence_is_a_wealth_of_one() {
        assert!(log_wealth(tally(0.0, 0.0, 0.0), 0.0).abs() < 1e-12);
        assert!(
            log_wealth(tally(0.0, 0.0, 500.0), 0.0).abs() < 1e-12,
            "ties say nothing about which is better"
        );
    }

    #[test]
    fn wealth_is_a_martingale_at_the_edge_of_the_hypothesis() {
        // E[x] = mean_max exactly: the expected wealth after one more input equals the wealth before.
        let (mean_max, gained, lost) = (-0.1_f64, 0.2_f64, 0.3_f64);
        let before = tally(7.0, 3.0, 12.0);
        let after =
            |g: f64, l: f64, t: f64| libm::exp(log_wealth(tally(7.0 + g, 3.0 + l, 12.0 + t), mean_max));
        let expected =
            gained * after(1.0, 0.0, 0.0) + lost * after(0.0, 1.0, 0.0) + 0.5 * after(0.0, 0.0, 1.0);
        let relative = expected / libm::exp(log_wealth(before, mean_max));
        assert!((relative - 1.0).abs() < 1e-9, "{relative}");
    }

    #[test]
    fn a_clear_loss_is_seen_and_its_mirror_is_not() {
        let worse = tally(2.0, 30.0, 100.0);
        assert!(log_wealth(worse.mirrored(), 0.0) > libm::log(100.0));
        assert!(log_wealth(worse, 0.0) < 0.0);
    }

    #[test]
    fn a_large_gain_is_not_inferior_and_a_tie_needs_far_more_inputs() {
        assert!(log_wealth(tally(30.0, 5.0, 85.0), -0.01) > libm::log(100.0));
        assert!(log_wealth(tally(3.0, 3.0, 114.0), -0.01) < libm::log(100.0));
        assert!(log_wealth(tally(300.0, 300.0, 59_400.0), -0.01) > libm::log(100.0));
    }

    #[test]
    fn dependent_inputs_count_less() {
        let alike: Vec<_> = (0..10).map(|_| (0.0, 100)).collect();
        assert!((design_effect(&alike, 0.1, 0.02) - 2.98).abs() < 1e-9, "Kish's formula");
        let split: Vec<_> = (0..10).map(|i| (if i % 2 == 0 { 0.3 } else { -0.3 }, 100)).collect();
        assert!(design_effect(&split, 0.3, 0.02) > 20.0, "devices that disagree are the larger effect");
        assert!((design_effect(&[], 0.0, 0.02) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_interval_and_the_ratio_are_one_test() {
        let sample = Sample { n: 40.0, mean: -0.06, variance: 0.004 };
        let (tau, alpha) = (0.05, 0.01);
        let edge = sample.mean + sample.half_width(tau, alpha);
        assert!((sample.log_ratio(edge, tau) - libm::log(1.0 / alpha)).abs() < 1e-9);
        assert!(sample.power(0.05, tau, alpha) > Sample { n: 8.0, ..sample }.power(0.05, tau, alpha));
    }
}
