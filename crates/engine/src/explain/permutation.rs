//! Walks from a background row to the explained one, a feature at a time: what the answer gains at a step is put down
//! to the feature that changed. A walk's gains add up to the whole difference, whatever its order, so their mean does.

use super::{Effort, Explains, Explanation, Method, PERMUTATIONS_MAX};
use crate::EngineError;

/// Answers `n` rows, each with the same number of values.
pub(super) type Answer<'a> = dyn FnMut(&[f32], usize) -> Result<Vec<f32>, EngineError> + 'a;

pub(super) fn explain(
    answer: &mut Answer<'_>,
    x: &[f32],
    background: &[f32],
    effort: &Effort,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Explanation, EngineError> {
    let columns = x.len();
    let value = finite(answer(x, 1)?)?;
    let outputs = value.len();
    let rows = background.len() / columns;
    let mut walks = Walks { answer, x, value: &value, order: (0..columns).collect(), state: effort.seed };
    let pairs = effort.permutations.clamp(1, PERMUTATIONS_MAX).div_ceil(2);
    let mut total = vec![0.0; outputs * columns];
    let mut base = vec![0.0; outputs];
    let (mut used, mut walked, mut complete) = (rows, 0, true);
    'rounds: for round in 0..pairs {
        // A round that is cut short would give some background rows more weight than others, so only the first one, in
        // which the base is found, may be.
        let mut gains = vec![0.0; outputs * columns];
        for (i, from) in background.chunks_exact(columns).enumerate() {
            if (round, i) != (0, 0) && !go_on() {
                complete = false;
                if round == 0 {
                    (total, used, walked) = (gains, i, 1);
                }
                break 'rounds;
            }
            let begin = walks.pair(from, &mut gains)?;
            if round == 0 {
                base.iter_mut().zip(&begin).for_each(|(sum, y)| *sum += y);
            }
        }
        total.iter_mut().zip(&gains).for_each(|(sum, gain)| *sum += gain);
        walked = round + 1;
    }
    total.iter_mut().for_each(|sum| *sum /= (2 * walked * used) as f64);
    base.iter_mut().for_each(|sum| *sum /= used as f64);
    Ok(Explanation {
        method: Method::Permutation,
        explains: Explains::Output,
        base,
        value,
        contributions: total,
        background: used,
        permutations: 2 * walked,
        complete,
    })
}

struct Walks<'a, 'f> {
    answer: &'a mut Answer<'f>,
    x: &'a [f32],
    value: &'a [f64],
    order: Vec<usize>,
    state: u64,
}

impl Walks<'_, '_> {
    /// One walk and the one in the opposite order, which cancels what pairs of features do together. Adds their gains and
    /// gives the answer at the beginning.
    fn pair(&mut self, from: &[f32], gains: &mut [f64]) -> Result<Vec<f64>, EngineError> {
        self.shuffle();
        let columns = self.x.len();
        // The beginning, then what lies between it and the end, there and back.
        let between = columns - 1;
        let mut batch = from.to_vec();
        let mut there = from.to_vec();
        for &feature in &self.order[..between] {
            there[feature] = self.x[feature];
            batch.extend_from_slice(&there);
        }
        let mut back = from.to_vec();
        for &feature in self.order[1..].iter().rev() {
            back[feature] = self.x[feature];
            batch.extend_from_slice(&back);
        }
        let made = finite((self.answer)(&batch, 1 + 2 * between)?)?;
        let outputs = self.value.len();
        if made.len() != outputs * (1 + 2 * between) {
            return Err(EngineError::Run("the model does not give one answer a row".into()));
        }
        let at = |row: usize| &made[row * outputs..(row + 1) * outputs];
        let mut add = |feature: usize, before: &[f64], after: &[f64]| {
            for (output, (before, after)) in before.iter().zip(after).enumerate() {
                gains[output * columns + feature] += after - before;
            }
        };
        for (step, &feature) in self.order.iter().enumerate() {
            add(feature, at(step), if step < between { at(step + 1) } else { self.value });
        }
        for (step, &feature) in self.order.iter().rev().enumerate() {
            let before = if step == 0 { at(0) } else { at(between + step) };
            add(feature, before, if step < between { at(between + step + 1) } else { self.value });
        }
        Ok(at(0).to_vec())
    }

    /// Fisher and Yates.
    fn shuffle(&mut self) {
        for last in (1..self.order.len()).rev() {
            let other = (self.next() % (last as u64 + 1)) as usize;
            self.order.swap(last, other);
        }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn finite(answers: Vec<f32>) -> Result<Vec<f64>, EngineError> {
    if answers.iter().any(|y| !y.is_finite()) {
        return Err(EngineError::Run("an answer on the way to the explanation is not finite".into()));
    }
    Ok(answers.into_iter().map(f64::from).collect())
}
