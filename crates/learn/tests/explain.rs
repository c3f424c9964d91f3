//! Explanations of the trees that the trainer exports, against Shapley's formula, subset by subset.
#![allow(clippy::unwrap_used, reason = "tests")]

use dunlin_engine::{Effort, Explains, Explanation, Method, Model};
use dunlin_learn::data::Table;
use dunlin_learn::rng::Rng;
use dunlin_learn::{Config, fit};

const FEATURES: usize = 5;
const ROWS: usize = 300;

/// Rows whose classes hang on several features together.
fn table(classes: u32) -> Table {
    let mut rng = Rng::new(5, "explained");
    let x: Vec<f32> = (0..ROWS * FEATURES).map(|_| (rng.unit() * 4.0 - 2.0) as f32).collect();
    let y = x
        .chunks_exact(FEATURES)
        .map(|row| ((row[0] * row[1] + row[2] + 0.5 * row[3]).max(0.0) as u32).min(classes - 1))
        .collect();
    let order = (0..ROWS as i64).collect();
    Table { width: FEATURES, classes: classes as usize, x, y, order, dropped: Default::default() }
}

fn trained(table: &Table) -> Model {
    let config = Config::Gbdt { trees: 20, depth: 3, rate: 0.3, l2: 1.0 };
    Model::load(&fit(&config, table, 3).unwrap().onnx(), None).unwrap()
}

fn explained(model: &Model, x: &[f32], background: &[f32]) -> Explanation {
    let effort = Effort { sampled: false, permutations: 16, seed: 0 };
    let made = model.explain(x, background, &effort, &mut || true).unwrap();
    assert_eq!((made.method, made.explains, made.complete), (Method::Tree, Explains::Margin, true));
    made
}

/// The margins of one row, for which the scores that are made of them vouch.
fn margins(model: &Model, row: &[f32]) -> Vec<f64> {
    let margins = explained(model, row, row).value;
    let odds: Vec<f64> = margins.iter().map(|margin| 1.0 / (1.0 + (-margin).exp())).collect();
    let total: f64 = odds.iter().sum();
    for (score, odds) in model.run_f32(row, 1).unwrap().iter().zip(&odds) {
        assert!((f64::from(*score) - odds / total).abs() < 1e-5, "{margins:?}");
    }
    margins
}

/// Shapley's formula for one column, with the mean margin over the background as the worth of a subset of features.
fn by_subsets(model: &Model, x: &[f32], background: &[f32], column: usize) -> Vec<f64> {
    let worth: Vec<f64> = (0..1_usize << FEATURES)
        .map(|subset| {
            let of = |b: &[f32]| -> f64 {
                let mixed: Vec<f32> =
                    (0..FEATURES).map(|f| if subset >> f & 1 == 1 { x[f] } else { b[f] }).collect();
                margins(model, &mixed)[column]
            };
            background.chunks_exact(FEATURES).map(of).sum::<f64>() / (background.len() / FEATURES) as f64
        })
        .collect();
    let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
    let share = |size: usize| factorial(size) * factorial(FEATURES - size - 1) / factorial(FEATURES);
    let one = |f: usize| {
        let without = (0..1_usize << FEATURES).filter(|subset| subset >> f & 1 == 0);
        without.map(|s| share(s.count_ones() as usize) * (worth[s | 1 << f] - worth[s])).sum()
    };
    (0..FEATURES).map(one).collect()
}

#[test]
fn boosted_trees_are_explained_from_their_nodes() {
    for classes in [2, 3] {
        let table = table(classes);
        let model = trained(&table);
        let background = &table.x[..6 * FEATURES];
        for row in 6..12 {
            let x = table.row(row);
            let made = explained(&model, x, background);
            assert_eq!(made.value, margins(&model, x));
            for (column, (value, base)) in made.value.iter().zip(&made.base).enumerate() {
                let parts = made.of(column);
                assert!((parts.iter().sum::<f64>() - (value - base)).abs() < 1e-9, "{made:?}");
                for (part, exact) in parts.iter().zip(by_subsets(&model, x, background, column)) {
                    assert!((part - exact).abs() < 1e-9, "column {column} of {made:?}");
                }
            }
            assert!(made.contributions.iter().any(|part| part.abs() > 0.1), "{made:?}");
        }
    }
}
