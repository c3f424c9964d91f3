//! Batch prediction on the device. The running agent answers, in chunks over its own API, so that a batch has the
//! preprocessing, the bounds and the turn of every other request; where none runs, the model that it would serve is
//! loaded here.

mod ask;

use std::path::{Path, PathBuf};

use dunlin_engine::Model;
use dunlin_engine::batch::{
    self, BatchError, Columns, Csv, Fingerprint, Format, Job, Ndjson, Paced, Predict, Progress, Source,
};
use dunlin_protocol::{ReleaseId, TaskId};

use crate::config::Settings;
use crate::update::Stored;

pub use ask::Running;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The task.
    pub task: TaskId,
    /// Rows: CSV, or NDJSON if the name says so.
    pub input: PathBuf,
    /// Answers, likewise.
    pub output: PathBuf,
    /// The release that answers; what serves the task, if none is named.
    pub release: Option<ReleaseId>,
    /// Go on where an earlier run was stopped.
    pub resume: bool,
    /// Write rows that can not be answered with the reason, instead of stopping.
    pub skip_bad: bool,
}

/// Runs a batch to its end. `running` is the agent that answers, if one does. Blocks.
///
/// # Errors
/// What stopped it; [`Request::resume`] goes on from there.
pub fn run(
    settings: &Settings,
    request: &Request,
    running: Option<Running>,
    told: &mut dyn FnMut(&Progress),
) -> Result<Progress, BatchError> {
    let (read, format) = (format(&request.input)?, format(&request.output)?);
    let input = Fingerprint::of(&request.input)?;
    let release = match (&running, &request.release) {
        (Some(running), release) => Some(running.serves(&request.task, release.as_ref())?),
        (None, release) => release.clone(),
    };
    let stored =
        Stored::find(&settings.state_dir, &request.task, release.as_ref()).map_err(BatchError::Model)?;
    let columns = Columns::of(&stored.bundle)?;
    let job = Job {
        task: request.task.clone(),
        release: stored.bundle.release.clone(),
        input,
        output: request.output.clone(),
        format,
        resume: request.resume,
        skip_bad: request.skip_bad,
    };
    let open = |from| {
        let source: Box<dyn Source> = match read {
            Format::Csv => Box::new(Csv::open(&request.input, &columns, from)?),
            Format::Ndjson => Box::new(Ndjson::open(&request.input, &columns, from)?),
        };
        Ok(source)
    };
    let mut watch = Paced::new(told);
    let mut with = |predict: &mut dyn Predict| batch::run(&job, &columns, open, predict, &mut watch);
    match running {
        Some(mut running) => {
            running.pin(&job.task, &job.release);
            with(&mut running)
        }
        None => {
            let model: Model = stored.model().map_err(BatchError::Model)?;
            with(&mut &model)
        }
    }
}

/// What the name of a file says it holds.
fn format(path: &Path) -> Result<Format, BatchError> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("csv") => Ok(Format::Csv),
        Some("ndjson" | "jsonl") => Ok(Format::Ndjson),
        Some(_) | None => Err(BatchError::Table(format!(
            "{}: the name says neither .csv nor .ndjson nor .jsonl",
            path.display()
        ))),
    }
}
