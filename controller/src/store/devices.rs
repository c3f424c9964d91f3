//! Devices, their groups, and what they run.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::{DeviceId, DeviceProfile, Digest, GroupId, Installed, Phase, TaskId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, SqliteConnection};
use utoipa::ToSchema;

use super::certificates::put_certificate;
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::api::shape;
use crate::identity::Issued;

/// Where a device stands with the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Part of the fleet.
    Active,
    /// Taken out of service; its data is kept.
    Retired,
    /// Its key counts for nothing from now on.
    Revoked,
}

impl DeviceState {
    /// The state as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Retired, Self::Revoked].into_iter().find(|state| state.as_str() == text)
    }
}

/// A device as the controller knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceRow {
    /// Id.
    #[schema(value_type = String)]
    pub id: DeviceId,
    /// Where it stands.
    pub state: DeviceState,
    /// What it is and can do.
    #[schema(value_type = shape::DeviceProfile)]
    pub profile: DeviceProfile,
    /// Groups it belongs to.
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Lower-case hex SHA-256 of its public key.
    pub key_id: String,
    /// Unix milliseconds.
    pub enrolled_ms: u64,
    /// Whether its session is up, as far as the broker told.
    pub online: bool,
    /// Epoch of its last session.
    pub epoch: u64,
    /// Release of its agent.
    pub agent: String,
    /// When something of it was last stored, Unix milliseconds; 0 means never.
    pub seen_ms: u64,
    /// Generation it last said it verified.
    pub generation: u64,
}

/// What enrolment stores about a device.
#[derive(Debug, Clone)]
pub struct NewDevice<'a> {
    /// Its certificate, just issued.
    pub issued: &'a Issued,
    /// What it is.
    pub profile: &'a DeviceProfile,
}

pub(super) fn corrupt(table: &'static str, row: &str, what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { table, row: row.to_owned(), what: what.to_string() }
}

pub(super) fn device(row: &SqliteRow, groups: BTreeSet<GroupId>) -> Result<DeviceRow> {
    let id: String = row.try_get("id")?;
    let bad = |what: String| corrupt("devices", &id, what);
    let state: String = row.try_get("state")?;
    Ok(DeviceRow {
        state: DeviceState::parse(&state).ok_or_else(|| bad(format!("unknown state {state:?}")))?,
        profile: serde_json::from_str(row.try_get("profile")?)
            .map_err(|error| bad(format!("profile: {error}")))?,
        groups,
        key_id: row.try_get("key_id")?,
        enrolled_ms: uint(row.try_get("enrolled_ms")?),
        online: row.try_get("online")?,
        epoch: uint(row.try_get("epoch")?),
        agent: row.try_get("agent")?,
        seen_ms: uint(row.try_get("seen_ms")?),
        generation: uint(row.try_get("generation")?),
        id: id.parse().map_err(|error| bad(format!("{error}")))?,
    })
}

impl Store {
    /// Every device that can be read, by id. A damaged row is logged and left out, so that it costs one
    /// device and not the fleet.
    pub async fn devices(&self) -> Result<Vec<DeviceRow>> {
        let mut groups: BTreeMap<String, BTreeSet<GroupId>> = BTreeMap::new();
        let rows = sqlx::query("SELECT device, grp FROM device_groups")
            .fetch_all(self.readers())
            .await
            .attempt("listing groups of devices")?;
        for row in rows {
            let (device, group): (String, String) = (row.try_get("device")?, row.try_get("grp")?);
            match group.parse() {
                Ok(group) => {
                    groups.entry(device).or_default().insert(group);
                }
                Err(error) => tracing::error!(%error, device, "a row of device_groups is damaged"),
            }
        }
        let rows = sqlx::query("SELECT * FROM devices ORDER BY id")
            .fetch_all(self.readers())
            .await
            .attempt("listing devices")?;
        let mut devices = Vec::with_capacity(rows.len());
        for row in &rows {
            let id: String = row.try_get("id")?;
            match device(row, groups.remove(&id).unwrap_or_default()) {
                Ok(device) => devices.push(device),
                Err(error) => tracing::error!(%error, "a device is left out"),
            }
        }
        Ok(devices)
    }

