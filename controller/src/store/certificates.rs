//! Certificates that were issued to devices.
use dunlin_protocol::DeviceId;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::{Attempt, Result, Store, StoreError, int, key_id, uint};
use crate::identity::{self, Issued};

/// A certificate of a device, without the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateRow {
    /// Serial number, lower-case hex.
    pub serial: String,
    /// The device.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// Lower-case hex SHA-256 of its public key.
    pub key_id: String,
    /// Unix milliseconds.
    pub issued_ms: u64,
    /// End of its validity, Unix milliseconds.
    pub until_ms: u64,
    /// When the key gave way to another one, Unix milliseconds.
    pub revoked_ms: Option<u64>,
}

pub(super) fn certificate(row: &SqliteRow) -> Result<CertificateRow> {
    let serial: String = row.try_get("serial")?;
    let device: String = row.try_get("device")?;
    let device = device.parse().map_err(|error| StoreError::Corrupt {
        table: "certificates",
        row: serial.clone(),
        what: format!("{error}"),
    })?;
    Ok(CertificateRow {
        serial,
        device,
        key_id: row.try_get("key_id")?,
        issued_ms: uint(row.try_get("issued_ms")?),
        until_ms: uint(row.try_get("until_ms")?),
        revoked_ms: row.try_get::<Option<i64>, _>("revoked_ms")?.map(uint),
    })
}

impl Store {
    /// Notes a certificate and makes it the present one of its device, whose key it must be of.
    pub async fn certificate_add(
        tx: &mut SqliteConnection,
        device: &DeviceId,
        issued: &Issued,
    ) -> Result<()> {
        let current = sqlx::query(
            "UPDATE devices SET certificate_pem = ? WHERE id = ? AND key_id = ? AND state = 'active'",
        )
        .bind(&issued.pem)
        .bind(device.as_str())
        .bind(key_id(&issued.spki))
        .execute(&mut *tx)
        .await
        .attempt("storing a certificate")?;
        if current.rows_affected() == 0 {
            let error = format!("the device {device} is not active with this key");
            return Err(StoreError::Conflict(error));
        }
        put_certificate(tx, device, issued).await
    }

    /// Certificates of a device, the newest first.
    pub async fn certificates(&self, device: &DeviceId, limit: u64) -> Result<Vec<CertificateRow>> {
        let rows = sqlx::query(
            "SELECT * FROM certificates WHERE device = ? ORDER BY issued_ms DESC, until_ms DESC LIMIT ?",
        )
        .bind(device.as_str())
        .bind(int(limit))
        .fetch_all(self.readers())
        .await
        .attempt("reading the certificates of a device")?;
        rows.iter().map(certificate).collect()
    }

    /// The present certificate of an active device: its public key (DER) and the certificate (PEM).
    pub async fn certificate_of(&self, device: &DeviceId) -> Result<Option<(Vec<u8>, String)>> {
        let row = sqlx::query("SELECT spki, certificate_pem FROM devices WHERE id = ? AND state = 'active'")
            .bind(device.as_str())
            .fetch_optional(self.readers())
            .await
            .attempt("reading the certificate of a device")?;
        row.map(|row| Ok((row.try_get("spki")?, row.try_get("certificate_pem")?))).transpose()
    }

    /// Certificates that are not out of date and count for nothing: of superseded keys, and of devices that are
    /// not active.
    pub async fn certificates_refused(&self, now_ms: u64) -> Result<Vec<CertificateRow>> {
        let rows = sqlx::query(
            "SELECT c.* FROM certificates c JOIN devices d ON d.id = c.device \
             WHERE c.until_ms > ? AND (c.revoked_ms IS NOT NULL OR d.state <> 'active') ORDER BY c.serial",
        )
        .bind(int(now_ms))
        .fetch_all(self.readers())
        .await
        .attempt("listing certificates that count for nothing")?;
        rows.iter().map(certificate).collect()
    }

    /// Notes the certificates of devices that enrolled before certificates were noted.
    pub async fn certificates_catch_up(&self) -> Result<()> {
        let rows = sqlx::query(
            "SELECT id, key_id, certificate_pem, enrolled_ms FROM devices WHERE id NOT IN (SELECT device FROM certificates)",
        )
        .fetch_all(self.readers())
        .await
        .attempt("listing devices without a noted certificate")?;
        for row in rows {
            let Some((serial, until_ms)) = identity::serial_and_end(row.try_get("certificate_pem")?) else {
                continue;
            };
            sqlx::query("INSERT OR IGNORE INTO certificates (serial, device, key_id, issued_ms, until_ms) VALUES (?, ?, ?, ?, ?)")
                .bind(serial)
                .bind(row.try_get::<String, _>("id")?)
                .bind(row.try_get::<String, _>("key_id")?)
                .bind(row.try_get::<i64, _>("enrolled_ms")?)
                .bind(int(until_ms))
                .execute(self.writer())
                .await
                .attempt("noting a certificate")?;
        }
        Ok(())
    }
}

/// Notes a certificate; those of the device's former keys count for nothing from now on.
pub(super) async fn put_certificate(
    tx: &mut SqliteConnection,
    device: &DeviceId,
    issued: &Issued,
) -> Result<()> {
    let key = key_id(&issued.spki);
    sqlx::query(
        "INSERT INTO certificates (serial, device, key_id, issued_ms, until_ms) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(&issued.serial)
    .bind(device.as_str())
    .bind(&key)
    .bind(int(issued.from_ms))
    .bind(int(issued.until_ms))
    .execute(&mut *tx)
    .await
    .attempt("noting a certificate")?;
    // A key that gave way to another one counts for nothing, nor do its certificates.
    sqlx::query(
        "UPDATE certificates SET revoked_ms = ? WHERE device = ? AND key_id <> ? AND revoked_ms IS NULL",
    )
    .bind(int(issued.from_ms))
    .bind(device.as_str())
    .bind(&key)
    .execute(&mut *tx)
    .await
    .attempt("noting that certificates are superseded")?;
    Ok(())
}
