//! From what devices reported to what the rollout planner asks.
use std::collections::BTreeMap;

use dunlin_protocol::{DeviceId, Phase, ReasonCode, ReleaseId};
use dunlin_rollout::{Paired, Progress};

use super::{DeviceOutcome, PairedWindow, RolloutOrder};

/// What became of the updates of one task.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// The last outcome of each release on each device that ended an update, with its generation.
    last: BTreeMap<(DeviceId, ReleaseId), (Phase, ReasonCode, u64)>,
    /// What each device committed to last, and since when it did so without another release in between, Unix
    /// milliseconds.
    serving: BTreeMap<DeviceId, (ReleaseId, u64)>,
}

impl Outcomes {
    /// From outcomes, oldest first.
    pub(super) fn new(outcomes: Vec<DeviceOutcome>) -> Self {
        let mut all = Self::default();
        for outcome in outcomes {
            if !ends(outcome.phase) || outcome.reason == ReasonCode::Superseded {
                continue;
            }
            let DeviceOutcome { device, release, generation, phase, reason, received_ms } = outcome;
            let same = all.serving.get(&device).is_some_and(|(serving, _)| *serving == release);
            if phase == Phase::Committed && !same {
                all.serving.insert(device.clone(), (release.clone(), received_ms));
            } else if phase == Phase::RolledBack && same {
                all.serving.remove(&device);
            }
            all.last.insert((device, release), (phase, reason, generation));
        }
        all
    }

    /// When a device committed to a release that it has not left since, Unix milliseconds.
    pub(super) fn committed_ms(&self, device: &DeviceId, release: &ReleaseId) -> Option<u64> {
        self.serving.get(device).filter(|(serving, _)| serving == release).map(|(_, since_ms)| *since_ms)
    }

    /// Whether a release failed on a device for a reason that a second try would not remove.
    pub(super) fn is_known_bad(&self, device: &DeviceId, release: &ReleaseId) -> bool {
        let last = self.last.get(&(device.clone(), release.clone()));
        last.is_some_and(|(phase, reason, _)| failed(*phase) && !passes(*reason))
    }

    /// Where a device stands with the candidate it was ordered to take. `member` tells whether the rollout was
    /// open to it when the last assignments were made.
    pub(super) fn progress(&self, device: &DeviceId, order: Option<&RolloutOrder>, member: bool) -> Progress {
        let Some(order) = order else { return if member { Progress::Declined } else { Progress::Idle } };
        let release = order.release.clone();
        match self.last.get(&(device.clone(), release.clone())) {
            Some((phase, reason, generation)) if *generation >= order.generation => {
                if failed(*phase) {
                    Progress::Failed { release, reason: *reason }
                } else {
                    Progress::Committed { release }
                }
            }
            Some(_) | None => Progress::Ordered { release, since_ms: order.since_ms },
        }
    }
}

fn ends(phase: Phase) -> bool {
    match phase {
        Phase::Committed | Phase::RolledBack | Phase::Failed | Phase::Rejected => true,
        Phase::Assigned
        | Phase::Fetching
        | Phase::Verifying
        | Phase::Staged
        | Phase::Proving
        | Phase::Probation => false,
        Phase::Deferred | Phase::Superseded => false,
    }
}

fn failed(phase: Phase) -> bool {
    match phase {
        Phase::RolledBack | Phase::Failed | Phase::Rejected => true,
        Phase::Assigned
        | Phase::Fetching
        | Phase::Verifying
        | Phase::Staged
        | Phase::Proving
        | Phase::Probation => false,
        Phase::Committed | Phase::Deferred | Phase::Superseded => false,
    }
}

/// Whether a failure is of the world around the model, so that it says nothing against the model. Devices report what keeps
/// a line-up from being used for its champion, also where another part is what was withdrawn or does not go with it.
fn passes(reason: ReasonCode) -> bool {
    [
        ReasonCode::FetchFailed,
        ReasonCode::ServerUntrusted,
        ReasonCode::SlowRetrieval,
        ReasonCode::FileMissing,
        ReasonCode::NoSpace,
        ReasonCode::ClockUnknown,
        ReasonCode::ClockStepped,
        ReasonCode::MetadataExpired,
        ReasonCode::LineupConflict,
        ReasonCode::BelowReleaseFloor,
    ]
    .contains(&reason)
}

/// What candidates of one rollout did, summed over windows as they come in.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Last window that is summed.
    pub(super) cursor: i64,
    sums: BTreeMap<(DeviceId, ReleaseId), Sums>,
}

/// What a candidate did on a device.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    /// Requests it answered.
    pub(super) requests: u64,
    /// Inputs that the release before it answered too.
    pub(super) pairs: u64,
    /// Those of them whose label is known.
    pub(super) paired: Paired,
}

impl Ledger {
    /// Adds windows; each is given once.
    pub(super) fn add(&mut self, windows: Vec<PairedWindow>) {
        for PairedWindow { device, release, window } in windows {
            let sums = self.sums.entry((device, release)).or_default();
            sums.requests = sums.requests.saturating_add(window.n);
            if let Some(pair) = &window.pair {
                sums.pairs = sums.pairs.saturating_add(pair.n);
                sums.paired.add(&Paired {
                    both_right: pair.both_right,
                    only_new: pair.only_this,
                    only_old: pair.only_other,
                    both_wrong: pair.both_wrong,
                });
            }
        }
    }

