use std::time::{Duration, Instant};

use dunlin_engine::batch::{BatchError, Predict, PredictError};
use dunlin_engine::{ROWS_TOGETHER, append_rows, some_rows};
use dunlin_protocol::{Bytes, DType, ReleaseId, TaskId, TensorData};
use serde::Deserialize;
use serde_json::json;

use crate::local::{Asked, Local};

/// Pause after the agent said that it has too much to do.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// How often it may say so for one chunk: for a minute.
const BUSY_MAX: u32 = 300;

/// What one request is to take at most: below the limits of the agent's, so that none comes too late, which would count against
/// the model.
const REQUEST_TIME: Duration = Duration::from_secs(1);

/// A running agent, asked by a thread that may wait.
#[derive(Debug)]
pub struct Running {
    local: Local,
    handle: tokio::runtime::Handle,
    /// Path of the release that answers.
    version: String,
    /// Rows of the next request: a multiple of what an engine runs together. As long as that is the largest of
    /// [`ROWS_TOGETHER`], rows come together as they do in a whole chunk, and answers are the same to the last bit: so it is,
    /// but for models that were late.
    rows: usize,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    versions: Vec<ReleaseId>,
}

/// The part of an answer that is JSON.
#[derive(Debug, Deserialize)]
struct Answer {
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    parameters: Size,
}

#[derive(Debug, Deserialize)]
struct Size {
    binary_data_size: usize,
}

#[derive(Debug, Deserialize)]
struct Refused {
    error: String,
}

/// What the agent said to a request that it did not answer.
fn said(asked: &Asked) -> String {
    let refused: Option<Refused> = serde_json::from_slice(&asked.body).ok();
    refused.map_or_else(|| format!("it answered with status {}", asked.status), |refused| refused.error)
}

fn gone(error: impl std::fmt::Display) -> PredictError {
    PredictError::Gone(error.to_string())
}

