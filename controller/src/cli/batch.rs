//! `dunlin task batch`.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use dunlin_engine::batch::Progress;
use dunlin_engine::this_program;
use dunlin_protocol::TaskId;
use serde_json::json;

use super::{ApiClient, Exit, Output};
use crate::api::models::ReleaseView;
use crate::batch::{Request, predict};

/// Answers every row of a file with one release.
#[derive(Debug, Args)]
pub struct Batch {
    /// The task.
    task: TaskId,
    /// The release that answers: `name@version`, or `name@alias`.
    #[arg(long)]
    release: String,
    /// Rows: .csv with the features as header, .ndjson or .jsonl with an object or an array a line, or .parquet.
    #[arg(long)]
    input: PathBuf,
    /// Answers: .csv, or .ndjson or .jsonl. Nothing is overwritten.
    #[arg(long)]
    output: PathBuf,
    /// Go on where an earlier run was stopped.
    #[arg(long)]
    resume: bool,
    /// Write rows that can not be answered with the reason, instead of stopping at the first.
    #[arg(long)]
    skip_bad: bool,
}

impl Batch {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        let view: ReleaseView = client.get(&format!("/v1/releases/{}", self.release)).await?;
        let bundle = view.bundle;
        if bundle.task != self.task {
            bail!("{} is a release of task {}, not of {}", bundle.release, bundle.task, self.task);
        }
        let onnx = client.download(&format!("/v1/blobs/{}", bundle.model.digest)).await?;
        if dunlin_trust::sha256(&onnx) != bundle.model.digest {
            bail!(
                "what was fetched as the model of {} has another digest than its manifest says",
                bundle.release
            );
        }
        let model = Fetched::beside(&self.output, &onnx)?;
        let exe = this_program().context("could not find this program")?;
        let request = Request {
            input: self.input,
            output: self.output.clone(),
            resume: self.resume,
            skip_bad: self.skip_bad,
        };
        let told = *out;
        let work = move || {
            predict(&bundle, &model.0, &exe, &request, &mut |progress: &Progress| {
                told.note(&format!("{} rows, {} bad", progress.rows, progress.bad));
            })
        };
        let progress = tokio::task::spawn_blocking(work).await.context("the batch ended early")??;
        let summary = json!({
            "task": progress.task,
            "release": progress.release,
            "rows": progress.rows,
            "bad": progress.bad,
            "output": self.output,
            "output_bytes": progress.output_bytes,
        });
        out.show(&summary, |_| {
            format!("{} rows in {}, {} of them bad", progress.rows, self.output.display(), progress.bad)
        })?;
        Ok(Exit::Ok)
    }
}

/// The fetched model, as a file beside the output for as long as the batch runs.
struct Fetched(PathBuf);

impl Fetched {
    fn beside(output: &Path, onnx: &[u8]) -> Result<Self> {
        let mut path =
            std::path::absolute(output).context("could not find the working folder")?.into_os_string();
        path.push(".model");
        let path = PathBuf::from(path);
        std::fs::write(&path, onnx).with_context(|| format!("could not write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        // What stays behind after a kill is written anew by the next run.
        drop(std::fs::remove_file(&self.0));
    }
}
