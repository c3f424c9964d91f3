use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_protocol::{DeviceId, Installed, ReferenceProfile, ReleaseId, TaskId, cbor};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

use super::{Drift, EvidenceConfig, Ledger, Place, Roster};
use crate::planner::TaskRow;
use crate::registry::Registry;
use crate::store::{DeviceRow, DeviceState, Result, Store};

/// Largest reference profile, bytes: some hundred features of 64 bins.
const PROFILE_BYTES_MAX: usize = 4 << 20;

/// The ledgers of all tasks, shared by what decides and what shows. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledgers(Arc<Mutex<BTreeMap<TaskId, Kept>>>);

#[derive(Debug)]
struct Kept {
    ledger: Ledger,
    /// Releases whose reference profile the ledger has.
    profiled: BTreeSet<ReleaseId>,
}

/// What the ledger of a task is brought up to date from.
#[derive(Debug, Clone, Copy)]
pub struct Fleet<'a> {
    /// Every device.
    pub devices: &'a [DeviceRow],
    /// What devices say they run.
    pub installed: &'a BTreeMap<DeviceId, BTreeMap<TaskId, Installed>>,
}

impl Ledgers {
    /// Brings the ledger of a task up to date and holds it until the guard is dropped; others wait so long.
    ///
    /// Quality is kept for as long as the task's choices look back, and at most as long as `config` says. Groups that
    /// are held or left out of retraining do not judge drift.
    pub async fn refresh(
        &self,
        (store, registry): (&Store, &Registry),
        config: EvidenceConfig,
        task: &TaskRow,
        fleet: Fleet<'_>,
        now_ms: u64,
    ) -> Result<MappedMutexGuard<'_, Ledger>> {
        let id = &task.definition.task;
        let config =
            EvidenceConfig { quality_ms: config.quality_ms.min(task.definition.choice.judged_ms), ..config };
        let roster = roster(task, fleet.devices);
        let serving: BTreeSet<ReleaseId> = fleet
            .installed
            .iter()
            .filter(|(device, _)| roster.contains_key(*device))
            .filter_map(|(_, tasks)| tasks.get(id)?.release.clone())
            .collect();
        let mut ledgers = self.0.lock().await;
        let fresh = || Kept { ledger: Ledger::new(id.clone(), config), profiled: BTreeSet::new() };
        let kept = ledgers.entry(id.clone()).or_insert_with(fresh);
        // A task whose choices look back another while starts over from the rows.
        if kept.ledger.config().quality_ms != config.quality_ms {
            *kept = fresh();
        }
        kept.ledger.set_roster(roster);
        for release in
            serving.iter().filter(|release| !kept.profiled.contains(*release)).cloned().collect::<Vec<_>>()
        {
            kept.profile(store, registry, release).await?;
        }
        kept.ledger.read(store, now_ms).await?;
        Ok(MutexGuard::map(ledgers, |ledgers| &mut ledgers.entry(id.clone()).or_insert_with(fresh).ledger))
    }

    /// What the last windows say about inputs, by task and release, as of the last look.
    pub async fn drift(&self, task: Option<&TaskId>) -> Vec<(TaskId, Drift)> {
        let ledgers = self.0.lock().await;
        let wanted = ledgers.iter().filter(|(id, _)| task.is_none_or(|task| *id == task));
        wanted
            .flat_map(|(id, kept)| {
                let of = |release: &ReleaseId| (id.clone(), kept.ledger.drift(release));
                kept.ledger.watched().iter().map(of).collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Kept {
    /// Gives the ledger the reference profile of a release. One that can not be had costs the watch over that
    /// release, not the look; it is tried again.
    async fn profile(&mut self, store: &Store, registry: &Registry, release: ReleaseId) -> Result<()> {
        let Some(blob) = store.release(&release).await?.and_then(|row| row.bundle.profile) else {
            return Ok(());
        };
        let bytes = match registry.blobs().get(&blob.digest).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(%release, error = &error as &dyn std::error::Error, "a reference profile can not be read");
                return Ok(());
            }
        };
        match cbor::decode::<ReferenceProfile>(&bytes, PROFILE_BYTES_MAX) {
            Ok(profile) => {
                self.ledger.set_profile(release.clone(), blob.digest, profile);
                self.profiled.insert(release);
            }
            Err(error) => {
                tracing::warn!(%release, %error, "a reference profile is damaged, so drift of its inputs is not watched")
            }
        }
        Ok(())
    }
}

/// The devices whose inputs are judged.
fn roster(task: &TaskRow, devices: &[DeviceRow]) -> Roster {
    let definition = &task.definition;
    let out = definition.excluded();
    devices
        .iter()
        .filter(|device| device.state == DeviceState::Active && definition.covers(&device.groups))
        .filter(|device| out.is_disjoint(&device.groups.iter().collect()))
        .map(|device| {
            let place = Place { class: device.profile.class.clone(), groups: device.groups.clone() };
            (device.id.clone(), place)
        })
        .collect()
}
