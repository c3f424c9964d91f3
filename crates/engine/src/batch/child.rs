//! A model that answers in a child process under limits: for who runs models of others beside files of its own.
//!
//! Both speak in frames of CBOR, each behind its length in four little-endian bytes. The child opens the model and nothing
//! else; the rows and the answers are the parent's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use dunlin_protocol::{TensorData, cbor};
use serde::{Deserialize, Serialize};

use super::{BatchError, Predict, PredictError};
use crate::prove::{Limits, limit};
use crate::{MODEL_BYTES_MAX, Model, parent};

/// Largest frame: a chunk, with room for texts that are longer than expected.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What the child is to load.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    model: PathBuf,
    limits: Limits,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Loaded,
    Outputs(Vec<TensorData>),
    Rows(String),
    Gone(String),
}

/// The parent's side.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    replies: Receiver<Vec<u8>>,
    wall: Duration,
}

impl Child {
    /// Starts `exe` (normally this very program) with the argument `verb`, which has to come to [`child_main`] before it
    /// starts threads, and has it load a model. Of the limits, `wall_ms` is for one chunk, and for loading; `cpu_s` is for
    /// all of them.
    ///
    /// # Errors
    /// The child can not be started, or does not load the model.
    pub fn start(exe: &Path, verb: &str, model: &Path, limits: Limits) -> Result<Self, BatchError> {
        let mut process = parent::child(exe, verb).spawn().map_err(BatchError::file("start", exe))?;
        let stdin = process.stdin.take();
        let mut stdout = process.stdout.take().expect("standard output was asked for above");
        let (answered, replies) = sync_channel(1);
        // It ends with the child's output, or when nobody listens.
        thread::spawn(move || {
            while let Ok(Some(frame)) = read(&mut stdout) {
                if answered.send(frame).is_err() {
                    return;
                }
            }
        });
        let mut child = Self { process, stdin, replies, wall: Duration::from_millis(limits.wall_ms) };
        let task = Task { model: model.to_owned(), limits };
        match child.exchange(&cbor::encode(&task)) {
            Ok(Reply::Loaded) => Ok(child),
            Ok(Reply::Gone(problem)) | Err(problem) => Err(BatchError::Unanswered(problem)),
            Ok(Reply::Outputs(_) | Reply::Rows(_)) => {
                Err(BatchError::Unanswered("the child does not load the model".into()))
            }
        }
    }

    fn exchange(&mut self, frame: &[u8]) -> Result<Reply, String> {
        let told = self.stdin.as_mut().is_some_and(|stdin| write(stdin, frame).is_ok());
        if !told {
            return Err(self.died());
        }
        match self.replies.recv_timeout(self.wall) {
            Ok(frame) => cbor::decode(&frame, FRAME_BYTES_MAX)
                .map_err(|_| "it answered nothing that can be read".into()),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("the model did not answer within {} s", self.wall.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.died()),
        }
    }

    /// How it ended. Its pipes are closed, so it ends now if it has not.
    fn died(&mut self) -> String {
        self.stdin = None;
        match self.process.wait() {
            Ok(status) => format!("the model's process died: {status}"),
            Err(error) => format!("the model's process is lost: {error}"),
        }
    }
}

impl Predict for Child {
    fn predict(&mut self, inputs: &[TensorData]) -> Result<Vec<TensorData>, PredictError> {
        match self.exchange(&cbor::encode(&inputs)) {
            Ok(Reply::Outputs(outputs)) => Ok(outputs),
            Ok(Reply::Rows(problem)) => Err(PredictError::Rows(problem)),
            Ok(Reply::Gone(problem)) | Err(problem) => Err(PredictError::Gone(problem)),
            Ok(Reply::Loaded) => Err(PredictError::Gone("it answered another question".into())),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // One that ended by itself can not be killed, and is waited for all the same.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// What the hidden verb of a program does: sets this process's limits, loads the model that the first frame names, and
/// answers the others until there are no more. Call it first thing in `main`, before any thread is started.
pub fn child_main() -> ExitCode {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    let task = read(&mut stdin).ok().flatten();
    let Some(task) = task.and_then(|frame| cbor::decode::<Task>(&frame, FRAME_BYTES_MAX).ok()) else {
        return ExitCode::from(2);
    };
    if limit(&task.limits, 0).is_err() {
        return ExitCode::from(3);
    }
    let (model, reply) = match load(&task.model) {
        Ok(model) => (Some(model), Reply::Loaded),
        Err(problem) => (None, Reply::Gone(problem)),
    };
    if write(&mut stdout, &cbor::encode(&reply)).is_err() {
        return ExitCode::from(4);
    }
    let Some(model) = model else { return ExitCode::SUCCESS };
    while let Ok(Some(frame)) = read(&mut stdin) {
        let reply = match cbor::decode::<Vec<TensorData>>(&frame, FRAME_BYTES_MAX) {
            Ok(inputs) => match (&model).predict(&inputs) {
                Ok(outputs) => Reply::Outputs(outputs),
                Err(PredictError::Rows(problem)) => Reply::Rows(problem),
                Err(PredictError::Gone(problem)) => Reply::Gone(problem),
            },
            Err(error) => Reply::Gone(format!("reading the rows: {error}")),
        };
        if write(&mut stdout, &cbor::encode(&reply)).is_err() {
            return ExitCode::from(4);
        }
    }
    ExitCode::SUCCESS
}

fn load(path: &Path) -> Result<Model, String> {
    let mut onnx = Vec::new();
    let file = File::open(path).map_err(|e| format!("opening {}: {e}", path.display()))?;
    file.take(MODEL_BYTES_MAX as u64 + 1)
        .read_to_end(&mut onnx)
        .map_err(|e| format!("reading {}: {e}", path.display()))?;
    Model::load(&onnx, None).map_err(|e| e.to_string())
}

fn write(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(frame)?;
    to.flush()
}

/// The next frame; `None` at the end.
fn read(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut frame = vec![0; length];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}
