//! One answer out of the scores of several models.

use super::sampling::margin;

/// How votes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ballot {
    /// A class each; of classes with equally many votes, that which an earlier one named.
    Hard,
    /// All scores, alike.
    Soft,
    /// All scores, weighted.
    Weighted,
}

/// What one model says of all rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voice<'a> {
    pub(super) scores: &'a [f32],
    /// Parts per million.
    pub(super) weight: u32,
}

/// What breaks a tie of a hard vote: far less than a vote of the largest line-up, far more than its rounding.
const HAIR: f32 = 1e-3;

/// Whether every row's best score is ahead of the next by the margin, parts per million. What has fewer than two scores
/// a row is always sure.
pub(super) fn sure(scores: &[f32], rows: usize, margin_ppm: u32) -> bool {
    let width = scores.len() / rows.max(1);
    width < 2 || scores.chunks_exact(width).all(|row| margin(row) * 1e6 >= margin_ppm as f32)
}

/// The scores that the voices agree on. Voices with another number of scores than the first are not heard; without
/// classes a hard vote is a soft one.
pub(super) fn vote(ballot: Ballot, voices: &[Voice<'_>], rows: usize) -> Vec<f32> {
    let Some(first) = voices.first() else { return Vec::new() };
    let heard: Vec<&Voice<'_>> = voices.iter().filter(|v| v.scores.len() == first.scores.len()).collect();
    let width = first.scores.len() / rows.max(1);
    let hard = ballot == Ballot::Hard && width > 1;
    let weight = |voice: &Voice<'_>| match ballot {
        Ballot::Hard | Ballot::Soft => 1.0,
        Ballot::Weighted => voice.weight as f32 / 1e6,
    };
    let whole: f32 = heard.iter().map(|voice| weight(voice)).sum();
    if whole <= 0.0 || width == 0 {
        return first.scores.to_vec();
    }
    let mut sums = vec![0.0; first.scores.len()];
    for (row, sum) in sums.chunks_exact_mut(width).enumerate() {
        let of: Vec<&[f32]> = heard.iter().map(|v| &v.scores[row * width..(row + 1) * width]).collect();
        if hard {
            let classes: Vec<usize> =
                of.iter().filter_map(|scores| Some(dunlin_engine::argmax(scores)? as usize)).collect();
            classes.iter().for_each(|&class| sum[class] += 1.0 / whole);
            let most = sum.iter().copied().fold(0.0, f32::max);
            if let Some(&class) = classes.iter().find(|&&class| sum[class] >= most - HAIR / 2.0) {
                sum[class] += HAIR;
            }
        } else {
            for (voice, scores) in heard.iter().zip(of) {
                let share = weight(voice) / whole;
                sum.iter_mut().zip(scores).for_each(|(sum, score)| *sum += share * score);
            }
        }
    }
    sums
}

/// What a meta-model hears: row by row the scores of one model after the other.
pub(super) fn side_by_side(scores: &[&[f32]], rows: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(scores.iter().map(|scores| scores.len()).sum());
    for row in 0..rows {
        for scores in scores {
            let width = scores.len() / rows;
            all.extend_from_slice(&scores[row * width..(row + 1) * width]);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use dunlin_engine::argmax;

    use super::*;

    fn voice(scores: &[f32], weight: u32) -> Voice<'_> {
        Voice { scores, weight }
    }

    #[test]
    fn votes_by_table() {
        let (a, b, c) = ([0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.35, 0.65, 0.0]);
        let (d, e) = ([0.0, 0.4, 0.6], [0.1, 0.8, 0.1]);
        for (ballot, voices, winner) in [
            (Ballot::Hard, vec![voice(&a, 1), voice(&b, 1), voice(&c, 1)], 1),
            // Two of three name the class, but the sum of the scores is another's.
            (Ballot::Soft, vec![voice(&a, 1), voice(&b, 1), voice(&c, 1)], 0),
            (Ballot::Weighted, vec![voice(&a, 100_000), voice(&b, 900_000)], 1),
            (Ballot::Weighted, vec![voice(&a, 900_000), voice(&b, 100_000)], 0),
            // Ties go to the earlier one.
            (Ballot::Hard, vec![voice(&a, 1), voice(&b, 1)], 0),
            (Ballot::Hard, vec![voice(&b, 1), voice(&a, 1)], 1),
            (Ballot::Hard, vec![voice(&d, 1), voice(&b, 1), voice(&a, 1), voice(&a, 1), voice(&e, 1)], 1),
            (Ballot::Soft, vec![voice(&d, 1)], 2),
            (Ballot::Weighted, vec![voice(&a, 0), voice(&b, 0)], 0),
        ] {
            let scores = vote(ballot, &voices, 1);
            assert_eq!(argmax(&scores), Some(winner), "{ballot:?} {voices:?}: {scores:?}");
            assert!((scores.iter().sum::<f32>() - 1.0).abs() < 2.0 * HAIR, "{scores:?}");
        }
    }

    #[test]
    fn a_majority_is_never_outvoted_by_who_came_first() {
        let (first, rest) = ([1.0, 0.0], [0.0, 1.0]);
        for n in 1..20 {
            let mut voices = vec![voice(&first, 1); n];
            voices.extend(vec![voice(&rest, 1); n + 1]);
            assert_eq!(argmax(&vote(Ballot::Hard, &voices, 1)), Some(1), "{n}");
        }
    }

    #[test]
    fn rows_are_voted_on_one_by_one_and_misfits_are_not_heard() {
        let (a, b) = ([1.0, 0.0, 0.0, 1.0], [0.8, 0.2, 0.6, 0.4]);
        assert_eq!(vote(Ballot::Soft, &[voice(&a, 1), voice(&b, 1)], 2), [0.9, 0.1, 0.3, 0.7]);
        assert_eq!(vote(Ballot::Soft, &[voice(&a, 1), voice(&b[..3], 1)], 2), a);
        assert_eq!(vote(Ballot::Hard, &[voice(&[2.0], 1), voice(&[4.0], 1)], 1), [3.0], "no classes, a mean");
        assert!(vote(Ballot::Soft, &[], 1).is_empty());
    }

    #[test]
    fn sure_is_a_margin_in_every_row() {
        assert!(sure(&[0.7, 0.3], 1, 300_000) && !sure(&[0.6, 0.4], 1, 300_000));
        assert!(!sure(&[0.9, 0.1, 0.5, 0.5], 2, 300_000), "one unsure row is enough");
        assert!(sure(&[0.1], 1, 1_000_000) && sure(&[], 1, 1_000_000));
    }

    #[test]
    fn a_meta_model_hears_row_after_row() {
        assert_eq!(side_by_side(&[&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0]], 2), [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
    }
}
