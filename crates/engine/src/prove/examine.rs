//! Looking into a file that nobody has looked into: it is rewritten and inspected in the child.
use std::path::{Path, PathBuf};

use dunlin_protocol::ReasonCode;
use serde::{Deserialize, Serialize};

use super::child::{Failure, file, load};
use super::{Answer, Limits, ProveError, Request, ask, unreadable};
use crate::{Inspection, MODEL_BYTES_MAX, Model, Rewrite, import, inspect};

/// Most bytes of an answer: names of inputs, outputs and operators, and the words of a model that takes text.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What is to be examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// The ONNX file.
    pub model: PathBuf,
    /// File that the rewritten model is written to, if anything in it has to be rewritten.
    pub rewritten: PathBuf,
    /// Whether the model is loaded as well, which tells shapes that the file leaves open.
    pub load: bool,
    /// Limits of the child.
    pub limits: Limits,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examined {
    /// What the file declares, after it was rewritten.
    pub inspection: Inspection,
    /// What was changed; empty if the file is as it came, and then no other one was written.
    pub rewritten: Vec<Rewrite>,
}

/// Rewrites and inspects a file in a child of `exe`, as [`super::run`] proves one: what it holds is parsed there and
/// nowhere else. Blocks until the child has ended.
///
/// # Errors
/// [`ProveError::Failed`] if the engine refuses the file, with the code and the text of [`crate::EngineError`];
/// otherwise as [`super::run`].
pub fn examine(exe: &Path, verb: &str, examination: &Examination) -> Result<Examined, ProveError> {
    match ask(exe, verb, &Request::Examine(examination.clone()), ANSWER_BYTES_MAX)? {
        Answer::Examined(examined) => Ok(examined),
        Answer::Failed { reason, detail } => Err(ProveError::Failed { reason, detail }),
        Answer::Proved(_) => Err(unreadable()),
    }
}

pub(super) fn look(examination: &Examination) -> Result<Examined, Failure> {
    let onnx = file(&examination.model, MODEL_BYTES_MAX as u64)?;
    let imported = import(&onnx).map_err(load)?;
    drop(onnx);
    let mut inspection = inspect(&imported.onnx).map_err(load)?;
    if examination.load {
        let model = Model::load(&imported.onnx, None).map_err(load)?;
        inspection.inputs = model.inputs().to_vec();
        inspection.outputs = model.outputs().to_vec();
    }
    if !imported.rewritten.is_empty() {
        std::fs::write(&examination.rewritten, &imported.onnx).map_err(|error| {
            let path = examination.rewritten.display();
            (ReasonCode::ProofCrashed, format!("writing {path}: {error}"))
        })?;
    }
    Ok(Examined { inspection, rewritten: imported.rewritten })
}
