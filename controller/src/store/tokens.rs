use std::collections::BTreeSet;

use dunlin_protocol::Digest;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::row::sound;
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::api::auth::{Caller, Scope};

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenRow {
    /// Id.
    pub id: String,
    /// What the audit log calls its holder.
    pub name: String,
    /// What it allows.
    pub scopes: BTreeSet<Scope>,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds; absent means never.
    pub expires_ms: Option<u64>,
    /// Unix milliseconds, once revoked.
    pub revoked_ms: Option<u64>,
}

fn hash(secret: &str) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
    Digest(digest.as_ref().try_into().expect("SHA-256 gives 32 bytes"))
}

fn scopes(id: &str, text: &str) -> Result<BTreeSet<Scope>> {
    let parsed: std::result::Result<_, String> = text.split(',').map(str::parse).collect();
    parsed.map_err(|what| StoreError::Corrupt { table: "tokens", row: id.to_owned(), what })
}

/// Every token, oldest first.
const ALL: &str = "SELECT * FROM tokens ORDER BY created_ms, id";

pub(super) fn token(row: &SqliteRow) -> Result<TokenRow> {
    let id: String = row.try_get("id")?;
    Ok(TokenRow {
        scopes: scopes(&id, row.try_get("scopes")?)?,
        id,
        name: row.try_get("name")?,
        created_ms: uint(row.try_get("created_ms")?),
        expires_ms: row.try_get::<Option<i64>, _>("expires_ms")?.map(uint),
        revoked_ms: row.try_get::<Option<i64>, _>("revoked_ms")?.map(uint),
    })
}

impl Store {
    /// Stores a token by the hash of its secret. Secrets are 256 random bits, so a plain hash is enough.
    pub async fn token_add(tx: &mut SqliteConnection, row: &TokenRow, secret: &str) -> Result<()> {
        let scopes: Vec<&str> = row.scopes.iter().map(|scope| scope.as_str()).collect();
        sqlx::query(
            "INSERT INTO tokens (id, name, hash, scopes, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&row.id)
        .bind(&row.name)
        .bind(hash(secret).0.as_slice())
        .bind(scopes.join(","))
        .bind(int(row.created_ms))
        .bind(row.expires_ms.map(int))
        .execute(tx)
        .await
        .attempt("storing a token")?;
        Ok(())
    }

    /// Whom a secret belongs to; nobody if it is unknown, revoked or expired.
    pub async fn caller(&self, secret: &str, now_ms: u64) -> Result<Option<Caller>> {
        let row = sqlx::query(
            "SELECT id, name, scopes FROM tokens WHERE hash = ? AND revoked_ms IS NULL AND (expires_ms IS NULL OR expires_ms > ?)",
        )
        .bind(hash(secret).0.to_vec())
        .bind(int(now_ms))
        .fetch_optional(self.readers())
        .await
        .attempt("looking a token up")?;
        let Some(row) = row else { return Ok(None) };
        let scopes = scopes(row.try_get("id")?, row.try_get("scopes")?)?;
        Ok(Some(Caller { id: row.try_get("id")?, name: row.try_get("name")?, scopes }))
    }

    /// Every token that can be read, oldest first.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>> {
        let rows = sqlx::query(ALL).fetch_all(self.readers()).await.attempt("listing tokens")?;
        Ok(sound(&rows, token))
    }

    /// Revokes a token and returns what it was. The last administrator's stays: nobody could make another. The look and the
    /// change are in one transaction, so that two administrators who revoke each other's do not both succeed.
    pub async fn token_revoke(tx: &mut SqliteConnection, id: &str, now_ms: u64) -> Result<TokenRow> {
        let rows = sqlx::query(ALL).fetch_all(&mut *tx).await.attempt("listing tokens")?;
        let tokens = sound(&rows, token);
        let valid = |row: &&TokenRow| {
            row.revoked_ms.is_none() && row.expires_ms.is_none_or(|expires_ms| expires_ms > now_ms)
        };
        let before = tokens.iter().find(|row| row.id == id).cloned();
        let others =
            tokens.iter().filter(valid).filter(|row| row.id != id && row.scopes.contains(&Scope::Admin));
        if before.as_ref().is_some_and(|row| row.scopes.contains(&Scope::Admin)) && others.count() == 0 {
            return Err(StoreError::Conflict(
                "this is the last token of an administrator; make another one first".into(),
            ));
        }
        let done = sqlx::query("UPDATE tokens SET revoked_ms = ? WHERE id = ? AND revoked_ms IS NULL")
            .bind(int(now_ms))
            .bind(id)
            .execute(tx)
            .await
            .attempt("revoking a token")?;
        match before {
            Some(before) if done.rows_affected() > 0 => Ok(before),
            Some(_) | None => Err(StoreError::NotFound { what: "valid token", key: id.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_store;

    fn row(id: &str, expires_ms: Option<u64>) -> TokenRow {
        TokenRow {
            id: id.into(),
            name: id.into(),
            scopes: BTreeSet::from([Scope::Operator]),
            created_ms: 1,
            expires_ms,
            revoked_ms: None,
        }
    }

    async fn add(store: &Store, row: &TokenRow, secret: &str) {
        let mut tx = store.begin().await.unwrap();
        Store::token_add(&mut tx, row, secret).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn revoke(store: &Store, id: &str, now_ms: u64) -> Result<TokenRow> {
        let mut tx = store.begin().await.unwrap();
        let before = Store::token_revoke(&mut tx, id, now_ms).await?;
        tx.commit().await.unwrap();
        Ok(before)
    }

    #[tokio::test]
    async fn a_token_counts_until_it_expires_or_is_revoked() {
        let (_dir, store) = test_store().await;
        add(&store, &row("a", Some(100)), "secret-a").await;
        add(&store, &row("b", None), "secret-b").await;
        assert_eq!(store.caller("secret-a", 99).await.unwrap().unwrap().name, "a");
        assert!(store.caller("secret-a", 100).await.unwrap().is_none());
        assert!(store.caller("secret-x", 1).await.unwrap().is_none());
        revoke(&store, "b", 5).await.unwrap();
        assert!(store.caller("secret-b", 6).await.unwrap().is_none());
        assert!(revoke(&store, "b", 7).await.is_err());
    }

    #[tokio::test]
    async fn a_damaged_row_is_an_error_that_names_it() {
        let (_dir, store) = test_store().await;
        add(&store, &row("a", None), "secret-a").await;
        sqlx::query("UPDATE tokens SET scopes = 'emperor'").execute(store.writer()).await.unwrap();
        let error = store.caller("secret-a", 1).await.unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt { table: "tokens", row, .. } if row == "a"), "{error}");
    }
}
