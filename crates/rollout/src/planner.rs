use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{DeviceId, Now};
use serde::{Deserialize, Serialize};

use crate::evidence::assess;
use crate::{
    Evidence, Failure, Inventory, Member, Plan, Policy, Previous, Progress, Quality, State, StopReason, wave,
};

/// What stands between an open wave and the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum WaitingOn {
    /// The wall clock is unknown.
    Clock,
    /// No device is in the inventory.
    AnyDevice,
    /// An operator must approve the wave.
    Approval {
        /// Index of the wave.
        wave: usize,
    },
    /// Waves open in certain hours only.
    Window,
    /// An operator paused it.
    Paused,
    /// The wave has not been open long enough.
    Soak {
        /// Milliseconds left.
        left_ms: u64,
    },
    /// Devices that have not finished.
    Devices {
        /// Which.
        devices: Vec<DeviceId>,
    },
    /// Selection chose no candidate for any device of the wave.
    Selection,
    /// The candidates have answered too little.
    Requests {
        /// Requests there are.
        have: u64,
        /// Requests the wave asks for.
        need: u64,
    },
    /// Too few inputs that both releases answered.
    Pairs {
        /// Inputs there are.
        have: u64,
        /// Inputs the wave asks for.
        need: u64,
    },
    /// Too few labelled inputs that both releases answered.
    Labels {
        /// Labelled inputs there are.
        have: u64,
        /// Labelled inputs the wave asks for.
        need: u64,
        /// What they say so far.
        evidence: Evidence,
    },
    /// The evidence shows neither harm nor that there is none.
    Significance {
        /// The evidence.
        evidence: Evidence,
    },
}

impl WaitingOn {
    /// What an operator can do where waiting alone may not end it: once every device of the wave has left its
    /// probation, no further inputs are answered by both releases, and only late labels add to the evidence.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Pairs { .. } => Some(
                "probation is over in this wave, so nothing adds to what both releases answered: promote it by hand, or \
                 abort it and try with a probation.pairs_min, with more requests, or with a smaller pairs_min of the wave",
            ),
            Self::Labels { .. } => Some(
                "probation is over in this wave, so only late labels add to the evidence: send labels for what was \
                 answered, promote it by hand, or abort it and try with a longer soak or a smaller labels_min",
            ),
            Self::Significance { .. } => Some(
                "probation is over in this wave, so only late labels add to the evidence: promote it by hand, or \
                 abort it and try with a longer soak or a wider margin",
            ),
            Self::Selection => Some(
                "every device of the wave kept what it runs: see `dunlin device explain` for the reasons, or abort it",
            ),
            Self::Approval { .. } => Some("approve the wave: dunlin rollout approve"),
            Self::Clock
            | Self::AnyDevice
            | Self::Window
            | Self::Paused
            | Self::Soak { .. }
            | Self::Devices { .. }
            | Self::Requests { .. } => None,
        }
    }
}

/// What the gate of the open wave says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Not yet.
    Wait(WaitingOn),
    /// The wave passed and the next one opened.
    Open {
        /// Index of the wave that opened.
        wave: usize,
        /// What the pass stands on; absent for the first wave and for waves that do not gate quality.
        evidence: Option<Evidence>,
    },
    /// The last wave passed: the candidates are promoted.
    Promote {
        /// What the pass stands on; absent if the wave does not gate quality.
        evidence: Option<Evidence>,
    },
    /// It stopped.
    Stop(StopReason),
    /// It ended before.
    Ended,
}

/// Devices of the open waves by where they stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// All.
    pub members: usize,
    /// Nothing ordered yet.
    pub idle: usize,
    /// Selection kept a promoted release.
    pub declined: usize,
    /// On their way.
    pub ordered: usize,
    /// Done.
    pub committed: usize,
    /// Of those, committed although nothing was ever compared there: nobody asked, or there was no release to compare with.
    #[serde(default)]
    pub uncompared: usize,
    /// Failed, unfinished past their time or silent, and how.
    pub failed: Vec<(DeviceId, Failure)>,
    /// Failures the policy allows.
    pub allowed: usize,
    /// Requests the candidates answered.
    pub requests: u64,
    /// Inputs that the candidates and the releases before them both answered.
    #[serde(default)]
    pub pairs: u64,
}

