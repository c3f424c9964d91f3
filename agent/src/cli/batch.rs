use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use dunlin_engine::batch::{BatchError, Progress};
use dunlin_protocol::{ReleaseId, TaskId};
use serde_json::json;

use super::{Cli, Exit, Failure};
use crate::batch::{Request, Running, run};
use crate::config::Settings;
use crate::local::Local;

#[derive(Debug, Args)]
pub(super) struct Batch {
    /// The task.
    #[arg(long)]
    task: TaskId,
    /// Rows: .csv with the features as header, or .ndjson or .jsonl with an object or an array a line.
    #[arg(long)]
    input: PathBuf,
    /// Answers: .csv, or .ndjson or .jsonl. Nothing is overwritten.
    #[arg(long)]
    output: PathBuf,
    /// The release that answers; what serves the task, if none is named.
    #[arg(long)]
    release: Option<ReleaseId>,
    /// Go on where an earlier run was stopped.
    #[arg(long)]
    resume: bool,
    /// Write rows that can not be answered with the reason, instead of stopping at the first.
    #[arg(long)]
    skip_bad: bool,
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        let exit = match &error {
            BatchError::Resume(_) => Exit::Refused,
            BatchError::Model(_) => Exit::NotFound,
            BatchError::File { .. }
            | BatchError::Table(_)
            | BatchError::Row { .. }
            | BatchError::Unanswered(_) => Exit::Failed,
        };
        Self::new(exit, &error)
    }
}

/// Says on standard error how far it is: on one line of a terminal, and a line each time elsewhere.
fn tell(json: bool, progress: &Progress) {
    let bytes = progress.input.bytes.max(1);
    let percent = (progress.position.offset * 100).checked_div(bytes).unwrap_or(0).min(100);
    let mut out = std::io::stderr().lock();
    let text = if json {
        json!({ "rows": progress.rows, "bad": progress.bad, "percent": percent, "done": progress.done })
            .to_string()
    } else {
        format!("{} rows, {} bad, {percent} %", progress.rows, progress.bad)
    };
    let end = if !json && out.is_terminal() && !progress.done { "\r" } else { "\n" };
    // Nobody is left to tell if standard error is closed.
    drop(write!(out, "{text}{end}"));
}

impl Batch {
    pub(super) async fn run(&self, cli: &Cli, settings: Settings) -> Result<Exit, Failure> {
        let request = Request {
            task: self.task.clone(),
            input: self.input.clone(),
            output: self.output.clone(),
            release: self.release.clone(),
            resume: self.resume,
            skip_bad: self.skip_bad,
        };
        let (json, handle) = (cli.json, tokio::runtime::Handle::current());
        // An address that a killed agent left answers nothing.
        let running = match Local::find(&settings) {
            Ok(local) => {
                local.ask("GET", "/v2/health/live", "", &[]).await.ok().map(|_| Running::new(local, handle))
            }
            Err(_) => None,
        };
        let work = move || run(&settings, &request, running, &mut |progress| tell(json, progress));
        let done = tokio::task::spawn_blocking(work).await;
        let progress = done.map_err(|e| Failure::new(Exit::Failed, &e))??;
        cli.show(&json!({
            "task": progress.task,
            "release": progress.release,
            "rows": progress.rows,
            "bad": progress.bad,
            "output": self.output,
            "output_bytes": progress.output_bytes,
        }));
        Ok(Exit::Done)
    }
}
