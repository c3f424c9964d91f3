//! Predictions for a file of rows: read in chunks, answered, written, and resumed after a kill.
//!
//! Memory is bounded by one chunk whatever the file holds. Progress is a small file beside the output, written after
//! what it speaks of is durable; a resumed run cuts the output back to it and goes on at the chunk after. Chunks follow
//! from the rows alone, so that an interrupted run ends with the same bytes as one that was not.
//!
//! Who answers is a [`Predict`]: a loaded model, a child process ([`Child`]), or whatever serves it.

mod child;
mod columns;
mod csv;
mod lines;
mod ndjson;
mod paced;
mod progress;
mod sink;

use std::io;
use std::path::{Path, PathBuf};

use dunlin_protocol::{DType, ReleaseId, TaskId, TensorData};
use serde_json::Value;

use crate::golden::row_of;
use crate::{EngineError, Model, floats};

pub use child::{Child, child_main};
pub use columns::Columns;
pub use csv::Csv;
pub use ndjson::Ndjson;
pub use paced::Paced;
pub use progress::{Fingerprint, Position, Progress, progress_file};
pub use sink::Format;

use sink::Sink;

/// Rows asked about at one time, at most: far more than the largest plan takes, and little to lose at a kill.
pub const CHUNK_ROWS_MAX: usize = 1024;
/// Bytes of the inputs, and of the answers, of one chunk, as far as whole rows allow: below every limit of a request.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// Why a batch stopped.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A file could not be read or written.
    #[error("could not {doing} {path}")]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The table has not the columns of the model, or is of no form that is read.
    #[error("{0}")]
    Table(String),
    /// The model can not be asked about rows of a table.
    #[error("this model can not be asked in a batch: {0}")]
    Model(String),
    /// A row could not be answered.
    #[error("{place}: {problem}")]
    Row {
        /// The line or row of the input.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The run can not go on where it was stopped, or would overwrite something.
    #[error("{0}")]
    Resume(String),
    /// Nobody answers.
    #[error("asking the model: {0}")]
    Unanswered(String),
}

impl BatchError {
    /// For `map_err`: what was attempted on a file.
    pub fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }
}

/// Why a chunk was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PredictError {
    /// Some row of it can not be answered; others may be.
    Rows(String),
    /// Nothing is answered any more.
    Gone(String),
}

/// Who answers.
pub trait Predict {
    /// The outputs for rows of a table.
    ///
    /// # Errors
    /// Whether it is about these rows or about everything.
    fn predict(&mut self, inputs: &[TensorData]) -> Result<Vec<TensorData>, PredictError>;
}

impl Predict for &Model {
    /// As a device answers: scores that are not finite are none.
    fn predict(&mut self, inputs: &[TensorData]) -> Result<Vec<TensorData>, PredictError> {
        let outputs = self.run(inputs).map_err(|error| match error {
            EngineError::Input { .. } | EngineError::Run(_) | EngineError::Panicked { .. } => {
                PredictError::Rows(error.to_string())
            }
            EngineError::Malformed(_)
            | EngineError::Unsupported { .. }
            | EngineError::TooLarge { .. }
            | EngineError::Prepare(_) => PredictError::Gone(error.to_string()),
        })?;
        let scores = outputs.last().and_then(floats).unwrap_or_default();
        if scores.iter().any(|x| !x.is_finite()) {
            return Err(PredictError::Rows("a score is not finite".into()));
        }
        Ok(outputs)
    }
}

/// One row of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its line, or its number where there are no lines; from 1.
    pub place: u64,
    /// Its values in the order of the columns, or what is wrong with it.
    pub cells: Result<Vec<Value>, String>,
}

/// Rows, one after the other.
pub trait Source {
    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// The file can not be read any further.
    fn next(&mut self) -> Result<Option<Row>, BatchError>;

    /// Where the next row begins.
    fn position(&self) -> Position;

    /// What a place is called.
    fn unit(&self) -> &'static str {
        "line"
    }
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Job {
    /// The task.
    pub task: TaskId,
    /// The one release that answers all rows.
    pub release: ReleaseId,
    /// The input, as it was when the run began.
    pub input: Fingerprint,
    /// Where the answers go.
    pub output: PathBuf,
    /// How they are written.
    pub format: Format,
    /// Whether to go on where an earlier run was stopped.
    pub resume: bool,
    /// Write a row that can not be answered with the reason, instead of stopping.
    pub skip_bad: bool,
}

/// What a run asks of the program it is part of.
pub trait Watch {
    /// Whether progress should be made durable now. A sync for each chunk would wear out a card.
    fn is_due(&mut self) -> bool;

    /// Told whenever it was, and at the end.
    fn saved(&mut self, progress: &Progress);
}

