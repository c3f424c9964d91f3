//! What gates say, in words.
use core::fmt;

use crate::{Evidence, Failure, StopReason, Unit};

fn percent(ppm: i64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a share of a million")]
    let ppm = ppm as f64;
    ppm / 1e4
}

fn thousandths(n: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a small factor")]
    let n = n as f64;
    n / 1e3
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Device => "devices decide",
            Unit::Input => "inputs decide",
        };
        write!(
            f,
            "{unit}, as the device-level test has a power of {:.0} % on {} devices; {} labelled inputs answered by both, \
             gain {:+.1} %, design effect {:.2}; evidence of harm {:.1}, of no harm {:.1}, needed {:.1}",
            percent(i64::from(self.device_power_ppm)),
            self.devices,
            self.paired.n(),
            percent(self.gain_ppm),
            thousandths(self.design_effect_milli),
            self.harm,
            self.not_inferior,
            self.needed,
        )
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures { failed, allowed } => {
                write!(f, "{} devices failed where {allowed} may:", failed.len())?;
                for (device, failure) in failed {
                    match failure {
                        Failure::Reported { reason } => write!(f, " {device} ({reason})")?,
                        Failure::Unfinished { for_ms } => {
                            write!(f, " {device} (unfinished for {for_ms} ms)")?
                        }
                        Failure::Silent { for_ms } => write!(f, " {device} (silent for {for_ms} ms)")?,
                    }
                }
                Ok(())
            }
            Self::Harm { release, evidence } => write!(f, "{release} does harm: {evidence}"),
            Self::Operator { by } => write!(f, "{by} aborted it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::Paired;

    #[test]
    fn evidence_names_its_unit_its_power_and_its_counts() {
        let evidence = Evidence {
            unit: Unit::Input,
            device_power_ppm: 120_000,
            devices: 11,
            paired: Paired { both_right: 70, only_new: 20, only_old: 5, both_wrong: 5 },
            gain_ppm: 150_000,
            design_effect_milli: 2180,
            harm: 0.0,
            not_inferior: 7.25,
            needed: 5.3,
        };
        assert_eq!(
            evidence.to_string(),
            "inputs decide, as the device-level test has a power of 12 % on 11 devices; 100 labelled inputs answered by \
             both, gain +15.0 %, design effect 2.18; evidence of harm 0.0, of no harm 7.2, needed 5.3"
        );
        let harm = StopReason::Harm { release: "m@2".parse().unwrap(), evidence };
        assert!(harm.to_string().starts_with("m@2 does harm: inputs decide"));
    }
}
