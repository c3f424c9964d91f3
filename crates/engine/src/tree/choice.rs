//! Which class a row is given: by its sums over the trees, before any transform, as ONNX Runtime chooses.

/// The rule of one classifier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Choice {
    /// The largest sum, the first of equal ones.
    Largest,
    /// The largest sum of those that a leaf of this row spoke about.
    LargestReached,
    /// Of two classes the second if the sum in `column` is above `threshold`.
    Above { column: usize, threshold: f32 },
}

impl Choice {
    /// Of two classes of which one has scores, in `column`: sums that can not be negative are probabilities.
    pub(super) fn of_one(column: usize, non_negative: bool) -> Self {
        Self::Above { column, threshold: if non_negative { 0.5 } else { 0.0 } }
    }

    /// The class of a row of sums, of which some are `reached`.
    pub(super) fn class(self, sums: &[f32], reached: &[bool]) -> usize {
        match self {
            Self::Largest => largest(sums.iter().copied().enumerate()),
            Self::LargestReached => {
                let spoken = sums.iter().copied().enumerate().zip(reached);
                largest(spoken.filter_map(|(sum, &reached)| reached.then_some(sum)))
            }
            Self::Above { column, threshold } => usize::from(sums[column] > threshold),
        }
    }
}

fn largest(sums: impl Iterator<Item = (usize, f32)>) -> usize {
    sums.reduce(|best, next| if next.1 > best.1 { next } else { best }).map_or(0, |(class, _)| class)
}