/// Answers every row. `open` opens the input where the run begins.
///
/// # Errors
/// What stopped it. What was answered until then is kept, and a run with [`Job::resume`] goes on from there.
pub fn run(
    job: &Job,
    columns: &Columns,
    open: impl FnOnce(Position) -> Result<Box<dyn Source>, BatchError>,
    predict: &mut dyn Predict,
    watch: &mut dyn Watch,
) -> Result<Progress, BatchError> {
    let mut progress = Progress::begin(job)?;
    if progress.done {
        return Ok(progress);
    }
    let mut source = open(progress.position)?;
    let mut sink = Sink::open(job, columns, &mut progress)?;
    loop {
        let answers = match Chunk::answered(job, source.as_mut(), columns, predict) {
            Ok(answers) => answers,
            Err(error) => {
                // What came before this chunk need not be answered once more.
                sink.save(&mut progress)?;
                return Err(error);
            }
        };
        if answers.is_empty() {
            break;
        }
        for answer in answers {
            progress.rows += 1;
            progress.bad += u64::from(answer.is_err());
            sink.row(columns, progress.rows, answer)?;
        }
        progress.position = source.position();
        if watch.is_due() {
            sink.save(&mut progress)?;
            watch.saved(&progress);
        }
    }
    progress.done = true;
    sink.save(&mut progress)?;
    watch.saved(&progress);
    Ok(progress)
}

/// Some rows, and the inputs that the good ones make.
struct Chunk {
    /// The place of each.
    rows: Vec<u64>,
    /// What is wrong with those that make no inputs.
    bad: Vec<Option<String>>,
    data: Vec<Vec<u8>>,
}

type Answer = Result<Vec<TensorData>, String>;

impl Chunk {
    /// The next chunk's answers, one a row; none at the end.
    fn answered(
        job: &Job,
        source: &mut dyn Source,
        columns: &Columns,
        predict: &mut dyn Predict,
    ) -> Result<Vec<Answer>, BatchError> {
        let chunk = Self::read(source, columns)?;
        let answers = chunk.answer(columns, predict)?;
        let bad =
            chunk.rows.iter().zip(&answers).find_map(|(place, answer)| Some((place, answer.as_ref().err()?)));
        match bad.filter(|_| !job.skip_bad) {
            Some((place, problem)) => {
                Err(BatchError::Row { place: format!("{} {place}", source.unit()), problem: problem.clone() })
            }
            None => Ok(answers),
        }
    }

    fn read(source: &mut dyn Source, columns: &Columns) -> Result<Self, BatchError> {
        let mut chunk = Self { rows: Vec::new(), bad: Vec::new(), data: columns.empty() };
        let most = columns.rows_max();
        while chunk.rows.len() < most && chunk.data.iter().map(Vec::len).sum::<usize>() < CHUNK_BYTES {
            let Some(row) = source.next()? else { break };
            let taken = row.cells.and_then(|cells| columns.push(&cells, &mut chunk.data));
            chunk.rows.push(row.place);
            chunk.bad.push(taken.err());
        }
        Ok(chunk)
    }

    /// One answer or problem a row. If the good rows are not answered together, each is asked about by itself, so that
    /// one row costs the others nothing.
    fn answer(&self, columns: &Columns, predict: &mut dyn Predict) -> Result<Vec<Answer>, BatchError> {
        let good = self.bad.iter().filter(|problem| problem.is_none()).count();
        let mut answered = Vec::new();
        if good > 0 {
            let inputs = columns.tensors(&self.data, good);
            match predict.predict(&inputs) {
                Ok(outputs) => {
                    check(&outputs, good)?;
                    answered.extend((0..good).map(|row| Ok(row_of(&outputs, row, good))));
                }
                Err(PredictError::Gone(problem)) => return Err(BatchError::Unanswered(problem)),
                Err(PredictError::Rows(problem)) if good == 1 => answered.push(Err(problem)),
                Err(PredictError::Rows(_)) => {
                    for row in 0..good {
                        answered.push(match predict.predict(&row_of(&inputs, row, good)) {
                            Ok(outputs) => check(&outputs, 1).map(|()| Ok(outputs))?,
                            Err(PredictError::Rows(problem)) => Err(problem),
                            Err(PredictError::Gone(problem)) => return Err(BatchError::Unanswered(problem)),
                        });
                    }
                }
            }
        }
        let mut answered = answered.into_iter();
        let one = |bad: &Option<String>| match bad {
            Some(problem) => Some(Err(problem.clone())),
            None => answered.next(),
        };
        Ok(self.bad.iter().filter_map(one).collect())
    }
}

/// Refuses outputs that can not be cut into rows: who answers may be another process.
fn check(outputs: &[TensorData], rows: usize) -> Result<(), BatchError> {
    let whole = |tensor: &TensorData| {
        let elements = tensor.shape.iter().try_fold(1_u64, |all, d| all.checked_mul(*d));
        let bytes = tensor.datatype.size().map(|size| size as u64);
        tensor.shape.first() == Some(&(rows as u64))
            && (tensor.datatype == DType::Bytes
                || elements.zip(bytes).and_then(|(n, size)| n.checked_mul(size))
                    == Some(tensor.data.0.len() as u64))
    };
    match outputs.iter().find(|tensor| !whole(tensor)) {
        Some(tensor) => Err(BatchError::Unanswered(format!(
            "output {:?} of shape {:?} is no answer to {rows} rows",
            tensor.name, tensor.shape
        ))),
        None => Ok(()),
    }
}
