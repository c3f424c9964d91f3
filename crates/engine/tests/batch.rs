//! Batches against direct calls of the engine, and what is left of them when they are stopped.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::support::{FREE, Mlp, bytes, node, port};
use dunlin_engine::batch::{
    BatchError, Child, Columns, Csv, Fingerprint, Format, Job, Ndjson, Predict, PredictError, Progress,
    Source, Watch, progress_file, run,
};
use dunlin_engine::prove::Limits;
use dunlin_engine::{Model, argmax};
use dunlin_protocol::{
    Blob, Bundle, Bytes, DType, Digest, FeatureMeta, Hard, Lineage, ModelSignature, TaskType, TensorData,
};
use serde_json::Value;
use tract_onnx::pb::tensor_proto::DataType;

const FEATURES: [&str; 4] = ["width", "height", "weight", "age"];

fn model() -> Model {
    Model::load(&bytes(&Mlp::new().file(FREE)), None).unwrap()
}

fn bundle(model: &Model) -> Bundle {
    let blob = Blob { digest: Digest([0; 32]), length: 1 };
    Bundle {
        format: 1,
        release: "m@1".parse().unwrap(),
        task: "meter".parse().unwrap(),
        task_type: TaskType::Classification,
        family: "mlp".into(),
        model: blob,
        golden: blob,
        profile: None,
        signature: ModelSignature {
            inputs: model.inputs().to_vec(),
            outputs: model.outputs().to_vec(),
            features: FEATURES.map(|name| FeatureMeta { name: name.into(), unit: String::new() }).to_vec(),
            labels: ["low", "mid", "high"].map(Into::into).to_vec(),
        },
        hard: Hard {
            arch: Default::default(),
            classes: Default::default(),
            ops: model.ops(),
            bundle_bytes: 1,
            ram_bytes: 1,
            min_agent: String::new(),
        },
        latency_us: 10,
        metrics: Default::default(),
        lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
        licence: String::new(),
    }
}

fn row(i: usize) -> [f32; 4] {
    std::array::from_fn(|k| ((i * 31 + k * 7) % 97) as f32 / 20.0 - 2.0)
}

/// The rows as a table whose columns are in another order, with one that the model does not know.
fn csv(rows: usize) -> String {
    let mut text = String::from("age,note,\"height\",width,weight\n");
    for i in 0..rows {
        let [width, height, weight, age] = row(i);
        let _infallible = writeln!(text, "{age},\"row, \"\"{i}\"\"\",{height},{width},{weight}");
    }
    text
}

fn ndjson(rows: usize) -> String {
    let mut text = String::new();
    for i in 0..rows {
        let [width, height, weight, age] = row(i);
        let _infallible = match i % 2 {
            0 => writeln!(text, "[{width}, {height}, {weight}, {age}]"),
            _ => writeln!(
                text,
                r#"{{"age": {age}, "weight": {weight}, "width": {width}, "height": {height}, "note": null}}"#
            ),
        };
    }
    text
}

/// When to save: after every so many chunks.
struct Every(usize, usize);

impl Watch for Every {
    fn is_due(&mut self) -> bool {
        self.1 += 1;
        self.1.is_multiple_of(self.0)
    }

    fn saved(&mut self, _: &Progress) {}
}

struct Batch {
    folder: tempfile::TempDir,
    input: PathBuf,
    job: Job,
    columns: Columns,
}

impl Batch {
    fn new(name: &str, text: &str, output: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join(name);
        std::fs::write(&input, text).unwrap();
        let bundle = bundle(&model());
        let format = if output.ends_with("csv") { Format::Csv } else { Format::Ndjson };
        let job = Job {
            task: bundle.task.clone(),
            release: bundle.release.clone(),
            input: Fingerprint::of(&input).unwrap(),
            output: folder.path().join(output),
            format,
            resume: false,
            skip_bad: false,
        };
        Self { folder, input, job, columns: Columns::of(&bundle).unwrap() }
    }

    fn run(&self, predict: &mut dyn Predict, every: usize) -> Result<Progress, BatchError> {
        let open = |from| {
            let source: Box<dyn Source> = match self.input.extension().unwrap().to_str() {
                Some("csv") => Box::new(Csv::open(&self.input, &self.columns, from)?),
                _ => Box::new(Ndjson::open(&self.input, &self.columns, from)?),
            };
            Ok(source)
        };
        run(&self.job, &self.columns, open, predict, &mut Every(every, 0))
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.job.output).unwrap()
    }

    /// The output of a run that nothing stops.
    fn whole(&self) -> String {
        let model = model();
        self.run(&mut &model, 1).unwrap();
        self.output()
    }
}

