use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

/// One generation of a rollout: immutable; a change is a new plan whose parent is this one.
#[derive(Serialize, ToSchema)]
pub(crate) struct Plan {
    /// Id of the rollout.
    rollout: String,
    /// The task its candidates are for.
    task: String,
    /// The releases it brings.
    candidates: Vec<String>,
    /// Why it was made, for people.
    cause: String,
    /// Counts up by one with each plan of this rollout, from 1.
    generation: u64,
    /// The generation it was made from; none for the first.
    parent: Option<u64>,
    /// Waves an operator approved.
    approved: Vec<usize>,
    /// Devices of the waves that opened.
    members: BTreeMap<String, Previous>,
    /// Where it stands.
    state: RolloutState,
}

/// When a device was let in, and what it ran before.
#[derive(Serialize, ToSchema)]
pub(crate) struct Previous {
    /// The wave that let it in.
    wave: usize,
    /// What it served then; where it returns to if the rollout stops.
    release: Option<String>,
}

/// Where a rollout stands.
#[derive(Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum RolloutState {
    /// No wave has opened.
    Created,
    /// A wave is open.
    Open {
        /// Its index.
        wave: usize,
        /// When it opened, Unix milliseconds.
        since_ms: u64,
    },
    /// As open, but no further wave opens.
    Paused {
        /// The wave that is open.
        wave: usize,
        /// When it opened, Unix milliseconds.
        since_ms: u64,
        /// Who paused it.
        by: String,
    },
    /// Every device is open to the candidates for good.
    Promoted {
        /// Unix milliseconds.
        at_ms: u64,
    },
    /// Ended; the devices of its waves return to what they ran.
    Stopped {
        /// Unix milliseconds.
        at_ms: u64,
        /// Why.
        reason: StopReason,
    },
    /// A newer rollout of the task took its place.
    Superseded {
        /// Unix milliseconds.
        at_ms: u64,
        /// The newer rollout.
        by: String,
    },
}

/// Why a rollout stopped.
#[derive(Serialize, ToSchema)]
#[serde(tag = "because", rename_all = "snake_case")]
pub(crate) enum StopReason {
    /// More devices of the wave failed than the policy allows.
    Failures {
        /// Which, and how.
        failed: Vec<(String, Failure)>,
        /// Failures the policy allows in a wave of this size.
        allowed: usize,
    },
    /// A candidate gives worse answers than what it replaces.
    Harm {
        /// The candidate.
        release: String,
        /// What it stands on.
        evidence: PairedEvidence,
    },
    /// An operator aborted it.
    Operator {
        /// Who.
        by: String,
    },
}

/// How a device of a wave failed.
#[derive(Serialize, ToSchema)]
#[serde(tag = "how", rename_all = "snake_case")]
pub(crate) enum Failure {
    /// It said so.
    Reported {
        /// Its reason code.
        reason: String,
    },
    /// It did not finish the ordered update in time.
    Unfinished {
        /// Milliseconds since the order.
        for_ms: u64,
    },
    /// It was not heard of in time.
    Silent {
        /// Milliseconds since its last message, or since the wave opened if there was none.
        for_ms: u64,
    },
}

/// The rules of a rollout; what is left out has its default.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutPolicy {
    /// The waves, shares rising.
    #[serde(default)]
    waves: Vec<Wave>,
    /// How much accuracy a candidate may lose and still count as not inferior, parts per million.
    #[serde(default)]
    margin_ppm: u32,
    /// The smallest drop in accuracy that must not go unseen, parts per million.
    #[serde(default)]
    effect_ppm: u32,
    /// Least power of the device-level test for it to decide, parts per million.
    #[serde(default)]
    power_ppm_min: u32,
    /// Assumed correlation of errors within one device, parts per million.
    #[serde(default)]
    correlation_ppm: u32,
    /// Largest share of a wave's devices that may fail, parts per million, rounded down to whole devices.
    #[serde(default)]
    failures_ppm_max: u32,
    /// How long a device may say nothing, or take for an ordered update besides its probation, milliseconds.
    #[serde(default)]
    silence_ms_max: u64,
    /// Hours in which waves may open; absent means any.
    window: Option<OpenHours>,
    /// How devices watch a candidate before they commit to it.
    #[serde(default)]
    probation: Probation,
}

/// One step of a rollout.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wave {
    /// Share of the devices, parts per million; the wave is never smaller than one device per class.
    share_ppm: u32,
    /// Least time the wave stays open before its gate may pass, milliseconds.
    soak_ms: u64,
    /// Least number of requests the candidates answered in the wave.
    requests_min: u64,
    /// Least number of inputs, labelled or not, that both releases answered.
    #[serde(default)]
    pairs_min: u64,
    /// Least number of labelled inputs that both releases answered; zero means that quality is not gated in this wave.
    labels_min: u64,
    /// Probability of a wrong decision this wave may spend, parts per million.
    alpha_ppm: u32,
    /// Whether an operator must approve before the wave opens.
    #[serde(default)]
    approval: bool,
}

