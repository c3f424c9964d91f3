use std::path::Path;

use dunlin_engine::Model;
use dunlin_engine::prove::{Job, Limits, run};
use dunlin_protocol::{ReasonCode, RetrainedBounds, TensorSpec};
use dunlin_update::{Pack, Proof, Terms};

use super::fetch::chain;
use super::load;
use super::store::Store;

/// The hidden verb under which this program is its own proof process.
pub const ENGINE_CHILD: &str = "engine-child";
/// Address space that the child needs before any model: program, libraries, allocator.
const CHILD_BYTES: u64 = 512 * 1024 * 1024;
/// Processor time of a proof, seconds: a hundred times what the slowest accepted model needs.
const CPU_S: u64 = 60;
/// Time of a proof, milliseconds; a busy board may give the child a third of a core.
const WALL_MS: u64 = 180_000;
/// Timed runs: enough for a median that one hiccup does not move.
const REPEAT: u32 = 101;

/// Proves a staged release in a child of `exe`. Blocks until the child has ended.
///
/// # Errors
/// Why it failed, as a code and for people.
pub fn prove(exe: &Path, store: &Store, pack: &Pack, terms: &Terms) -> Result<Proof, (ReasonCode, String)> {
    let bundle = load::bundle(store, pack).map_err(|detail| (ReasonCode::ManifestMalformed, detail))?;
    let limits = Limits {
        address_space_bytes: CHILD_BYTES.saturating_add(terms.ram_bytes_max.saturating_mul(2)),
        cpu_s: CPU_S,
        wall_ms: WALL_MS,
    };
    let job = Job {
        model: store.path(&bundle.model.digest),
        golden: store.path(&bundle.golden.digest),
        limits,
        repeat: REPEAT,
        anchor: terms.anchor.map(|(digest, _)| store.path(&digest)),
    };
    let proof = run(exe, ENGINE_CHILD, &job).map_err(|e| (e.reason(), chain(&e)))?;
    if let Some(bounds) = &terms.bounds {
        let onnx = store.read(&bundle.model).map_err(|e| (ReasonCode::DigestMismatch, chain(&e)))?;
        let model = Model::load(&onnx, None).map_err(|e| (e.reason(), chain(&e)))?;
        within(bounds, &model)?;
    }
    let anchor_ppm = match (terms.anchor, proof.anchor_score_ppm) {
        (None, _) => 1_000_000,
        (Some(_), Some(score)) => score,
        (Some(_), None) => 0,
    };
    Ok(Proof { latency_us: proof.latency_us_p50, peak_bytes: proof.peak_bytes, anchor_ppm })
}

/// Holds the graph itself against the bounds: a manifest of a retrained release is only the word of the controller.
fn within(bounds: &RetrainedBounds, model: &Model) -> Result<(), (ReasonCode, String)> {
    let refuse = |detail: String| Err((ReasonCode::RetrainedOutOfBounds, detail));
    if let Some(op) = model.ops().difference(&bounds.ops).next() {
        return refuse(format!("the graph uses operator {op}, which the policy does not allow"));
    }
    let same = |have: &[TensorSpec], want: &[TensorSpec]| {
        have.len() == want.len()
            && have.iter().zip(want).all(|(have, want)| {
                have.name == want.name
                    && have.datatype == want.datatype
                    && have.shape.len() == want.shape.len()
            })
    };
    if !same(model.inputs(), &bounds.inputs) {
        return refuse("the graph has other inputs than the policy".to_owned());
    }
    if !same(model.outputs(), &bounds.outputs) {
        return refuse("the graph has other outputs than the policy".to_owned());
    }
    Ok(())
}
