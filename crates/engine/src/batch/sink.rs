//! Answers as lines of a file.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;

use dunlin_protocol::{DType, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BatchError, Columns, Job, Progress};
use crate::{argmax, floats, json, of_floats};

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Comma-separated values, a header first.
    Csv,
    /// A JSON object a line.
    Ndjson,
}

/// The output. Bytes are counted as they are written, so that progress speaks of whole rows.
pub(super) struct Sink {
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    format: Format,
    skip_bad: bool,
}

impl Sink {
    /// Opens the output where the progress ends. That there is a run is durable before there is an output.
    pub(super) fn open(job: &Job, columns: &Columns, progress: &mut Progress) -> Result<Self, BatchError> {
        let path = &job.output;
        let fresh = progress.output_bytes == 0;
        if fresh {
            progress.save(path)?;
        }
        let open = || OpenOptions::new().write(true).create(fresh).truncate(false).open(path);
        let mut file = open().map_err(BatchError::file("open", path))?;
        let length = file.metadata().map_err(BatchError::file("read", path))?.len();
        if length < progress.output_bytes {
            return Err(BatchError::Resume(format!(
                "{} has {length} of the {} bytes that were written to it",
                path.display(),
                progress.output_bytes
            )));
        }
        file.set_len(progress.output_bytes)
            .and_then(|()| file.seek(SeekFrom::Start(progress.output_bytes)))
            .map_err(BatchError::file("cut", path))?;
        let mut sink = Self {
            path: path.clone(),
            file: BufWriter::new(file),
            written: progress.output_bytes,
            format: job.format,
            skip_bad: job.skip_bad,
        };
        if fresh && job.format == Format::Csv {
            let prediction = (!columns.labels().is_empty()).then(|| "prediction".to_owned());
            let error = job.skip_bad.then(|| "error".to_owned());
            let names = std::iter::once("row".to_owned()).chain(prediction).chain(columns.of_answers());
            let names: Vec<String> = names.chain(error).map(|name| quoted(&name)).collect();
            sink.line(&names.join(","))?;
        }
        Ok(sink)
    }

    /// Writes the answer to row `number`, counted from 1.
    pub(super) fn row(
        &mut self,
        columns: &Columns,
        number: u64,
        answer: Result<Vec<TensorData>, String>,
    ) -> Result<(), BatchError> {
        let no_form = |problem: String| BatchError::Unanswered(problem);
        let line = match (self.format, answer) {
            (Format::Csv, Ok(outputs)) => csv(columns, number, &outputs, self.skip_bad).map_err(no_form)?,
            (Format::Csv, Err(problem)) => {
                let empty = columns.of_answers().len() + usize::from(!columns.labels().is_empty());
                format!("{number},{}{}", ",".repeat(empty), quoted(&problem))
            }
            (Format::Ndjson, Ok(outputs)) => object(columns, number, &outputs).map_err(no_form)?,
            (Format::Ndjson, Err(problem)) => {
                format!("{{\"row\":{number},\"error\":{}}}", Value::from(problem))
            }
        };
        self.line(&line)
    }

    fn line(&mut self, text: &str) -> Result<(), BatchError> {
        let write = self.file.write_all(text.as_bytes()).and_then(|()| self.file.write_all(b"\n"));
        write.map_err(BatchError::file("write", &self.path))?;
        self.written += text.len() as u64 + 1;
        Ok(())
    }

    /// Makes durable what was written, then the progress that speaks of it.
    pub(super) fn save(&mut self, progress: &mut Progress) -> Result<(), BatchError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map_err(BatchError::file("write", &self.path))?;
        progress.output_bytes = self.written;
        progress.save(&self.path)
    }
}

/// The predicted class of a row of outputs.
fn prediction<'a>(columns: &'a Columns, outputs: &[TensorData]) -> Option<&'a str> {
    let class = outputs.last().and_then(floats).and_then(|scores| argmax(&scores))?;
    columns.labels().get(class as usize).map(String::as_str)
}

/// A row of a tensor as a JSON array.
fn array(tensor: &TensorData) -> Result<String, String> {
    let mut text = String::new();
    match floats(tensor).filter(|_| tensor.datatype == DType::Fp16) {
        Some(values) => json::write(&of_floats(&tensor.name, &tensor.shape, &values), &mut text)?,
        None => json::write(tensor, &mut text)?,
    }
    Ok(text)
}

fn object(columns: &Columns, number: u64, outputs: &[TensorData]) -> Result<String, String> {
    let mut text = format!("{{\"row\":{number}");
    // Writing to a string does not fail.
    if !columns.labels().is_empty() {
        let _infallible = write!(text, ",\"prediction\":{}", Value::from(prediction(columns, outputs)));
    }
    for output in outputs {
        let _infallible = write!(text, ",{}:{}", Value::from(output.name.as_str()), array(output)?);
    }
    text.push('}');
    Ok(text)
}

fn csv(columns: &Columns, number: u64, outputs: &[TensorData], skip_bad: bool) -> Result<String, String> {
    let mut text = number.to_string();
    if !columns.labels().is_empty() {
        text.push(',');
        text.push_str(&quoted(prediction(columns, outputs).unwrap_or_default()));
    }
    for output in outputs {
        let array = array(output)?;
        if output.datatype == DType::Bytes {
            let texts: Vec<String> = serde_json::from_str(&array).map_err(|e| e.to_string())?;
            texts.iter().for_each(|one| {
                text.push(',');
                text.push_str(&quoted(one));
            });
        } else {
            // Numbers and words, which a comma separates in both; what is not finite has no JSON form and is left empty.
            text.push(',');
            text.push_str(&array[1..array.len() - 1].replace("null", ""));
        }
    }
    if skip_bad {
        text.push(',');
    }
    Ok(text)
}

/// A field, in quotation marks if it needs them. A line end within it, which a reader of lines would trip over, becomes a
/// space.
fn quoted(field: &str) -> String {
    let field = field.replace(['\n', '\r'], " ");
    if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}
