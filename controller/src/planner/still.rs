//! Tasks that stand still because something about them can not be read.
use std::collections::BTreeSet;

use dunlin_protocol::TaskId;

use super::{RolloutRow, TaskRow};
use crate::store::Read;

/// Tasks that are neither chosen for nor moved on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Still {
    held: BTreeSet<TaskId>,
    /// Whether a task is damaged so far that a task without a definition may be meant.
    nameless: bool,
}

impl Still {
    /// Follows from what was read: a task whose own row or one of whose rollouts is damaged stands still, and all of
    /// them where a damaged rollout does not tell whose it is.
    pub(super) fn new(tasks: &Read<TaskRow>, rollouts: &Read<RolloutRow>) -> Self {
        let known = |task: &TaskId| {
            tasks.rows.iter().any(|row| row.definition.task == *task)
                || tasks.damaged.contains_key(task.as_str())
        };
        let mut still = Self { held: BTreeSet::new(), nameless: !tasks.damaged.is_empty() };
        still.held.extend(tasks.damaged.keys().filter_map(|task| task.parse().ok()));
        for task in rollouts.damaged.values() {
            match task.parse::<TaskId>() {
                Ok(task) if known(&task) => {
                    still.held.insert(task);
                }
                Ok(_) | Err(_) => still.held.extend(tasks.rows.iter().map(|row| row.definition.task.clone())),
            }
        }
        still
    }

    /// Whether anything stands still.
    pub(super) fn any(&self) -> bool {
        self.nameless || !self.held.is_empty()
    }

    /// Whether a task stands still.
    pub(super) fn holds(&self, task: &TaskId) -> bool {
        self.held.contains(task)
    }

    /// Whether what a device was told of a task stays; `planned` says whether the task is planned for.
    pub(super) fn keeps(&self, task: &TaskId, planned: bool) -> bool {
        self.holds(task) || (self.nameless && !planned)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn tasks(names: &[&str]) -> Read<TaskRow> {
        let row = |name: &&str| TaskRow {
            definition: toml::from_str(&format!("task = {name:?}\nlabels = [\"a\", \"b\"]")).unwrap(),
            owner: "ann".into(),
            created_ms: 0,
            schedule_ms: 0,
            triggers: None,
        };
        Read { rows: names.iter().map(row).collect(), damaged: BTreeMap::new() }
    }

    fn rollouts(damaged: &[(&str, &str)]) -> Read<RolloutRow> {
        let damaged = damaged.iter().map(|(rollout, task)| ((*rollout).to_owned(), (*task).to_owned()));
        Read { rows: Vec::new(), damaged: damaged.collect() }
    }

    fn id(name: &str) -> TaskId {
        name.parse().unwrap()
    }

    #[test]
    fn a_damaged_rollout_holds_its_task_and_no_other() {
        let still = Still::new(&tasks(&["meter", "valve"]), &rollouts(&[("r-1", "meter")]));
        assert!(still.holds(&id("meter")) && still.keeps(&id("meter"), false));
        assert!(!still.holds(&id("valve")) && !still.keeps(&id("valve"), true));
    }

    #[test]
    fn a_damaged_rollout_that_does_not_tell_its_task_holds_all() {
        let still = Still::new(&tasks(&["meter", "valve"]), &rollouts(&[("r-1", "metes")]));
        assert!(still.holds(&id("meter")) && still.holds(&id("valve")));
    }
}
