use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use dunlin_monitor::rate::Z95;
use dunlin_protocol::{Arch, ClassName, ReasonCode, TaskType};
use serde::Serialize;

use crate::score::{LatencySource, latency};
use crate::{Candidate, Device, Policy, Standing};

/// What keeps a release from a device, with the numbers that say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "constraint", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are what the sentence of Display names")]
pub enum Constraint {
    /// Made for another kind of task.
    TaskType { needs: TaskType, has: TaskType },
    /// Not built for the architecture.
    Arch { device: Arch },
    /// Not approved for the hardware class.
    Class { device: ClassName },
    /// Operators the agent does not run.
    Ops { missing: BTreeSet<String> },
    /// The agent is too old.
    Agent { needs: String, has: String },
    /// Too much memory.
    Ram { bytes: u64, budget: u64 },
    /// Too large a bundle.
    Size { bytes: u64, budget: u64 },
    /// Too slow.
    Latency { us: u64, limit: u64, source: LatencySource },
    /// Surely not accurate enough on this device.
    Accuracy { upper_ppm: u32, minimum_ppm: u32, labels: u64 },
    /// Failed on this device before.
    KnownBad,
    /// Another release is pinned.
    NotPinned,
    /// The policy excludes it.
    Excluded,
    /// Withdrawn by its signers.
    Withdrawn,
    /// Stopped by a rollout or an operator.
    Quarantined,
    /// Its rollout has not reached this device.
    NotReached,
}

impl Constraint {
    /// The reason code that a device would give for it, where there is one.
    pub fn code(&self) -> Option<ReasonCode> {
        match self {
            Self::Arch { .. } => Some(ReasonCode::ArchMismatch),
            Self::Class { .. } => Some(ReasonCode::ClassMismatch),
            Self::Ops { .. } => Some(ReasonCode::OpsMissing),
            Self::Agent { .. } => Some(ReasonCode::AgentTooOld),
            Self::Ram { .. } => Some(ReasonCode::RamExceeded),
            Self::Size { .. } => Some(ReasonCode::SizeExceeded),
            Self::Latency { .. } => Some(ReasonCode::LatencyExceeded),
            Self::KnownBad => Some(ReasonCode::KnownBad),
            Self::Withdrawn => Some(ReasonCode::BelowReleaseFloor),
            Self::NotPinned | Self::Excluded => Some(ReasonCode::Operator),
            Self::TaskType { .. } | Self::Accuracy { .. } | Self::Quarantined | Self::NotReached => None,
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TaskType { needs, has } => write!(f, "it is made for {has:?}, the task is {needs:?}"),
            Self::Arch { device } => write!(f, "it is not built for {device:?}"),
            Self::Class { device } => write!(f, "it is not approved for {device}"),
            Self::Ops { missing } => {
                f.write_str("the agent does not run")?;
                missing.iter().try_for_each(|op| write!(f, " {op}"))
            }
            Self::Agent { needs, has } => write!(f, "it needs agent {needs}, the device has {has:?}"),
            Self::Ram { bytes, budget } => {
                write!(f, "memory of {bytes} bytes is over the budget of {budget}")
            }
            Self::Size { bytes, budget } => {
                write!(f, "the bundle of {bytes} bytes is over the budget of {budget}")
            }
            Self::Latency { us, limit, source } => {
                write!(f, "{us} µs ({source}) is over the limit of {limit}")
            }
            Self::Accuracy { upper_ppm, minimum_ppm, labels } => {
                write!(
                    f,
                    "accuracy is at most {upper_ppm} ppm on {labels} labels, {minimum_ppm} are asked for"
                )
            }
            Self::KnownBad => f.write_str("it failed on this device before"),
            Self::NotPinned => f.write_str("another release is pinned"),
            Self::Excluded => f.write_str("the policy excludes it"),
            Self::Withdrawn => f.write_str("it is withdrawn"),
            Self::Quarantined => f.write_str("it is in quarantine"),
            Self::NotReached => f.write_str("its rollout has not reached this device"),
        }
    }
}

/// The longest median latency that device and policy allow, microseconds.
pub(crate) fn latency_limit(device: &Device<'_>, policy: &Policy) -> u64 {
    device.profile.budgets.latency_us_max.min(policy.latency_us_max.unwrap_or(u64::MAX))
}

/// Everything that keeps `candidate` from `device`. Each limit is checked on its own.
pub(crate) fn constraints(device: &Device<'_>, candidate: &Candidate, policy: &Policy) -> Vec<Constraint> {
    let (profile, hard) = (device.profile, &candidate.hard);
    let mut found = Vec::new();
    let mut check = |violated: bool, constraint: Constraint| {
        if violated {
            found.push(constraint);
        }
    };
    match candidate.standing {
        Standing::Approved | Standing::Trial => {}
        Standing::Withdrawn => check(true, Constraint::Withdrawn),
        Standing::Quarantined => check(true, Constraint::Quarantined),
        Standing::NotReached => check(true, Constraint::NotReached),
    }
    check(device.known_bad.contains(&candidate.release), Constraint::KnownBad);
    check(policy.pinned.as_ref().is_some_and(|pinned| *pinned != candidate.release), Constraint::NotPinned);
    check(policy.excluded.contains(&candidate.release), Constraint::Excluded);
    let (needs, has) = (policy.task_type, candidate.task_type);
    check(needs != has, Constraint::TaskType { needs, has });
    check(
        !hard.arch.is_empty() && !hard.arch.contains(&profile.arch),
        Constraint::Arch { device: profile.arch },
    );
    check(
        !hard.classes.is_empty() && !hard.classes.contains(&profile.class),
        Constraint::Class { device: profile.class.clone() },
    );
    let missing: BTreeSet<String> = hard.ops.difference(&profile.ops).cloned().collect();
    check(!missing.is_empty(), Constraint::Ops { missing });
    let too_old = !hard.min_agent.is_empty() && parts(&profile.agent) < parts(&hard.min_agent);
    check(too_old, Constraint::Agent { needs: hard.min_agent.clone(), has: profile.agent.clone() });
    let (bytes, budget) = (hard.ram_bytes, profile.budgets.model_ram_bytes_max);
    check(bytes > budget, Constraint::Ram { bytes, budget });
    let (bytes, budget) = (hard.bundle_bytes, profile.budgets.model_bytes_max);
    check(bytes > budget, Constraint::Size { bytes, budget });
    let (us, source) = latency(&candidate.evidence);
    let limit = latency_limit(device, policy);
    check(us > limit, Constraint::Latency { us, limit, source });
    if let Some(minimum_ppm) = policy.accuracy_ppm_min {
        // What was surely not accurate enough is not tried again with every look back that ends.
        let labels = candidate.evidence.device.labels.plus(candidate.evidence.earlier.device);
        let upper_ppm = libm::ceil(labels.wilson(Z95).high * 1e6) as u32;
        check(upper_ppm < minimum_ppm, Constraint::Accuracy { upper_ppm, minimum_ppm, labels: labels.n });
    }
    found
}

/// A dotted release as numbers; what is not a number counts as zero. Trailing zeros do not matter.
fn parts(release: &str) -> Vec<u64> {
    let core = release.split(['-', '+']).next().unwrap_or("");
    let mut parts: Vec<u64> = core.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    while parts.last() == Some(&0) {
        parts.pop();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn releases_compare_by_number() {
        assert!(parts("0.9.1") < parts("0.10.0") && parts("1.0") == parts("1") && parts("") < parts("0.1"));
        assert_eq!(parts("1.2.3-rc1"), [1, 2, 3]);
    }
}