#[test]
fn every_form_gives_the_answers_of_the_engine() {
    const ROWS: usize = 2500;
    let table = Batch::new("rows.csv", &csv(ROWS), "answers.csv").whole();
    assert_eq!(Batch::new("rows.jsonl", &ndjson(ROWS), "answers.csv").whole(), table);
    let objects = Batch::new("rows.csv", &csv(ROWS), "answers.ndjson").whole();
    assert_eq!(Batch::new("rows.ndjson", &ndjson(ROWS), "answers.jsonl").whole(), objects);

    let model = model();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("row,prediction,scores.low,scores.mid,scores.high"));
    assert_eq!((lines.clone().count(), objects.lines().count()), (ROWS, ROWS));
    for (i, (line, object)) in lines.zip(objects.lines()).enumerate() {
        let scores = model.run_f32(&row(i), 1).unwrap();
        let class = ["low", "mid", "high"][argmax(&scores).unwrap() as usize];
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!((fields[0], fields[1]), ((i + 1).to_string().as_str(), class));
        let got: Vec<f32> = fields[2..].iter().map(|x| x.parse().unwrap()).collect();
        super::support::close(&got, &scores);
        let object: Value = serde_json::from_str(object).unwrap();
        assert_eq!((&object["row"], &object["prediction"]), (&Value::from(i + 1), &Value::from(class)));
        let same: Vec<f32> =
            object["scores"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_eq!(same, got);
    }
}

/// Ends the process's work in the middle of it, as a kill does: nothing that follows is carried out.
struct Dies<'a> {
    model: &'a Model,
    left: usize,
    /// By a panic, or by an error, after which progress is saved.
    hard: bool,
}

impl Predict for Dies<'_> {
    fn predict(&mut self, inputs: &[TensorData]) -> Result<Vec<TensorData>, PredictError> {
        if self.left == 0 {
            assert!(!self.hard, "killed");
            return Err(PredictError::Gone("stopped".into()));
        }
        self.left -= 1;
        (&mut &*self.model).predict(inputs)
    }
}

#[test]
fn a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes() {
    const ROWS: usize = 9000;
    let model = model();
    for (name, text) in [("rows.csv", csv(ROWS)), ("rows.ndjson", ndjson(ROWS))] {
        let want = Batch::new(name, &text, "answers.csv").whole();
        for (every, hard) in [(1, true), (2, true), (3, false), (100, true)] {
            let mut batch = Batch::new(name, &text, "answers.csv");
            for chunks in [0, 1, 2, 0, 3, 1] {
                let mut dies = Dies { model: &model, left: chunks, hard };
                let ended = catch_unwind(AssertUnwindSafe(|| batch.run(&mut dies, every)));
                assert!(ended.is_err() == hard && !ended.is_ok_and(|run| run.is_ok()));
                // A kill may leave more in the file than was saved, down to half a line.
                let mut left = std::fs::read(&batch.job.output).unwrap();
                left.extend_from_slice(b"4711,lo");
                std::fs::write(&batch.job.output, left).unwrap();
                batch.job.resume = true;
            }
            let progress = batch.run(&mut &model, every).unwrap();
            assert_eq!((progress.rows, progress.bad, progress.done), (ROWS as u64, 0, true));
            assert!(batch.output() == want, "{name}, saved after {every} chunks");
            let again = batch.run(&mut Dies { model: &model, left: 0, hard: true }, 1).unwrap();
            assert_eq!(again, progress, "a run that is done asks nobody");
        }
    }
}

