use alloc::vec::Vec;

use dunlin_protocol::Probation;
use serde::{Deserialize, Serialize};

/// Most waves of one rollout. Four are customary; the bound keeps reports and alpha shares readable.
pub(crate) const WAVES_MAX: usize = 16;
/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// One step of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// Share of the devices, parts per million; the wave is never smaller than one device per class.
    pub share_ppm: u32,
    /// Least time the wave stays open before its gate may pass, milliseconds. In production at least one
    /// daily cycle of the input.
    pub soak_ms: u64,
    /// Least number of requests the candidates answered in the wave.
    pub requests_min: u64,
    /// Least number of inputs, labelled or not, that both releases answered. Zero, as where it is not set, lets the wave
    /// pass on requests alone.
    #[serde(default)]
    pub pairs_min: u64,
    /// Least number of labelled inputs that both releases answered. Zero means that quality is not gated in
    /// this wave: only the guardrails are, and the report says so.
    pub labels_min: u64,
    /// Probability of a wrong decision this wave may spend, parts per million.
    pub alpha_ppm: u32,
    /// Whether an operator must approve before the wave opens.
    #[serde(default)]
    pub approval: bool,
}

/// The hours in which waves may open, in minutes of the UTC day; `from` after `to` spans midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First minute.
    pub from_minute: u32,
    /// First minute after it.
    pub to_minute: u32,
}

impl Window {
    /// Whether the window is open at this wall time.
    pub fn is_open(&self, wall_ms: u64) -> bool {
        let minute = u32::try_from(wall_ms % DAY_MS / 60_000).expect("a day has 1,440 minutes");
        if self.from_minute <= self.to_minute {
            (self.from_minute..self.to_minute).contains(&minute)
        } else {
            minute >= self.from_minute || minute < self.to_minute
        }
    }
}

/// The rules of a rollout. Everything that is compared with evidence stands here, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The waves, shares rising.
    pub waves: Vec<Wave>,
    /// How much accuracy a candidate may lose and still count as not inferior, parts per million.
    pub margin_ppm: u32,
    /// The smallest drop in accuracy that must not go unseen, parts per million: the scale of the
    /// device-level test and what its power is stated for.
    pub effect_ppm: u32,
    /// Least power of the device-level test for it to decide, parts per million; below it paired evidence on
    /// single inputs decides.
    pub power_ppm_min: u32,
    /// Assumed correlation of errors within one device, parts per million, by which counts of paired inputs
    /// are deflated; the correlation seen between devices takes its place when it is larger.
    pub correlation_ppm: u32,
    /// Largest share of a wave's devices that may fail, parts per million, rounded down to whole devices:
    /// in a canary of three, 2 % means none.
    pub failures_ppm_max: u32,
    /// How long a device may say nothing, or take for an ordered update besides its probation, before it counts
    /// as failed, milliseconds.
    pub silence_ms_max: u64,
    /// Hours in which waves may open; absent means any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// How devices watch a candidate before they commit to it; at least as long as their wave soaks, as
    /// [`Policy::watched`] says.
    pub probation: Probation,
}

impl Default for Policy {
    /// 1, 5, 25 and 100 % with .01, .01, .01 and .02 of alpha, a day each, non-inferior within one point.
    ///
    /// Two guardrails are off until a task sets them. Memory: what an agent may take depends on the board and on the
    /// releases it holds beside the candidate, and the budget of the board's class is kept without it, by the choice
    /// and by the proof. Disagreement: a model that is better answers some inputs otherwise, and how many is the
    /// task's to say; which of the two is right, the gate tells from labels.
    fn default() -> Self {
        let wave = |share_ppm, alpha_ppm| Wave {
            share_ppm,
            soak_ms: DAY_MS,
            requests_min: 100,
            pairs_min: 0,
            labels_min: 100,
            alpha_ppm,
            approval: false,
        };
        Self {
            waves: [
                wave(10_000, 10_000),
                wave(50_000, 10_000),
                wave(250_000, 10_000),
                wave(1_000_000, 20_000),
            ]
            .into(),
            margin_ppm: 10_000,
            effect_ppm: 50_000,
            power_ppm_min: 800_000,
            correlation_ppm: 20_000,
            failures_ppm_max: 20_000,
            silence_ms_max: 3_600_000,
            window: None,
            probation: Probation {
                ms_min: 600_000,
                requests_min: 100,
                pairs_min: 0,
                error_ppm_max: 10_000,
                latency_percent_max: 300,
                rss_bytes_max: 0,
                disagree_ppm_max: 1_000_000,
            },
        }
    }
}

