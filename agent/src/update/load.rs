use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dunlin_engine::Model;
use dunlin_protocol::{Bundle, Digest, ReferenceProfile, TaskPolicy, cbor};
use dunlin_update::Pack;

use super::fetch::{MANIFEST_BYTES_MAX, chain};
use super::store::Store;
use crate::serve::Resident;

/// Largest reference profile: a thousand features of seventy bins.
const PROFILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The models in memory, by the digest of their file: what serves already is shared, whichever task or release it is for.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<BTreeMap<Digest, Weak<Model>>>>);

impl Shelf {
    /// The model of a file in the store.
    fn model(&self, store: &Store, blob: &dunlin_protocol::Blob) -> Result<Arc<Model>, String> {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.get(&blob.digest).and_then(Weak::upgrade) {
            return Ok(model);
        }
        let onnx = store.read(blob).map_err(|e| chain(&e))?;
        let model = Arc::new(Model::load(&onnx, None).map_err(|e| chain(&e))?);
        models.retain(|_, model| model.strong_count() > 0);
        models.insert(blob.digest, Arc::downgrade(&model));
        Ok(model)
    }

    /// Loads a release from the store, unless its model serves already. It was proved in a child process before; its
    /// files are hashed once more, because disks rot.
    ///
    /// Errors are sentences for people: the machine needs no more than that it failed.
    pub(super) fn resident(&self, store: &Store, pack: &Pack) -> Result<Resident, String> {
        resident(store, pack, |blob| self.model(store, blob))
    }
}

fn resident(
    store: &Store,
    pack: &Pack,
    model: impl FnOnce(&dunlin_protocol::Blob) -> Result<Arc<Model>, String>,
) -> Result<Resident, String> {
    let bundle = bundle(store, pack)?;
    let model = model(&bundle.model)?;
    let profile = match bundle.profile {
        Some(blob) => {
            let bytes = store.read(&blob).map_err(|e| chain(&e))?;
            let profile: ReferenceProfile = cbor::decode(&bytes, PROFILE_BYTES_MAX).map_err(|e| chain(&e))?;
            Some(Arc::new((profile, blob.digest)))
        }
        None => None,
    };
    Ok(Resident {
        release: pack.release.clone(),
        bundle: Arc::new(bundle),
        manifest: pack.manifest.digest,
        model,
        profile,
    })
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
