//! Commands that devices have not replied to.
use std::collections::BTreeMap;

use dunlin_protocol::{Cmd, CmdBody, DeviceId, Reply};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::row::{id, json, parse};
use super::{Attempt, Result, Store, int, uint};

/// A command that waits for its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingCommand {
    /// Who shall carry it out.
    pub device: DeviceId,
    /// What to do, and the id that the reply echoes.
    pub cmd: Cmd,
    /// When nobody waits for it any more, Unix milliseconds.
    pub until_ms: u64,
}

impl Store {
    /// Keeps a command until it is replied to; those that nobody waits for any more go.
    pub async fn keep_command(
        tx: &mut SqliteConnection,
        pending: &PendingCommand,
        now_ms: u64,
    ) -> Result<()> {
        sqlx::query("DELETE FROM commands WHERE until_ms <= ?")
            .bind(int(now_ms))
            .execute(&mut *tx)
            .await
            .attempt("taking old commands out")?;
        sqlx::query("INSERT INTO commands (device, id, body, until_ms) VALUES (?, ?, ?, ?)")
            .bind(pending.device.as_str())
            .bind(&pending.cmd.id)
            .bind(json(&pending.cmd.cmd))
            .bind(int(pending.until_ms))
            .execute(&mut *tx)
            .await
            .attempt("keeping a command")?;
        Ok(())
    }

    /// Commands somebody waits for, by device. Rows that can not be read are logged and left out.
    pub async fn pending_commands(&self, now_ms: u64) -> Result<BTreeMap<DeviceId, Vec<PendingCommand>>> {
        let rows = sqlx::query("SELECT * FROM commands WHERE until_ms > ? ORDER BY device, until_ms, id")
            .bind(int(now_ms))
            .fetch_all(self.readers())
            .await
            .attempt("reading commands")?;
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for row in &rows {
            match command(row) {
                Ok(pending) => all.entry(pending.device.clone()).or_default().push(pending),
                Err(error) => tracing::error!(%error, "a command is left out"),
            }
        }
        Ok(all)
    }

    /// The reply to a command, if it came: reason code and detail.
    pub async fn reply(&self, device: &DeviceId, id: &str) -> Result<Option<(String, String)>> {
        let row = sqlx::query("SELECT reason, detail FROM replies WHERE device = ? AND id = ?")
            .bind(device.as_str())
            .bind(id);
        let row = row.fetch_optional(self.readers()).await.attempt("reading a reply")?;
        row.map(|row| Ok((row.try_get("reason")?, row.try_get("detail")?))).transpose()
    }
}

/// Stores a reply; its command waits no more.
pub(super) async fn store_reply(
    tx: &mut SqliteConnection,
    device: &DeviceId,
    reply: &Reply,
    received_ms: u64,
) -> Result<()> {
    sqlx::query("INSERT INTO replies (id, device, reason, detail, received_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(&reply.id)
        .bind(device.as_str())
        .bind(reply.reason.as_str())
        .bind(&reply.detail)
        .bind(int(received_ms))
        .execute(&mut *tx)
        .await
        .attempt("storing a reply")?;
    sqlx::query("DELETE FROM commands WHERE device = ? AND id = ?")
        .bind(device.as_str())
        .bind(&reply.id)
        .execute(tx)
        .await
        .attempt("taking a command out")?;
    Ok(())
}

pub(super) fn command(row: &SqliteRow) -> Result<PendingCommand> {
    let name: String = row.try_get("id")?;
    Ok(PendingCommand {
        device: id("commands", &name, row.try_get("device")?)?,
        cmd: Cmd { cmd: parse::<CmdBody>("commands", &name, row.try_get("body")?)?, id: name },
        until_ms: uint(row.try_get("until_ms")?),
    })
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::ReasonCode;

    use super::*;
    use crate::store::test_store;

    #[tokio::test]
    async fn a_command_waits_until_it_is_replied_to_or_old() {
        let (_dir, store) = test_store().await;
        sqlx::query("INSERT INTO devices (id, spki, key_id, certificate_pem, profile, class, enrolled_ms) VALUES ('cam', x'', '', '', '{}', 'c', 1)")
            .execute(store.writer())
            .await
            .unwrap();
        let device: DeviceId = "cam".parse().unwrap();
        let pending = |id: &str, until_ms| PendingCommand {
            device: device.clone(),
            cmd: Cmd { id: id.into(), cmd: CmdBody::Rollback { task: "meter".parse().unwrap() } },
            until_ms,
        };
        let keep = async |pending: &PendingCommand, now_ms| {
            let mut tx = store.begin().await.unwrap();
            Store::keep_command(&mut tx, pending, now_ms).await.unwrap();
            tx.commit().await.unwrap();
        };
        let all = [pending("a", 10), pending("b", 20), pending("c", 30)];
        for one in &all {
            keep(one, 1).await;
        }
        let waiting = async |now_ms| {
            let mut waiting = store.pending_commands(now_ms).await.unwrap();
            waiting.remove(&device).unwrap_or_default()
        };
        assert_eq!(waiting(9).await, all);
        assert_eq!(waiting(10).await, all[1..]);
        let reply = Reply { id: "b".into(), reason: ReasonCode::Ok, detail: String::new() };
        let mut tx = store.begin().await.unwrap();
        store_reply(&mut tx, &device, &reply, 11).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(waiting(11).await, all[2..]);
        assert_eq!(store.reply(&device, "b").await.unwrap().unwrap().0, "ok");
        keep(&pending("d", 99), 50).await;
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM commands").fetch_one(store.readers()).await.unwrap();
        assert_eq!(left, 1, "the one that grew old is gone");
    }
}