/// Why a policy is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No wave, or too many.
    #[error("a rollout policy has 1 to {WAVES_MAX} waves, not {0}")]
    Waves(usize),
    /// Shares must rise.
    #[error("share of wave {0} is not above the one before it, or over 1000000 ppm")]
    Share(usize),
    /// The last wave is not the whole fleet.
    #[error("share of the last wave is not 1000000 ppm, so the rollout could never end")]
    Last,
    /// A wave's alpha is out of range.
    #[error("alpha of wave {0} is not within 1 and 500000 ppm")]
    Alpha(usize),
    /// Margin or effect is out of range.
    #[error("{0} is not within 1 and 500000 ppm")]
    Range(&'static str),
    /// The device-level or the correlation share is out of range.
    #[error("{0} is over 1000000 ppm")]
    Share100(&'static str),
    /// No silence limit.
    #[error("silence_ms_max is 0, which would make every device silent at once")]
    Silence,
}

impl Policy {
    /// How a device of this wave watches a candidate. Only on probation do both releases answer the same inputs,
    /// so it lasts as long as the wave is to gather evidence.
    pub fn watched(&self, wave: usize) -> Probation {
        let soak_ms = self.rules(wave).map_or(0, |rules| rules.soak_ms);
        Probation { ms_min: self.probation.ms_min.max(soak_ms), ..self.probation.clone() }
    }

    /// How long after the order a device of this wave ends its probation even if it was asked too little,
    /// milliseconds: half of what it may take besides is left for its report to arrive.
    pub fn commit_ms(&self, wave: usize) -> u64 {
        self.watched(wave).ms_min.saturating_add(self.silence_ms_max / 2)
    }

    /// How long after the order a device of this wave counts as unfinished, milliseconds.
    pub fn unfinished_ms(&self, wave: usize) -> u64 {
        self.watched(wave).ms_min.saturating_add(self.silence_ms_max)
    }

    /// The rules of a wave; beyond the last one, its rules.
    pub(crate) fn rules(&self, wave: usize) -> Option<&Wave> {
        self.waves.get(wave).or(self.waves.last())
    }

    /// Checks the policy once, so that [`crate::plan`] need not.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.waves.is_empty() || self.waves.len() > WAVES_MAX {
            return Err(PolicyError::Waves(self.waves.len()));
        }
        let mut before = 0;
        for (index, wave) in self.waves.iter().enumerate() {
            if wave.share_ppm <= before || wave.share_ppm > 1_000_000 {
                return Err(PolicyError::Share(index));
            }
            if !(1..=500_000).contains(&wave.alpha_ppm) {
                return Err(PolicyError::Alpha(index));
            }
            before = wave.share_ppm;
        }
        if before != 1_000_000 {
            return Err(PolicyError::Last);
        }
        for (name, value) in [("margin_ppm", self.margin_ppm), ("effect_ppm", self.effect_ppm)] {
            if !(1..=500_000).contains(&value) {
                return Err(PolicyError::Range(name));
            }
        }
        for (name, value) in [
            ("power_ppm_min", self.power_ppm_min),
            ("correlation_ppm", self.correlation_ppm),
            ("failures_ppm_max", self.failures_ppm_max),
        ] {
            if value > 1_000_000 {
                return Err(PolicyError::Share100(name));
            }
        }
        if self.silence_ms_max == 0 { Err(PolicyError::Silence) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass_and_spend_five_percent() {
        let policy = Policy::default();
        assert_eq!(policy.check(), Ok(()));
        assert_eq!(policy.waves.iter().map(|wave| wave.alpha_ppm).sum::<u32>(), 50_000);
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
        let broken = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            policy.check().unwrap_err()
        };
        assert_eq!(broken(|p| p.waves.clear()), PolicyError::Waves(0));
        assert_eq!(broken(|p| p.waves[1].share_ppm = 10_000), PolicyError::Share(1));
        assert_eq!(broken(|p| p.waves[3].share_ppm = 900_000), PolicyError::Last);
        assert_eq!(broken(|p| p.waves[0].alpha_ppm = 0), PolicyError::Alpha(0));
        assert_eq!(broken(|p| p.margin_ppm = 0), PolicyError::Range("margin_ppm"));
        assert_eq!(broken(|p| p.failures_ppm_max = 1_000_001), PolicyError::Share100("failures_ppm_max"));
        assert_eq!(broken(|p| p.silence_ms_max = 0), PolicyError::Silence);
    }

    #[test]
    fn probation_lasts_at_least_as_long_as_the_wave_soaks_and_ends_in_time() {
        let mut policy = Policy::default();
        policy.waves[0].soak_ms = 60_000;
        assert_eq!((policy.watched(0).ms_min, policy.watched(1).ms_min), (600_000, DAY_MS));
        assert_eq!(policy.watched(9), policy.watched(3));
        for wave in 0..4 {
            let (watched, commit) = (policy.watched(wave).ms_min, policy.commit_ms(wave));
            assert!(watched < commit && commit < policy.unfinished_ms(wave));
        }
    }

    #[test]
    fn a_window_may_span_midnight() {
        let night = Window { from_minute: 22 * 60, to_minute: 4 * 60 };
        let at = |hour: u64| 5 * DAY_MS + hour * 3_600_000;
        assert!(
            night.is_open(at(23)) && night.is_open(at(3)) && !night.is_open(at(4)) && !night.is_open(at(12))
        );
        let day = Window { from_minute: 9 * 60, to_minute: 17 * 60 };
        assert!(day.is_open(at(9)) && !day.is_open(at(17)));
    }
}
