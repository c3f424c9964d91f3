//! Claims: one-use permissions to enrol.
use std::collections::BTreeSet;

use dunlin_protocol::{DeviceId, Digest, GroupId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::devices::{NewDevice, corrupt, put_device};
use super::row::sound;
use super::{Attempt, Result, Store, StoreError, int, uint};

/// Admission of one device, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Claim {
    /// Id of the claim.
    pub id: String,
    /// Id the device will get; absent means that it may choose.
    #[schema(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    /// Groups the device will belong to.
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Who made it.
    pub created_by: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub expires_ms: u64,
    /// When it was used, Unix milliseconds.
    pub used_ms: Option<u64>,
    /// The device that used it.
    #[schema(value_type = Option<String>)]
    pub used_by: Option<DeviceId>,
}

pub(super) fn claim(row: &SqliteRow) -> Result<Claim> {
    let id: String = row.try_get("id")?;
    let id_of = |column| -> Result<Option<DeviceId>> {
        let text: Option<String> = row.try_get(column)?;
        text.map(|text| text.parse()).transpose().map_err(|error| corrupt("claims", &id, error))
    };
    Ok(Claim {
        device: id_of("device")?,
        used_by: id_of("used_by")?,
        groups: serde_json::from_str(row.try_get("groups")?)
            .map_err(|error| corrupt("claims", &id, error))?,
        created_by: row.try_get("created_by")?,
        created_ms: uint(row.try_get("created_ms")?),
        expires_ms: uint(row.try_get("expires_ms")?),
        used_ms: row.try_get::<Option<i64>, _>("used_ms")?.map(uint),
        id,
    })
}

impl Store {
    /// Stores a claim by the hash of its secret.
    pub async fn claim_add(tx: &mut SqliteConnection, claim: &Claim, secret_hash: &Digest) -> Result<()> {
        sqlx::query("INSERT INTO claims (id, secret_hash, device, groups, created_by, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(&claim.id)
            .bind(secret_hash.0.as_slice())
            .bind(claim.device.as_ref().map(DeviceId::as_str))
            .bind(serde_json::to_string(&claim.groups).expect("a list of ids is JSON"))
            .bind(&claim.created_by)
            .bind(int(claim.created_ms))
            .bind(int(claim.expires_ms))
            .execute(tx)
            .await
            .attempt("storing a claim")?;
        Ok(())
    }

    /// Every claim that can be read, newest first.
    pub async fn claims(&self) -> Result<Vec<Claim>> {
        let rows = sqlx::query("SELECT * FROM claims ORDER BY created_ms DESC, id")
            .fetch_all(self.readers())
            .await
            .attempt("listing claims")?;
        Ok(sound(&rows, claim))
    }

    /// The claim a secret belongs to, used or not.
    pub async fn claim_of(&self, secret_hash: &Digest) -> Result<Option<Claim>> {
        let row = sqlx::query("SELECT * FROM claims WHERE secret_hash = ?")
            .bind(secret_hash.0.to_vec())
            .fetch_optional(self.readers())
            .await;
        row.attempt("looking a claim up")?.as_ref().map(claim).transpose()
    }

    /// Uses a claim and adds its device; returns the id of the key that the device had before.
    pub async fn enrol(
        tx: &mut SqliteConnection,
        claim: &Claim,
        id: &DeviceId,
        new: &NewDevice<'_>,
        now_ms: u64,
    ) -> Result<Option<String>> {
        let used = sqlx::query(
            "UPDATE claims SET used_ms = ?, used_by = ? WHERE id = ? AND used_ms IS NULL AND expires_ms > ?",
        )
        .bind(int(now_ms))
        .bind(id.as_str())
        .bind(&claim.id)
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .attempt("using a claim")?;
        if used.rows_affected() == 0 {
            return Err(StoreError::Conflict("the claim was used or is expired".into()));
        }
        let known: Option<String> = sqlx::query_scalar("SELECT key_id FROM devices WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        // A claim that names the device replaces its key (a board that was wiped); one that does not, never.
        if known.is_some() && claim.device.as_ref() != Some(id) {
            return Err(StoreError::Conflict(format!("there is a device {id} already")));
        }
        put_device(tx, id, new, &claim.groups, now_ms).await?;
        Ok(known)
    }
}
