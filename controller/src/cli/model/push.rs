//! `dunlin model push`.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use dunlin_protocol::{ClassName, FeatureMeta, ModelName, TaskId, TaskType};

use super::super::{ApiClient, Exit, Output};
use super::{golden, read};
use crate::api::models::{PushBody, ReleaseView};

/// Sample rows that are sent along: enough for drift bins, little enough for one request.
const SAMPLES_MAX: usize = 20_000;

/// `dunlin model push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The ONNX file.
    file: PathBuf,
    /// The task it is for.
    #[arg(long)]
    task: TaskId,
    /// The model line.
    #[arg(long)]
    name: ModelName,
    /// Rows of real inputs, CSV with a header of feature names: golden vectors and drift bins are made of them.
    #[arg(long)]
    samples: Option<PathBuf>,
    /// Golden vectors: an inference request of the Open Inference Protocol V2 a line, in JSON, with the `outputs` that your
    /// runtime answered, or without for the answers of this engine.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Column of the samples that is no feature; may be given several times.
    #[arg(long = "skip", value_name = "COLUMN")]
    skipped: Vec<String>,
    /// Class names, separated by commas.
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// Validation accuracy, parts per million.
    #[arg(long)]
    accuracy_ppm: Option<u32>,
    /// Rows the accuracy stands on.
    #[arg(long)]
    accuracy_n: Option<u64>,
    /// SPDX licence expression.
    #[arg(long, default_value = "")]
    licence: String,
    /// A hardware class it is for; may be given several times, none means any.
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<ClassName>,
    /// The model answers with numbers rather than classes.
    #[arg(long)]
    regression: bool,
}

/// Features and rows of a CSV file with a header.
fn samples(path: &Path, skipped: &[String]) -> Result<(Vec<FeatureMeta>, Vec<Vec<f32>>)> {
    let mut reader =
        csv::Reader::from_path(path).with_context(|| format!("could not read {}", path.display()))?;
    let header = reader.headers()?.clone();
    if let Some(missing) = skipped.iter().find(|name| !header.iter().any(|column| column == name.as_str())) {
        bail!("{} has no column {missing:?} to skip", path.display());
    }
    let columns: Vec<usize> =
        (0..header.len()).filter(|&i| !skipped.iter().any(|name| name == &header[i])).collect();
    let features =
        columns.iter().map(|&i| FeatureMeta { name: header[i].to_owned(), unit: String::new() }).collect();
    let mut rows = Vec::new();
    for record in reader.records().take(SAMPLES_MAX) {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let value = |&i: &usize| {
            let text = record.get(i).unwrap_or_default().trim();
            text.parse::<f32>().with_context(|| {
                format!("{} line {line}: {text:?} in column {:?} is no number", path.display(), &header[i])
            })
        };
        rows.push(columns.iter().map(value).collect::<Result<Vec<f32>>>()?);
    }
    Ok((features, rows))
}

impl PushArgs {
    pub(super) async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        let (features, samples) = match &self.samples {
            Some(path) => samples(path, &self.skipped)?,
            None => (vec![], vec![]),
        };
        let accuracy = self.accuracy_ppm.map(|value| ("accuracy_ppm".to_owned(), i64::from(value)));
        let n = self.accuracy_n.map(|n| ("n".to_owned(), i64::try_from(n).unwrap_or(i64::MAX)));
        let body = PushBody {
            task: self.task,
            task_type: if self.regression { TaskType::Regression } else { TaskType::Classification },
            onnx: read(&self.file)?.into(),
            samples,
            golden: self.golden.as_deref().map(golden::read).transpose()?,
            features,
            labels: self.labels,
            metrics: accuracy.into_iter().chain(n).collect::<BTreeMap<_, _>>(),
            licence: self.licence,
            classes: self.classes.into_iter().collect(),
        };
        let path = format!("/v1/models/{}/releases", self.name);
        let view: ReleaseView = client.post(&path, &body).await?;
        out.show(&view, |view| {
            let hard = &view.bundle.hard;
            format!(
                "{} is {}: {} bytes, {} bytes of memory, {} us a row\nnext: dunlin model approve {} --keys DIR",
                view.release, view.state, hard.bundle_bytes, hard.ram_bytes, view.bundle.latency_us, view.release
            )
        })?;
        Ok(Exit::Ok)
    }
}
