//! Accounting: every window a device closed, by its own books on disk, is in the database once.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::process::wait_for;
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use crate::world::World;

/// How long the last records may take to arrive.
const LIMIT: Duration = Duration::from_secs(60);

/// Windows by device and boot.
type Books = BTreeMap<(String, String), i64>;

/// What the devices wrote down themselves.
fn on_devices(world: &World) -> Result<Books> {
    let mut books = Books::new();
    for agent in &world.agents {
        let path = agent.folder.join("state/spool/counters.json");
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let counters: Value = serde_json::from_slice(&text)?;
        for boot in counters["boots"].as_array().context("boots")? {
            let windows =
                boot["windows"].as_i64().context("windows")? - boot["windows_evicted"].as_i64().unwrap_or(0);
            books.insert((agent.id.clone(), boot["boot"].as_str().context("boot")?.to_owned()), windows);
        }
    }
    books.retain(|_, windows| *windows > 0);
    Ok(books)
}

/// What the controller stored. The table's key makes a second copy of a record impossible; it is counted anyway.
async fn in_database(database: &SqlitePool) -> Result<(Books, i64)> {
    let rows = sqlx::query("SELECT b.device, lower(hex(b.boot)), count(*), count(DISTINCT w.seq) FROM windows w JOIN boots b ON b.no = w.boot_no GROUP BY b.no")
        .fetch_all(database)
        .await?;
    let twice = rows.iter().map(|row| row.get::<i64, _>(2) - row.get::<i64, _>(3)).sum();
    Ok((rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect(), twice))
}

/// Waits until the books agree; returns whether they did, and the numbers.
pub(crate) async fn agree(world: &mut World) -> Result<(bool, String)> {
    let database = world.database().await?;
    let mut last = String::new();
    let agreed = wait_for("every window to arrive", LIMIT, async || {
        let (sent, (stored, twice)) = (on_devices(world)?, in_database(&database).await?);
        let (n_sent, n_stored): (i64, i64) = (sent.values().sum(), stored.values().sum());
        let differ: Vec<_> = sent
            .iter()
            .filter(|(boot, n)| stored.get(*boot) != Some(n))
            .map(|((device, _), _)| device.as_str())
            .collect();
        last = format!(
            "{n_sent} windows closed by {} boots, {n_stored} stored, {twice} twice, differing: {differ:?}",
            sent.len()
        );
        Ok((sent == stored && twice == 0).then_some(()))
    })
    .await;
    Ok((agreed.is_ok(), last))
}
