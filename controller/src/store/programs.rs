//! Programs of the agent, and which of them devices are to run.
use dunlin_protocol::{Blob, GroupId, ModelName, ProgramCustom, ReleaseId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::row::{id, json, parse, sound};
use super::{Attempt, Result, Store, StoreError, int, uint};
use crate::api::shape;

/// A program that was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgramRow {
    /// Its release.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// The program itself.
    #[schema(value_type = shape::Blob)]
    pub blob: Blob,
    /// What is said of it, for its signers to sign.
    #[schema(value_type = shape::ProgramCustom)]
    pub custom: ProgramCustom,
    /// Who took it in.
    pub created_by: String,
    /// When, Unix milliseconds.
    pub created_ms: u64,
}

/// Which release of a line the devices of a group are to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgramOrder {
    /// The release.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// The group; `None` for every device.
    #[schema(value_type = Option<String>)]
    pub group: Option<GroupId>,
    /// Devices that take it before all others.
    pub canaries: u32,
    /// How long it has on a device to reach this controller, milliseconds.
    pub reach_ms: u64,
    /// Who gave it.
    pub made_by: String,
    /// When, Unix milliseconds.
    pub made_ms: u64,
}

fn release(table: &'static str, row: &SqliteRow) -> Result<ReleaseId> {
    let model: String = row.try_get("model")?;
    let version = uint(row.try_get("version")?);
    id(table, &model, &format!("{model}@{version}"))
}

pub(super) fn program(row: &SqliteRow) -> Result<ProgramRow> {
    let release = release("programs", row)?;
    let key = release.to_string();
    let length = uint(row.try_get("length")?);
    Ok(ProgramRow {
        blob: Blob { digest: id("programs", &key, row.try_get("sha256")?)?, length },
        custom: parse("programs", &key, row.try_get("custom")?)?,
        created_by: row.try_get("created_by")?,
        created_ms: uint(row.try_get("created_ms")?),
        release,
    })
}

pub(super) fn order(row: &SqliteRow) -> Result<ProgramOrder> {
    let release = release("program_orders", row)?;
    let group: String = row.try_get("grp")?;
    let group = Some(group).filter(|group| !group.is_empty());
    Ok(ProgramOrder {
        group: group.map(|group| id("program_orders", &release.to_string(), &group)).transpose()?,
        canaries: u32::try_from(uint(row.try_get("canaries")?)).unwrap_or(u32::MAX),
        reach_ms: uint(row.try_get("reach_ms")?),
        made_by: row.try_get("made_by")?,
        made_ms: uint(row.try_get("made_ms")?),
        release,
    })
}

impl Store {
    /// Stores a program as the next release of its line. The same program is released once.
    pub async fn program_add(
        tx: &mut SqliteConnection,
        line: &ModelName,
        blob: Blob,
        custom: ProgramCustom,
        who: &str,
        now_ms: u64,
    ) -> Result<ProgramRow> {
        let same: Option<i64> =
            sqlx::query_scalar("SELECT version FROM programs WHERE model = ? AND sha256 = ?")
                .bind(line.as_str())
                .bind(blob.digest.to_string())
                .fetch_optional(&mut *tx)
                .await
                .attempt("looking for a program")?;
        if let Some(version) = same {
            return Err(StoreError::Conflict(format!("this very program is {line}@{version} already")));
        }
        let last: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM programs WHERE model = ?")
            .bind(line.as_str())
            .fetch_one(&mut *tx)
            .await
            .attempt("counting the releases of a line")?;
        let version = u32::try_from(last + 1)
            .map_err(|_| StoreError::Conflict(format!("the line {line} is used up")))?;
        sqlx::query(
            "INSERT INTO programs (model, version, sha256, length, custom, created_by, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(line.as_str())
        .bind(i64::from(version))
        .bind(blob.digest.to_string())
        .bind(int(blob.length))
        .bind(json(&custom))
        .bind(who)
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .attempt("storing a program")?;
        let release = ReleaseId { model: line.clone(), version };
        Ok(ProgramRow { release, blob, custom, created_by: who.to_owned(), created_ms: now_ms })
    }

    /// Programs that can be read, in the order of line and version.
    pub async fn programs(&self) -> Result<Vec<ProgramRow>> {
        let rows = sqlx::query("SELECT * FROM programs ORDER BY model, version")
            .fetch_all(self.readers())
            .await
            .attempt("listing programs")?;
        Ok(sound(&rows, program))
    }

    /// Gives an order, in the place of the one before for the same line and group.
    pub async fn program_order_put(tx: &mut SqliteConnection, order: &ProgramOrder) -> Result<()> {
        sqlx::query(
            "INSERT OR REPLACE INTO program_orders (model, grp, version, canaries, reach_ms, made_by, made_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(order.release.model.as_str())
        .bind(order.group.as_ref().map_or("", GroupId::as_str))
        .bind(i64::from(order.release.version))
        .bind(i64::from(order.canaries))
        .bind(int(order.reach_ms))
        .bind(&order.made_by)
        .bind(int(order.made_ms))
        .execute(tx)
        .await
        .attempt("giving an order for a program")?;
        Ok(())
    }

    /// Orders that can be read.
    pub async fn program_orders(&self) -> Result<Vec<ProgramOrder>> {
        let rows = sqlx::query("SELECT * FROM program_orders ORDER BY model, grp")
            .fetch_all(self.readers())
            .await
            .attempt("listing orders for programs")?;
        Ok(sound(&rows, order))
    }
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::{Arch, Digest};

    use super::super::test_store;
    use super::*;

    #[tokio::test]
    async fn a_program_is_released_once_and_ordered_once_a_group() {
        let (_dir, store) = test_store().await;
        let line = ModelName::program("x86_64-unknown-linux-musl").unwrap();
        let custom = ProgramCustom {
            triple: "x86_64-unknown-linux-musl".into(),
            arch: Arch::X86_64,
            classes: Default::default(),
            agent: "0.2.0".into(),
            schemas: vec![1],
        };
        let blob = |n| Blob { digest: Digest([n; 32]), length: 7 };
        let mut tx = store.begin().await.unwrap();
        for n in 1..3 {
            let row = Store::program_add(&mut tx, &line, blob(n), custom.clone(), "ann", 5).await.unwrap();
            assert_eq!(row.release.version, u32::from(n));
        }
        let again = Store::program_add(&mut tx, &line, blob(1), custom, "ann", 6).await;
        assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
        let order = |version, group: Option<&str>| ProgramOrder {
            release: ReleaseId { model: line.clone(), version },
            group: group.map(|group| group.parse().unwrap()),
            canaries: 1,
            reach_ms: 9,
            made_by: "ann".into(),
            made_ms: 7,
        };
        for (version, group) in [(1, None), (1, Some("north")), (2, None)] {
            Store::program_order_put(&mut tx, &order(version, group)).await.unwrap();
        }
        tx.commit().await.unwrap();
        assert_eq!(store.program_orders().await.unwrap(), [order(2, None), order(1, Some("north"))]);
        assert_eq!(store.programs().await.unwrap().len(), 2);
    }
}