#[test]
fn a_run_goes_on_only_with_what_it_was_begun_with() {
    let model = model();
    let refused = |batch: &Batch, word: &str| match batch.run(&mut &model, 1) {
        Err(BatchError::Resume(problem)) => assert!(problem.contains(word), "{problem}"),
        other => panic!("{word}: {other:?}"),
    };
    let begun = || {
        let mut batch = Batch::new("rows.csv", &csv(3000), "answers.csv");
        let mut dies = Dies { model: &model, left: 2, hard: false };
        assert!(matches!(batch.run(&mut dies, 1), Err(BatchError::Unanswered(_))));
        batch.job.resume = true;
        batch
    };
    let mut batch = begun();
    batch.job.resume = false;
    refused(&batch, "--resume");
    let mut batch = begun();
    batch.job.release = "m@2".parse().unwrap();
    refused(&batch, "m@1");
    let mut batch = begun();
    batch.job.task = "other".parse().unwrap();
    refused(&batch, "task");
    let mut batch = begun();
    batch.job.skip_bad = true;
    refused(&batch, "--skip-bad");
    let mut batch = begun();
    batch.job.format = Format::Ndjson;
    refused(&batch, "format");
    let mut batch = begun();
    std::fs::write(&batch.input, csv(3001)).unwrap();
    batch.job.input = Fingerprint::of(&batch.input).unwrap();
    refused(&batch, "input was changed");
    let batch = begun();
    std::fs::write(&batch.job.output, "row\n").unwrap();
    refused(&batch, "of the");
    let batch = begun();
    std::fs::write(progress_file(&batch.job.output), "{").unwrap();
    refused(&batch, "can not be read");
    let batch = begun();
    std::fs::remove_file(progress_file(&batch.job.output)).unwrap();
    refused(&batch, "no run left it");
    assert!(
        batch.run(&mut &model, 1).is_err() && batch.output().lines().count() > 2000,
        "nothing is overwritten"
    );
    drop(batch.folder);
}

#[test]
fn a_bad_row_is_named_and_costs_the_others_nothing() {
    let model = model();
    let mut text = csv(1500);
    text.push_str("1,,2,three,4\n\n5,,6,7\n,,1,1,1\n\"1\",,1,1,1\n");
    let batch = Batch::new("rows.csv", &text, "answers.csv");
    let error = batch.run(&mut &model, 1).unwrap_err().to_string();
    assert!(error.contains("line 1502") && error.contains("width") && error.contains("three"), "{error}");
    assert_eq!(batch.output().lines().count(), 1 + 1024, "whole chunks before it are kept");

    let mut batch = Batch::new("rows.csv", &text, "answers.csv");
    batch.job.skip_bad = true;
    let progress = batch.run(&mut &model, 1).unwrap();
    assert_eq!((progress.rows, progress.bad), (1504, 3));
    let output = batch.output();
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].ends_with(",error") && lines[1500].ends_with(','));
    assert_eq!(lines[1501], "1501,,,,,\"column \"\"width\"\": \"\"three\"\" is no FP32\"");
    assert_eq!(lines[1502], "1502,,,,,4 fields where the header has 5");
    // A missing value makes scores that are no numbers, which only the model can say.
    assert!(lines[1503].contains("not finite"), "{}", lines[1503]);
    assert!(lines[1504].starts_with("1504,") && lines[1504].ends_with(','));

    let mut batch =
        Batch::new("rows.ndjson", "[1,2,3,4]\n{\"width\":1}\n[1]\n{\n7\n[1,2,3,\"4\"]\n", "a.ndjson");
    batch.job.skip_bad = true;
    assert_eq!(batch.run(&mut &model, 1).unwrap().bad, 5);
    let output = batch.output();
    for (line, word) in output.lines().zip(["scores", "no column", "1 values", "no JSON", "neither", "FP32"])
    {
        assert!(line.contains(word), "{line}");
    }
}

