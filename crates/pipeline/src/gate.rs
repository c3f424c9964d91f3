use dunlin_protocol::weaken::{self, Defence};
use serde::{Deserialize, Serialize};

/// What a retrained model must show over the incumbent on held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gain {
    /// Probability of deploying a model that is no better, parts per million.
    pub alpha_ppm: u32,
    /// Least gain in accuracy, parts per million.
    pub gain_ppm_min: u32,
    /// Fewer held-out rows than this decide nothing.
    pub rows_min: u64,
}

impl Default for Gain {
    /// 5 %, one point, 100 rows.
    fn default() -> Self {
        Self { alpha_ppm: 50_000, gain_ppm_min: 10_000, rows_min: 100 }
    }
}

/// New and incumbent model on the same held-out rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Both right.
    pub both_right: u64,
    /// Only the new model right.
    pub only_new: u64,
    /// Only the incumbent right.
    pub only_old: u64,
    /// Both wrong.
    pub both_wrong: u64,
}

impl Compared {
    /// From the answers, row by row.
    pub fn of(truth: &[u32], new: &[u32], old: &[u32]) -> Self {
        let mut compared = Self::default();
        for ((truth, new), old) in truth.iter().zip(new).zip(old) {
            let count = match (new == truth, old == truth) {
                (true, true) => &mut compared.both_right,
                (true, false) => &mut compared.only_new,
                (false, true) => &mut compared.only_old,
                (false, false) => &mut compared.both_wrong,
            };
            *count += 1;
        }
        compared
    }

    /// Rows.
    pub fn n(&self) -> u64 {
        self.both_right + self.only_new + self.only_old + self.both_wrong
    }
}

/// What a verdict stands on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// The counts.
    pub compared: Compared,
    /// Gain in accuracy, parts per million.
    pub gain_ppm: i64,
    /// One-sided exact p-value of McNemar's test.
    pub p_value: f64,
}

/// Why a model is not deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoGain {
    /// Too few held-out rows.
    TooFewRows,
    /// The gain may be chance.
    NotSignificant,
    /// The gain is smaller than the task asks for.
    TooSmall,
}

/// Whether a retrained model goes on to a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum GainVerdict {
    /// It does.
    Deploy(Numbers),
    /// It does not.
    NoGain {
        /// Why.
        because: NoGain,
        /// The numbers.
        numbers: Numbers,
    },
}

impl GainVerdict {
    /// Whether it goes on.
    pub fn deploys(&self) -> bool {
        match self {
            Self::Deploy(_) => true,
            Self::NoGain { .. } => weaken::off(Defence::Gain),
        }
    }
}

/// McNemar's exact one-sided test on the rows on which the models differ (a sign test: under "no better" each
/// of them is a fair coin or worse), and a least gain.
pub fn compare(gate: &Gain, compared: &Compared) -> GainVerdict {
    let n = compared.n();
    let difference = i128::from(compared.only_new) - i128::from(compared.only_old);
    let gain_ppm = i64::try_from(difference * 1_000_000 / i128::from(n.max(1))).expect("within a million");
    let p_value = upper_tail(compared.only_new, compared.only_new + compared.only_old);
    let numbers = Numbers { compared: *compared, gain_ppm, p_value };
    let no = |because| GainVerdict::NoGain { because, numbers };
    if n < gate.rows_min.max(1) {
        no(NoGain::TooFewRows)
    } else if p_value > f64::from(gate.alpha_ppm) / 1e6 {
        no(NoGain::NotSignificant)
    } else if gain_ppm < i64::from(gate.gain_ppm_min) {
        no(NoGain::TooSmall)
    } else {
        GainVerdict::Deploy(numbers)
    }
}

/// `P(X ≥ k)` for `X ~ Bin(n, ½)`, summed from the largest term down.
#[allow(clippy::cast_precision_loss, reason = "row counts stay far below 2^52")]
fn upper_tail(k: u64, n: u64) -> f64 {
    let ln_factorial = |x: u64| libm::lgamma(x as f64 + 1.0);
    let ln_half = n as f64 * core::f64::consts::LN_2;
    let term = |i: u64| libm::exp(ln_factorial(n) - ln_factorial(i) - ln_factorial(n - i) - ln_half);
    (k..=n).map(term).sum::<f64>().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(only_new: u64, only_old: u64) -> Compared {
        Compared { both_right: 160, only_new, only_old, both_wrong: 20 }
    }

    #[test]
    fn the_tail_is_the_binomials() {
        assert!((upper_tail(0, 10) - 1.0).abs() < 1e-12);
        assert!((upper_tail(9, 10) - 11.0 / 1024.0).abs() < 1e-12);
        assert!((upper_tail(0, 0) - 1.0).abs() < 1e-12);
        assert!((upper_tail(5001, 10_000) - 0.496).abs() < 1e-3);
    }

    #[test]
    fn each_no_has_its_reason() {
        let gate = Gain::default();
        let because = |compared: Compared| match compare(&gate, &compared) {
            GainVerdict::NoGain { because, .. } => Some(because),
            GainVerdict::Deploy(_) => None,
        };
        assert_eq!(because(counts(20, 2)), None);
        assert_eq!(because(counts(6, 4)), Some(NoGain::NotSignificant));
        assert_eq!(because(Compared { both_right: 10_000, ..counts(60, 10) }), Some(NoGain::TooSmall));
        assert_eq!(because(Compared { only_new: 50, ..Compared::default() }), Some(NoGain::TooFewRows));
        assert_eq!(because(counts(2, 30)), Some(NoGain::NotSignificant));
    }

    proptest! {
        #[test]
        fn an_exchange_never_deploys_both_ways(new in 0u64..300, old in 0u64..300) {
            let gate = Gain { rows_min: 1, ..Gain::default() };
            prop_assert!(!(compare(&gate, &counts(new, old)).deploys() && compare(&gate, &counts(old, new)).deploys()));
        }

        #[test]
        fn one_more_right_answer_never_turns_a_yes_into_a_no(new in 0u64..200, old in 0u64..200) {
            let gate = Gain { rows_min: 1, gain_ppm_min: 0, ..Gain::default() };
            if compare(&gate, &counts(new, old)).deploys() {
                prop_assert!(compare(&gate, &counts(new + 1, old)).deploys());
            }
        }
    }
}
