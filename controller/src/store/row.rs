//! How rows that hold text bodies are read.
use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;

use super::{Result, StoreError};

pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types have text keys only")
}

pub(super) fn parse<T: DeserializeOwned>(table: &'static str, row: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt {
        table,
        row: row.to_owned(),
        what: error.to_string(),
    })
}

pub(super) fn id<T: std::str::FromStr>(table: &'static str, row: &str, text: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| StoreError::Corrupt {
        table,
        row: row.to_owned(),
        what: error.to_string(),
    })
}

/// Rows that can be read, and what names those that can not.
#[derive(Debug)]
pub struct Read<T> {
    /// In the order of the query.
    pub rows: Vec<T>,
    /// Key of each damaged row with the task it is about.
    pub damaged: BTreeMap<String, String>,
}

/// Splits rows into those that can be read and the others, whose key and task `about` tells.
pub(super) fn read_all<T>(
    rows: &[SqliteRow],
    read: impl Fn(&SqliteRow) -> Result<T>,
    about: impl Fn(&SqliteRow) -> Result<(String, String)>,
) -> Result<Read<T>> {
    let mut all = Read { rows: Vec::with_capacity(rows.len()), damaged: BTreeMap::new() };
    for row in rows {
        match read(row) {
            Ok(read) => all.rows.push(read),
            Err(error) => {
                tracing::error!(%error, "a row is left out");
                all.damaged.extend([about(row)?]);
            }
        }
    }
    Ok(all)
}

/// Rows that can be read; a damaged one costs itself only.
pub(super) fn sound<T>(rows: &[SqliteRow], read: impl Fn(&SqliteRow) -> Result<T>) -> Vec<T> {
    let log = |error: &StoreError| tracing::error!(%error, "a row is left out");
    rows.iter().filter_map(|row| read(row).inspect_err(log).ok()).collect()
}
