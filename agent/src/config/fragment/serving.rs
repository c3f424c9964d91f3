//! The `[serving]` section.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_engine::{ROWS_MAX, ROWS_TOGETHER_MIN};
use dunlin_protocol::TaskId;

use super::keys::{Key, Serving, Sourced, TaskKeys};
use super::within;
use crate::config::ConfigError;
use crate::serve::gather::Gather;
use crate::serve::pack::{Budget, Settings, TaskSettings};

/// Largest worth of a task that may be configured.
const VALUE_LIMIT: u64 = 1_000_000;
/// Longest wait for a batch that may be configured, microseconds: a second, which somebody waits for an answer.
const WAIT_US_LIMIT: u64 = 1_000_000;
/// Largest bound that may be configured.
const BOUND_LIMIT: u64 = 1 << 40;

pub(super) fn validate(serving: &Serving) -> Result<Settings, ConfigError> {
    let bound = |value: &Key<u64>, key: &str| {
        within(value, key, 0, BOUND_LIMIT).map(|bound| Some(bound).filter(|bound| *bound > 0))
    };
    let budget = Budget {
        ram_bytes: bound(&serving.ram_bytes_max, "serving.ram_bytes_max")?,
        cpu_ppm: bound(&serving.cpu_ppm_max, "serving.cpu_ppm_max")?,
    };
    let mut tasks = BTreeMap::new();
    for (name, keys) in &serving.tasks {
        let id = name.parse::<TaskId>().map_err(|e| {
            let key = format!("serving.tasks.{name}");
            ConfigError::new("settings", &key, &e.to_string(), "name a task as its assignment does")
        })?;
        tasks.insert(id, task(name, keys)?);
    }
    Ok(Settings { budget, tasks })
}

fn task(name: &str, keys: &TaskKeys) -> Result<TaskSettings, ConfigError> {
    let default = TaskSettings::default();
    let number = |value: &Key<u64>, key: &str, min, max, default| match value {
        None => Ok(default),
        Some(_) => within(value, &format!("serving.tasks.{name}.{key}"), min, max),
    };
    let value = number(&keys.value, "value", 0, VALUE_LIMIT, default.value.into())?;
    let rows_max = number(&keys.gather_rows_max, "gather_rows_max", 1, ROWS_MAX as u64, 1)?;
    if let Some(Sourced { value, file }) = &keys.gather_rows_max
        && (2..ROWS_TOGETHER_MIN as u64).contains(value)
    {
        let key = format!("serving.tasks.{name}.gather_rows_max");
        let problem = format!("{value} rows are run one after the other");
        let remedy = format!("from {ROWS_TOGETHER_MIN} rows on they are run together; 1 gathers none");
        return Err(ConfigError::new(file, &key, &problem, &remedy));
    }
    let wait_us = number(&keys.gather_wait_us_max, "gather_wait_us_max", 0, WAIT_US_LIMIT, 0)?;
    let gather = Gather {
        rows_max: usize::try_from(rows_max).unwrap_or(usize::MAX),
        wait_max: Duration::from_micros(wait_us),
    };
    Ok(TaskSettings {
        value: u32::try_from(value).unwrap_or(u32::MAX),
        gather: Some(gather).filter(|gather| gather.rows_max > 1),
    })
}
