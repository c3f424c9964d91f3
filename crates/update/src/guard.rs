//! When a release on probation is worse than what it may be.
//!
//! Rates are judged by the lower end of Wilson's score interval (Wilson 1927), not by the rate itself, so that
//! two unlucky requests out of ten end nothing. The counters are looked at again and again, so the interval is
//! one-sided at 1 in 2000 ([`Z`]) rather than the customary 1 in 20.
use alloc::format;
use alloc::string::String;

use dunlin_protocol::{Probation, ReasonCode};

/// Normal quantile of a one-sided 99.95 % bound.
const Z: f64 = 3.29;
/// Fewest requests on which an error rate is judged.
pub const REQUESTS_MIN: u64 = 5;
/// Fewest requests on either side on which tails are compared: two of them lie above a p99.
pub const TAIL_MIN: u64 = 200;
/// Fewest inputs both releases answered on which their disagreement is judged.
pub const PAIRED_MIN: u64 = 50;
/// Difference of p99 that no limit forbids, microseconds: one tick of a kernel at 250 Hz, which is what a request
/// waits for the processor on a busy device. A factor on a model of 60 µs would measure nothing else.
const TAIL_SLACK_US: u64 = 4_000;
const MILLION: u64 = 1_000_000;

/// Counters since the switch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    /// Requests.
    pub requests: u64,
    /// Of those, failed.
    pub errors: u64,
    /// 99th percentile of the latency, microseconds.
    pub p99_us: u64,
    /// The same of the previous release, over what it served and ran beside.
    pub previous_p99_us: Option<u64>,
    /// Resident memory of the agent, bytes.
    pub rss_bytes: u64,
    /// Inputs both releases answered.
    pub paired: u64,
    /// Of those, answered differently.
    pub disagree: u64,
}

/// A limit that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Which.
    pub reason: ReasonCode,
    /// With the numbers.
    pub detail: String,
}

/// Lower end of Wilson's interval of `hits / n`, parts per million.
fn at_least_ppm(hits: u64, n: u64) -> f64 {
    if n == 0 {
        return 0.0;
    }
    let (n, p) = (n as f64, hits.min(n) as f64 / n as f64);
    let z2 = Z * Z;
    let centre = p + z2 / (2.0 * n);
    let margin = Z * libm::sqrt(p * (1.0 - p) / n + z2 / (4.0 * n * n));
    // The interval of no hits begins at zero; rounding may leave a trace above it.
    if hits == 0 { 0.0 } else { (centre - margin) / (1.0 + z2 / n) * MILLION as f64 }
}

