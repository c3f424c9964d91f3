//! Metadata to be carried to devices that have no network.
use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, Check, DeviceId, RepoFiles};
use dunlin_trust::write;
use serde_json::Value;

use super::files::after;
use super::{Changes, RepoError, Repos};
use crate::keys::{DAY_MS, OnlineRole};

/// Longest life of carried metadata: what a thief of the medium can hold a device back for without its noticing, and well
/// below what is left of the assignments' own life.
pub const EXPORT_DAYS_MAX: u64 = 30;

impl Repos {
    /// Everything a device needs from its first root on, with snapshot and timestamp that live for `days`, whatever it
    /// holds already.
    ///
    /// These two have versions of their own: nothing is published under them, and what is published is signed anew above
    /// them. A device may so take carried and fetched files in any order: the newer ones win, the older ones are refused
    /// and change nothing.
    ///
    /// # Errors
    /// There is no repository yet, a file is damaged or can not be written.
    pub fn export(
        &self,
        devices: &[DeviceId],
        days: u64,
        now_ms: u64,
    ) -> Result<BTreeMap<DeviceId, Check>, RepoError> {
        let expires_ms = now_ms.saturating_add(days.clamp(1, EXPORT_DAYS_MAX) * DAY_MS);
        self.refresh(now_ms)?;
        let image = self.export_image(expires_ms, now_ms)?;
        let mut checks = BTreeMap::new();
        for device in devices {
            let director = self.export_director(device, expires_ms, now_ms)?;
            checks.insert(device.clone(), Check { image: image.clone(), director });
        }
        Ok(checks)
    }

    fn export_image(&self, expires_ms: u64, now_ms: u64) -> Result<RepoFiles, RepoError> {
        let _publishing = self.publishing();
        let state = self.state()?;
        let mut carried = (*state).clone();
        carried.last.snapshot += 1;
        carried.last.timestamp += 1;
        let pair = self.carried(
            [OnlineRole::ImageSnapshot, OnlineRole::ImageTimestamp],
            [carried.last.snapshot, carried.last.timestamp],
            &carried.listed(),
            |listed| state.pin_lengths(listed),
            expires_ms,
        )?;
        // The published ones go above the carried ones before these leave the house.
        let retrained = self.sign_retrained(
            carried.last.retrained + 1,
            &super::image::retrained_listed(&state)?,
            now_ms,
        )?;
        let changes = Changes { retrained: Some(retrained), ..Changes::default() };
        self.commit_image(&carried, changes, now_ms)?;
        let served = &state.served;
        Ok(RepoFiles {
            roots: after(&state.image_roots, 1),
            timestamp: pair.1,
            snapshot: Some(pair.0),
            targets: served.targets.clone(),
            delegated: served.delegated.clone(),
        })
    }

    fn export_director(
        &self,
        device: &DeviceId,
        expires_ms: u64,
        now_ms: u64,
    ) -> Result<RepoFiles, RepoError> {
        let _publishing = self.publishing();
        let held = self.director_renewed(device, now_ms)?;
        let state = self.state()?;
        let mut last = held.versions;
        last.snapshot += 1;
        last.timestamp += 1;
        let roles = BTreeMap::from([("targets".to_owned(), last.targets)]);
        let pair = self.carried(
            [OnlineRole::DirectorSnapshot, OnlineRole::DirectorTimestamp],
            [last.snapshot, last.timestamp],
            &roles,
            |listed| write::pin_length(listed, "targets", &held.targets),
            expires_ms,
        )?;
        self.commit_director(&state, device, last, None, true, now_ms)?;
        Ok(RepoFiles {
            roots: after(&state.director_roots, 1),
            timestamp: pair.1,
            snapshot: Some(pair.0),
            targets: Some(Bytes(held.targets)),
            delegated: BTreeMap::new(),
        })
    }

    /// A snapshot and the timestamp that names it.
    fn carried(
        &self,
        signers: [OnlineRole; 2],
        [snapshot, timestamp]: [u64; 2],
        roles: &BTreeMap<String, u64>,
        pin: impl Fn(&mut Value),
        expires_ms: u64,
    ) -> Result<(Bytes, Bytes), RepoError> {
        let failed = RepoError::trust("sign metadata to be carried");
        let [by_snapshot, by_timestamp] = signers;
        let mut listed = write::snapshot(snapshot, expires_ms, roles).map_err(&failed)?;
        pin(&mut listed);
        let listed = self.sign(by_snapshot, &listed)?;
        let current = write::timestamp(timestamp, expires_ms, snapshot).map_err(&failed)?;
        Ok((Bytes(listed), Bytes(self.sign(by_timestamp, &current)?)))
    }
}
