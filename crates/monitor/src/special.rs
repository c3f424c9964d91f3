//! Distribution functions, in IEEE basic operations and `libm` alone so that they give the same bits everywhere.
//!
//! Incomplete gamma by series and continued fraction (Press et al., "Numerical Recipes", §6.2), the Kolmogorov
//! distribution by its two theta series (§6.14), the normal quantile by Wichura's AS 241 (1988).

const TERMS_MAX: u32 = 10_000;
const EPSILON: f64 = 1e-16;

/// Standard normal distribution function.
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * core::f64::consts::FRAC_1_SQRT_2)
}

/// Standard normal quantile of `p` in (0, 1); infinite at the ends, NaN outside.
pub fn normal_quantile(p: f64) -> f64 {
    if !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        return q * ratio(0.180625 - q * q, &CENTRE);
    }
    let tail = if q < 0.0 { p } else { 1.0 - p };
    if tail <= 0.0 {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let r = libm::sqrt(-libm::log(tail));
    let z = if r <= 5.0 { ratio(r - 1.6, &MIDDLE) } else { ratio(r - 5.0, &FAR) };
    if q < 0.0 { -z } else { z }
}

/// Numerator and denominator coefficients, lowest power first.
type Ratio = [[f64; 8]; 2];

fn ratio(r: f64, [above, below]: &Ratio) -> f64 {
    let polynomial = |coefficients: &[f64; 8]| coefficients.iter().rev().fold(0.0, |sum, c| sum * r + c);
    polynomial(above) / polynomial(below)
}

#[allow(clippy::excessive_precision, reason = "as published")]
const CENTRE: Ratio = [
    [
        3.3871328727963666080,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ],
    [
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ],
];
#[allow(clippy::excessive_precision, reason = "as published")]
const MIDDLE: Ratio = [
    [
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ],
    [
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ],
];
#[allow(clippy::excessive_precision, reason = "as published")]
const FAR: Ratio = [
    [
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ],
    [
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ],
];

/// Regularised upper incomplete gamma function `Q(a, x)`, `a > 0`, `x >= 0`; NaN outside.
pub fn gamma_q(a: f64, x: f64) -> f64 {
    if a.is_nan() || x.is_nan() || a <= 0.0 || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return 1.0;
    }
    if x.is_infinite() {
        return 0.0;
    }
    let front = libm::exp(a * libm::log(x) - x - libm::lgamma(a));
    if x < a + 1.0 { 1.0 - front * lower_series(a, x) } else { front * upper_fraction(a, x) }.clamp(0.0, 1.0)
}

fn lower_series(a: f64, x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
    for _ in 0..TERMS_MAX {
        n += 1.0;
        term *= x / n;
        sum += term;
        if term < sum * EPSILON {
            break;
        }
    }
    sum
}

/// Lentz's method on the continued fraction.
fn upper_fraction(a: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / TINY;
    let mut d = 1.0 / b;
    let mut h = d;
    for i in 1..=TERMS_MAX {
        let i = f64::from(i);
        let an = -i * (i - a);
        b += 2.0;
        d = an * d + b;
        d = 1.0 / if d.abs() < TINY { TINY } else { d };
        c = b + an / c;
        if c.abs() < TINY {
            c = TINY;
        }
        h *= d * c;
        if (d * c - 1.0).abs() < EPSILON {
            break;
        }
    }
    h
}

/// `P(X > x)` of the chi-square distribution with `df` degrees of freedom; 1 if there are none, for then there is
/// nothing that could differ.
pub fn chi_square_survival(x: f64, df: f64) -> f64 {
    if df <= 0.0 || x <= 0.0 { 1.0 } else { gamma_q(df / 2.0, x / 2.0) }
}