    /// What a candidate did on a device.
    pub(super) fn of(&self, device: &DeviceId, release: Option<&ReleaseId>) -> Sums {
        let found = release.and_then(|release| self.sums.get(&(device.clone(), release.clone())));
        found.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(generation: u64, phase: Phase, reason: ReasonCode) -> DeviceOutcome {
        DeviceOutcome {
            device: "cam-1".parse().unwrap(),
            release: "m@2".parse().unwrap(),
            generation,
            phase,
            reason,
            received_ms: 1000 * generation,
        }
    }

    fn order() -> RolloutOrder {
        RolloutOrder { release: "m@2".parse().unwrap(), generation: 5, since_ms: 9 }
    }

    fn progress(outcomes: &[DeviceOutcome]) -> Progress {
        Outcomes::new(outcomes.to_vec()).progress(&"cam-1".parse().unwrap(), Some(&order()), true)
    }

    #[test]
    fn pairs_are_summed_whether_their_labels_are_known_or_not() {
        let (device, release) = ("cam-1".parse().unwrap(), order().release);
        let window = |n: u64, pairs: u64, both_right: u64| {
            let pair = serde_json::json!({
                "other": "m@1", "n": pairs, "disagree": 0,
                "both_right": both_right, "only_this": 0, "only_other": 0, "both_wrong": 0,
            });
            let window = serde_json::json!({
                "task": "meter", "start_ms": 1, "end_ms": 2, "wall": true, "n": n, "pair": pair
            });
            let window = serde_json::from_value(window).unwrap();
            PairedWindow { device: "cam-1".parse().unwrap(), release: order().release, window }
        };
        let mut ledger = Ledger::default();
        ledger.add(vec![window(10, 4, 0), window(20, 3, 2), window(5, 0, 1)]);
        let sums = ledger.of(&device, Some(&release));
        assert_eq!((sums.requests, sums.pairs, sums.paired.n()), (35, 7, 3));
        assert_eq!(ledger.of(&device, None).pairs, 0);
    }

    #[test]
    fn the_last_end_counts_and_older_generations_do_not() {
        let release = order().release;
        let ordered = Progress::Ordered { release: release.clone(), since_ms: 9 };
        assert_eq!(progress(&[]), ordered);
        assert_eq!(progress(&[outcome(5, Phase::Staged, ReasonCode::Ok)]), ordered);
        assert_eq!(progress(&[outcome(4, Phase::RolledBack, ReasonCode::GuardErrors)]), ordered);
        assert_eq!(
            progress(&[outcome(5, Phase::Committed, ReasonCode::Ok)]),
            Progress::Committed { release: release.clone() }
        );
        let failed = [
            outcome(5, Phase::Committed, ReasonCode::Ok),
            outcome(5, Phase::RolledBack, ReasonCode::CrashLoop),
        ];
        assert_eq!(progress(&failed), Progress::Failed { release, reason: ReasonCode::CrashLoop });
    }

    #[test]
    fn a_release_serves_from_its_first_commit_until_another_one_or_its_end() {
        let device: DeviceId = "cam-1".parse().unwrap();
        let since = |outcomes: &[DeviceOutcome], release: &str| {
            Outcomes::new(outcomes.to_vec()).committed_ms(&device, &release.parse().unwrap())
        };
        let committed = |generation| outcome(generation, Phase::Committed, ReasonCode::Ok);
        let other = DeviceOutcome { release: "m@1".parse().unwrap(), ..committed(6) };
        assert_eq!(since(&[outcome(5, Phase::Probation, ReasonCode::Ok)], "m@2"), None);
        assert_eq!(since(&[committed(5), committed(7)], "m@2"), Some(5000));
        assert_eq!(since(&[committed(5), other.clone()], "m@2"), None);
        assert_eq!(since(&[committed(5), other.clone(), committed(8)], "m@2"), Some(8000));
        // A candidate that was left again does not end the service of what it was to replace.
        let left = outcome(7, Phase::RolledBack, ReasonCode::GuardErrors);
        assert_eq!(since(&[other, left.clone()], "m@1"), Some(6000));
        assert_eq!(since(&[committed(5), left], "m@2"), None);
    }

    #[test]
    fn a_member_without_an_order_declined() {
        let outcomes = Outcomes::default();
        let device = "cam-1".parse().unwrap();
        assert_eq!(outcomes.progress(&device, None, true), Progress::Declined);
        assert_eq!(outcomes.progress(&device, None, false), Progress::Idle);
    }

    #[test]
    fn the_network_says_nothing_against_a_model() {
        let known_bad = |phase, reason| {
            let outcomes = Outcomes::new(vec![outcome(5, phase, reason)]);
            outcomes.is_known_bad(&"cam-1".parse().unwrap(), &"m@2".parse().unwrap())
        };
        assert!(known_bad(Phase::Failed, ReasonCode::GoldenMismatch));
        assert!(!known_bad(Phase::Failed, ReasonCode::FetchFailed));
        assert!(!known_bad(Phase::Committed, ReasonCode::Ok));
    }

    #[test]
    fn what_another_part_of_the_line_up_brings_about_says_nothing_against_the_champion() {
        for (phase, reason) in
            [(Phase::Failed, ReasonCode::LineupConflict), (Phase::Rejected, ReasonCode::BelowReleaseFloor)]
        {
            let ended = vec![outcome(5, phase, reason)];
            // A rollout that brought it still counts the device as failed.
            let release = order().release;
            assert_eq!(progress(&ended), Progress::Failed { release: release.clone(), reason });
            assert!(!Outcomes::new(ended).is_known_bad(&"cam-1".parse().unwrap(), &release));
        }
    }
}
