use dunlin_pipeline as pipeline;
use serde_json::{Value, json};

use super::{mirror, words};

#[test]
fn retraining_is_shown_as_it_is_sent() {
    let rate = json!({ "hits": 1, "n": 2 });
    let causes = [
        json!({ "cause": "accuracy", "rate": rate, "upper_ppm": 1, "limit_ppm": 1 }),
        json!({ "cause": "drift", "share_ppm": 1, "scope": "fleet", "features": ["f"] }),
        json!({ "cause": "cron", "due_ms": 1 }),
        json!({ "cause": "labels", "new": 1 }),
        json!({ "cause": "operator", "by": "ann" }),
    ];
    mirror("Cause", |cause| cause.reads_each::<pipeline::Cause>(Some("cause"), &causes));
    let quiet = [
        json!({ "why": "not_set" }),
        json!({ "why": "too_few_labels", "have": 1, "need": 2 }),
        json!({ "why": "not_below", "upper_ppm": 1, "limit_ppm": 1 }),
        json!({ "why": "no_drift", "share_ppm": 1 }),
        json!({ "why": "not_due", "next_ms": 1 }),
        json!({ "why": "too_few_new_labels", "have": 1, "need": 2 }),
        json!({ "why": "no_clock" }),
        json!({ "why": "bad_schedule" }),
    ];
    mirror("Quiet", |why| why.reads_each::<pipeline::Quiet>(Some("why"), &quiet));
    let holds = [
        json!({ "hold": "pending", "run": "r" }),
        json!({ "hold": "cool_down", "left_ms": 1 }),
        json!({ "hold": "budget", "used": 1, "max": 2 }),
        json!({ "hold": "no_clock" }),
    ];
    mirror("Hold", |hold| hold.reads_each::<pipeline::Hold>(Some("hold"), &holds));
    let fired = causes.iter().map(|cause| json!({ "fired": cause }));
    let outcomes: Vec<Value> = fired.chain(quiet.iter().map(|why| json!({ "quiet": why }))).collect();
    mirror("TriggerOutcome", |one| one.reads_each::<pipeline::Outcome>(None, &outcomes));
    let started = causes.iter().map(|cause| json!({ "start": cause }));
    let held = holds.iter().map(|hold| json!({ "held": { "cause": causes[0], "by": hold } }));
    let verdicts: Vec<Value> = started.chain(held).chain([json!("quiet")]).collect();
    mirror("TriggerVerdict", |one| one.reads_each::<pipeline::Verdict>(None, &verdicts));
    let rows: Vec<Value> =
        outcomes.iter().map(|outcome| json!({ "trigger": "cron", "outcome": outcome })).collect();
    let decision = |verdict: &Value| json!({ "rows": rows, "verdict": verdict });
    mirror("TriggerDecision", |one| {
        one.reads::<pipeline::Decision>(&verdicts.iter().map(decision).collect::<Vec<_>>());
    });
    let triggers = json!({ "accuracy": { "ppm_min": 1, "labels_min": 1 }, "drift_ppm_min": 1, "cron": "* * * * *",
        "labels_new_min": 1 });
    mirror("Triggers", |one| one.reads::<pipeline::Triggers>(&[triggers]));
    mirror("Gain", |one| one.reads::<pipeline::Gain>(&[json!({})]));
    mirror("Family", |one| {
        one.reads_each::<dunlin_learn::Family>(None, &words(&["logistic", "mlp", "gbdt"]))
    });
    let splits =
        ["time_ordered", "stratified"].map(|policy| json!({ "policy": policy, "holdout_percent": 25 }));
    mirror("Split", |one| one.reads::<dunlin_learn::job::Split>(&splits));
    let steps = ["pull", "validate", "search", "verify", "compare", "register", "roll_out"];
    mirror("StepKind", |step| step.reads_each::<pipeline::StepKind>(None, &words(&steps)));
    let mut entries = vec![
        json!({ "entry": "done", "step": "pull", "output": "o" }),
        json!({ "entry": "failed", "step": "pull", "attempt": 1, "error": "e", "fatal": true }),
        json!({ "entry": "no_gain", "step": "pull", "output": "o" }),
        json!({ "entry": "cancelled", "by": "ann" }),
        json!({ "entry": "restarted", "by": "ann" }),
    ];
    entries.extend(steps.map(|step| json!({ "entry": "started", "step": step, "attempt": 1 })));
    mirror("JournalEntry", |entry| entry.reads_each::<pipeline::Entry>(Some("entry"), &entries));
}
