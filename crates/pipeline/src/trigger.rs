use dunlin_monitor::rate::{Rate, Z95};
use dunlin_protocol::weaken::{self, Defence};
use serde::{Deserialize, Serialize};

use crate::Schedule;

const DAY_MS: u64 = 86_400_000;

/// Retrain when labelled accuracy is surely below a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccuracyLimit {
    /// The limit, parts per million.
    pub ppm_min: u32,
    /// Least number of labels to judge on.
    pub labels_min: u64,
}

/// When a task is retrained by itself. Absent triggers never fire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Triggers {
    /// Accuracy from labels.
    pub accuracy: Option<AccuracyLimit>,
    /// Share of drifted features, weighted as the drift report does, from which a group or the fleet counts
    /// as drifted; parts per million.
    pub drift_ppm_min: Option<u32>,
    /// Cron expression in UTC, with seconds if wanted.
    pub cron: Option<String>,
    /// New labelled samples since the last run.
    pub labels_new_min: Option<u64>,
    /// Least time between the end of one run and the start of the next, milliseconds.
    pub cooldown_ms: u64,
    /// Most runs within 24 hours.
    pub runs_per_day_max: u32,
}

impl Default for Triggers {
    /// Nothing fires; an hour of cool-down and eight runs a day once something does.
    fn default() -> Self {
        Self {
            accuracy: None,
            drift_ppm_min: None,
            cron: None,
            labels_new_min: None,
            cooldown_ms: 3_600_000,
            runs_per_day_max: 8,
        }
    }
}

/// A drift report in short. Drift of a single device is a sensor fault and never stands here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftFact {
    /// Share of drifted features, parts per million.
    pub share_ppm: u32,
    /// Where: `fleet` or a group.
    pub scope: String,
    /// Drifted features, the clearest first.
    pub features: Vec<String>,
}

/// What is known of a task when its triggers are weighed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Labelled answers of the serving releases in the stretch that is judged.
    pub accuracy: Rate,
    /// Confirmed drift.
    pub drift: Option<DriftFact>,
    /// Labelled samples stored since the last run.
    pub labels_new: u64,
    /// From when on the schedule counts: its last firing, or when the task was made; Unix milliseconds.
    pub schedule_from_ms: u64,
    /// End of the last run, Unix milliseconds.
    pub last_end_ms: Option<u64>,
    /// Runs begun within the last 24 hours.
    pub runs_last_day: u32,
    /// A run of the task that waits or runs.
    pub pending: Option<String>,
}

/// Why a run was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// Accuracy fell below the limit.
    Accuracy {
        /// The labelled answers.
        rate: Rate,
        /// Upper bound of its 95 % interval, parts per million.
        upper_ppm: u32,
        /// The limit, parts per million.
        limit_ppm: u32,
    },
    /// The inputs moved.
    Drift(DriftFact),
    /// The schedule was due.
    Cron {
        /// When, Unix milliseconds.
        due_ms: u64,
    },
    /// Enough new labels.
    Labels {
        /// How many.
        new: u64,
    },
    /// An operator asked.
    Operator {
        /// Who.
        by: String,
    },
}

/// Why a trigger did not fire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Quiet {
    /// It is not set.
    NotSet,
    /// Too few labels to judge accuracy.
    TooFewLabels {
        /// Labels there are.
        have: u64,
        /// Labels asked for.
        need: u64,
    },
    /// Accuracy may still be at the limit.
    NotBelow {
        /// Upper bound of its interval, parts per million.
        upper_ppm: u32,
        /// The limit, parts per million.
        limit_ppm: u32,
    },
    /// No drift, or less than asked for.
    NoDrift {
        /// Share of drifted features, parts per million.
        share_ppm: u32,
    },
    /// Not due yet.
    NotDue {
        /// When it is, Unix milliseconds; absent if never.
        next_ms: Option<u64>,
    },
    /// Too few new labels.
    TooFewNewLabels {
        /// Labels there are.
        have: u64,
        /// Labels asked for.
        need: u64,
    },
    /// The wall clock is unknown.
    NoClock,
    /// The expression does not parse.
    BadSchedule,
}

/// Why a run does not start although a trigger fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "hold", rename_all = "snake_case")]
pub enum Hold {
    /// A run of the task waits or runs.
    Pending {
        /// The run.
        run: String,
    },
    /// The last run is too recent.
    CoolDown {
        /// Milliseconds left.
        left_ms: u64,
    },
    /// The day's runs are used up.
    Budget {
        /// Runs within the last 24 hours.
        used: u32,
        /// Runs allowed.
        max: u32,
    },
    /// The wall clock is unknown.
    NoClock,
}

