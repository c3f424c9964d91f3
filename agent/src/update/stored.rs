//! What lies on the disk, read without an agent.

use std::path::Path;

use dunlin_engine::Model;
use dunlin_protocol::{Bundle, ReleaseId, TaskId};
use dunlin_update::{Pack, Record};

use super::fetch::chain;
use super::load;
use super::store::Store;
use super::twin::Twin;

/// A release that the generation record names for a task.
#[derive(Debug)]
pub struct Stored {
    store: Store,
    /// Its manifest.
    pub bundle: Bundle,
}

impl Stored {
    /// Finds `release`, or what serves the task if none is named, in the state folder of an agent. Nothing is written.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn find(state_dir: &Path, task: &TaskId, release: Option<&ReleaseId>) -> Result<Self, String> {
        let dir = state_dir.join("slots");
        let (_, found) = Twin::open(&dir, "slots").map_err(|e| format!("reading {}: {e}", dir.display()))?;
        let record = found.body.as_deref().and_then(|bytes| Record::decode(bytes).ok());
        let slot = record.as_ref().and_then(|record| record.tasks.get(task));
        let slot = slot.ok_or_else(|| format!("there is no task {task:?} on this device"))?;
        let serving = slot.serving.line().into_iter().flat_map(|line| line.packs());
        let packs: Vec<&Pack> =
            serving.chain(slot.previous.line().into_iter().flat_map(|line| line.packs())).collect();
        let wanted = match release {
            Some(release) => packs.iter().find(|pack| pack.release == *release),
            None => packs.first().filter(|_| slot.serving.line().is_some()),
        };
        let pack = wanted.ok_or_else(|| match release {
            Some(release) => format!("release {release} of task {task:?} is not on this device"),
            None => format!("no model serves task {task:?} on this device"),
        })?;
        let store =
            Store::open(&dir.join("blobs"), 0).map_err(|e| format!("reading {}: {e}", dir.display()))?;
        let bundle = load::bundle(&store, pack)?;
        Ok(Self { store, bundle })
    }

    /// Loads its model, which was proved before it was recorded.
    ///
    /// # Errors
    /// Its file is damaged, for people.
    pub fn model(&self) -> Result<Model, String> {
        let onnx = self.store.read(&self.bundle.model).map_err(|e| chain(&e))?;
        Model::load(&onnx, None).map_err(|e| chain(&e))
    }
}