impl Running {
    /// The agent behind `local`. Requests are waited for on the runtime of `handle`.
    pub fn new(local: Local, handle: tokio::runtime::Handle) -> Self {
        Self { local, handle, version: String::new(), rows: ROWS_TOGETHER[0] }
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Asked, String> {
        self.handle.block_on(self.local.ask(method, path, headers, body)).map_err(|e| e.to_string())
    }

    /// The release that the agent has loaded for a task: the one named, or what answers first.
    ///
    /// # Errors
    /// It has none, or not that one.
    pub(super) fn serves(&self, task: &TaskId, release: Option<&ReleaseId>) -> Result<ReleaseId, BatchError> {
        let asked =
            self.ask("GET", &format!("/v2/models/{task}"), "", &[]).map_err(BatchError::Unanswered)?;
        if asked.status != 200 {
            return Err(BatchError::Model(said(&asked)));
        }
        let Metadata { versions } = serde_json::from_slice(&asked.body)
            .map_err(|e| BatchError::Unanswered(format!("reading the agent's answer: {e}")))?;
        let found = match release {
            Some(release) => versions.into_iter().find(|version| version == release),
            None => versions.into_iter().next(),
        };
        found.ok_or_else(|| {
            BatchError::Model(match release {
                Some(release) => format!("the agent has no release {release} of task {task:?} loaded"),
                None => format!("the agent has no model of task {task:?} loaded"),
            })
        })
    }

    /// From here on this release answers, and no other.
    pub(super) fn pin(&mut self, task: &TaskId, release: &ReleaseId) {
        self.version = format!("/v2/models/{task}/versions/{}%40{}", release.model, release.version);
    }

    /// Whether the release is still loaded: a request to one that is not is refused like one with a wrong row.
    fn is_there(&self) -> Result<bool, PredictError> {
        let asked = self.ask("GET", &format!("{}/ready", self.version), "", &[]).map_err(gone)?;
        Ok(asked.status == 200)
    }

    /// One request.
    fn request(&mut self, inputs: &[TensorData]) -> Result<Vec<TensorData>, PredictError> {
        let described: Vec<_> = inputs
            .iter()
            .map(|t| {
                json!({
                    "name": t.name,
                    "datatype": t.datatype.as_str(),
                    "shape": t.shape,
                    "parameters": { "binary_data_size": t.data.0.len() },
                })
            })
            .collect();
        let head = json!({ "inputs": described, "parameters": { "binary_data_output": true } }).to_string();
        let header = format!("inference-header-content-length: {}\r\n", head.len());
        let mut body = head.into_bytes();
        inputs.iter().for_each(|t| body.extend_from_slice(&t.data.0));
        let mut busy = 0;
        let asked = loop {
            let path = format!("{}/infer", self.version);
            let asked = self.ask("POST", &path, &header, &body).map_err(gone)?;
            if asked.status != 429 || busy == BUSY_MAX {
                break asked;
            }
            busy += 1;
            std::thread::sleep(BUSY_PAUSE);
        };
        match asked.status {
            200 => outputs(&asked).ok_or_else(|| gone("its answer can not be read")),
            // These rows do not fit, or the model fails on them; whether it is one of them is found out by asking for each.
            status @ (400 | 413 | 500) if self.is_there()? => {
                if status == 500 {
                    self.rows = fewer(self.rows);
                }
                Err(PredictError::Rows(said(&asked)))
            }
            _ => Err(gone(said(&asked))),
        }
    }
}

impl Predict for Running {
    /// In requests of as many rows as are answered in time, which the ones before have shown.
    fn predict(&mut self, inputs: &[TensorData]) -> Result<Vec<TensorData>, PredictError> {
        let all = inputs.first().and_then(|input| input.shape.first()).map_or(0, |&rows| rows as usize);
        let mut outputs = Vec::new();
        let mut done = 0;
        while done < all {
            let n = self.rows.min(all - done);
            let Some(part) =
                inputs.iter().map(|input| some_rows(input, done..done + n)).collect::<Option<Vec<_>>>()
            else {
                // Rows of text are of any length.
                return self.request(inputs);
            };
            let from = Instant::now();
            let answered = self.request(&part)?;
            if n == self.rows {
                self.rows = next(n, from.elapsed());
            }
            append(&mut outputs, answered, n).ok_or_else(|| gone("its answer is not one row for each"))?;
            done += n;
        }
        Ok(outputs)
    }
}

/// How many rows to ask for after so many took so long: twice as many at most.
fn next(rows: usize, took: Duration) -> usize {
    let in_time = REQUEST_TIME.as_nanos() * rows as u128 / took.as_nanos().max(1);
    let most = usize::try_from(in_time).unwrap_or(usize::MAX).min(rows.saturating_mul(2));
    let together = ROWS_TOGETHER.into_iter().find(|&together| together <= rows.max(most)).unwrap_or(1);
    (most / together * together).max(together.min(rows))
}

/// How many to ask for after so many were too much.
fn fewer(rows: usize) -> usize {
    ROWS_TOGETHER.into_iter().find(|&together| together < rows).unwrap_or(1)
}

/// Appends the answer of some rows; `None` if it is not one row for each, or of another kind than the ones before.
fn append(all: &mut Vec<TensorData>, more: Vec<TensorData>, n: usize) -> Option<()> {
    if more.iter().any(|tensor| tensor.shape.first() != Some(&(n as u64))) {
        return None;
    }
    if all.is_empty() {
        *all = more;
        return Some(());
    }
    if all.len() != more.len() {
        return None;
    }
    all.iter_mut().zip(&more).try_for_each(|(all, more)| append_rows(all, more))
}

fn outputs(asked: &Asked) -> Option<Vec<TensorData>> {
    let (head, mut rest) = asked.body.split_at_checked(asked.json_length?)?;
    let answer: Answer = serde_json::from_slice(head).ok()?;
    let one = |output: Output| {
        let (own, after) = rest.split_at_checked(output.parameters.binary_data_size)?;
        rest = after;
        let datatype = DType::ALL.into_iter().find(|kind| kind.as_str() == output.datatype)?;
        Some(TensorData { name: output.name, datatype, shape: output.shape, data: Bytes(own.to_vec()) })
    };
    answer.outputs.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use dunlin_engine::of_floats;

    use super::*;

    #[test]
    fn requests_grow_as_long_as_they_are_answered_in_time() {
        assert_eq!(next(32, Duration::from_millis(1)), 64);
        assert_eq!(next(128, Duration::from_secs(2)), 64);
        assert_eq!(next(64, Duration::from_millis(1500)), 32, "not 42");
        assert_eq!(next(32, Duration::from_secs(30)), 32, "a slow one is no late one");
        assert_eq!([64, 32, 8, 1].map(fewer), [32, 8, 1, 1]);
        assert_eq!(next(8, Duration::from_secs(5)), 8);
        assert_eq!([8, 16, 1, 4].map(|rows| next(rows, Duration::ZERO)), [16, 32, 2, 8]);
    }

    #[test]
    fn parts_of_a_table_make_it_up_again() {
        let x: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let table = of_floats("x", &[5, 2], &x);
        let mut all = Vec::new();
        for (from, n) in [(0, 1), (1, 3), (4, 1)] {
            append(&mut all, vec![some_rows(&table, from..from + n).unwrap()], n).unwrap();
        }
        assert_eq!(all, std::slice::from_ref(&table));
        assert!(append(&mut all, vec![of_floats("x", &[1, 3], &[0.0; 3])], 1).is_none());
        assert!(append(&mut all, vec![of_floats("x", &[2, 2], &[0.0; 4])], 1).is_none());
        let text = TensorData { datatype: DType::Bytes, ..table };
        assert!(some_rows(&text, 0..1).is_none());
    }
}
