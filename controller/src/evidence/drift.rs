use std::collections::{BTreeMap, BTreeSet};

use dunlin_monitor::drift::{Judgement, Report, judge};
use dunlin_monitor::scope::{Judged, Scope, locate};
use dunlin_monitor::summary::{FeatureCounts, Summary};
use dunlin_monitor::vote::{Verdict, Voter};
use dunlin_pipeline::DriftFact;
use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{DeviceId, Digest, GroupId, ReferenceFeature, ReferenceProfile, ReleaseId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{EvidenceConfig, Roster, Subject};
use crate::api::shape;

/// Merged windows open at once; a device can only keep late ones open, so older ones are judged as they are.
const OPEN_MAX: usize = 4;
/// Releases with a profile: the catalogue of one task. The oldest names give way.
const PROFILES_MAX: usize = 64;
/// Drifted features that a verdict names.
const NAMED_MAX: usize = 10;

/// The last judged window of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// What the last windows agree on.
    #[schema(value_type = shape::DriftVerdict)]
    pub verdict: Verdict,
    /// Drifted windows among the last ones, and how many were judged.
    pub tally: (u32, u32),
    /// End of the last judged window, Unix milliseconds.
    pub end_ms: u64,
    /// That window's report.
    #[schema(value_type = shape::DriftReport)]
    pub report: Report,
}

/// What the last windows say about the inputs of one release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Drift {
    /// The release.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// Where its inputs drifted.
    #[schema(value_type = shape::DriftScope)]
    pub scope: Scope,
    /// Mean share of drifted features over the subjects that drifted, parts per million.
    pub share_ppm: u32,
    /// Drifted features, those of most subjects first.
    pub features: Vec<String>,
    /// Every subject that was judged.
    pub findings: Vec<Finding>,
}

impl Drift {
    /// What a retraining trigger is told: nothing if only single devices drifted, whose sensors are suspect, or if
    /// it is not clear whether it was the sensor or the world.
    pub fn fact(&self) -> Option<DriftFact> {
        let scope = match &self.scope {
            Scope::Nowhere | Scope::Devices { .. } | Scope::Unclear { .. } => return None,
            Scope::Groups { groups, .. } => groups.iter().map(GroupId::as_str).collect::<Vec<_>>().join(", "),
            Scope::Fleet => "fleet".into(),
        };
        Some(DriftFact { share_ppm: self.share_ppm, scope, features: self.features.clone() })
    }
}

#[derive(Debug)]
struct Seat {
    voter: Voter,
    last: Report,
}

/// Merges windows of inputs, judges each merged window once it is over, and lets the judgements vote.
#[derive(Debug)]
pub(super) struct Watch {
    config: EvidenceConfig,
    roster: Roster,
    profiles: BTreeMap<ReleaseId, (Digest, usize, ReferenceProfile)>,
    /// Start of the merged window → counts by release and device.
    open: BTreeMap<u64, BTreeMap<ReleaseId, BTreeMap<DeviceId, FeatureCounts>>>,
    /// End of the last merged window that was judged.
    closed_ms: u64,
    seats: BTreeMap<(ReleaseId, Subject), Seat>,
}

impl Watch {
    pub(super) fn new(config: EvidenceConfig) -> Self {
        Self {
            config,
            roster: Roster::new(),
            profiles: BTreeMap::new(),
            open: BTreeMap::new(),
            closed_ms: 0,
            seats: BTreeMap::new(),
        }
    }

    pub(super) fn set_roster(&mut self, roster: Roster) {
        self.roster = roster;
    }

    pub(super) fn set_profile(&mut self, release: ReleaseId, digest: Digest, profile: ReferenceProfile) {
        let bins = profile.features.iter().map(ReferenceFeature::bins).sum();
        self.profiles.insert(release, (digest, bins, profile));
        while self.profiles.len() > PROFILES_MAX {
            self.profiles.pop_first();
        }
    }

    /// Adds the input counts of one window that ended at `at_ms`; those of a merged window that was judged
    /// already, or on other bins than the release's, are left out.
    pub(super) fn add(&mut self, release: &ReleaseId, device: &DeviceId, at_ms: u64, sum: &Summary) {
        let start = at_ms - at_ms % self.config.window_ms;
        if start < self.closed_ms || !self.roster.contains_key(device) {
            return;
        }
        let Some((digest, bins, _)) = self.profiles.get(release) else { return };
        if let Some(counts) = sum.features(digest, *bins) {
            let releases = self.open.entry(start).or_default();
            releases.entry(release.clone()).or_default().entry(device.clone()).or_default().merge(counts);
        }
    }

    pub(super) fn advance(&mut self, now_ms: u64) {
        let before = self.closed_ms;
        while let Some((&start, _)) = self.open.first_key_value() {
            let end = start + self.config.window_ms;
            if end + self.config.lateness_ms > now_ms && self.open.len() <= OPEN_MAX {
                break;
            }
            if let Some((_, releases)) = self.open.pop_first() {
                releases.into_iter().for_each(|(release, devices)| self.close(&release, devices, end));
            }
            self.closed_ms = self.closed_ms.max(end);
        }
        if self.closed_ms > before {
            self.forget(now_ms);
        }
    }

