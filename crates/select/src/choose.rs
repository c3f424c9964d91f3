use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use dunlin_monitor::special::normal_cdf;
use dunlin_protocol::{DeviceProfile, Hard, ReleaseId, TaskType};
use serde::Serialize;

use crate::constraint::{constraints, latency_limit};
use crate::score::score;
use crate::{Constraint, Evidence, Policy, Score};

const MIB: f64 = 1_048_576.0;

/// The device to choose for.
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    /// What it is and can do.
    pub profile: &'a DeviceProfile,
    /// Releases that failed on it.
    pub known_bad: &'a BTreeSet<ReleaseId>,
    /// How long the current release has served, milliseconds; `None` if it is not known, which holds nothing up.
    pub served_ms: Option<u64>,
}

/// Where a release stands in the catalogue, seen from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// May be chosen on its merits.
    Approved,
    /// Candidate of a rollout that is open to the device: it is chosen if it is eligible, because being tried is
    /// how evidence comes about; the rollout's gates judge it.
    Trial,
    /// Withdrawn by its signers.
    Withdrawn,
    /// Stopped by a rollout or an operator.
    Quarantined,
    /// Its rollout has not reached the device.
    NotReached,
}

/// A release that might be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The release; if it is named twice, the first one counts.
    pub release: ReleaseId,
    /// The kind of task it is made for.
    pub task_type: TaskType,
    /// Where it stands.
    pub standing: Standing,
    /// Its hard constraints.
    pub hard: Hard,
    /// What is known of it.
    pub evidence: Evidence,
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It could be chosen, with this score.
    Eligible(Score),
    /// Everything that keeps it out.
    Excluded(Vec<Constraint>),
}

/// One candidate's row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The release.
    pub release: ReleaseId,
    /// What became of it.
    pub verdict: Verdict,
}

/// Why the choice is what it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Why {
    /// No candidate is eligible: the constant baseline answers.
    NoneEligible,
    /// Nothing serves yet, so the highest score wins.
    First,
    /// What serves is not eligible any more, so the highest score wins at once.
    CurrentIneligible,
    /// A rollout tries it here.
    Trial,
    /// What serves has the highest score.
    Best,
    /// Something scores higher, but what serves has not served long enough.
    Dwell {
        /// What scores highest.
        challenger: ReleaseId,
        /// How long the current release has served, milliseconds.
        served_ms: u64,
        /// How long it shall serve, milliseconds.
        dwell_ms: u64,
    },
    /// Something scores higher, but it is not sure enough that a change pays.
    NotSure {
        /// What scores highest.
        challenger: ReleaseId,
        /// Probability that the change pays.
        probability: f64,
        /// What is asked for.
        needed: f64,
    },
    /// A change pays.
    Better {
        /// Probability that it does.
        probability: f64,
    },
}

/// A choice with its reasons.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Selection {
    /// The release to run; `None` means the constant baseline.
    pub chosen: Option<ReleaseId>,
    /// Why.
    pub why: Why,
    /// One row per candidate, by release.
    pub rows: Vec<Row>,
}

impl Selection {
    /// Whether what served before goes on.
    pub fn is_kept(&self) -> bool {
        match self.why {
            Why::Best | Why::Dwell { .. } | Why::NotSure { .. } => true,
            Why::NoneEligible | Why::First | Why::CurrentIneligible | Why::Trial | Why::Better { .. } => {
                false
            }
        }
    }
}

struct Eligible<'a> {
    candidate: &'a Candidate,
    score: Score,
}

/// Chooses a release for `device` among `candidates`; `current` is the one that serves.
pub fn select(
    device: &Device<'_>,
    candidates: &[Candidate],
    current: Option<&ReleaseId>,
    policy: &Policy,
) -> Selection {
    let mut by_release: BTreeMap<&ReleaseId, &Candidate> = BTreeMap::new();
    for candidate in candidates {
        by_release.entry(&candidate.release).or_insert(candidate);
    }
    let limit_us = latency_limit(device, policy);
    let mut rows = Vec::with_capacity(by_release.len());
    let mut eligible = Vec::new();
    for (&release, &candidate) in &by_release {
        let found = constraints(device, candidate, policy);
        let verdict = if found.is_empty() {
            let score = score(device, &candidate.evidence, candidate.hard.bundle_bytes, limit_us, policy);
            eligible.push(Eligible { candidate, score });
            Verdict::Eligible(score)
        } else {
            Verdict::Excluded(found)
        };
        rows.push(Row { release: release.clone(), verdict });
    }
    // A stable sort: among equals the smaller id stays in front.
    eligible.sort_by(|a, b| b.score.cautious.total_cmp(&a.score.cautious));
    let (chosen, why) = choose(device, &eligible, current, policy);
    Selection { chosen, why, rows }
}

fn choose(
    device: &Device<'_>,
    ranked: &[Eligible<'_>],
    current: Option<&ReleaseId>,
    policy: &Policy,
) -> (Option<ReleaseId>, Why) {
    let Some(best) = ranked.first() else { return (None, Why::NoneEligible) };
    let name = |eligible: &Eligible<'_>| Some(eligible.candidate.release.clone());
    // While a rollout is open to the device only its candidates count; among them a change has to pay as ever.
    let trials: Vec<&Eligible<'_>> =
        ranked.iter().filter(|eligible| eligible.candidate.standing == Standing::Trial).collect();
    if let Some(trial) = trials.first()
        && !trials.iter().any(|trial| current == Some(&trial.candidate.release))
    {
        return (name(trial), Why::Trial);
    }
    let Some(current) = current else { return (name(best), Why::First) };
    let Some(serving) = ranked.iter().find(|eligible| eligible.candidate.release == *current) else {
        return (name(best), Why::CurrentIneligible);
    };
    // What scores higher, the highest first; the current release holds its place among equals.
    let better: Vec<&Eligible<'_>> = ranked
        .iter()
        .filter(|other| trials.is_empty() || other.candidate.standing == Standing::Trial)
        .filter(|other| other.score.cautious > serving.score.cautious)
        .collect();
    let Some(challenger) = better.first() else { return (name(serving), Why::Best) };
    let switching = &policy.switching;
    if let Some(served_ms) = device.served_ms.filter(|served| *served < switching.dwell_ms) {
        let challenger = challenger.candidate.release.clone();
        return (name(serving), Why::Dwell { challenger, served_ms, dwell_ms: switching.dwell_ms });
    }
    for other in &better {
        let probability = gain_probability(serving, other, policy);
        if probability > switching.probability_min {
            return (name(other), Why::Better { probability });
        }
    }
    let probability = gain_probability(serving, challenger, policy);
    let challenger = challenger.candidate.release.clone();
    (name(serving), Why::NotSure { challenger, probability, needed: switching.probability_min })
}

/// `P[(u_other - u_serving) H > cost]`, both utilities taken as normal and independent.
fn gain_probability(serving: &Eligible<'_>, other: &Eligible<'_>, policy: &Policy) -> f64 {
    let switching = &policy.switching;
    let cost = switching.cost + switching.cost_per_mib * other.candidate.hard.bundle_bytes as f64 / MIB;
    let gain = other.score.utility - serving.score.utility - cost / switching.horizon_requests.max(1.0);
    let variance =
        other.score.deviation * other.score.deviation + serving.score.deviation * serving.score.deviation;
    if variance > 0.0 {
        normal_cdf(gain / libm::sqrt(variance))
    } else if gain > 0.0 {
        1.0
    } else {
        0.0
    }
}

#[cfg(test)]
#[path = "choose/tests.rs"]
mod tests;
