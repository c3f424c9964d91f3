//! Devices that come with a batch token: those on its serial list, and those that wait for an operator.
use std::collections::BTreeSet;

use dunlin_protocol::{DeviceId, Digest, GroupId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::devices::put_device;
use super::row::{id, json, parse, sound};
use super::{Attempt, NewDevice, Result, Store, StoreError, int, uint};

/// Rows of one answer at most.
const ROWS_MAX: u64 = 10_000;

/// A token that many devices may come with, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Batch {
    /// Id.
    pub id: String,
    /// Groups of every device that comes with it.
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Devices that may wait for an operator.
    pub waiting_max: u64,
    /// Who made it.
    pub created_by: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub expires_ms: u64,
}

/// A device on the serial list of a batch: it is admitted without an operator, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Expected {
    /// Its serial number, as the device reads it from its board.
    pub serial: String,
    /// Id it gets.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// Groups beside those of the batch.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Lower-case hex SHA-256 of the public key it must have, if that is known beforehand.
    #[serde(default)]
    pub key_id: Option<String>,
}

/// Where a device stands that came with a batch token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdmissionState {
    /// For an operator.
    Waiting,
    /// It gets its certificate when it asks again.
    Approved,
    /// For good, under this token.
    Rejected,
    /// Part of the fleet.
    Admitted,
}

impl AdmissionState {
    /// The state as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Admitted => "admitted",
        }
    }

    fn of(text: &str) -> Option<Self> {
        [Self::Waiting, Self::Approved, Self::Rejected, Self::Admitted]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// A device that came with a batch token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Admission {
    /// Id, to decide by.
    pub id: String,
    /// The batch.
    pub batch: String,
    /// Lower-case hex SHA-256 of its public key; the device prints the same.
    pub key_id: String,
    /// The serial number it gave.
    pub serial: Option<String>,
    /// Id it asks for, or gets.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// Groups it gets.
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Its hardware class.
    pub class: String,
    /// Where it first asked from.
    pub address: String,
    /// Where it stands.
    pub state: AdmissionState,
    /// When it first asked, Unix milliseconds.
    pub asked_ms: u64,
    /// When it was decided, Unix milliseconds.
    pub decided_ms: Option<u64>,
    /// Who decided.
    pub decided_by: Option<String>,
}

/// What an operator decides on a device that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It gets its certificate when it asks again.
    Approve {
        /// Under this id instead of the one it asks for.
        device: Option<DeviceId>,
    },
    /// It gets none, for good.
    Reject,
}

pub(super) fn batch(row: &SqliteRow) -> Result<Batch> {
    let key: String = row.try_get("id")?;
    Ok(Batch {
        groups: parse("batches", &key, row.try_get("groups")?)?,
        waiting_max: uint(row.try_get("waiting_max")?),
        created_by: row.try_get("created_by")?,
        created_ms: uint(row.try_get("created_ms")?),
        expires_ms: uint(row.try_get("expires_ms")?),
        id: key,
    })
}

pub(super) fn expected(row: &SqliteRow) -> Result<Expected> {
    let serial: String = row.try_get("serial")?;
    Ok(Expected {
        device: id("expected", &serial, row.try_get("device")?)?,
        groups: parse("expected", &serial, row.try_get("groups")?)?,
        key_id: row.try_get("key_id")?,
        serial,
    })
}

pub(super) fn admission(row: &SqliteRow) -> Result<Admission> {
    let key: String = row.try_get("id")?;
    let state: String = row.try_get("state")?;
    let bad = |what: String| StoreError::Corrupt { table: "admissions", row: key.clone(), what };
    Ok(Admission {
        batch: row.try_get("batch")?,
        key_id: row.try_get("key_id")?,
        serial: row.try_get("serial")?,
        device: id("admissions", &key, row.try_get("device")?)?,
        groups: parse("admissions", &key, row.try_get("groups")?)?,
        class: row.try_get("class")?,
        address: row.try_get("address")?,
        state: AdmissionState::of(&state).ok_or_else(|| bad(format!("unknown state {state:?}")))?,
        asked_ms: uint(row.try_get("asked_ms")?),
        decided_ms: row.try_get::<Option<i64>, _>("decided_ms")?.map(uint),
        decided_by: row.try_get("decided_by")?,
        id: key.clone(),
    })
}

