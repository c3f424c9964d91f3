-- Tasks, what devices shall run, rollouts, retraining runs. Bodies are JSON of the named Rust types.

CREATE TABLE tasks (
    id          TEXT PRIMARY KEY,
    -- planner::TaskDefinition.
    definition  TEXT NOT NULL,
    owner       TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL,
    -- From when on the retraining schedule counts: its last firing, or when the task was made.
    schedule_ms INTEGER NOT NULL,
    -- The last weighing of the triggers, dunlin_pipeline::Decision.
    triggers    TEXT
) STRICT;

CREATE TABLE rollouts (
    id         TEXT PRIMARY KEY,
    task       TEXT NOT NULL REFERENCES tasks (id),
    -- dunlin_rollout::Policy; fixed for the life of the rollout.
    policy     TEXT NOT NULL,
    cause      TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    -- Run that made the candidates, if one did.
    run        TEXT,
    -- Of the newest plan.
    generation INTEGER NOT NULL,
    state      TEXT NOT NULL,
    -- The last dunlin_rollout::Report.
    report     TEXT,
    updated_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX rollouts_by_task ON rollouts (task, created_ms);
-- A run makes at most one rollout, however often its last step is repeated.
CREATE UNIQUE INDEX rollouts_by_run ON rollouts (run) WHERE run IS NOT NULL;

-- Every plan there ever was; plans are never changed.
CREATE TABLE plans (
    rollout    TEXT NOT NULL REFERENCES rollouts (id),
    generation INTEGER NOT NULL,
    parent     INTEGER,
    -- dunlin_rollout::Plan.
    body       TEXT NOT NULL,
    made_ms    INTEGER NOT NULL,
    PRIMARY KEY (rollout, generation)
) STRICT, WITHOUT ROWID;

-- The candidate a device was ordered to take for a rollout.
CREATE TABLE orders (
    rollout    TEXT NOT NULL REFERENCES rollouts (id),
    device     TEXT NOT NULL,
    release    TEXT NOT NULL,
    -- Generation of the assignment that first named it.
    generation INTEGER NOT NULL,
    since_ms   INTEGER NOT NULL,
    PRIMARY KEY (rollout, device)
) STRICT, WITHOUT ROWID;

-- What each device shall run: stored first, then signed and published.
CREATE TABLE assignments (
    device     TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    -- dunlin_protocol::Assignment.
    body       TEXT NOT NULL,
    published  INTEGER NOT NULL DEFAULT 0,
    made_ms    INTEGER NOT NULL
) STRICT;

-- Why a device runs what it runs.
CREATE TABLE decisions (
    device     TEXT NOT NULL,
    task       TEXT NOT NULL,
    -- planner::Decision.
    body       TEXT NOT NULL,
    made_ms    INTEGER NOT NULL,
    PRIMARY KEY (device, task)
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    id         TEXT PRIMARY KEY,
    task       TEXT NOT NULL REFERENCES tasks (id),
    owner      TEXT NOT NULL,
    -- dunlin_pipeline::Cause.
    cause      TEXT NOT NULL,
    -- waiting, or a dunlin_pipeline::RunState by name.
    state      TEXT NOT NULL,
    -- The task definition as it was; a repeated run uses it and not the present one.
    definition TEXT NOT NULL,
    seed       INTEGER NOT NULL,
    -- Run whose dataset and seed this one repeats.
    repeats    TEXT,
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms   INTEGER,
    -- What an operator wants of it and has not got yet: training::Wanted.
    wanted     TEXT,
    -- Facts for people and for repetition: dataset digest, rows, code, metrics, verdict, releases; JSON.
    facts      TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX runs_by_task ON runs (task, created_ms);

CREATE TABLE run_journal (
    run   TEXT NOT NULL REFERENCES runs (id),
    no    INTEGER NOT NULL,
    -- dunlin_pipeline::Entry.
    entry TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (run, no)
) STRICT, WITHOUT ROWID;

-- The queue of waiting runs, dunlin_pipeline::Queue, in one row.
CREATE TABLE run_queue (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    body TEXT NOT NULL
) STRICT;

-- Failures of a release on a device up to this time count no more: an operator said so.
CREATE TABLE forgiven (
    device  TEXT NOT NULL,
    release TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (device, release)
) STRICT, WITHOUT ROWID;
