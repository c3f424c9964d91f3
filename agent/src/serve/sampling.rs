//! Which inputs may leave the device, within the byte budget that the task's signed policy allows.
//!
//! Two token buckets share the budget: one for rows drawn uniformly, at least [`RANDOM_PPM_MIN`] of it, one for rows
//! chosen because they are uncertain or flagged. The chance of a uniform draw is the share of its bucket that is
//! full: all rows while traffic is low, fewer as the budget is used up. It is fixed before the row is seen and kept
//! with the sample, so that weighting by its inverse is unbiased.

use dunlin_protocol::{Now, ReleaseId, Sample, SampleKind, SamplePolicy, Samples, TaskId};

/// Least share of the budget for uniform draws, whatever the policy says: without them no accuracy can be audited.
const RANDOM_PPM_MIN: u32 = 300_000;
/// Margin between the two best scores below which a row counts as uncertain.
const MARGIN_MAX: f32 = 0.1;
/// Samples held until they are taken: a minute of the largest budget at the usual reporting interval.
const SAMPLES_MAX: usize = 256;
/// What a sample costs beside its features: id, times and keys on the wire.
const OVERHEAD_BYTES: u64 = 96;
/// A bucket holds this part of a day's budget, so that a burst can not use up the day.
const BUCKETS_A_DAY: u64 = 24;
const DAY_MS: f64 = 86_400_000.0;

#[derive(Debug)]
struct Bucket {
    capacity: f64,
    tokens: f64,
    per_ms: f64,
    at_ms: u64,
}

impl Bucket {
    fn new(bytes_per_day: f64, now: Now) -> Self {
        let capacity = bytes_per_day / BUCKETS_A_DAY as f64;
        Self { capacity, tokens: capacity, per_ms: bytes_per_day / DAY_MS, at_ms: now.mono_ms }
    }

    fn fill(&mut self, now: Now) {
        let passed = now.mono_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now.mono_ms);
        self.tokens = (self.tokens + passed as f64 * self.per_ms).min(self.capacity);
    }

    /// The chance with which something of `cost` is drawn now, in parts per million.
    fn chance_ppm(&self, cost: f64) -> u32 {
        if self.tokens < cost || self.capacity <= 0.0 {
            0
        } else {
            (self.tokens / self.capacity * 1e6) as u32
        }
    }
}

/// A row that might become a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) id: &'a str,
    pub(super) release: &'a ReleaseId,
    pub(super) x: &'a [f32],
    pub(super) predicted: u32,
    pub(super) scores: &'a [f32],
}

/// Draws samples of one task.
#[derive(Debug)]
pub(super) struct Sampler {
    random: Bucket,
    chosen: Bucket,
    dice: u64,
    held: Vec<(ReleaseId, Sample)>,
}

impl Sampler {
    pub(super) fn new(policy: &SamplePolicy, seed: u64, now: Now) -> Self {
        let share = f64::from(policy.random_ppm_min.clamp(RANDOM_PPM_MIN, 1_000_000)) / 1e6;
        let day = policy.bytes_per_day_max as f64;
        Self {
            random: Bucket::new(day * share, now),
            chosen: Bucket::new(day * (1.0 - share), now),
            dice: seed,
            held: Vec::new(),
        }
    }

    /// Considers an answered row.
    pub(super) fn consider(&mut self, row: &Row<'_>, now: Now) {
        if row.x.is_empty() || self.held.len() >= SAMPLES_MAX {
            return;
        }
        let cost = cost(row.x);
        self.random.fill(now);
        let chance = self.random.chance_ppm(cost);
        if self.roll() < chance {
            self.random.tokens -= cost;
            self.hold(row, None, SampleKind::Random, chance, now);
            return;
        }
        if margin(row.scores) >= MARGIN_MAX {
            return;
        }
        self.chosen.fill(now);
        let chance = self.chosen.chance_ppm(cost);
        if self.roll() < chance {
            self.chosen.tokens -= cost;
            self.hold(row, None, SampleKind::Uncertain, chance, now);
        }
    }