    fn forget(&mut self, now_ms: u64) {
        // A subject that was not judged for twice the memory of its voter says nothing about the present.
        let oldest = now_ms.saturating_sub(self.config.drift_memory_ms());
        self.seats.retain(|_, seat| seat.voter.last_ms().is_some_and(|last| last >= oldest));
    }

    fn close(&mut self, release: &ReleaseId, devices: BTreeMap<DeviceId, FeatureCounts>, end: u64) {
        let Some((_, _, profile)) = self.profiles.get(release) else { return };
        let limits = &self.config.drift;
        let mut judged: Vec<(Subject, Report)> = Vec::new();
        let mut pools: BTreeMap<Subject, (usize, FeatureCounts)> = BTreeMap::new();
        for (device, counts) in devices {
            match judge(profile, &counts, limits) {
                Ok(Judgement::Judged(report)) => judged.push((Subject::Device(device), report)),
                Ok(Judgement::TooFew { .. }) => {
                    let groups = self.roster.get(&device).map(|place| &place.groups);
                    let groups = groups.into_iter().flatten().cloned().map(Subject::Group);
                    for subject in groups.chain([Subject::Fleet]) {
                        let (members, pool) = pools.entry(subject).or_default();
                        *members += 1;
                        pool.merge(&counts);
                    }
                }
                Err(error) => tracing::warn!(%release, %error, "inputs are not judged"),
            }
        }
        for (subject, (members, pool)) in pools {
            // A pool of one or two would be a device under another name.
            if members >= self.config.scope.devices_min
                && let Ok(Judgement::Judged(report)) = judge(profile, &pool, limits)
            {
                judged.push((subject, report));
            }
        }
        let (k, m) = (self.config.votes, self.config.votes_of);
        for (subject, report) in judged {
            let drifted = report.drifted && !weaken::off(Defence::Drift);
            let seat = self.seats.entry((release.clone(), subject));
            let seat = seat.or_insert_with(|| Seat { voter: Voter::new(k, m), last: report.clone() });
            seat.voter.vote(end, drifted);
            seat.last = report;
        }
    }

    pub(super) fn releases(&self) -> BTreeSet<ReleaseId> {
        self.seats.keys().map(|(release, _)| release.clone()).collect()
    }

    pub(super) fn verdict(&self, release: &ReleaseId) -> Drift {
        let findings: Vec<Finding> = self
            .seats
            .iter()
            .filter(|((of, _), _)| of == release)
            .map(|((_, subject), seat)| Finding {
                subject: subject.clone(),
                verdict: seat.voter.verdict(),
                tally: seat.voter.tally(),
                end_ms: seat.voter.last_ms().unwrap_or_default(),
                report: seat.last.clone(),
            })
            .collect();
        let scope = self.scope(&findings);
        let drifted: Vec<&Finding> = findings.iter().filter(|f| f.verdict == Verdict::Drifted).collect();
        let share =
            drifted.iter().map(|finding| finding.report.share).sum::<f64>() / drifted.len().max(1) as f64;
        let features = named(&drifted);
        Drift { release: release.clone(), scope, share_ppm: (share * 1e6).round() as u32, features, findings }
    }

    /// Devices that were judged on their own samples locate drift; the pools of those that have too few speak for
    /// the rest.
    fn scope(&self, findings: &[Finding]) -> Scope {
        let mut devices = BTreeMap::new();
        let (mut pooled, mut groups, mut fleet) = (0, BTreeSet::new(), false);
        for finding in findings.iter().filter(|finding| finding.verdict != Verdict::Learning) {
            let drifted = finding.verdict == Verdict::Drifted;
            match &finding.subject {
                Subject::Device(device) => {
                    if let Some(place) = self.roster.get(device) {
                        devices.insert(device.clone(), Judged { groups: place.groups.clone(), drifted });
                    }
                }
                Subject::Group(group) => {
                    pooled += 1;
                    if drifted {
                        groups.insert(group.clone());
                    }
                }
                Subject::Fleet => fleet = drifted,
            }
        }
        let located = locate(&devices, &self.config.scope);
        let enough = devices.len() >= self.config.scope.devices_min;
        let (suspects, well) = match &located {
            Scope::Fleet => return Scope::Fleet,
            Scope::Groups { groups: whole, suspects } => {
                groups.extend(whole.iter().cloned());
                return Scope::Groups { groups, suspects: suspects.clone() };
            }
            Scope::Devices { suspects } => (suspects.clone(), enough),
            Scope::Unclear { devices } => (devices.clone(), false),
            Scope::Nowhere => (BTreeSet::new(), enough),
        };
        // The pool of the fleet holds the pools of its groups: it is the fleet only if no group is well, nor those
        // devices that were judged by themselves.
        if fleet && groups.len() == pooled && !well {
            Scope::Fleet
        } else if groups.is_empty() {
            located
        } else {
            Scope::Groups { groups, suspects }
        }
    }
}

fn named(drifted: &[&Finding]) -> Vec<String> {
    let mut by_name: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for feature in drifted.iter().flat_map(|finding| finding.report.worst()) {
        let (subjects, distance) = by_name.entry(&feature.name).or_default();
        *subjects += 1;
        *distance = distance.max(feature.ks.value);
    }
    let mut names: Vec<_> = by_name.into_iter().collect();
    names.sort_by(|(_, a), (_, b)| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    names.into_iter().take(NAMED_MAX).map(|(name, _)| name.into()).collect()
}
