//! What is wrong with the database: the file as a whole, and rows that this build can not read.
use std::collections::BTreeSet;
use std::fmt;

use dunlin_protocol::{DeviceId, GroupId, ModelName, ReleaseId, TaskId};
use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::row::id;
use super::{Attempt, Result, Store, StoreError};
use super::{
    admissions, alerts, assignments, boots, certificates, claims, commands, devices, programs, registry,
    rollouts, runs, samples, tasks, telemetry, tokens,
};

/// Damaged rows named at a time; more than this is a broken file, not some broken rows.
pub const NAMED_MAX: usize = 20;

/// A row that can not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Table.
    pub table: &'static str,
    /// Its key, as text.
    pub row: String,
    /// What is wrong with it.
    pub what: String,
}

impl Damage {
    fn of(table: &'static str, error: StoreError) -> Self {
        match error {
            StoreError::Corrupt { table, row, what } => Self { table, row, what },
            other @ (StoreError::Sql { .. }
            | StoreError::Migrate(_)
            | StoreError::NotFound { .. }
            | StoreError::Conflict(_)) => {
                Self { table, row: String::new(), what: crate::ingest::chain(&other) }
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of {} is damaged ({})", self.row, self.table, self.what)
    }
}

/// How the rows of a table are read.
struct Check {
    table: &'static str,
    query: &'static str,
    read: fn(&SqliteRow) -> Result<()>,
}

/// Ids in columns of a row whose key is `key`.
fn ids(table: &'static str, row: &SqliteRow, key: &str, read: &[(&str, Reads)]) -> Result<()> {
    for (column, reads) in read {
        if let Some(text) = row.try_get::<Option<String>, _>(*column)? {
            reads(table, key, &text)?;
        }
    }
    Ok(())
}

type Reads = fn(&'static str, &str, &str) -> Result<()>;

const DEVICE: Reads = |table, key, text| id::<DeviceId>(table, key, text).map(drop);
const GROUP: Reads = |table, key, text| id::<GroupId>(table, key, text).map(drop);
const MODEL: Reads = |table, key, text| id::<ModelName>(table, key, text).map(drop);
const RELEASE: Reads = |table, key, text| id::<ReleaseId>(table, key, text).map(drop);
const TASK: Reads = |table, key, text| id::<TaskId>(table, key, text).map(drop);

/// Tables that decide what devices run and who may do what. Each look of the planner reads as much.
const DECIDING: &[Check] = &[
    Check {
        table: "devices",
        query: "SELECT * FROM devices ORDER BY id",
        read: |row| devices::device(row, BTreeSet::new()).map(drop),
    },
    Check {
        table: "groups",
        query: "SELECT id FROM groups ORDER BY id",
        read: |row| ids("groups", row, row.try_get("id")?, &[("id", GROUP)]),
    },
    Check {
        table: "device_groups",
        query: "SELECT device, grp FROM device_groups",
        read: |row| ids("device_groups", row, row.try_get("device")?, &[("device", DEVICE), ("grp", GROUP)]),
    },
    Check {
        table: "tokens",
        query: "SELECT * FROM tokens ORDER BY id",
        read: |row| tokens::token(row).map(drop),
    },
    Check {
        table: "claims",
        query: "SELECT * FROM claims ORDER BY id",
        read: |row| claims::claim(row).map(drop),
    },
    Check {
        table: "batches",
        query: "SELECT * FROM batches ORDER BY id",
        read: |row| admissions::batch(row).map(drop),
    },
    Check {
        table: "expected",
        query: "SELECT * FROM expected ORDER BY batch, serial",
        read: |row| admissions::expected(row).map(drop),
    },
    Check {
        table: "admissions",
        query: "SELECT * FROM admissions ORDER BY id",
        read: |row| admissions::admission(row).map(drop),
    },
    Check {
        table: "certificates",
        query: "SELECT * FROM certificates ORDER BY serial",
        read: |row| certificates::certificate(row).map(drop),
    },
    Check {
        table: "models",
        query: "SELECT name, task FROM models ORDER BY name",
        read: |row| ids("models", row, row.try_get("name")?, &[("name", MODEL), ("task", TASK)]),
    },
    Check {
        table: "releases",
        query: "SELECT * FROM releases ORDER BY model, version",
        read: |row| registry::release(row).map(drop),
    },
    Check {
        table: "aliases",
        query: "SELECT model FROM aliases ORDER BY model, alias",
        read: |row| ids("aliases", row, row.try_get("model")?, &[("model", MODEL)]),
    },
    Check {
        table: "policies",
        query: "SELECT * FROM policies ORDER BY sha256",
        read: |row| registry::policy(row).map(drop),
    },
    Check {
        table: "tasks",
        query: "SELECT * FROM tasks ORDER BY id",
        read: |row| ids("tasks", row, row.try_get("id")?, &[("id", TASK)]).and(tasks::task(row).map(drop)),
    },
    Check { table: "rollouts", query: rollouts::ROLLOUTS, read: |row| rollouts::rollout(row).map(drop) },
    Check {
        table: "orders",
        query: "SELECT * FROM orders ORDER BY rollout, device",
        read: |row| rollouts::order(row).map(drop),
    },
    Check {
        table: "programs",
        query: "SELECT * FROM programs ORDER BY model, version",
        read: |row| programs::program(row).map(drop),
    },
    Check {
        table: "program_orders",
        query: "SELECT * FROM program_orders ORDER BY model, grp",
        read: |row| programs::order(row).map(drop),
    },
    Check {
        table: "forgiven",
        query: "SELECT device, release FROM forgiven ORDER BY device, release",
        read: |row| ids("forgiven", row, row.try_get("device")?, &[("device", DEVICE), ("release", RELEASE)]),
    },
    Check {
        table: "assignments",
        query: "SELECT * FROM assignments ORDER BY device",
        read: |row| assignments::assigned(row).map(drop),
    },
    Check {
        table: "decisions",
        query: "SELECT * FROM decisions ORDER BY device, task",
        read: |row| assignments::decision(row).map(drop),
    },
    Check {
        table: "installed",
        query: "SELECT * FROM installed ORDER BY device, task",
        read: |row| devices::installed(row).map(drop),
    },
    Check { table: "runs", query: "SELECT * FROM runs ORDER BY id", read: |row| runs::run(row).map(drop) },
    Check {
        table: "runs",
        query: "SELECT id, state, wanted FROM runs WHERE wanted IS NOT NULL ORDER BY id",
        read: |row| runs::wanted(row).map(drop),
    },
    Check {
        table: "run_journal",
        query: "SELECT * FROM run_journal ORDER BY run, no",
        read: |row| runs::entry(row).map(drop),
    },
    Check { table: "run_queue", query: "SELECT body FROM run_queue", read: |row| runs::queue(row).map(drop) },
    Check {
        table: "alerts",
        query: "SELECT * FROM alerts ORDER BY id",
        read: |row| alerts::alert(row).map(drop),
    },
];

/// Tables that grow with what devices say, and with every step of every rollout.
const GROWING: &[Check] = &[
    Check {
        table: "plans",
        query: "SELECT * FROM plans ORDER BY rollout, generation",
        read: |row| rollouts::a_plan(row).map(drop),
    },
    Check {
        table: "boots",
        query: "SELECT * FROM boots ORDER BY no",
        read: |row| {
            let no: i64 = row.try_get("no")?;
            ids("boots", row, &no.to_string(), &[("device", DEVICE)]).and(boots::seen(row).map(drop))
        },
    },
    Check {
        table: "windows",
        query: "SELECT * FROM windows ORDER BY id",
        read: |row| telemetry::window(row).map(drop),
    },
    Check {
        table: "outcomes",
        query: "SELECT * FROM outcomes ORDER BY id",
        read: |row| {
            let (key, phase): (String, String) = (number(row)?, row.try_get("phase")?);
            let known = devices::phase_of(&phase).map(drop);
            known.ok_or_else(|| devices::corrupt("outcomes", &key, format!("unknown phase {phase:?}")))?;
            ids("outcomes", row, &key, &[("device", DEVICE), ("task", TASK), ("release", RELEASE)])
        },
    },
    Check {
        table: "indicators",
        query: "SELECT id, device FROM indicators ORDER BY id",
        read: |row| ids("indicators", row, &number(row)?, &[("device", DEVICE)]),
    },
    Check {
        table: "gaps",
        query: "SELECT id, device FROM gaps ORDER BY id",
        read: |row| ids("gaps", row, &number(row)?, &[("device", DEVICE)]),
    },
    Check {
        table: "commands",
        query: "SELECT * FROM commands ORDER BY device, id",
        read: |row| commands::command(row).map(drop),
    },
    Check {
        table: "replies",
        query: "SELECT id, device FROM replies ORDER BY device, id",
        read: |row| ids("replies", row, row.try_get("id")?, &[("device", DEVICE)]),
    },
    Check {
        table: "samples",
        query: "SELECT * FROM samples ORDER BY id",
        read: |row| samples::sample(row).map(drop),
    },
    Check {
        table: "refused",
        query: "SELECT nullif(device, '') AS device, reason FROM refused ORDER BY 1, 2",
        read: |row| ids("refused", row, row.try_get("reason")?, &[("device", DEVICE)]),
    },
];

fn number(row: &SqliteRow) -> Result<String> {
    Ok(row.try_get::<i64, _>("id")?.to_string())
}

impl Store {
    /// SQLite's own check of the file.
    pub async fn integrity(&self) -> Result<String> {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(self.readers())
            .await
            .attempt("checking the database file")?;
        if verdict == "ok" {
            return Ok("the file is whole".into());
        }
        Err(StoreError::Corrupt { table: "the database", row: String::new(), what: verdict })
    }

    /// Rows of every table that this build can not read, [`NAMED_MAX`] of them at most. The audit log is not looked
    /// at: it has a check of its own.
    pub async fn damaged(&self) -> Result<Vec<Damage>> {
        let mut found = self.damaged_deciding().await?;
        self.examine(GROWING, &mut found).await?;
        Ok(found)
    }

    /// The same of the tables that decide what devices run and who may do what.
    pub async fn damaged_deciding(&self) -> Result<Vec<Damage>> {
        let mut found = Vec::new();
        self.examine(DECIDING, &mut found).await?;
        Ok(found)
    }

    async fn examine(&self, checks: &'static [Check], found: &mut Vec<Damage>) -> Result<()> {
        for check in checks {
            let mut rows = sqlx::query(check.query).fetch(self.readers());
            while let Some(row) = rows.try_next().await.attempt("examining rows")? {
                if found.len() >= NAMED_MAX {
                    return Ok(());
                }
                found.extend((check.read)(&row).err().map(|error| Damage::of(check.table, error)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
