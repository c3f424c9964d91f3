//! Tree ensembles in the engine against ONNX Runtime: the same files, the same rows, one thread each, in alternating
//! rounds of one run.
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use dunlin_engine::Model;
use dunlin_tests::digits::{CLASSES, PIXELS};
use serde_json::{Value, json};

use crate::report::{Bar, Section};
use crate::timing::{Times, median};
use crate::{cnn, digits_model};

/// Rounds; each asks both runtimes.
const ROUNDS: usize = 9;
/// Largest difference of two answers that sum the same numbers in another order.
const DIFFERENCE_MAX: f32 = 1e-4;
/// At batch 32 the engine may take this many times as long.
const BATCH_FACTOR_MAX: f64 = 2.5;

/// ONNX Runtime in a Python of its own, asked line by line; ended when dropped.
struct Runtime {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Runtime {
    fn start(python: &Path) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", include_str!("trees.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let to = child.stdin.take().context("standard input was asked for")?;
        let from = BufReader::new(child.stdout.take().context("standard output was asked for")?);
        Ok(Self { child, to, from })
    }

    fn ask(&mut self, question: &Value) -> Result<Value> {
        writeln!(self.to, "{question}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        serde_json::from_str(&line).context("ONNX Runtime in Python ended early; its message is above")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Median times of one call in both runtimes, microseconds, and the largest difference of the first answer.
struct Pair {
    ours: f64,
    theirs: f64,
}

struct Bench<'a> {
    runtime: Runtime,
    rows: &'a [f32],
    rows_file: &'a Path,
}

impl Bench<'_> {
    fn pair(&mut self, onnx: &Path, model: &Model, batch: usize) -> Result<Pair> {
        let calls = if batch == 1 { 2000 } else { 300 };
        let starts = self.rows.len() / PIXELS - batch + 1;
        let input = |i: usize| {
            let from = i * batch % starts * PIXELS;
            &self.rows[from..from + batch * PIXELS]
        };
        let question =
            json!({"model": onnx, "rows": self.rows_file, "width": PIXELS, "batch": batch, "calls": calls});
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let answer = self.runtime.ask(&question)?;
            let times = Times::of(calls, |i| Ok(model.run_f32(input(i % 500), batch).map(drop)?))?;
            if round == 0 {
                // The first round warms both and shows that they answer the same.
                let first: Vec<f32> = serde_json::from_value(answer["first"].clone())?;
                let own = model.run_f32(input(0), batch)?;
                let worst = own.iter().zip(&first).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
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
}

pub(crate) fn measure(section: &mut Section, folder: &Path, python: &Path) -> Result<()> {
    let rows = digits_model::rows();
    let rows_file = folder.join("rows.f32");
    std::fs::write(&rows_file, rows.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    let mut runtime = Runtime::start(python)?;
    let version = runtime.ask(&json!({"version": true}))?;
    section.note(format!(
        "against ONNX Runtime {} from PyPI, 1 thread; each call from Python, as its users make it",
        version["version"].as_str().unwrap_or("?")
    ));
    let mut bench = Bench { runtime, rows: &rows, rows_file: &rows_file };
    // What calling costs, from Python more than from here.
    let onnx = cnn::nothing(PIXELS);
    let nothing = folder.join("nothing.onnx");
    std::fs::write(&nothing, &onnx)?;
    let empty = Model::load(&onnx, Some(32))?;
    for (name, classes, trees) in [
        ("binary, 80 trees", 2, 80),
        ("10 classes, 80 trees", CLASSES, 8),
        ("10 classes, 800 trees", CLASSES, 80),
    ] {
        let onnx = digits_model::forest(classes, trees)?;
        let file = folder.join(format!("{classes}-{trees}.onnx"));
        std::fs::write(&file, &onnx)?;
        let model = Model::load(&onnx, Some(32))?;
        for (batch, bar) in [(1, Bar::Below(1.0)), (32, Bar::AtMost(BATCH_FACTOR_MAX))] {
            let pair = bench.pair(&file, &model, batch)?;
            section.add(format!("{name}, batch {batch}: this engine"), pair.ours, "µs");
            section.add(format!("{name}, batch {batch}: ONNX Runtime"), pair.theirs, "µs");
            section.hold(
                format!("{name}, batch {batch}: time against ONNX Runtime"),
                pair.ours / pair.theirs,
                "×",
                bar,
            );
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