    /// One device.
    pub async fn device(&self, id: &DeviceId) -> Result<DeviceRow> {
        let row = sqlx::query("SELECT * FROM devices WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(self.readers())
            .await;
        let row = row
            .attempt("reading a device")?
            .ok_or_else(|| StoreError::NotFound { what: "device", key: id.to_string() })?;
        let groups = sqlx::query_scalar::<_, String>("SELECT grp FROM device_groups WHERE device = ?")
            .bind(id.as_str())
            .fetch_all(self.readers())
            .await
            .attempt("reading the groups of a device")?;
        let groups: std::result::Result<_, _> = groups.iter().map(|group| group.parse()).collect();
        device(&row, groups.map_err(|error| corrupt("device_groups", id.as_str(), error))?)
    }

    /// The public key (SubjectPublicKeyInfo, DER) of a device, if it is active.
    pub async fn device_key(&self, id: &DeviceId) -> Result<Option<Vec<u8>>> {
        sqlx::query_scalar("SELECT spki FROM devices WHERE id = ? AND state = 'active'")
            .bind(id.as_str())
            .fetch_optional(self.readers())
            .await
            .attempt("reading the key of a device")
    }

    /// The public keys of those of `ids` that are active.
    pub async fn device_keys(&self, ids: &BTreeSet<&DeviceId>) -> Result<BTreeMap<DeviceId, Vec<u8>>> {
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut query = QueryBuilder::new("SELECT id, spki FROM devices WHERE state = 'active' AND id IN (");
        let mut list = query.separated(", ");
        for id in ids {
            list.push_bind(id.as_str());
        }
        let rows =
            query.push(")").build().fetch_all(self.readers()).await.attempt("reading the keys of devices")?;
        let mut keys = BTreeMap::new();
        for row in rows {
            let id: String = row.try_get("id")?;
            keys.insert(id.parse().map_err(|error| corrupt("devices", &id, error))?, row.try_get("spki")?);
        }
        Ok(keys)
    }

    /// Retires, revokes or reinstates a device; returns the state before. The look and the change are in one transaction:
    /// between them somebody else may revoke it.
    pub async fn device_set_state(
        tx: &mut SqliteConnection,
        id: &DeviceId,
        state: DeviceState,
    ) -> Result<DeviceState> {
        let before: Option<String> = sqlx::query_scalar("SELECT state FROM devices WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await
            .attempt("reading the state of a device")?;
        let before = before.ok_or_else(|| StoreError::NotFound { what: "device", key: id.to_string() })?;
        let before = DeviceState::parse(&before)
            .ok_or_else(|| corrupt("devices", id.as_str(), format!("unknown state {before:?}")))?;
        if before == DeviceState::Revoked && state != DeviceState::Revoked {
            return Err(StoreError::Conflict(format!(
                "the device {id} is revoked for good; enrol it again under a new claim"
            )));
        }
        // Whoever is out has no session, and its will is not heard.
        sqlx::query("UPDATE devices SET state = ?1, online = online AND ?1 = 'active' WHERE id = ?2")
            .bind(state.as_str())
            .bind(id.as_str())
            .execute(tx)
            .await
            .attempt("changing the state of a device")?;
        Ok(before)
    }

    /// Makes the groups of a device exactly these; groups come to be when first named.
    pub async fn device_set_groups(
        tx: &mut SqliteConnection,
        id: &DeviceId,
        groups: &BTreeSet<GroupId>,
        now_ms: u64,
    ) -> Result<()> {
        set_groups(tx, id, groups, now_ms).await
    }

    /// Every group with its devices.
    pub async fn groups(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let rows = sqlx::query("SELECT g.id AS grp, d.device AS device FROM groups g LEFT JOIN device_groups d ON d.grp = g.id ORDER BY 1, 2")
            .fetch_all(self.readers())
            .await
            .attempt("listing groups")?;
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in rows {
            let members = groups.entry(row.try_get("grp")?).or_default();
            members.extend(row.try_get::<Option<String>, _>("device")?);
        }
        Ok(groups)
    }

    /// Makes an empty group.
    pub async fn group_add(tx: &mut SqliteConnection, id: &GroupId, now_ms: u64) -> Result<()> {
        sqlx::query("INSERT INTO groups (id, created_ms) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(id.as_str())
            .bind(int(now_ms))
            .execute(tx)
            .await
            .attempt("making a group")?;
        Ok(())
    }

    /// Removes a group and nothing else.
    pub async fn group_remove(tx: &mut SqliteConnection, id: &GroupId) -> Result<()> {
        sqlx::query("DELETE FROM device_groups WHERE grp = ?")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .attempt("emptying a group")?;
        let gone = sqlx::query("DELETE FROM groups WHERE id = ?")
            .bind(id.as_str())
            .execute(tx)
            .await
            .attempt("removing a group")?;
        if gone.rows_affected() == 0 {
            return Err(StoreError::NotFound { what: "group", key: id.to_string() });
        }
        Ok(())
    }

    /// What a device runs, by task.
    pub async fn installed(&self, id: &DeviceId) -> Result<BTreeMap<TaskId, Installed>> {
        let rows = sqlx::query("SELECT * FROM installed WHERE device = ?")
            .bind(id.as_str())
            .fetch_all(self.readers())
            .await;
        let rows = rows.attempt("reading what a device runs")?;
        rows.iter().map(|row| installed(row).map(|(_, task, installed)| (task, installed))).collect()
    }

    /// What every device runs, by device and task.
    pub async fn installed_all(&self) -> Result<BTreeMap<DeviceId, BTreeMap<TaskId, Installed>>> {
        let rows = sqlx::query("SELECT * FROM installed")
            .fetch_all(self.readers())
            .await
            .attempt("reading what devices run")?;
        let mut all: BTreeMap<DeviceId, BTreeMap<TaskId, Installed>> = BTreeMap::new();
        for row in &rows {
            match installed(row) {
                Ok((device, task, installed)) => {
                    all.entry(device).or_default().insert(task, installed);
                }
                Err(error) => tracing::error!(%error, "a row of installed is left out"),
            }
        }
        Ok(all)
    }

    /// Reserves counters for down messages: returns the last one that was reserved before, and makes
    /// `ceiling` the new one if it is higher.
    pub async fn reserve_down_seq(&self, id: &DeviceId, ceiling: u64) -> Result<u64> {
        let mut tx = self.begin().await?;
        let before: Option<i64> = sqlx::query_scalar("SELECT down_seq FROM devices WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let before =
            before.map(uint).ok_or_else(|| StoreError::NotFound { what: "device", key: id.to_string() })?;
        if ceiling > before {
            sqlx::query("UPDATE devices SET down_seq = ? WHERE id = ?")
                .bind(int(ceiling))
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
            tx.commit().await.attempt("reserving down counters")?;
        }
        Ok(before)
    }
}

/// Lower-case hex SHA-256 of a SubjectPublicKeyInfo, as envelopes name device keys.
pub fn key_id(spki: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, spki).as_ref())
}

/// Adds a device with its certificate, or gives one that is there a new key.
pub(super) async fn put_device(
    tx: &mut sqlx::SqliteConnection,
    id: &DeviceId,
    new: &NewDevice<'_>,
    groups: &BTreeSet<GroupId>,
    now_ms: u64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO devices (id, spki, key_id, certificate_pem, profile, class, enrolled_ms) VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET spki = excluded.spki, key_id = excluded.key_id, certificate_pem = excluded.certificate_pem, \
         profile = excluded.profile, class = excluded.class, enrolled_ms = excluded.enrolled_ms, state = 'active', online = 0, epoch = 0, generation = 0",
    )
    .bind(id.as_str())
    .bind(&new.issued.spki)
    .bind(key_id(&new.issued.spki))
    .bind(&new.issued.pem)
    .bind(serde_json::to_string(new.profile).expect("a profile is JSON"))
    .bind(new.profile.class.as_str())
    .bind(int(now_ms))
    .execute(&mut *tx)
    .await
    .attempt("storing a device")?;
    sqlx::query("UPDATE boots SET epoch = 0 WHERE device = ?")
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .attempt("forgetting sessions")?;
    put_certificate(tx, id, new.issued).await?;
    set_groups(tx, id, groups, now_ms).await
}

async fn set_groups(
    tx: &mut sqlx::SqliteConnection,
    id: &DeviceId,
    groups: &BTreeSet<GroupId>,
    now_ms: u64,
) -> Result<()> {
    sqlx::query("DELETE FROM device_groups WHERE device = ?")
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .attempt("clearing the groups of a device")?;
    if groups.is_empty() {
        return Ok(());
    }
    QueryBuilder::new("INSERT INTO groups (id, created_ms) ")
        .push_values(groups, |mut row, group| {
            row.push_bind(group.as_str()).push_bind(int(now_ms));
        })
        .push(" ON CONFLICT DO NOTHING")
        .build()
        .execute(&mut *tx)
        .await
        .attempt("making groups")?;
    QueryBuilder::new("INSERT INTO device_groups (device, grp) ")
        .push_values(groups, |mut row, group| {
            row.push_bind(id.as_str()).push_bind(group.as_str());
        })
        .build()
        .execute(&mut *tx)
        .await
        .attempt("setting the groups of a device")?;
    Ok(())
}

/// Text form of a phase in the database: the one of the protocol.
pub fn phase_text(phase: Phase) -> String {
    let value = serde_json::to_value(phase).expect("a phase is JSON");
    value.as_str().expect("a phase is a JSON string").to_owned()
}

/// The other way.
pub fn phase_of(text: &str) -> Option<Phase> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}

pub(super) fn installed(row: &SqliteRow) -> Result<(DeviceId, TaskId, Installed)> {
    let (device, task): (String, String) = (row.try_get("device")?, row.try_get("task")?);
    let key = format!("{device}/{task}");
    let bad = |what: String| corrupt("installed", &key, what);
    let release: Option<String> = row.try_get("release")?;
    let phase: String = row.try_get("phase")?;
    let manifest: Option<Vec<u8>> = row.try_get("manifest")?;
    let installed = Installed {
        release: release.map(|text| text.parse()).transpose().map_err(|error| bad(format!("{error}")))?,
        manifest: manifest
            .map(|bytes| bytes.try_into().map(Digest))
            .transpose()
            .map_err(|_| bad("manifest digest".into()))?,
        phase: phase_of(&phase).ok_or_else(|| bad(format!("unknown phase {phase:?}")))?,
        proof_us: row.try_get::<Option<i64>, _>("proof_us")?.map(uint),
        proof_bytes: row.try_get::<Option<i64>, _>("proof_bytes")?.map(uint),
    };
    let device = device.parse().map_err(|error| bad(format!("{error}")))?;
    Ok((device, task.parse().map_err(|error| bad(format!("{error}")))?, installed))
}
