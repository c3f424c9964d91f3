//! What the controller learns from: what devices sent it.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use sqlx::{Row, SqlitePool};

use super::fleet::{HELD, members};
use super::learning::Measured;
use super::{Claim, holds};
use crate::controller::Controller;
use crate::operator::TASK;
use crate::traffic::MEASURED;

/// Every row of a run's dataset is a labelled sample that a device sent, of no device that retraining leaves out and of
/// no request that accuracy is measured with.
pub async fn learnt_from_devices(controller: &Controller, database: &SqlitePool, run: &str) -> Claim {
    let held = members(database, HELD).await?;
    let rows = sqlx::query("SELECT coalesce(at_ms, received_ms), x, label, device, request FROM samples WHERE task = ? AND label IS NOT NULL")
        .bind(TASK)
        .fetch_all(database)
        .await?;
    let mut samples: BTreeMap<(i64, Vec<u8>, i64), (String, String)> = BTreeMap::new();
    for row in &rows {
        samples.insert((row.get(0), row.get(1), row.get(2)), (row.get(3), row.get(4)));
    }
    let path = controller.data.join("runs").join(run).join("data.csv");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (mut learnt, mut unknown, mut excluded, mut measured) = (0, 0, 0, 0);
    let mut devices = BTreeSet::new();
    for line in text.lines().skip(1) {
        learnt += 1;
        let Some((device, request)) = samples.get(&row_of(line)?) else {
            unknown += 1;
            continue;
        };
        excluded += usize::from(held.contains(device));
        measured += usize::from(request.starts_with(MEASURED));
        devices.insert(device);
    }
    holds(
        learnt > 0 && unknown + excluded + measured == 0,
        format!(
            "{learnt} rows from {} devices; {unknown} nobody sent, {excluded} of devices that are left out, {measured} of the third pool",
            devices.len()
        ),
    )
}

/// A line of a dataset as the sample it was: when, the features as they are stored, the label.
fn row_of(line: &str) -> Result<(i64, Vec<u8>, i64)> {
    let cells: Vec<&str> = line.split(',').collect();
    let [features @ .., label, at_ms] = cells.as_slice() else { anyhow::bail!("no row: {line}") };
    let x = features.iter().map(|cell| cell.parse::<f32>()).collect::<Result<Vec<_>, _>>()?;
    Ok((at_ms.parse()?, x.into_iter().flat_map(f32::to_le_bytes).collect(), label.parse()?))
}

/// Accuracy as the controller has it from labels, by class and group: of windows that began after `since_ms`, Unix
/// milliseconds. What a candidate answered beside the release that served does not count. With `releases`, devices
/// that are retrained count only where one of these answered.
pub async fn labelled(database: &SqlitePool, since_ms: u64, releases: &[String]) -> Result<Measured> {
    let held = members(database, HELD).await?;
    let rows = sqlx::query(
        "SELECT d.class, d.id, coalesce(w.release, ''), sum(w.correct), sum(w.labelled) FROM windows w JOIN devices d ON d.id = w.device
         WHERE w.task = ? AND w.start_ms >= ? AND w.probation = 0 GROUP BY d.class, d.id, w.release",
    )
    .bind(TASK)
    .bind(i64::try_from(since_ms)?)
    .fetch_all(database)
    .await?;
    let mut rates = Measured::new();
    for row in &rows {
        let is_held = held.contains(&row.get::<String, _>(1));
        let counts = is_held || releases.is_empty() || releases.contains(&row.get(2));
        let rate = rates.entry((row.get(0), is_held)).or_insert(dunlin_monitor::rate::Rate { hits: 0, n: 0 });
        if counts {
            rate.hits += u64::try_from(row.get::<i64, _>(3))?;
            rate.n += u64::try_from(row.get::<i64, _>(4))?;
        }
    }
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_as_the_sample_it_was() {
        let (at_ms, x, label) = row_of("0,16.5,-3,7,1700000000123").unwrap();
        assert_eq!((at_ms, label), (1_700_000_000_123, 7));
        assert_eq!(x, [0.0f32, 16.5, -3.0].map(f32::to_le_bytes).concat());
        assert!(row_of("7").is_err());
    }
}