/// One trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub trigger: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// Whether a trigger fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did.
    Fired(Cause),
    /// It did not.
    Quiet(Quiet),
}

/// What shall happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Queue a run.
    Start(Cause),
    /// A trigger fired, but not now.
    Held {
        /// The trigger.
        cause: Cause,
        /// What holds it.
        by: Hold,
    },
    /// No trigger fired.
    Quiet,
}

/// A decision with every trigger's part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "the rows are the explanation"]
pub struct Decision {
    /// Trigger by trigger, in the order of precedence.
    pub rows: Vec<Row>,
    /// What shall happen.
    pub verdict: Verdict,
}

/// Weighs the triggers of a task. `operator` names who asked for a run, if somebody did: that passes cool-down
/// and budget, which bound what the machine does by itself.
pub fn consider(triggers: &Triggers, facts: &Facts, operator: Option<&str>, now_ms: Option<u64>) -> Decision {
    let asked = operator
        .map_or(Outcome::Quiet(Quiet::NotSet), |by| Outcome::Fired(Cause::Operator { by: by.to_owned() }));
    let rows: Vec<Row> = [
        ("operator", asked),
        ("accuracy", accuracy(triggers, facts)),
        ("drift", drift(triggers, facts)),
        ("labels", labels(triggers, facts)),
        ("cron", cron(triggers, facts, now_ms)),
    ]
    .into_iter()
    .map(|(trigger, outcome)| Row { trigger: trigger.to_owned(), outcome })
    .collect();
    let fired = rows.iter().find_map(|row| match &row.outcome {
        Outcome::Fired(cause) => Some(cause.clone()),
        Outcome::Quiet(_) => None,
    });
    let fired = fired.filter(|_| operator.is_some() || !weaken::off(Defence::Trigger));
    let verdict = match fired {
        None => Verdict::Quiet,
        Some(cause) => match hold(triggers, facts, operator.is_some(), now_ms) {
            Some(by) => Verdict::Held { cause, by },
            None => Verdict::Start(cause),
        },
    };
    Decision { rows, verdict }
}

