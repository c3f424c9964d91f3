//! Which rows are held out. The same function serves the worker and whoever checks its result.
use crate::data::Table;
use crate::job::{Split, SplitPolicy};
use crate::rng::Rng;

/// Row numbers of the two parts, each in rising order of row number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// To learn from.
    pub train: Vec<usize>,
    /// To judge by.
    pub holdout: Vec<usize>,
}

/// Divides `table`. A class that occurs in `table` keeps at least one row on the training side under
/// [`SplitPolicy::Stratified`]; under [`SplitPolicy::TimeOrdered`] only time decides.
pub fn split(table: &Table, policy: Split, seed: u64, name: &str) -> Parts {
    let share = |rows: usize| rows * policy.holdout_percent as usize / 100;
    let rows = table.rows();
    let mut held = vec![false; rows];
    match policy.policy {
        SplitPolicy::TimeOrdered => {
            let mut order: Vec<usize> = (0..rows).collect();
            order.sort_by_key(|&i| (table.order[i], i));
            for &i in &order[rows - share(rows)..] {
                held[i] = true;
            }
        }
        SplitPolicy::Stratified => {
            let mut rng = Rng::new(seed, name);
            for class in 0..table.classes as u32 {
                let mut members: Vec<usize> = (0..rows).filter(|&i| table.y[i] == class).collect();
                rng.shuffle(&mut members);
                for &i in &members[..share(members.len())] {
                    held[i] = true;
                }
            }
        }
    }
    let (holdout, train) = (0..rows).partition(|&i| held[i]);
    Parts { train, holdout }
}

/// The hold-out of a job: what its candidates are scored on.
pub fn holdout(table: &Table, policy: Split, seed: u64) -> Parts {
    split(table, policy, seed, "holdout")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn table(y: Vec<u32>) -> Table {
        let rows = y.len();
        Table {
            width: 1,
            classes: 3,
            x: vec![0.0; rows],
            y,
            order: (0..rows as i64).rev().collect(),
            dropped: BTreeMap::new(),
        }
    }

    proptest! {
        #[test]
        fn every_row_is_in_exactly_one_part(y in proptest::collection::vec(0u32..3, 1..300), percent in 5u32..=50, seed: u64, ordered: bool) {
            let policy = Split { policy: if ordered { SplitPolicy::TimeOrdered } else { SplitPolicy::Stratified }, holdout_percent: percent };
            let table = table(y);
            let parts = holdout(&table, policy, seed);
            let mut all: Vec<usize> = parts.train.iter().chain(&parts.holdout).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..table.rows()).collect::<Vec<_>>());
            prop_assert_eq!(holdout(&table, policy, seed), parts);
        }
    }

    #[test]
    fn time_holds_the_newest_rows_out() {
        let parts =
            holdout(&table(vec![0; 100]), Split { policy: SplitPolicy::TimeOrdered, holdout_percent: 20 }, 1);
        assert_eq!(parts.holdout, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn strata_keep_their_shares() {
        let table = table((0..300).map(|i| u32::from(i % 10 == 0)).collect());
        let parts = holdout(&table, Split { policy: SplitPolicy::Stratified, holdout_percent: 20 }, 1);
        assert_eq!(table.take(&parts.holdout).class_counts(), [54, 6, 0]);
    }
}
