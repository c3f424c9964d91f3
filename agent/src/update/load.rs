use std::sync::Arc;

use dunlin_engine::{Model, background, first_row};
use dunlin_protocol::{Bundle, GoldenSet, ReferenceProfile, TaskPolicy, cbor};
use dunlin_update::Pack;

use super::fetch::{MANIFEST_BYTES_MAX, chain};
use super::store::Store;
use crate::serve::Resident;

/// Largest reference profile: a thousand features of seventy bins.
const PROFILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Largest golden set that is read for its rows: a few hundred rows of the widest tables that are explained, or some pictures.
const GOLDEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Loads a release from the store, but for what is in memory already: a release is shared whole, a model file whichever
/// task or release it is for. It was proved in a child process before; its files are hashed once more, because disks rot.
///
/// Errors are sentences for people: the machine needs no more than that it failed.
pub(super) fn resident(store: &Store, pack: &Pack, in_memory: &[Resident]) -> Result<Resident, String> {
    if let Some(shared) = in_memory.iter().find(|resident| resident.manifest == pack.manifest.digest) {
        return Ok(shared.clone());
    }
    let bundle = bundle(store, pack)?;
    let model = match in_memory.iter().find(|resident| resident.bundle.model == bundle.model) {
        Some(shared) => Arc::clone(&shared.model),
        None => {
            let onnx = store.read(&bundle.model).map_err(|e| chain(&e))?;
            Arc::new(Model::load(&onnx, None).map_err(|e| chain(&e))?)
        }
    };
    let profile = match bundle.profile {
        Some(blob) => {
            let bytes = store.read(&blob).map_err(|e| chain(&e))?;
            let profile: ReferenceProfile = cbor::decode(&bytes, PROFILE_BYTES_MAX).map_err(|e| chain(&e))?;
            Some(Arc::new((profile, blob.digest)))
        }
        None => None,
    };
    let golden = golden(store, &bundle);
    Ok(Resident {
        release: pack.release.clone(),
        bundle: Arc::new(bundle),
        manifest: pack.manifest.digest,
        background: golden.iter().flat_map(|golden| background(&model, golden)).collect(),
        known: golden.iter().flat_map(|golden| first_row(&model, &golden.inputs)).collect(),
        model,
        profile,
    })
}

/// The golden set, unless it is too large to be read for some of its rows. A model serves without it as well.
fn golden(store: &Store, bundle: &Bundle) -> Option<GoldenSet> {
    let blob = &bundle.golden;
    if blob.length > GOLDEN_BYTES_MAX as u64 {
        return None;
    }
    let golden = store.read(blob).map_err(|e| chain(&e));
    match golden.and_then(|bytes| cbor::decode(&bytes, GOLDEN_BYTES_MAX).map_err(|e| chain(&e))) {
        Ok(golden) => Some(golden),
        Err(error) => {
            tracing::warn!(release = %bundle.release, error, "predictions of this release can not be explained");
            None
        }
    }
}

/// The manifest of a release in the store.
pub(super) fn bundle(store: &Store, pack: &Pack) -> Result<Bundle, String> {
    json(store, &pack.manifest)
}

/// A policy in the store.
pub(super) fn policy(store: &Store, blob: &dunlin_protocol::Blob) -> Result<TaskPolicy, String> {
    json(store, blob)
}

/// A small JSON file in the store, checked against its digest.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    store: &Store,
    blob: &dunlin_protocol::Blob,
) -> Result<T, String> {
    if blob.length > MANIFEST_BYTES_MAX {
        return Err(format!("a file of {} bytes is over the limit of {MANIFEST_BYTES_MAX}", blob.length));
    }
    let bytes = store.read(blob).map_err(|e| chain(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}