/// The first limit that `seen` breaks beyond doubt. A latency factor of zero means no limit.
pub fn breach(limits: &Probation, seen: &Observed) -> Option<Breach> {
    let found = |reason, detail| Some(Breach { reason, detail });
    if limits.rss_bytes_max != 0 && seen.rss_bytes > limits.rss_bytes_max {
        return found(
            ReasonCode::GuardMemory,
            format!("{} bytes resident, at most {} allowed", seen.rss_bytes, limits.rss_bytes_max),
        );
    }
    if seen.requests >= REQUESTS_MIN
        && at_least_ppm(seen.errors, seen.requests) > f64::from(limits.error_ppm_max)
    {
        let detail = format!(
            "{} of {} requests failed, at most {} ppm allowed",
            seen.errors, seen.requests, limits.error_ppm_max
        );
        return found(ReasonCode::GuardErrors, detail);
    }
    if let Some(previous) =
        seen.previous_p99_us.filter(|_| seen.requests >= TAIL_MIN && limits.latency_percent_max != 0)
    {
        let limit = previous.saturating_mul(u64::from(limits.latency_percent_max)) / 100;
        if seen.p99_us > limit.max(previous.saturating_add(TAIL_SLACK_US)) {
            let detail = format!(
                "p99 is {} us, the previous release's {previous} us, at most {} % allowed",
                seen.p99_us, limits.latency_percent_max
            );
            return found(ReasonCode::GuardLatency, detail);
        }
    }
    if u64::from(limits.disagree_ppm_max) < MILLION
        && seen.paired >= PAIRED_MIN
        && at_least_ppm(seen.disagree, seen.paired) > f64::from(limits.disagree_ppm_max)
    {
        let detail = format!(
            "{} of {} inputs answered differently, at most {} ppm allowed",
            seen.disagree, seen.paired, limits.disagree_ppm_max
        );
        return found(ReasonCode::GuardDisagreement, detail);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> Probation {
        Probation {
            ms_min: 0,
            requests_min: 0,
            pairs_min: 0,
            error_ppm_max: 20_000,
            latency_percent_max: 150,
            rss_bytes_max: 1 << 20,
            disagree_ppm_max: 100_000,
        }
    }

    #[test]
    fn the_interval_is_wilsons() {
        // Worked by hand: 5 of 50 at z = 3.29 gives (0.1 + 0.108241 - 3.29 sqrt(0.0018 + 0.00108241)) / 1.216482.
        assert!((at_least_ppm(5, 50) - 25_980.0).abs() < 100.0, "{}", at_least_ppm(5, 50));
        assert_eq!(at_least_ppm(0, 1000), 0.0);
    }

    #[test]
    fn a_model_that_always_fails_is_caught_at_once() {
        let seen = Observed { requests: REQUESTS_MIN, errors: REQUESTS_MIN, ..Observed::default() };
        assert_eq!(breach(&limits(), &seen).unwrap().reason, ReasonCode::GuardErrors);
    }

    #[test]
    fn each_limit_has_its_reason_and_a_minimum_sample() {
        let slow = Observed {
            requests: TAIL_MIN,
            p99_us: 9_000,
            previous_p99_us: Some(3_000),
            ..Observed::default()
        };
        assert_eq!(breach(&limits(), &slow).unwrap().reason, ReasonCode::GuardLatency);
        assert_eq!(breach(&limits(), &Observed { requests: TAIL_MIN - 1, ..slow }), None);
        assert_eq!(
            breach(&limits(), &Observed { p99_us: 70, previous_p99_us: Some(20), ..slow }),
            None,
            "microseconds are noise"
        );
        let odd = Observed { paired: PAIRED_MIN, disagree: 40, ..Observed::default() };
        assert_eq!(breach(&limits(), &odd).unwrap().reason, ReasonCode::GuardDisagreement);
        assert_eq!(
            breach(&limits(), &Observed { paired: PAIRED_MIN - 1, disagree: PAIRED_MIN - 1, ..odd }),
            None
        );
        assert_eq!(
            breach(
                &Probation { disagree_ppm_max: 1_000_000, ..limits() },
                &Observed { disagree: PAIRED_MIN, ..odd }
            ),
            None
        );
        let fat = Observed { rss_bytes: (1 << 20) + 1, ..Observed::default() };
        assert_eq!(breach(&limits(), &fat).unwrap().reason, ReasonCode::GuardMemory);
        assert_eq!(breach(&Probation { rss_bytes_max: 0, ..limits() }, &fat), None);
    }

    proptest! {
        /// The very rate that is allowed ends no probation, however many inputs were compared.
        #[test]
        fn noise_at_the_limit_is_no_breach(n in 50u64..5_000) {
            let allowed = n * u64::from(limits().disagree_ppm_max) / MILLION;
            let seen = Observed { paired: n, disagree: allowed, ..Observed::default() };
            prop_assert_eq!(breach(&limits(), &seen), None);
        }

        #[test]
        fn more_errors_never_undo_a_breach(n in 5u64..2_000, errors in 0u64..2_000) {
            let seen = Observed { requests: n, errors: errors.min(n), ..Observed::default() };
            let worse = Observed { errors: (errors + 1).min(n), ..seen };
            prop_assert!(breach(&limits(), &seen).is_none() || breach(&limits(), &worse).is_some());
        }
    }
}
