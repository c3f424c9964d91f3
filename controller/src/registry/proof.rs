//! Proving what comes in, in a child process, before this process loads it.
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_engine::prove::{self, Examination, Examined, Job, Limits, Proof, ProveError};
use dunlin_protocol::{Bytes, DType, GoldenSet, ReasonCode, TensorData, cbor};

use super::drawn::Reach;
use super::{Registry, RegistryError};

/// Limits of a proof here: far more than a device grants, and little enough for this machine to bear.
const LIMITS: Limits = Limits { address_space_bytes: 4 << 30, cpu_s: 60, wall_ms: 90_000 };
/// Single rows that are timed.
const REPEAT: u32 = 200;

/// A folder that goes when it is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a few files that the next start of a proof does not trip over.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

fn write(path: &Path, bytes: &[u8]) -> Result<(), RegistryError> {
    std::fs::write(path, bytes).map_err(RegistryError::file("write", path))
}

/// The hidden verb under which this program examines and proves models.
pub const ENGINE_CHILD: &str = "engine-child";

/// Rewrites and inspects an ONNX file in a child of `prover`, and loads it there if `load`; `folder` is a place for the
/// file that comes of it, which is returned if anything was rewritten. Blocks until the child has ended.
pub(crate) fn examine(
    prover: &Path,
    folder: &Path,
    model: PathBuf,
    load: bool,
) -> Result<(Examined, Option<PathBuf>), ProveError> {
    let rewritten = folder.join("rewritten.onnx");
    let examination = Examination { model, rewritten: rewritten.clone(), load, limits: LIMITS };
    let examined = prove::examine(prover, ENGINE_CHILD, &examination)?;
    let rewritten = (!examined.rewritten.is_empty()).then_some(rewritten);
    Ok((examined, rewritten))
}

/// A folder of its own below `folder`.
fn scratch(folder: &Path) -> Result<Scratch, RegistryError> {
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let scratch = Scratch(folder.join(name));
    std::fs::create_dir_all(&scratch.0).map_err(RegistryError::file("create", &scratch.0))?;
    Ok(scratch)
}

impl Registry {
    /// Rewrites and inspects what somebody brought, in a child process: nothing of it is parsed in this one. Returns
    /// the rewritten file with what it declares.
    pub(super) async fn look_into(&self, onnx: Vec<u8>) -> Result<(Vec<u8>, Examined), RegistryError> {
        let scratch = scratch(&self.proofs)?;
        let prover = self.prover.clone();
        let looked = tokio::task::spawn_blocking(move || -> Result<_, RegistryError> {
            let model = scratch.0.join("model.onnx");
            write(&model, &onnx)?;
            let (examined, rewritten) =
                examine(&prover, &scratch.0, model, false).map_err(RegistryError::Import)?;
            let onnx = match rewritten {
                Some(path) => std::fs::read(&path).map_err(RegistryError::file("read", &path))?,
                None => onnx,
            };
            Ok((onnx, examined))
        });
        looked.await.expect("an examination returns its errors")
    }

    /// Replays `golden` on `onnx` in a child process, and scores it on `anchor` if there is one.
    pub(super) async fn prove(
        &self,
        onnx: &[u8],
        golden: &GoldenSet,
        anchor: Option<&GoldenSet>,
    ) -> Result<Proof, RegistryError> {
        let scratch = scratch(&self.proofs)?;
        let (model, vectors) = (scratch.0.join("model.onnx"), scratch.0.join("golden.cbor"));
        write(&model, onnx)?;
        write(&vectors, &cbor::encode(golden))?;
        let labelled = scratch.0.join("anchor.cbor");
        if let Some(anchor) = anchor {
            write(&labelled, &cbor::encode(anchor))?;
        }
        let anchor = anchor.map(|_| labelled);
        let job = Job { model, golden: vectors, limits: LIMITS, repeat: REPEAT, anchor };
        let prover = self.prover.clone();
        let proof = tokio::task::spawn_blocking(move || {
            let proof = prove::run(&prover, ENGINE_CHILD, &job);
            drop(scratch);
            proof
        });
        Ok(proof.await.expect("a proof returns its errors")?)
    }

    /// The first inputs that the model runs on in a child process, the furthest reach first.
    pub(super) async fn runnable(
        &self,
        onnx: &[u8],
        draw: impl Fn(Reach) -> Result<Vec<TensorData>, RegistryError> + Send + 'static,
    ) -> Result<Vec<TensorData>, RegistryError> {
        let scratch = scratch(&self.proofs)?;
        let model = scratch.0.join("model.onnx");
        write(&model, onnx)?;
        let prover = self.prover.clone();
        let found = tokio::task::spawn_blocking(move || runnable(&prover, &scratch.0, &model, draw));
        found.await.expect("a proof returns its errors")
    }
}

/// Draws inputs until the model runs on them in a child of `prover`, which reads them from a file in `folder`. Blocks until
/// the children have ended.
///
/// # Errors
/// What it fails with on the first ones and goes on to fail with; [`RegistryError::Proof`] if it does not load, or ends the
/// child.
pub(crate) fn runnable(
    prover: &Path,
    folder: &Path,
    model: &Path,
    draw: impl Fn(Reach) -> Result<Vec<TensorData>, RegistryError>,
) -> Result<Vec<TensorData>, RegistryError> {
    let mut tried: Option<(Vec<TensorData>, ProveError)> = None;
    for reach in Reach::ALL {
        let inputs = draw(reach)?;
        if tried.as_ref().is_some_and(|(before, _)| *before == inputs) {
            continue;
        }
        match survive(prover, folder, model, &inputs)? {
            Ok(()) => return Ok(inputs),
            Err(error @ ProveError::Failed { reason: ReasonCode::ModelFailed, .. }) => {
                tried = Some((inputs, error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (_, error) = tried.expect("there is a reach to try");
    Err(error.into())
}

/// Loads the model and runs `inputs` in a child process, whatever the answers are; one that can not answer them fails.
fn survive(
    prover: &Path,
    folder: &Path,
    model: &Path,
    inputs: &[TensorData],
) -> Result<Result<(), ProveError>, RegistryError> {
    // No answer differs by more than this tolerance, so the one expected output holds nothing.
    let nothing =
        TensorData { name: String::new(), datatype: DType::Fp32, shape: vec![], data: Bytes(vec![]) };
    let any = GoldenSet {
        format: 1,
        inputs: inputs.to_vec(),
        outputs: vec![nothing],
        tolerance_ppm: u32::MAX,
        labels: vec![],
    };
    let golden = folder.join("any.cbor");
    write(&golden, &cbor::encode(&any))?;
    let job = Job { model: model.to_owned(), golden, limits: LIMITS, repeat: 1, anchor: None };
    Ok(match prove::run(prover, ENGINE_CHILD, &job) {
        Ok(_) => Ok(()),
        // With no answer expected, none can differ.
        Err(ProveError::Failed { reason: ReasonCode::GoldenMismatch, detail }) => {
            Err(ProveError::Failed { reason: ReasonCode::ModelFailed, detail })
        }
        Err(error) => Err(error),
    })
}