/// The hours in which waves may open, in minutes of the UTC day; `from` after `to` spans midnight.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpenHours {
    /// First minute.
    from_minute: u32,
    /// First minute after it.
    to_minute: u32,
}

/// How long a release is watched beside the one it replaces, and what ends it.
#[derive(Serialize, ToSchema)]
pub(crate) struct Probation {
    /// Least time, milliseconds.
    ms_min: u64,
    /// Least number of requests, unless fewer come until the deadline.
    requests_min: u64,
    /// Least number of inputs that both releases answered, unless fewer are there at the deadline.
    #[serde(default)]
    pairs_min: u64,
    /// Most errors among the requests, parts per million.
    error_ppm_max: u32,
    /// Largest factor by which p99 latency may exceed the previous release's, percent.
    latency_percent_max: u32,
    /// Most resident memory of the agent, bytes; zero means no limit.
    rss_bytes_max: u64,
    /// Most disagreement with the previous release, parts per million; a million means no limit.
    disagree_ppm_max: u32,
}

/// What the last look at a rollout found.
#[derive(Serialize, ToSchema)]
pub(crate) struct RolloutReport {
    /// Generation of the plan it explains.
    generation: u64,
    /// The wave that is open after it.
    wave: Option<usize>,
    /// The verdict.
    verdict: RolloutVerdict,
    /// The count behind it.
    tally: Tally,
    /// What an operator can do about it, where waiting alone may not be enough.
    hint: Option<String>,
}

/// What the gate of the open wave says.
#[derive(Serialize, ToSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(crate) enum RolloutVerdict {
    /// Not yet.
    Wait(WaitingOn),
    /// The wave passed and the next one opened.
    Open {
        /// Index of the wave that opened.
        wave: usize,
        /// What the pass stands on; absent for the first wave and for waves that do not gate quality.
        evidence: Option<PairedEvidence>,
    },
    /// The last wave passed: the candidates are promoted.
    Promote {
        /// What the pass stands on; absent if the wave does not gate quality.
        evidence: Option<PairedEvidence>,
    },
    /// It stopped.
    Stop(StopReason),
    /// It ended before.
    Ended,
}

/// What stands between an open wave and the next.
#[derive(Serialize, ToSchema)]
#[serde(tag = "on", rename_all = "snake_case")]
pub(crate) enum WaitingOn {
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
        devices: Vec<String>,
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
        evidence: PairedEvidence,
    },
    /// The evidence shows neither harm nor that there is none.
    Significance {
        /// The evidence.
        evidence: PairedEvidence,
    },
}

/// Devices of the open waves by where they stand.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tally {
    /// All.
    members: usize,
    /// Nothing ordered yet.
    idle: usize,
    /// Selection kept a promoted release.
    declined: usize,
    /// On their way.
    ordered: usize,
    /// Done.
    committed: usize,
    /// Of those, committed although nothing was ever compared there.
    uncompared: usize,
    /// Failed, unfinished past their time or silent, and how.
    failed: Vec<(String, Failure)>,
    /// Failures the policy allows.
    allowed: usize,
    /// Requests the candidates answered.
    requests: u64,
    /// Inputs that the candidates and the releases before them both answered.
    pairs: u64,
}

/// Paired evidence and both tests, in numbers. Logarithms are natural; a test is decided at `needed`.
#[derive(Serialize, ToSchema)]
pub(crate) struct PairedEvidence {
    /// What decided.
    unit: EvidenceUnit,
    /// Power of the device-level test for the policy's effect, parts per million; zero with too few devices.
    device_power_ppm: u32,
    /// Devices with enough labelled inputs for the device-level test.
    devices: usize,
    /// Counts over all devices of the wave.
    paired: Paired,
    /// Mean gain in accuracy, parts per million; negative is worse.
    gain_ppm: i64,
    /// By how much the inputs were deflated, in thousandths.
    design_effect_milli: u64,
    /// Logarithm of the evidence that the worst candidate is worse than what it replaces.
    harm: f64,
    /// Logarithm of the evidence that the candidates are not inferior by more than the margin.
    not_inferior: f64,
    /// What either must reach.
    needed: f64,
}

/// What a decision counts as one observation.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EvidenceUnit {
    Device,
    Input,
}

/// Candidate and previous release on the very same labelled inputs.
#[derive(Serialize, ToSchema)]
pub(crate) struct Paired {
    /// Both right.
    both_right: u64,
    /// Only the candidate right.
    only_new: u64,
    /// Only the previous release right.
    only_old: u64,
    /// Both wrong.
    both_wrong: u64,
}