    /// Takes a row whose label says that the answer was wrong, as far as the budget goes.
    pub(super) fn flag(&mut self, row: &Row<'_>, label: u32, now: Now) {
        let cost = cost(row.x);
        self.chosen.fill(now);
        if row.x.is_empty() || self.held.len() >= SAMPLES_MAX || self.chosen.tokens < cost {
            return;
        }
        self.chosen.tokens -= cost;
        self.hold(row, Some(label), SampleKind::Flagged, 1_000_000, now);
    }

    /// Adds a late label to a sample that is still here; whether there was one.
    pub(super) fn label(&mut self, id: &str, label: u32) -> bool {
        let mut found = false;
        for (_, sample) in self.held.iter_mut().filter(|(_, sample)| sample.id == id) {
            sample.label = Some(label);
            found = true;
        }
        found
    }

    /// Everything drawn so far, by release.
    pub(super) fn take(&mut self, task: &TaskId) -> Vec<Samples> {
        let mut all: Vec<Samples> = Vec::new();
        for (release, sample) in self.held.drain(..) {
            match all.iter_mut().find(|s| s.release == release) {
                Some(samples) => samples.samples.push(sample),
                None => all.push(Samples { task: task.clone(), release, samples: vec![sample] }),
            }
        }
        all
    }

    fn hold(&mut self, row: &Row<'_>, label: Option<u32>, kind: SampleKind, inclusion_ppm: u32, now: Now) {
        let x = row.x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
        let sample = Sample {
            id: row.id.to_owned(),
            at_ms: now.wall_ms,
            x,
            predicted: row.predicted,
            label,
            kind,
            inclusion_ppm,
        };
        self.held.push((row.release.clone(), sample));
    }

    /// A number below a million, by SplitMix64 (Steele, Lea, Flood 2014).
    fn roll(&mut self) -> u32 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % 1_000_000) as u32
    }
}

fn cost(x: &[f32]) -> f64 {
    (size_of_val(x) as u64 + OVERHEAD_BYTES) as f64
}

/// How far the best score is ahead of the next.
pub(super) fn margin(scores: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &x in scores {
        if x > first {
            (first, second) = (x, first);
        } else if x > second {
            second = x;
        }
    }
    first - second
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, wall_ms: None }
    }

    fn run(bytes: u64, random_ppm_min: u32, rows: u64, every_ms: u64) -> Vec<Sample> {
        let release: ReleaseId = "m@1".parse().unwrap();
        let mut sampler = Sampler::new(&SamplePolicy { bytes_per_day_max: bytes, random_ppm_min }, 7, at(0));
        let mut all = Vec::new();
        for i in 0..rows {
            let scores = if i % 4 == 0 { [0.52, 0.48] } else { [0.9, 0.1] };
            let row = Row { id: "r", release: &release, x: &[1.0, 2.0], predicted: 0, scores: &scores };
            sampler.consider(&row, at(i * every_ms));
            all.extend(sampler.take(&"t".parse().unwrap()).into_iter().flat_map(|s| s.samples));
        }
        all
    }

    #[test]
    fn a_day_stays_within_its_bytes_and_most_of_the_bytes_are_used() {
        let (bytes, second) = (104_000, 1_000);
        let all = run(bytes, 300_000, 86_400, second);
        let spent = all.len() as u64 * 104;
        assert!(spent <= bytes + bytes / BUCKETS_A_DAY, "{spent}");
        assert!(spent > bytes / 2, "{spent}");
        let random = all.iter().filter(|s| s.kind == SampleKind::Random).count();
        assert!(random * 10 >= all.len() * 3, "{random} of {}", all.len());
    }

    #[test]
    fn inverse_chances_of_random_samples_add_up_to_the_rows() {
        let rows = 86_400;
        let all = run(500_000, 1_000_000, rows, 1_000);
        let estimate: f64 = all.iter().map(|s| 1e6 / f64::from(s.inclusion_ppm)).sum();
        assert!((estimate / rows as f64 - 1.0).abs() < 0.1, "{estimate}");
    }

    #[test]
    fn quiet_traffic_is_sampled_whole_and_a_zero_budget_never() {
        assert_eq!(run(10_000_000, 300_000, 50, 60_000).len(), 50);
        assert!(run(0, 300_000, 50, 60_000).is_empty());
    }
}
