//! What the controller noticed.
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::row::{parse, sound};
use super::{Attempt, Result, Store, int, uint};

/// Something the controller noticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// Number.
    pub id: u64,
    /// Kind, such as `cloned_identity` or `drift`.
    pub kind: String,
    /// What it is about: `device:x`, `task:y`.
    pub subject: String,
    /// For people.
    pub detail: String,
    /// Further facts.
    #[schema(value_type = Object)]
    pub facts: serde_json::Value,
    /// Unix milliseconds.
    pub raised_ms: u64,
    /// Unix milliseconds, once it is over.
    pub cleared_ms: Option<u64>,
}

pub(super) fn alert(row: &SqliteRow) -> Result<Alert> {
    let id: i64 = row.try_get("id")?;
    Ok(Alert {
        facts: parse("alerts", &id.to_string(), row.try_get("facts")?)?,
        id: uint(id),
        kind: row.try_get("kind")?,
        subject: row.try_get("subject")?,
        detail: row.try_get("detail")?,
        raised_ms: uint(row.try_get("raised_ms")?),
        cleared_ms: row.try_get::<Option<i64>, _>("cleared_ms")?.map(uint),
    })
}

impl Store {
    /// Raises an alert, or renews the one that is open; returns whether it is new.
    pub async fn alert_raise(
        &self,
        kind: &str,
        subject: &str,
        detail: &str,
        facts: &serde_json::Value,
        now_ms: u64,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        let new = raise(&mut tx, kind, subject, detail, facts, now_ms).await?;
        tx.commit().await.attempt("committing an alert")?;
        Ok(new)
    }

    /// Closes an open alert; returns whether there was one.
    pub async fn alert_clear(&self, kind: &str, subject: &str, now_ms: u64) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE alerts SET cleared_ms = ? WHERE kind = ? AND subject = ? AND cleared_ms IS NULL",
        )
        .bind(int(now_ms))
        .bind(kind)
        .bind(subject)
        .execute(self.writer())
        .await
        .attempt("closing an alert")?;
        Ok(done.rows_affected() > 0)
    }

    /// What the open alerts of a kind are about.
    pub async fn alerted(&self, kind: &str) -> Result<BTreeSet<String>> {
        let subjects = sqlx::query_scalar("SELECT subject FROM alerts WHERE kind = ? AND cleared_ms IS NULL")
            .bind(kind)
            .fetch_all(self.readers())
            .await
            .attempt("reading open alerts")?;
        Ok(subjects.into_iter().collect())
    }

    /// Alerts that can be read, newest first; only open ones if `open`.
    pub async fn alerts(&self, open: bool, limit: u64) -> Result<Vec<Alert>> {
        let rows =
            sqlx::query("SELECT * FROM alerts WHERE NOT ?1 OR cleared_ms IS NULL ORDER BY id DESC LIMIT ?2")
                .bind(open)
                .bind(int(limit))
                .fetch_all(self.readers())
                .await
                .attempt("reading alerts")?;
        Ok(sound(&rows, alert))
    }
}

/// Raises an alert within a transaction; whether it is new.
pub(super) async fn raise(
    tx: &mut SqliteConnection,
    kind: &str,
    subject: &str,
    detail: &str,
    facts: &serde_json::Value,
    now_ms: u64,
) -> Result<bool> {
    let open = sqlx::query(
        "UPDATE alerts SET detail = ?, facts = ? WHERE kind = ? AND subject = ? AND cleared_ms IS NULL",
    )
    .bind(detail)
    .bind(facts.to_string())
    .bind(kind)
    .bind(subject)
    .execute(&mut *tx)
    .await
    .attempt("renewing an alert")?;
    if open.rows_affected() > 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO alerts (kind, subject, detail, facts, raised_ms) VALUES (?, ?, ?, ?, ?)")
        .bind(kind)
        .bind(subject)
        .bind(detail)
        .bind(facts.to_string())
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .attempt("raising an alert")?;
    Ok(true)
}