/// The value that a chi-square variable with `df > 0` degrees of freedom stays below with probability `p` in [0, 1).
pub fn chi_square_quantile(p: f64, df: f64) -> f64 {
    if !(0.0..1.0).contains(&p) || df.is_nan() || df <= 0.0 {
        return f64::NAN;
    }
    let (mut low, mut high) = (0.0, df + 10.0);
    while chi_square_survival(high, df) > 1.0 - p {
        low = high;
        high *= 2.0;
    }
    // Plain bisection: slow, certain, and the same everywhere. 100 halvings exhaust the mantissa.
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if chi_square_survival(middle, df) > 1.0 - p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// `Q_KS(l) = 2 Σ (-1)^(j-1) exp(-2 j² l²)`: the probability that a Kolmogorov-Smirnov statistic, scaled by the
/// square root of the sample size, exceeds `l` if nothing differs.
pub fn kolmogorov_q(l: f64) -> f64 {
    use core::f64::consts::PI;
    if l.is_nan() {
        return f64::NAN;
    }
    if l <= 0.0 {
        return 1.0;
    }
    let q = if l < 1.18 {
        // The dual series converges at once where the other one hardly does.
        let y = libm::exp(-PI * PI / (8.0 * l * l));
        let y8 = libm::pow(y, 8.0);
        1.0 - libm::sqrt(2.0 * PI) / l * (y + y * y8 + y * y8 * y8 * y8 + y * libm::pow(y8, 6.0))
    } else {
        let x = libm::exp(-2.0 * l * l);
        2.0 * (x - libm::pow(x, 4.0) + libm::pow(x, 9.0))
    };
    q.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() <= 1e-12 + 1e-9 * want.abs(), "{got} for {want}");
    }

    #[test]
    fn tabulated_values() {
        close(chi_square_survival(3.841458820694124, 1.0), 0.05);
        close(chi_square_survival(18.307038053275146, 10.0), 0.05);
        close(chi_square_survival(124.342113404004, 100.0), 0.05);
        // Closed form: with two degrees of freedom the survival function is exp(-x/2).
        close(chi_square_survival(7.0, 2.0), libm::exp(-3.5));
        close(chi_square_survival(60.0, 2.0), libm::exp(-30.0));
        close(chi_square_quantile(0.99, 66.0), 95.6257190001129);
        close(chi_square_quantile(0.95, 1.0), 3.841458820694124);
        close(normal_quantile(0.975), 1.959963984540054);
        close(normal_quantile(1e-10), -6.361340902404056);
        close(normal_cdf(-1.6448536269514722), 0.05);
        close(kolmogorov_q(1.3580986393225505), 0.05);
        close(kolmogorov_q(1.6276236115189502), 0.01);
        close(kolmogorov_q(0.5), 0.9639452436648751);
    }

    #[test]
    fn edges_are_defined() {
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert!(
            normal_quantile(1.1).is_nan()
                && gamma_q(-1.0, 1.0).is_nan()
                && chi_square_quantile(1.0, 3.0).is_nan()
        );
        assert_eq!((kolmogorov_q(0.0), kolmogorov_q(0.05), kolmogorov_q(40.0)), (1.0, 1.0, 0.0));
        assert_eq!((chi_square_survival(5.0, 0.0), chi_square_survival(1e9, 3.0)), (1.0, 0.0));
    }

    /// The very bits, so that a port that computes otherwise is noticed.
    #[test]
    fn golden_bits() {
        let got: Vec<u64> = [
            normal_cdf(-1.234),
            normal_quantile(0.01),
            gamma_q(33.0, 40.0),
            gamma_q(0.5, 0.1),
            chi_square_quantile(0.99, 65.0),
            kolmogorov_q(0.8),
            kolmogorov_q(1.7),
        ]
        .iter()
        .map(|value| value.to_bits())
        .collect();
        assert_eq!(got, GOLDEN, "{got:#x?}");
    }

    const GOLDEN: [u64; 7] = [
        0x3fbb_cd4e_0528_f977,
        0xc002_9c5c_4630_ff0e,
        0x3fbd_8489_2667_2453,
        0x3fe4_f379_21b5_187e,
        0x4057_9b03_57ab_cc70,
        0x3fe1_699d_58c2_7cf2,
        0x3f79_4d81_68c5_9daa,
    ];

    proptest! {
        #[test]
        fn quantile_and_distribution_are_inverse(p in 1e-9..0.999_999f64, df in 1.0..200.0f64) {
            prop_assert!((normal_cdf(normal_quantile(p)) - p).abs() < 1e-12);
            prop_assert!((1.0 - chi_square_survival(chi_square_quantile(p, df), df) - p).abs() < 1e-9);
        }

        #[test]
        fn survival_functions_fall(a in 0.01..3.0f64, step in 0.0..1.0f64, df in 1.0..100.0f64) {
            prop_assert!(kolmogorov_q(a) + 1e-14 >= kolmogorov_q(a + step));
            prop_assert!(chi_square_survival(a * df, df) + 1e-13 >= chi_square_survival((a + step) * df, df));
        }
    }
}
