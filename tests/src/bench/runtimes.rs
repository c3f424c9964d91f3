//! The engine against ONNX Runtime: the same files, the same rows, one thread each, in alternating rounds of one run.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dunlin_engine::Model;
use dunlin_tests::digits::{CLASSES, PIXELS};
use dunlin_tests::networks;
use dunlin_tests::runtime::Runtime;
use serde_json::json;

use crate::digits_model;
use crate::report::{Bar, Section};
use crate::timing::{Times, median};

/// Rounds; each asks both runtimes.
const ROUNDS: usize = 9;
/// Largest difference of two answers that sum the same numbers in another order.
const DIFFERENCE_MAX: f32 = 1e-4;
/// At batch 32 the engine may take this many times as long for trees.
const BATCH_FACTOR_MAX: f64 = 1.2;
/// For a convolutional network it may take this many times as long.
const CNN_FACTOR_MAX: f64 = 1.5;
/// Time that the calls of one round take about, microseconds; and their bounds.
const ROUND_US: f64 = 200_000.0;
const CALLS: (usize, usize) = (10, 2000);

/// Median times of one call in both runtimes, microseconds, and the largest difference of the first answer.
struct Pair {
    ours: f64,
    theirs: f64,
}

/// The largest difference of two answers; of what is no number it is infinite, which `f32::max` would pass over.
fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    let off = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    ours.iter().zip(theirs).map(off).fold(0.0, f32::max)
}

struct Bench<'a> {
    runtime: Runtime,
    rows: &'a [f32],
    rows_file: &'a Path,
    /// Of one row.
    shape: Vec<usize>,
}

impl Bench<'_> {
    fn pair(&mut self, onnx: &Path, model: &Model, batch: usize) -> Result<Pair> {
        let width: usize = self.shape.iter().product();
        let starts = self.rows.len() / width - batch + 1;
        let input = |i: usize| {
            let from = i * batch % starts * width;
            &self.rows[from..from + batch * width]
        };
        let one = Times::of(3, |i| Ok(model.run_f32(input(i), batch).map(drop)?))?.quantile_us(0.5);
        let calls = ((ROUND_US / one) as usize).clamp(CALLS.0, CALLS.1);
        let question = json!({
            "model": onnx, "rows": self.rows_file, "shape": self.shape, "batch": batch, "calls": calls,
        });
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let answer = self.runtime.ask(&question)?;
            let times = Times::of(calls, |i| Ok(model.run_f32(input(i % 500), batch).map(drop)?))?;
            if round == 0 {
                // The first round warms both and shows that they answer the same.
                let first: Vec<f32> = serde_json::from_value(answer["first"].clone())?;
                let own = model.run_f32(input(0), batch)?;
                let worst = worst(&own, &first);
                ensure!(
                    own.len() == first.len() && worst <= DIFFERENCE_MAX,
                    "the runtimes differ by {worst} on {}",
                    onnx.display()
                );
                continue;
            }
            ours.push(times.quantile_us(0.5));
            theirs.push(answer["p50_us"].as_f64().context("a time")?);
        }
        Ok(Pair { ours: median(ours), theirs: median(theirs) })
    }

    /// Times a model in both, and holds one against the other.
    fn compare(
        &mut self,
        section: &mut Section,
        what: &str,
        (file, model): (&Path, &Model),
        batch: usize,
        bar: Option<Bar>,
    ) -> Result<Pair> {
        let pair = self.pair(file, model, batch)?;
        section.add(format!("{what}, batch {batch}: this engine"), pair.ours, "µs");
        section.add(format!("{what}, batch {batch}: ONNX Runtime"), pair.theirs, "µs");
        let (ratio, what) =
            (pair.ours / pair.theirs, format!("{what}, batch {batch}: time against ONNX Runtime"));
        match bar {
            Some(bar) => section.hold(what, ratio, "×", bar),
            None => section.add(what, ratio, "×"),
        }
        Ok(pair)
    }
}

