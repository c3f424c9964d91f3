//! Models of the digits for the bench, trained here and the same in every run.
use std::collections::BTreeMap;

use anyhow::Result;
use dunlin_learn::data::Table;
use dunlin_learn::{Config, fit};
use dunlin_tests::digits::{CLASSES, Image, NEW, PIXELS, Pools, views};

/// Seed of every model here.
const SEED: u64 = 1;

/// Images to train on.
pub(crate) fn images() -> Vec<Image> {
    views(&Pools::new(17).training, NEW, 1, SEED)
}

/// Rows to ask about.
pub(crate) fn rows() -> Vec<f32> {
    views(&Pools::new(17).measurement, NEW, 1, SEED).iter().flat_map(|image| image.pixels).collect()
}

fn table(images: &[Image], classes: usize) -> Table {
    Table {
        width: PIXELS,
        classes,
        x: images.iter().flat_map(|image| image.pixels).collect(),
        y: images.iter().map(|image| image.digit % classes as u32).collect(),
        order: (0..images.len() as i64).collect(),
        dropped: BTreeMap::new(),
    }
}

/// The small model: a perceptron with one hidden layer.
pub(crate) fn perceptron() -> Result<Vec<u8>> {
    let config = Config::Mlp { hidden: vec![64], rate: 0.003, epochs: 20, decay: 1e-4 };
    Ok(fit(&config, &table(&images(), CLASSES), SEED)?.onnx())
}

/// Boosted trees, `trees` per class; with two classes they tell odd digits from even ones, and share the trees.
pub(crate) fn forest(classes: usize, trees: usize) -> Result<Vec<u8>> {
    let config = Config::Gbdt { trees, depth: 5, rate: 0.1, l2: 1.0 };
    Ok(fit(&config, &table(&images(), classes), SEED)?.onnx())
}
