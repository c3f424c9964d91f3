use std::collections::BTreeSet;

use dunlin_learn::Family;
use dunlin_learn::job::{Split, SplitPolicy};
use dunlin_pipeline::{Gain, Schedule, Triggers};
use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{GroupId, Probation, ReleaseId, TaskId, TaskType};
use dunlin_select::{Switching, Weights};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Lineup;
use crate::api::shape;

/// How a task is retrained by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retraining {
    /// When.
    #[schema(value_type = shape::Triggers)]
    pub triggers: Triggers,
    /// Groups whose samples do not go into training.
    #[schema(value_type = Vec<String>)]
    pub exclude: BTreeSet<GroupId>,
    /// Seed of the first run; each further run counts it up by one.
    pub seed: u64,
    /// Families to search.
    #[schema(value_type = Vec<shape::Family>)]
    pub families: Vec<Family>,
    /// Trials over all families.
    pub trials: u32,
    /// How rows are held out.
    #[schema(value_type = shape::Split)]
    pub split: Split,
    /// Newest labelled samples to learn from, at most.
    pub rows_max: u64,
    /// Fewer labelled samples than this are no dataset.
    pub rows_min: u64,
    /// Samples older than this are left out, milliseconds; zero means none.
    pub age_ms_max: u64,
    /// What a new model must show over the incumbent.
    #[schema(value_type = shape::Gain)]
    pub gain: Gain,
    /// Stretch of the newest windows that accuracy and drift are judged on, milliseconds.
    pub judged_ms: u64,
    /// Wall time after which a worker is ended, milliseconds.
    pub worker_ms_max: u64,
}

impl Default for Retraining {
    fn default() -> Self {
        Self {
            triggers: Triggers::default(),
            exclude: BTreeSet::new(),
            seed: 1,
            families: Family::ALL.to_vec(),
            trials: 12,
            split: Split { policy: SplitPolicy::Stratified, holdout_percent: 25 },
            rows_max: 50_000,
            rows_min: 200,
            age_ms_max: 0,
            gain: Gain::default(),
            judged_ms: 3_600_000,
            worker_ms_max: 1_800_000,
        }
    }
}

/// What a selection weighs, and by how much a new choice must win.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Choice {
    /// Longest median latency the task can use, microseconds; the device's own budget applies besides.
    pub latency_us_max: Option<u64>,
    /// Least accuracy, parts per million.
    pub accuracy_ppm_min: Option<u32>,
    /// The only release that may be chosen.
    #[schema(value_type = Option<String>)]
    pub pinned: Option<ReleaseId>,
    /// Releases that are not to be chosen.
    #[schema(value_type = Vec<String>)]
    pub excluded: BTreeSet<ReleaseId>,
    /// Requests an hour that energy is reckoned with.
    pub requests_per_hour: f64,
    /// Weights of the utility.
    #[schema(value_type = shape::Weights)]
    pub weights: Weights,
    /// Hysteresis.
    #[schema(value_type = shape::Switching)]
    pub switching: Switching,
    /// Stretch of the newest windows that choices are made on, milliseconds.
    pub judged_ms: u64,
}

impl Default for Choice {
    fn default() -> Self {
        let policy = dunlin_select::Policy::new(TaskType::Classification);
        Self {
            latency_us_max: policy.latency_us_max,
            accuracy_ppm_min: policy.accuracy_ppm_min,
            pinned: policy.pinned,
            excluded: policy.excluded,
            requests_per_hour: policy.requests_per_hour,
            weights: policy.weights,
            switching: policy.switching,
            judged_ms: 3_600_000,
        }
    }
}

/// What an operator says about a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskDefinition {
    /// The task.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// Its kind.
    #[serde(default = "classification")]
    #[schema(value_type = shape::TaskType)]
    pub task_type: TaskType,
    /// Who owns it; workers are shared fairly among owners. Empty means who made it.
    #[serde(default)]
    pub owner: String,
    /// Groups of devices that have the task; empty means every device.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<GroupId>,
    /// Groups of devices that keep the releases of the pool: no rollout ever opens to them.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub held: BTreeSet<GroupId>,
    /// Class names by index.
    #[serde(default)]
    pub labels: Vec<String>,
    /// The metric every decision names.
    #[serde(default = "accuracy")]
    pub metric: String,
    /// Releases any device may run without a rollout, once they are approved.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub pool: BTreeSet<ReleaseId>,
    /// Answers where the champion can not.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub fallback: Option<ReleaseId>,
    /// Further models beside the chosen one, and how all of them make one answer.
    #[serde(default)]
    pub lineup: Lineup,
    /// How releases are chosen.
    #[serde(default)]
    pub choice: Choice,
    /// How devices watch a change between releases of the pool.
    #[serde(default = "probation")]
    #[schema(value_type = shape::Probation)]
    pub probation: Probation,
    /// How candidates are rolled out, unless a rollout says otherwise.
    #[serde(default)]
    #[schema(value_type = shape::RolloutPolicy)]
    pub rollout: dunlin_rollout::Policy,
    /// Retraining; absent means never.
    #[serde(default)]
    pub retraining: Option<Retraining>,
}

fn classification() -> TaskType {
    TaskType::Classification
}

fn accuracy() -> String {
    "accuracy".into()
}

fn probation() -> Probation {
    dunlin_rollout::Policy::default().probation
}

/// Most labels of a task, as the trainer takes them.
const LABELS_MAX: usize = dunlin_learn::data::CLASSES_MAX;