#[test]
fn a_table_without_the_models_columns_is_refused() {
    let model = model();
    for (text, word) in [
        ("", "empty"),
        ("width,height,weight\n1,2,3\n", "\"age\""),
        ("width\n1\n", "nor 2 others"),
        ("width,height,weight,age,age\n1,2,3,4,5\n", "twice"),
        ("width,height,weight,\"age\n1,2,3,4\n", "header"),
    ] {
        match Batch::new("rows.csv", text, "answers.csv").run(&mut &model, 1) {
            Err(BatchError::Table(problem)) => assert!(problem.contains(word), "{problem}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }
    let long = format!("width,height,weight,age\n1,2,3,{}\n", "4".repeat(5 << 20));
    let error = Batch::new("rows.csv", &long, "answers.csv").run(&mut &model, 1).unwrap_err();
    assert!(error.to_string().contains("line 2 is longer"), "{error}");
    let fixed = Model::load(&bytes(&Mlp::new().file(4)), None).unwrap();
    assert!(matches!(Columns::of(&bundle(&fixed)), Err(BatchError::Model(_))));
}

/// An example program beside this test's own.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("examples").join(name)
}

/// A process that answers `rows.csv` of a folder in `answers.csv`.
fn process(folder: &Path) -> std::process::Child {
    let at = |name: &str| folder.join(name);
    std::fs::write(at("model.onnx"), bytes(&Mlp::new().file(FREE))).unwrap();
    std::fs::write(at("bundle.json"), serde_json::to_vec(&bundle(&model())).unwrap()).unwrap();
    Command::new(program("batch"))
        .args(["bundle.json", "model.onnx", "rows.csv", "answers.csv"].map(at))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Longest wait for a process here, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_killed_process_is_resumed_to_the_same_bytes() {
    const ROWS: usize = 20_000;
    let want = Batch::new("rows.csv", &csv(ROWS), "answers.csv").whole();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("rows.csv");
    std::fs::write(&input, csv(ROWS)).unwrap();
    let output = folder.path().join("answers.csv");
    let saved = || -> u64 {
        let text = std::fs::read(progress_file(&output)).unwrap_or_default();
        serde_json::from_slice::<Progress>(&text).map_or(0, |progress| progress.rows)
    };
    for _ in 0..4 {
        let mut child = process(folder.path());
        let (from, before) = (Instant::now(), saved());
        // Somewhere after the next save: in the middle of a chunk, of a write, or of a sync.
        while saved() <= before + 1024 && child.try_wait().unwrap().is_none() {
            assert!(from.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(saved() >= 4 * 1024);
    assert!(process(folder.path()).wait().unwrap().success());
    assert!(std::fs::read_to_string(&output).unwrap() == want);
}

/// Most memory that a batch of `rows` rows took, KiB, and the length of its input.
fn most_memory(rows: usize) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("rows.csv");
    let filler = "x".repeat(4000);
    let mut text = String::from("width,height,weight,age,filler\n");
    for i in 0..rows {
        let [width, height, weight, age] = row(i);
        let _infallible = writeln!(text, "{width},{height},{weight},{age},{filler}");
    }
    std::fs::write(&input, &text).unwrap();
    let length = text.len() as u64;
    drop(text);
    let ended = process(folder.path()).wait_with_output().unwrap();
    assert!(ended.status.success());
    let told = String::from_utf8(ended.stdout).unwrap();
    let most = told.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    (most.trim().trim_end_matches("kB").trim().parse().unwrap(), length)
}

#[test]
fn memory_does_not_grow_with_the_input() {
    let (small, _) = most_memory(2_000);
    let (large, length) = most_memory(30_000);
    assert!(length > 100 << 20, "{length}");
    assert!(large < small + 16 * 1024, "{large} KiB for {length} bytes, {small} KiB for a fifteenth of them");
}

#[test]
fn a_child_answers_with_the_same_bytes_and_its_end_is_an_error() {
    let limits = Limits { address_space_bytes: 2 << 30, cpu_s: 60, wall_ms: 60_000 };
    let batch = Batch::new("rows.csv", &csv(3000), "answers.csv");
    let file = batch.folder.path().join("model.onnx");
    std::fs::write(&file, bytes(&Mlp::new().file(FREE))).unwrap();
    let mut child = Child::start(&program("engine_child"), "batch-child", &file, limits).unwrap();
    batch.run(&mut child, 1).unwrap();
    assert!(batch.output() == Batch::new("rows.csv", &csv(3000), "answers.csv").whole());

    let mut bad = Batch::new("rows.csv", "width,height,weight,age\n1,2,3,4\n1,2,,4\n", "answers.csv");
    bad.job.skip_bad = true;
    assert_eq!(bad.run(&mut child, 1).unwrap().bad, 1, "a row that fails does not end the child");

    std::fs::write(&file, b"no model").unwrap();
    let error = Child::start(&program("engine_child"), "batch-child", &file, limits).unwrap_err();
    assert!(matches!(error, BatchError::Unanswered(_)), "{error}");
    let error = Child::start(Path::new("/bin/false"), "batch-child", &file, limits).unwrap_err();
    assert!(error.to_string().contains("died"), "{error}");
}

#[test]
fn rows_that_the_runtime_panics_on_are_no_end() {
    let port = |name: &str| port(name, DataType::Int64, &[FREE]);
    let ports = vec![port("x"), port("z")];
    let file =
        super::support::model(vec![node("Div", &["x", "z"], &["y"], vec![])], vec![], ports, vec![port("y")]);
    let model = Model::load(&bytes(&file), None).unwrap();
    let integers = |name: &str, by: i64| TensorData {
        name: name.into(),
        datatype: DType::Int64,
        shape: vec![1],
        data: Bytes(by.to_le_bytes().to_vec()),
    };
    let mut predict = &model;
    let failed = predict.predict(&[integers("x", 7), integers("z", 0)]);
    assert!(matches!(failed, Err(PredictError::Rows(_))), "{failed:?}");
    assert!(predict.predict(&[integers("x", 7), integers("z", 2)]).is_ok());
}
