//! Accounting: every window a device closed, by its own books on disk, is in the database once.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use super::{Claim, holds};
use crate::agent::Agent;
use crate::process::wait_for;

/// Windows by device and boot.
type Books = BTreeMap<(String, String), i64>;

/// What the devices wrote down themselves, and how many windows of it they had no room to keep.
fn on_devices(agents: &[&Agent]) -> Result<(Books, i64)> {
    let (mut books, mut evicted) = (Books::new(), 0);
    for agent in agents {
        let path = agent.folder.join("state/spool/counters.json");
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let counters: Value = serde_json::from_slice(&text)?;
        for boot in counters["boots"].as_array().context("boots")? {
            let windows = boot["windows"].as_i64().context("windows")?;
            evicted += boot["windows_evicted"].as_i64().unwrap_or(0);
            books.insert((agent.id.clone(), boot["boot"].as_str().context("boot")?.to_owned()), windows);
        }
    }
    books.retain(|_, windows| *windows > 0);
    Ok((books, evicted))
}

/// What the controller stored of these devices, and how many windows of it are copies. Copies are told by what the
/// device signed: no two windows of a boot are the same, whatever number they are kept under.
async fn in_database(database: &SqlitePool, agents: &[&Agent]) -> Result<(Books, i64)> {
    let rows = sqlx::query("SELECT b.device, lower(hex(b.boot)), count(*), count(DISTINCT w.body) FROM windows w JOIN boots b ON b.no = w.boot_no GROUP BY b.no")
        .fetch_all(database)
        .await?;
    let rows: Vec<_> =
        rows.iter().filter(|row| agents.iter().any(|agent| agent.id == row.get::<String, _>(0))).collect();
    let twice = rows.iter().map(|row| row.get::<i64, _>(2) - row.get::<i64, _>(3)).sum();
    Ok((rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(3))).collect(), twice))
}

/// Every window that these devices closed arrives within `limit`, none is stored twice, and none was given up on a device.
pub async fn accounted_for(agents: &[&Agent], database: &SqlitePool, limit: Duration) -> Claim {
    let mut last = String::new();
    let agreed = wait_for("every window to arrive", limit, async || {
        let (sent, evicted) = on_devices(agents)?;
        let (stored, twice) = in_database(database, agents).await?;
        let (n_sent, n_stored): (i64, i64) = (sent.values().sum(), stored.values().sum());
        let differ: Vec<_> = sent
            .iter()
            .filter(|(boot, n)| stored.get(*boot) != Some(n))
            .map(|((device, _), _)| device.as_str())
            .collect();
        last = format!(
            "{n_sent} windows closed by {} boots, {evicted} given up, {n_stored} stored, {twice} twice, differing: {differ:?}",
            sent.len()
        );
        Ok((sent == stored && twice == 0 && evicted == 0).then_some(()))
    })
    .await;
    holds(agreed.is_ok(), last)
}

/// Every window that the device closed in these starts arrives within `limit`, and none is stored twice. Unlike
/// [`accounted_for`] it leaves out other starts: a device whose state was put back has forgotten some.
pub async fn delivered(agent: &Agent, boots: &[String], database: &SqlitePool, limit: Duration) -> Claim {
    let mut last = String::new();
    let query = "SELECT count(*), count(DISTINCT w.body) FROM windows w JOIN boots b ON b.no = w.boot_no WHERE b.device = ? AND b.boot = unhex(?)";
    let agreed = wait_for("the windows of a device to arrive", limit, async || {
        let (closed, _) = on_devices(&[agent])?;
        for boot in boots {
            let windows = closed.get(&(agent.id.clone(), boot.clone())).copied().unwrap_or(0);
            let (rows, different): (i64, i64) =
                sqlx::query_as(query).bind(&agent.id).bind(boot).fetch_one(database).await?;
            if rows != windows || different != windows {
                last = format!("boot {boot}: {windows} windows closed, {rows} stored, {different} different");
                return Ok(None);
            }
        }
        last = format!("{} boots", boots.len());
        Ok(Some(()))
    })
    .await;
    holds(agreed.is_ok(), last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_a_device_gave_up_is_closed_and_counted_apart() {
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent::new(folder.path(), "pole", "raspberry-pi-4", "").unwrap();
        let spool = agent.folder.join("state/spool");
        std::fs::create_dir_all(&spool).unwrap();
        let counters = r#"{"boots": [{"boot": "aa", "windows": 5, "windows_evicted": 2}, {"boot": "bb", "windows": 0}]}"#;
        std::fs::write(spool.join("counters.json"), counters).unwrap();
        let (books, evicted) = on_devices(&[&agent]).unwrap();
        assert_eq!((books, evicted), (Books::from([(("pole".into(), "aa".into()), 5)]), 2));
    }
}