/// Starts ONNX Runtime, notes which, and gives it rows of this shape.
fn bench<'a>(
    section: &mut Section,
    python: &Path,
    rows: &'a [f32],
    rows_file: &'a Path,
    shape: &[usize],
) -> Result<Bench<'a>> {
    std::fs::write(rows_file, rows.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    let mut runtime = Runtime::start(python, &["-c", include_str!("runtimes.py")])?;
    let version = runtime.ask(&json!({"version": true}))?;
    section.note(format!(
        "against ONNX Runtime {} from PyPI, 1 thread; each call from Python, as its users make it",
        version["version"].as_str().unwrap_or("?")
    ));
    Ok(Bench { runtime, rows, rows_file, shape: shape.to_vec() })
}

/// Writes a model to `folder/name.onnx` and loads it.
fn both(folder: &Path, name: &str, onnx: &[u8]) -> Result<(PathBuf, Model)> {
    let file = folder.join(format!("{name}.onnx"));
    std::fs::write(&file, onnx)?;
    Ok((file, Model::load(onnx, Some(32))?))
}

pub(crate) fn trees(section: &mut Section, folder: &Path, python: &Path) -> Result<()> {
    let (rows, rows_file) = (digits_model::rows(), folder.join("rows.f32"));
    let mut bench = bench(section, python, &rows, &rows_file, &[PIXELS])?;
    // What calling costs, from Python more than from here.
    let (nothing, empty) = both(folder, "nothing", &networks::nothing(PIXELS))?;
    for (name, classes, trees) in [
        ("binary, 80 trees", 2, 80),
        ("10 classes, 80 trees", CLASSES, 8),
        ("10 classes, 800 trees", CLASSES, 80),
    ] {
        let (file, model) =
            both(folder, &format!("{classes}-{trees}"), &digits_model::forest(classes, trees)?)?;
        for (batch, bar) in [(1, Bar::Below(1.0)), (32, Bar::AtMost(BATCH_FACTOR_MAX))] {
            let pair = bench.compare(section, name, (&file, &model), batch, Some(bar))?;
            let call = bench.pair(&nothing, &empty, batch)?;
            section.add(
                format!("{name}, batch {batch}: the same, without what a call of an empty graph costs"),
                (pair.ours - call.ours) / (pair.theirs - call.theirs),
                "×",
            );
        }
    }
    let pair = bench.pair(&nothing, &empty, 1)?;
    section.add("an empty graph, batch 1: this engine", pair.ours, "µs");
    section.add("an empty graph, batch 1: ONNX Runtime", pair.theirs, "µs");
    Ok(())
}

pub(crate) fn networks(section: &mut Section, folder: &Path, python: &Path) -> Result<()> {
    let (rows, rows_file) = (digits_model::rows(), folder.join("rows.f32"));
    let mut of_digits = bench(section, python, &rows, &rows_file, &[PIXELS])?;
    let (file, model) = both(folder, "mlp", &digits_model::perceptron()?)?;
    for (batch, bar) in [(1, Some(Bar::Below(1.0))), (32, None)] {
        of_digits.compare(section, "perceptron, 64 units", (&file, &model), batch, bar)?;
    }
    drop(of_digits);
    let shape = [networks::CHANNELS, networks::SIDE, networks::SIDE];
    let images: Vec<f32> =
        (0..40 * shape.iter().product::<usize>()).map(|i| (i % 251) as f32 / 251.0).collect();
    let rows_file = folder.join("images.f32");
    let mut of_images = bench(section, python, &images, &rows_file, &shape)?;
    let (file, model) = both(folder, "cnn", &networks::cnn())?;
    for batch in [1, 32] {
        let bar = Some(Bar::AtMost(CNN_FACTOR_MAX));
        of_images.compare(section, "14 MB CNN", (&file, &model), batch, bar)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_as_far_off_as_can_be() {
        assert_eq!(worst(&[1.0, 2.0], &[1.0, 2.5]), 0.5);
        for (ours, theirs) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, f32::INFINITY)] {
            assert_eq!(worst(&[0.0, ours], &[0.0, theirs]), f32::INFINITY);
        }
    }
}