impl Store {
    /// Stores a batch by the hash of its secret, with its serial list.
    pub async fn batch_add(
        tx: &mut SqliteConnection,
        batch: &Batch,
        secret_hash: &Digest,
        list: &[Expected],
    ) -> Result<()> {
        sqlx::query("INSERT INTO batches (id, secret_hash, groups, waiting_max, created_by, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(&batch.id)
            .bind(secret_hash.0.as_slice())
            .bind(json(&batch.groups))
            .bind(int(batch.waiting_max))
            .bind(&batch.created_by)
            .bind(int(batch.created_ms))
            .bind(int(batch.expires_ms))
            .execute(&mut *tx)
            .await
            .attempt("storing a batch")?;
        for expected in list {
            let known: Option<i64> = sqlx::query_scalar("SELECT 1 FROM devices WHERE id = ?")
                .bind(expected.device.as_str())
                .fetch_optional(&mut *tx)
                .await?;
            let inserted = sqlx::query(
                "INSERT OR IGNORE INTO expected (batch, serial, device, groups, key_id) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(&batch.id)
            .bind(&expected.serial)
            .bind(expected.device.as_str())
            .bind(json(&expected.groups))
            .bind(&expected.key_id)
            .execute(&mut *tx)
            .await
            .attempt("storing a serial list")?;
            if known.is_some() || inserted.rows_affected() == 0 {
                return Err(StoreError::Conflict(format!(
                    "serial {:?} with the device {}: one of them is in the list twice, or the device is enrolled already",
                    expected.serial, expected.device
                )));
            }
        }
        Ok(())
    }

    /// Every batch that can be read, newest first.
    pub async fn batches(&self) -> Result<Vec<Batch>> {
        let rows = sqlx::query("SELECT * FROM batches ORDER BY created_ms DESC, id LIMIT ?")
            .bind(int(ROWS_MAX))
            .fetch_all(self.readers())
            .await
            .attempt("listing batches")?;
        Ok(sound(&rows, batch))
    }

    /// The batch a secret belongs to, expired or not.
    pub async fn batch_of(&self, secret_hash: &Digest) -> Result<Option<Batch>> {
        let row = sqlx::query("SELECT * FROM batches WHERE secret_hash = ?")
            .bind(secret_hash.0.to_vec())
            .fetch_optional(self.readers())
            .await;
        row.attempt("looking a batch up")?.as_ref().map(batch).transpose()
    }

    /// Ends a batch: its token admits nobody from now on. Returns what it was.
    pub async fn batch_end(tx: &mut SqliteConnection, id: &str, now_ms: u64) -> Result<Batch> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(id).fetch_optional(&mut *tx).await?;
        let before = row.as_ref().map(batch).transpose()?;
        let before = before.ok_or_else(|| StoreError::NotFound { what: "batch", key: id.to_owned() })?;
        sqlx::query("UPDATE batches SET expires_ms = min(expires_ms, ?) WHERE id = ?")
            .bind(int(now_ms))
            .bind(id)
            .execute(&mut *tx)
            .await
            .attempt("ending a batch")?;
        Ok(before)
    }

    /// The entry of a batch's list for a serial number.
    pub async fn expected(&self, batch: &str, serial: &str) -> Result<Option<Expected>> {
        let row = sqlx::query("SELECT * FROM expected WHERE batch = ? AND serial = ?")
            .bind(batch)
            .bind(serial)
            .fetch_optional(self.readers())
            .await
            .attempt("looking a serial number up")?;
        row.as_ref().map(expected).transpose()
    }

    /// Notes a device that came with a batch token, once for each key; returns how it stands. No more devices
    /// wait than the batch allows.
    pub async fn admission_ask(
        tx: &mut SqliteConnection,
        asked: &Admission,
        batch: &Batch,
    ) -> Result<Admission> {
        let known = sqlx::query("SELECT * FROM admissions WHERE batch = ? AND key_id = ?")
            .bind(&asked.batch)
            .bind(&asked.key_id)
            .fetch_optional(&mut *tx)
            .await
            .attempt("looking an admission up")?;
        if let Some(row) = known {
            return admission(&row);
        }
        if asked.state == AdmissionState::Waiting {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM admissions WHERE batch = ? AND decided_by IS NOT 'list' AND state <> 'rejected'",
            )
            .bind(&asked.batch)
            .fetch_one(&mut *tx)
            .await?;
            if uint(waiting) >= batch.waiting_max {
                return Err(StoreError::Conflict(
                    "no further device can wait under this token, and this one is not on its list".into(),
                ));
            }
        }
        let inserted = sqlx::query(
            "INSERT OR IGNORE INTO admissions (id, batch, key_id, serial, device, groups, class, address, state, asked_ms, decided_ms, decided_by) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&asked.id)
        .bind(&asked.batch)
        .bind(&asked.key_id)
        .bind(&asked.serial)
        .bind(asked.device.as_str())
        .bind(json(&asked.groups))
        .bind(&asked.class)
        .bind(&asked.address)
        .bind(asked.state.as_str())
        .bind(int(asked.asked_ms))
        .bind(asked.decided_ms.map(int))
        .bind(&asked.decided_by)
        .execute(&mut *tx)
        .await
        .attempt("noting an admission")?;
        if inserted.rows_affected() == 0 {
            return Err(StoreError::Conflict("another key was admitted with this serial number".into()));
        }
        Ok(asked.clone())
    }

    /// Devices that came with batch tokens, as far as they can be read, oldest first; only those that wait, or all.
    pub async fn admissions(&self, all: bool) -> Result<Vec<Admission>> {
        let rows = sqlx::query(
            "SELECT * FROM admissions WHERE ?1 OR state = 'waiting' ORDER BY asked_ms, id LIMIT ?2",
        )
        .bind(all)
        .bind(int(ROWS_MAX))
        .fetch_all(self.readers())
        .await
        .attempt("listing admissions")?;
        Ok(sound(&rows, admission))
    }

    /// Decides on a device that waits; returns it before and after.
    pub async fn admission_decide(
        tx: &mut SqliteConnection,
        id: &str,
        verdict: &Verdict,
        by: &str,
        now_ms: u64,
    ) -> Result<(Admission, Admission)> {
        let row =
            sqlx::query("SELECT * FROM admissions WHERE id = ?").bind(id).fetch_optional(&mut *tx).await?;
        let before = row.as_ref().map(admission).transpose()?;
        let before =
            before.ok_or_else(|| StoreError::NotFound { what: "device that waits as", key: id.into() })?;
        if before.state != AdmissionState::Waiting {
            return Err(StoreError::Conflict(format!("{id} is {} already", before.state.as_str())));
        }
        let (state, device) = match verdict {
            Verdict::Approve { device } => {
                (AdmissionState::Approved, device.clone().unwrap_or_else(|| before.device.clone()))
            }
            Verdict::Reject => (AdmissionState::Rejected, before.device.clone()),
        };
        if state == AdmissionState::Approved {
            let taken: i64 = sqlx::query_scalar(
                "SELECT (SELECT count(*) FROM devices WHERE id = ?1) + (SELECT count(*) FROM admissions WHERE device = ?1 AND state = 'approved')",
            )
            .bind(device.as_str())
            .fetch_one(&mut *tx)
            .await?;
            if taken > 0 {
                return Err(StoreError::Conflict(format!(
                    "there is a device {device} already; approve it under another id, or enrol it with a claim that names it"
                )));
            }
        }
        sqlx::query("UPDATE OR IGNORE admissions SET state = ?, device = ?, decided_ms = ?, decided_by = ? WHERE id = ?")
            .bind(state.as_str())
            .bind(device.as_str())
            .bind(int(now_ms))
            .bind(by)
            .bind(id)
            .execute(&mut *tx)
            .await
            .attempt("deciding on an admission")?;
        let row = sqlx::query("SELECT * FROM admissions WHERE id = ?").bind(id).fetch_one(&mut *tx).await?;
        let after = admission(&row)?;
        if after.state != state {
            return Err(StoreError::Conflict("another key was admitted with this serial number".into()));
        }
        Ok((before, after))
    }

    /// Makes an approved device part of the fleet. It takes nobody's place.
    pub async fn admit(
        tx: &mut SqliteConnection,
        admission: &Admission,
        new: &NewDevice<'_>,
        now_ms: u64,
    ) -> Result<()> {
        let used =
            sqlx::query("UPDATE admissions SET state = 'admitted' WHERE id = ? AND state = 'approved'")
                .bind(&admission.id)
                .execute(&mut *tx)
                .await
                .attempt("using an admission")?;
        if used.rows_affected() == 0 {
            return Err(StoreError::Conflict("the admission was used".into()));
        }
        let known: Option<i64> = sqlx::query_scalar("SELECT 1 FROM devices WHERE id = ?")
            .bind(admission.device.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        if known.is_some() {
            return Err(StoreError::Conflict(format!("there is a device {} already", admission.device)));
        }
        put_device(tx, &admission.device, new, &admission.groups, now_ms).await
    }
}
