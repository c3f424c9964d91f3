use serde::Serialize;
use utoipa::ToSchema;

/// When a task is retrained by itself. Absent triggers never fire.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Triggers {
    /// Accuracy from labels.
    accuracy: Option<AccuracyLimit>,
    /// Share of drifted features from which a group or the fleet counts as drifted, parts per million.
    drift_ppm_min: Option<u32>,
    /// Cron expression in UTC, with seconds if wanted.
    cron: Option<String>,
    /// New labelled samples since the last run.
    labels_new_min: Option<u64>,
    /// Least time between the end of one run and the start of the next, milliseconds.
    #[serde(default)]
    cooldown_ms: u64,
    /// Most runs within 24 hours.
    #[serde(default)]
    runs_per_day_max: u32,
}

/// Retrain when labelled accuracy is surely below a limit.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccuracyLimit {
    /// The limit, parts per million.
    ppm_min: u32,
    /// Least number of labels to judge on.
    labels_min: u64,
}

/// What a retrained model must show over the incumbent on held-out rows.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gain {
    /// Probability of deploying a model that is no better, parts per million.
    #[serde(default)]
    alpha_ppm: u32,
    /// Least gain in accuracy, parts per million.
    #[serde(default)]
    gain_ppm_min: u32,
    /// Fewer held-out rows than this decide nothing.
    #[serde(default)]
    rows_min: u64,
}

/// A kind of model.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Family {
    Logistic,
    Mlp,
    Gbdt,
}

/// The hold-out: rows no model sees before it is scored.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Split {
    /// How rows are chosen.
    policy: SplitPolicy,
    /// Share held out, percent; the same share of the rest decides between trials.
    holdout_percent: u32,
}

/// Which rows are held out: the newest, or drawn at random with the same share of every class.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SplitPolicy {
    TimeOrdered,
    Stratified,
}

/// The last weighing of a task's triggers.
#[derive(Serialize, ToSchema)]
pub(crate) struct TriggerDecision {
    /// Trigger by trigger, in the order of precedence.
    rows: Vec<TriggerRow>,
    /// What shall happen.
    verdict: TriggerVerdict,
}

/// One trigger.
#[derive(Serialize, ToSchema)]
pub(crate) struct TriggerRow {
    /// Its name.
    trigger: String,
    /// What came of it.
    outcome: TriggerOutcome,
}

/// Whether a trigger fired.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TriggerOutcome {
    /// It did.
    Fired(Cause),
    /// It did not.
    Quiet(Quiet),
}

/// What shall happen.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TriggerVerdict {
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

/// Why a run was started.
#[derive(Serialize, ToSchema)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub(crate) enum Cause {
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

/// `hits` of `n` trials.
#[derive(Serialize, ToSchema)]
pub(crate) struct Rate {
    /// Trials that hit.
    hits: u64,
    /// All trials.
    n: u64,
}

/// A drift report in short.
#[derive(Serialize, ToSchema)]
pub(crate) struct DriftFact {
    /// Share of drifted features, parts per million.
    share_ppm: u32,
    /// Where: `fleet` or a group.
    scope: String,
    /// Drifted features, the clearest first.
    features: Vec<String>,
}

/// Why a trigger did not fire.
#[derive(Serialize, ToSchema)]
#[serde(tag = "why", rename_all = "snake_case")]
pub(crate) enum Quiet {
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
#[derive(Serialize, ToSchema)]
#[serde(tag = "hold", rename_all = "snake_case")]
pub(crate) enum Hold {
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

/// A line of a run's journal.
#[derive(Serialize, ToSchema)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(crate) enum JournalEntry {
    /// A step was started.
    Started {
        /// The step.
        step: StepKind,
        /// Its try, from 1.
        attempt: u32,
    },
    /// A step was done.
    Done {
        /// The step.
        step: StepKind,
        /// What later steps need of it.
        output: String,
    },
    /// A try failed.
    Failed {
        /// The step.
        step: StepKind,
        /// Its try.
        attempt: u32,
        /// Why.
        error: String,
        /// Whether no other try can succeed.
        fatal: bool,
    },
    /// A step found that there is nothing to deploy.
    NoGain {
        /// The step.
        step: StepKind,
        /// The numbers.
        output: String,
    },
    /// Somebody cancelled the run.
    Cancelled {
        /// Who.
        by: String,
    },
    /// Somebody gave the failed step its tries back.
    Restarted {
        /// Who.
        by: String,
    },
}

/// A step of a run.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StepKind {
    Pull,
    Validate,
    Search,
    Verify,
    Compare,
    Register,
    RollOut,
}