fn accuracy(triggers: &Triggers, facts: &Facts) -> Outcome {
    let Some(limit) = triggers.accuracy else { return Outcome::Quiet(Quiet::NotSet) };
    let rate = facts.accuracy;
    if rate.n < limit.labels_min.max(1) {
        return Outcome::Quiet(Quiet::TooFewLabels { have: rate.n, need: limit.labels_min.max(1) });
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a million")]
    let upper_ppm = (rate.wilson(Z95).high * 1e6) as u32;
    let limit_ppm = limit.ppm_min;
    if upper_ppm < limit_ppm {
        Outcome::Fired(Cause::Accuracy { rate, upper_ppm, limit_ppm })
    } else {
        Outcome::Quiet(Quiet::NotBelow { upper_ppm, limit_ppm })
    }
}

fn drift(triggers: &Triggers, facts: &Facts) -> Outcome {
    match (triggers.drift_ppm_min, &facts.drift) {
        (None, _) => Outcome::Quiet(Quiet::NotSet),
        (Some(limit), Some(drift)) if drift.share_ppm >= limit => Outcome::Fired(Cause::Drift(drift.clone())),
        (Some(_), drift) => {
            Outcome::Quiet(Quiet::NoDrift { share_ppm: drift.as_ref().map_or(0, |drift| drift.share_ppm) })
        }
    }
}

fn labels(triggers: &Triggers, facts: &Facts) -> Outcome {
    match triggers.labels_new_min {
        None => Outcome::Quiet(Quiet::NotSet),
        Some(need) if facts.labels_new >= need.max(1) => {
            Outcome::Fired(Cause::Labels { new: facts.labels_new })
        }
        Some(need) => Outcome::Quiet(Quiet::TooFewNewLabels { have: facts.labels_new, need: need.max(1) }),
    }
}

fn cron(triggers: &Triggers, facts: &Facts, now_ms: Option<u64>) -> Outcome {
    let Some(text) = &triggers.cron else { return Outcome::Quiet(Quiet::NotSet) };
    let Ok(schedule) = text.parse::<Schedule>() else { return Outcome::Quiet(Quiet::BadSchedule) };
    let Some(now_ms) = now_ms else { return Outcome::Quiet(Quiet::NoClock) };
    match schedule.due(facts.schedule_from_ms, now_ms).filter(|_| !weaken::off(Defence::Schedule)) {
        Some(due_ms) => Outcome::Fired(Cause::Cron { due_ms }),
        None => Outcome::Quiet(Quiet::NotDue { next_ms: schedule.next(now_ms) }),
    }
}

fn hold(triggers: &Triggers, facts: &Facts, operator: bool, now_ms: Option<u64>) -> Option<Hold> {
    if let Some(run) = &facts.pending {
        return Some(Hold::Pending { run: run.clone() });
    }
    if operator {
        return None;
    }
    let Some(now_ms) = now_ms else { return Some(Hold::NoClock) };
    let since = facts.last_end_ms.map_or(u64::MAX, |end| now_ms.saturating_sub(end));
    if since < triggers.cooldown_ms {
        return Some(Hold::CoolDown { left_ms: triggers.cooldown_ms - since });
    }
    (facts.runs_last_day >= triggers.runs_per_day_max)
        .then_some(Hold::Budget { used: facts.runs_last_day, max: triggers.runs_per_day_max })
}

impl Triggers {
    /// The stretch within which runs count against the budget, milliseconds.
    pub const BUDGET_MS: u64 = DAY_MS;
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Option<u64> = Some(1_772_323_170_000);

    fn triggers() -> Triggers {
        Triggers {
            accuracy: Some(AccuracyLimit { ppm_min: 850_000, labels_min: 100 }),
            drift_ppm_min: Some(300_000),
            cron: Some("* * * * *".into()),
            labels_new_min: Some(500),
            ..Triggers::default()
        }
    }

    fn quiet_facts() -> Facts {
        Facts { accuracy: Rate::new(95, 100), schedule_from_ms: NOW.unwrap(), ..Facts::default() }
    }

    #[test]
    fn quiet_triggers_say_why() {
        let decision = consider(&triggers(), &quiet_facts(), None, NOW);
        assert_eq!(decision.verdict, Verdict::Quiet);
        assert_eq!(decision.rows.len(), 5);
        assert!(matches!(decision.rows[1].outcome, Outcome::Quiet(Quiet::NotBelow { .. })));
        assert!(matches!(decision.rows[4].outcome, Outcome::Quiet(Quiet::NotDue { next_ms: Some(_) })));
    }

    #[test]
    fn accuracy_fires_only_when_the_whole_interval_is_below() {
        let at = |hits| {
            consider(&triggers(), &Facts { accuracy: Rate::new(hits, 200), ..quiet_facts() }, None, NOW)
                .verdict
        };
        assert!(matches!(at(140), Verdict::Start(Cause::Accuracy { .. })), "70 %: upper bound 76 %");
        assert_eq!(at(165), Verdict::Quiet, "82.5 %: the upper bound is 87 %");
    }

    #[test]
    fn every_other_trigger_fires_by_itself() {
        let drift = DriftFact { share_ppm: 400_000, scope: "fleet".into(), features: vec!["p1".into()] };
        let with = |facts: Facts| consider(&triggers(), &facts, None, NOW).verdict;
        assert!(matches!(
            with(Facts { drift: Some(drift), ..quiet_facts() }),
            Verdict::Start(Cause::Drift(_))
        ));
        assert!(matches!(
            with(Facts { labels_new: 500, ..quiet_facts() }),
            Verdict::Start(Cause::Labels { new: 500 })
        ));
        let due = Facts { schedule_from_ms: NOW.unwrap() - 60_000, ..quiet_facts() };
        assert!(matches!(with(due), Verdict::Start(Cause::Cron { .. })));
    }

    #[test]
    fn cool_down_budget_and_a_pending_run_hold_it_back() {
        let fired = Facts { labels_new: 1000, ..quiet_facts() };
        let held = |facts: Facts, operator| match consider(&triggers(), &facts, operator, NOW).verdict {
            Verdict::Held { by, .. } => Some(by),
            Verdict::Start(_) | Verdict::Quiet => None,
        };
        let recent = Facts { last_end_ms: Some(NOW.unwrap() - 60_000), ..fired.clone() };
        assert_eq!(held(recent.clone(), None), Some(Hold::CoolDown { left_ms: 3_540_000 }));
        assert_eq!(held(recent, Some("ann")), None, "an operator passes the cool-down");
        let used = Facts { runs_last_day: 8, ..fired.clone() };
        assert_eq!(held(used, None), Some(Hold::Budget { used: 8, max: 8 }));
        let pending = Facts { pending: Some("run-1".into()), ..fired };
        assert_eq!(held(pending, Some("ann")), Some(Hold::Pending { run: "run-1".into() }));
    }

    #[test]
    fn without_a_clock_only_an_operator_starts_a_run() {
        let fired = Facts { labels_new: 1000, ..quiet_facts() };
        assert!(matches!(
            consider(&triggers(), &fired, None, None).verdict,
            Verdict::Held { by: Hold::NoClock, .. }
        ));
        assert!(matches!(consider(&triggers(), &fired, Some("ann"), None).verdict, Verdict::Start(_)));
    }
}