/// What [`plan`] found. It explains the plan beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[must_use = "the report is the explanation"]
pub struct Report {
    /// Generation of the plan it explains.
    pub generation: u64,
    /// The wave that is open after it.
    pub wave: Option<usize>,
    /// The verdict.
    pub verdict: Verdict,
    /// The count behind it.
    pub tally: Tally,
    /// What an operator can do about it, where waiting alone may not be enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// One look: the next plan, equal to the last one if nothing is to change, and why.
///
/// `policy` must have passed [`Policy::check`].
pub fn plan(policy: &Policy, inventory: &Inventory, last: &Plan, now: Now) -> (Plan, Report) {
    let (next, verdict, tally) = match now.wall_ms {
        _ if last.state.is_final() => (last.clone(), Verdict::Ended, Tally::default()),
        None => (last.clone(), Verdict::Wait(WaitingOn::Clock), Tally::default()),
        Some(at_ms) => look(policy, inventory, last, at_ms),
    };
    let wave = match next.state {
        State::Open { wave, .. } | State::Paused { wave, .. } => Some(wave),
        State::Created | State::Promoted { .. } | State::Stopped { .. } | State::Superseded { .. } => None,
    };
    let hint = match &verdict {
        Verdict::Wait(on) => on.hint().map(String::from),
        Verdict::Open { .. } | Verdict::Promote { .. } | Verdict::Stop(_) | Verdict::Ended => None,
    };
    let report = Report { generation: next.generation, wave, verdict, tally, hint };
    (next, report)
}

fn look(policy: &Policy, inventory: &Inventory, last: &Plan, at_ms: u64) -> (Plan, Verdict, Tally) {
    let (wave, since_ms, paused) = match last.state {
        State::Open { wave, since_ms } => (wave, since_ms, false),
        State::Paused { wave, since_ms, .. } => (wave, since_ms, true),
        State::Created => {
            let (next, verdict) = advance(policy, inventory, last, 0, None, at_ms);
            return (next, verdict, Tally::default());
        }
        State::Promoted { .. } | State::Stopped { .. } | State::Superseded { .. } => {
            return (last.clone(), Verdict::Ended, Tally::default());
        }
    };
    let members: Vec<(&DeviceId, &Member)> =
        last.members.keys().filter_map(|device| inventory.devices.get_key_value(device)).collect();
    let (tally, unfinished) = count(policy, last, &members, since_ms, at_ms);
    let stop = |reason: StopReason, tally| {
        let state = State::Stopped { at_ms, reason: reason.clone() };
        (last.moved(state), Verdict::Stop(reason), tally)
    };
    if tally.failed.len() > tally.allowed {
        let reason = StopReason::Failures { failed: tally.failed.clone(), allowed: tally.allowed };
        return stop(reason, tally);
    }
    let rules = &policy.waves[wave.min(policy.waves.len() - 1)];
    let quality = match weaken::off(Defence::Gate) {
        true => Quality::NotGated,
        false => assess(policy, rules, members.iter().map(|(_, member)| *member)),
    };
    let wait = |on, tally| (last.clone(), Verdict::Wait(on), tally);
    if let Quality::Harmful(release, evidence) = quality {
        return stop(StopReason::Harm { release, evidence }, tally);
    }
    if paused {
        return wait(WaitingOn::Paused, tally);
    }
    if members.is_empty() {
        return wait(WaitingOn::AnyDevice, tally);
    }
    if !unfinished.is_empty() {
        return wait(WaitingOn::Devices { devices: unfinished }, tally);
    }
    if tally.committed == 0 {
        return wait(WaitingOn::Selection, tally);
    }
    let open_ms = at_ms.saturating_sub(since_ms);
    if open_ms < rules.soak_ms {
        return wait(WaitingOn::Soak { left_ms: rules.soak_ms - open_ms }, tally);
    }
    if tally.requests < rules.requests_min {
        return wait(WaitingOn::Requests { have: tally.requests, need: rules.requests_min }, tally);
    }
    if tally.pairs < rules.pairs_min {
        return wait(WaitingOn::Pairs { have: tally.pairs, need: rules.pairs_min }, tally);
    }
    let evidence = match quality {
        Quality::TooFew { have, need, evidence } => {
            return wait(WaitingOn::Labels { have, need, evidence }, tally);
        }
        Quality::Undecided(evidence) => return wait(WaitingOn::Significance { evidence }, tally),
        Quality::NotInferior(evidence) => Some(evidence),
        Quality::NotGated | Quality::Harmful(..) => None,
    };
    let (next, verdict) = advance(policy, inventory, last, wave + 1, evidence, at_ms);
    (next, verdict, tally)
}

/// Opens the wave with this index, or ends the rollout after the last one.
fn advance(
    policy: &Policy,
    inventory: &Inventory,
    last: &Plan,
    index: usize,
    evidence: Option<Evidence>,
    at_ms: u64,
) -> (Plan, Verdict) {
    let wait = |on| (last.clone(), Verdict::Wait(on));
    let Some(rules) = policy.waves.get(index) else {
        return (last.moved(State::Promoted { at_ms }), Verdict::Promote { evidence });
    };
    if inventory.devices.is_empty() {
        return wait(WaitingOn::AnyDevice);
    }
    if rules.approval && !last.approved.contains(&index) {
        return wait(WaitingOn::Approval { wave: index });
    }
    if policy.window.is_some_and(|window| !window.is_open(at_ms)) {
        return wait(WaitingOn::Window);
    }
    let before: BTreeSet<DeviceId> = last.members.keys().cloned().collect();
    let mut next = last.moved(State::Open { wave: index, since_ms: at_ms });
    for device in wave::members(&last.rollout, rules.share_ppm, inventory, &before) {
        let release = inventory.devices.get(&device).and_then(|member| member.serving.clone());
        next.members.entry(device).or_insert(Previous { wave: index, release });
    }
    (next, Verdict::Open { wave: index, evidence })
}

/// Sorts the members; the second value are those still on their way and within their time.
fn count(
    policy: &Policy,
    last: &Plan,
    members: &[(&DeviceId, &Member)],
    since_ms: u64,
    at_ms: u64,
) -> (Tally, Vec<DeviceId>) {
    let allowed = (members.len() as u128 * u128::from(policy.failures_ppm_max)) / 1_000_000;
    let mut tally = Tally {
        members: members.len(),
        allowed: usize::try_from(allowed).unwrap_or(usize::MAX),
        requests: members.iter().fold(0, |sum, (_, member)| member.requests.saturating_add(sum)),
        pairs: members.iter().fold(0, |sum, (_, member)| member.pairs.saturating_add(sum)),
        ..Tally::default()
    };
    let mut unfinished = Vec::new();
    for (device, member) in members {
        let quiet_ms = at_ms.saturating_sub(member.heard_ms.unwrap_or(since_ms).max(since_ms));
        let silent = (quiet_ms > policy.silence_ms_max).then_some(Failure::Silent { for_ms: quiet_ms });
        let failure = match &member.progress {
            Progress::Idle => {
                tally.idle += 1;
                silent
            }
            Progress::Declined => {
                tally.declined += 1;
                None
            }
            Progress::Ordered { since_ms, .. } => {
                tally.ordered += 1;
                let for_ms = at_ms.saturating_sub(*since_ms);
                let wave = last.members.get(*device).map_or(0, |previous| previous.wave);
                silent.or((for_ms > policy.unfinished_ms(wave)).then_some(Failure::Unfinished { for_ms }))
            }
            Progress::Committed { .. } => {
                tally.committed += 1;
                tally.uncompared += usize::from(member.pairs == 0);
                silent
            }
            Progress::Failed { reason, .. } => Some(Failure::Reported { reason: *reason }),
        };
        let on_its_way = match member.progress {
            Progress::Idle | Progress::Ordered { .. } => true,
            Progress::Declined | Progress::Committed { .. } | Progress::Failed { .. } => false,
        };
        match failure {
            Some(failure) => tally.failed.push(((*device).clone(), failure)),
            None if on_its_way => unfinished.push((*device).clone()),
            None => {}
        }
    }
    (tally, unfinished)
}
