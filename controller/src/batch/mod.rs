//! Batch prediction at a desk: a release is fetched from the controller, held against its manifest, and answers in a child
//! process under limits, as on a device and with the same bytes.

mod parquet;

use std::path::{Path, PathBuf};

use dunlin_engine::batch::{
    BatchError, Child, Columns, Csv, Fingerprint, Format, Job, Ndjson, Paced, Position, Progress, Source, run,
};
use dunlin_engine::prove::Limits;
use dunlin_protocol::Bundle;

#[cfg(test)]
mod tests;

pub use self::parquet::Parquet;

/// The hidden verb under which this program is the child that answers.
pub const CHILD: &str = "batch-child";
/// Limits of the child: those of a proof here, but a day of processor time, as a batch is as long as its file, and two
/// minutes for one chunk.
const LIMITS: Limits = Limits { address_space_bytes: 4 << 30, cpu_s: 24 * 60 * 60, wall_ms: 120_000 };
/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Rows: CSV, NDJSON or Parquet, as the name says.
    pub input: PathBuf,
    /// Answers: CSV or NDJSON.
    pub output: PathBuf,
    /// Go on where an earlier run was stopped.
    pub resume: bool,
    /// Write rows that can not be answered with the reason, instead of stopping.
    pub skip_bad: bool,
}

/// How rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines(Format),
    Parquet,
}

/// What the name of a file says it holds.
fn form(path: &Path) -> Option<Form> {
    match path.extension()?.to_str()? {
        "csv" => Some(Form::Lines(Format::Csv)),
        "ndjson" | "jsonl" => Some(Form::Lines(Format::Ndjson)),
        "parquet" => Some(Form::Parquet),
        _ => None,
    }
}

/// Runs a batch to its end, with the model at `model` in a child of `exe`. Blocks.
///
/// # Errors
/// What stopped it; [`Request::resume`] goes on from there.
pub fn predict(
    bundle: &Bundle,
    model: &Path,
    exe: &Path,
    request: &Request,
    told: &mut dyn FnMut(&Progress),
) -> Result<Progress, BatchError> {
    let named = |path: &Path, forms: &str| {
        BatchError::Table(format!("{}: the name says none of {forms}", path.display()))
    };
    let read =
        form(&request.input).ok_or_else(|| named(&request.input, ".csv, .ndjson, .jsonl and .parquet"))?;
    let format = match form(&request.output) {
        Some(Form::Lines(format)) => format,
        Some(Form::Parquet) | None => return Err(named(&request.output, ".csv, .ndjson and .jsonl")),
    };
    let columns = Columns::of(bundle)?;
    let job = Job {
        task: bundle.task.clone(),
        release: bundle.release.clone(),
        input: Fingerprint::of(&request.input)?,
        output: request.output.clone(),
        format,
        resume: request.resume,
        skip_bad: request.skip_bad,
    };
    let open = |from: Position| {
        let source: Box<dyn Source> = match read {
            Form::Lines(Format::Csv) => Box::new(Csv::open(&request.input, &columns, from)?),
            Form::Lines(Format::Ndjson) => Box::new(Ndjson::open(&request.input, &columns, from)?),
            Form::Parquet => Box::new(Parquet::open(&request.input, &columns, from)?),
        };
        Ok(source)
    };
    let mut child = Child::start(exe, CHILD, model, LIMITS)?;
    run(&job, &columns, open, &mut child, &mut Paced::new(told))
}