/// Why a definition is refused.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// Too few or too many labels.
    #[error("labels must be 2 to {LABELS_MAX} names that differ")]
    Labels,
    /// A metric nothing computes.
    #[error("metric {0:?} is not known; this release decides by accuracy")]
    Metric(String),
    /// The line-up.
    #[error("the line-up is not sound")]
    Lineup(#[from] dunlin_protocol::LineUpError),
    /// The rollout policy.
    #[error("the rollout policy is not sound")]
    Rollout(#[from] dunlin_rollout::PolicyError),
    /// The schedule.
    #[error("the retraining schedule is not sound")]
    Schedule(#[from] dunlin_pipeline::ScheduleError),
    /// A number of the retraining rules.
    #[error("retraining.{0}")]
    Retraining(&'static str),
}

impl TaskDefinition {
    /// Refuses what can not work.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let distinct: BTreeSet<&String> = self.labels.iter().collect();
        if !(2..=LABELS_MAX).contains(&self.labels.len()) || distinct.len() != self.labels.len() {
            return Err(DefinitionError::Labels);
        }
        if self.metric != "accuracy" {
            return Err(DefinitionError::Metric(self.metric.clone()));
        }
        self.lineup.check()?;
        self.rollout.check()?;
        let Some(retraining) = &self.retraining else { return Ok(()) };
        if let Some(cron) = &retraining.triggers.cron {
            cron.parse::<Schedule>()?;
        }
        let rule = |broken: bool, text| if broken { Err(DefinitionError::Retraining(text)) } else { Ok(()) };
        rule(retraining.families.is_empty(), "families must name at least one family")?;
        rule(
            (retraining.trials as usize) < retraining.families.len(),
            "trials must be at least one per family",
        )?;
        rule(
            retraining.rows_min < 20 || retraining.rows_min > retraining.rows_max,
            "rows_min must lie between 20 and rows_max",
        )?;
        rule(retraining.rows_max > 1_000_000, "rows_max must be at most 1000000")?;
        rule(
            !(5..=50).contains(&retraining.split.holdout_percent),
            "split.holdout_percent must lie between 5 and 50",
        )?;
        rule(
            !(1..=500_000).contains(&retraining.gain.alpha_ppm),
            "gain.alpha_ppm must lie between 1 and 500000",
        )?;
        rule(retraining.worker_ms_max == 0, "worker_ms_max must be above zero")
    }

    /// The rules of selection.
    pub fn selection(&self) -> dunlin_select::Policy {
        let choice = self.choice.clone();
        dunlin_select::Policy {
            task_type: self.task_type,
            latency_us_max: choice.latency_us_max,
            accuracy_ppm_min: choice.accuracy_ppm_min,
            pinned: choice.pinned,
            excluded: choice.excluded,
            requests_per_hour: choice.requests_per_hour,
            weights: choice.weights,
            switching: choice.switching,
        }
    }

    /// Whether a device in these groups has the task.
    pub fn covers(&self, groups: &BTreeSet<GroupId>) -> bool {
        self.groups.is_empty() || !self.groups.is_disjoint(groups)
    }

    /// Groups that are neither judged nor learnt from: those that retraining leaves out, and those that are held.
    pub fn excluded(&self) -> BTreeSet<&GroupId> {
        self.retraining.iter().flat_map(|retraining| &retraining.exclude).chain(&self.held).collect()
    }

    /// Whether a device in these groups is out of every rollout.
    pub fn holds(&self, groups: &BTreeSet<GroupId>) -> bool {
        !self.held.is_disjoint(groups) && !weaken::off(Defence::Holding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "task = \"meter\"\nlabels = [\"0\", \"1\"]\npool = [\"base@1\"]";

    #[test]
    fn a_minimal_definition_has_defaults_and_reads_back() {
        let definition: TaskDefinition = toml::from_str(MINIMAL).unwrap();
        definition.check().unwrap();
        assert_eq!(definition.rollout.waves.len(), 4);
        let json = serde_json::to_string(&definition).unwrap();
        assert_eq!(serde_json::from_str::<TaskDefinition>(&json).unwrap(), definition);
    }

    #[test]
    fn what_can_not_work_is_refused() {
        for (extra, what) in [
            ("metric = \"f1\"", "metric"),
            ("[retraining]\ntriggers = { cron = \"often\" }", "schedule"),
            ("[retraining]\nfamilies = []", "families"),
            ("[retraining]\nrows_min = 1", "rows_min"),
            ("[rollout]\nwaves = []", "rollout"),
            ("[lineup]\nrule = \"hard_vote\"", "line-up"),
        ] {
            let definition: TaskDefinition = toml::from_str(&format!("{MINIMAL}\n{extra}")).unwrap();
            let error = definition.check().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(toml::from_str::<TaskDefinition>(&format!("{MINIMAL}\nlables = []")).is_err());
    }

    #[test]
    fn a_line_up_is_written_as_the_guide_shows() {
        let guide = include_str!("../../../docs/inference.md");
        let text = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let definition: TaskDefinition = toml::from_str(&format!("{MINIMAL}\n{text}")).unwrap();
        definition.check().unwrap();
        assert_eq!(definition.lineup.members.len(), 4);
        let json = serde_json::to_string(&definition).unwrap();
        assert_eq!(serde_json::from_str::<TaskDefinition>(&json).unwrap(), definition);
        let typo = text.replace("limit_us", "limit_ms");
        assert!(toml::from_str::<TaskDefinition>(&format!("{MINIMAL}\n{typo}")).is_err());
    }

    #[test]
    fn groups_decide_who_has_it_and_who_is_held() {
        let text = format!("{MINIMAL}\ngroups = [\"north\"]\nheld = [\"control\"]");
        let definition: TaskDefinition = toml::from_str(&text).unwrap();
        let of =
            |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<BTreeSet<GroupId>>();
        assert!(definition.covers(&of(&["north", "control"])) && !definition.covers(&of(&["south"])));
        assert!(definition.holds(&of(&["north", "control"])) && !definition.holds(&of(&["north"])));
    }
}
