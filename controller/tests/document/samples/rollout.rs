use dunlin_rollout as rollout;
use serde_json::{Value, json};

use super::mirror;

fn evidence(unit: &str) -> Value {
    json!({ "unit": unit, "device_power_ppm": 1, "devices": 1, "gain_ppm": -1, "design_effect_milli": 1, "harm": 0.5,
        "paired": { "both_right": 1, "only_new": 1, "only_old": 1, "both_wrong": 1 }, "not_inferior": 0.5, "needed": 0.5 })
}

fn failed() -> Value {
    json!([
        ["a", { "how": "reported", "reason": "ok" }],
        ["b", { "how": "unfinished", "for_ms": 1 }],
        ["c", { "how": "silent", "for_ms": 1 }],
    ])
}

fn stops() -> Vec<Value> {
    vec![
        json!({ "because": "failures", "failed": failed(), "allowed": 1 }),
        json!({ "because": "harm", "release": "m@1", "evidence": evidence("device") }),
        json!({ "because": "harm", "release": "m@1", "evidence": evidence("input") }),
        json!({ "because": "operator", "by": "ann" }),
    ]
}

#[test]
fn rollouts_are_shown_as_they_are_sent() {
    let failures: Vec<Value> = failed().as_array().unwrap().iter().map(|pair| pair[1].clone()).collect();
    mirror("Failure", |failure| failure.reads_each::<rollout::Failure>(Some("how"), &failures));
    mirror("StopReason", |reason| reason.reads_each::<rollout::StopReason>(Some("because"), &stops()));
    let mut states = vec![
        json!({ "state": "created" }),
        json!({ "state": "open", "wave": 1, "since_ms": 1 }),
        json!({ "state": "paused", "wave": 1, "since_ms": 1, "by": "ann" }),
        json!({ "state": "promoted", "at_ms": 1 }),
        json!({ "state": "superseded", "at_ms": 1, "by": "r" }),
    ];
    states.extend(
        stops().into_iter().map(|reason| json!({ "state": "stopped", "at_ms": 1, "reason": reason })),
    );
    mirror("RolloutState", |state| state.reads_each::<rollout::State>(Some("state"), &states));
    let plan = |state: &Value| {
        json!({ "rollout": "r", "task": "t", "candidates": ["m@1"], "cause": "c", "generation": 2, "parent": 1, "approved": [0],
            "members": { "a": { "wave": 0, "release": "m@1" }, "b": { "wave": 0, "release": null } }, "state": state })
    };
    mirror("Plan", |one| one.reads::<rollout::Plan>(&states.iter().map(plan).collect::<Vec<_>>()));
    let wave = json!({ "share_ppm": 1, "soak_ms": 1, "requests_min": 1, "pairs_min": 1, "labels_min": 1, "alpha_ppm": 1,
        "approval": true });
    let probation = json!({ "ms_min": 1, "requests_min": 1, "pairs_min": 1, "error_ppm_max": 1, "latency_percent_max": 1,
        "rss_bytes_max": 1, "disagree_ppm_max": 1 });
    let policy =
        json!({ "waves": [wave], "window": { "from_minute": 1, "to_minute": 2 }, "probation": probation });
    mirror("RolloutPolicy", |one| one.reads::<rollout::Policy>(&[policy, json!({})]));
    let mut waits = vec![
        json!({ "on": "clock" }),
        json!({ "on": "any_device" }),
        json!({ "on": "approval", "wave": 1 }),
        json!({ "on": "window" }),
        json!({ "on": "paused" }),
        json!({ "on": "soak", "left_ms": 1 }),
        json!({ "on": "devices", "devices": ["a"] }),
        json!({ "on": "selection" }),
        json!({ "on": "requests", "have": 1, "need": 2 }),
        json!({ "on": "pairs", "have": 1, "need": 2 }),
    ];
    for evidence in ["device", "input"].map(evidence) {
        waits.push(json!({ "on": "labels", "have": 1, "need": 2, "evidence": evidence }));
        waits.push(json!({ "on": "significance", "evidence": evidence }));
    }
    mirror("WaitingOn", |one| one.reads_each::<rollout::WaitingOn>(Some("on"), &waits));
    let with = |verdict: &str, rest: Value| {
        let mut all = rest;
        all["verdict"] = json!(verdict);
        all
    };
    let mut verdicts: Vec<Value> = waits.into_iter().map(|wait| with("wait", wait)).collect();
    verdicts.extend(stops().into_iter().map(|stop| with("stop", stop)));
    for evidence in [evidence("device"), Value::Null] {
        verdicts.push(with("open", json!({ "wave": 1, "evidence": evidence })));
        verdicts.push(with("promote", json!({ "evidence": evidence })));
    }
    verdicts.push(with("ended", json!({})));
    mirror("RolloutVerdict", |one| one.reads_each::<rollout::Verdict>(Some("verdict"), &verdicts));
    let tally = json!({ "members": 1, "idle": 1, "declined": 1, "ordered": 1, "committed": 1, "uncompared": 1,
        "failed": failed(), "allowed": 1, "requests": 1, "pairs": 1 });
    let report = |verdict: &Value| json!({ "generation": 1, "wave": 1, "verdict": verdict, "tally": tally, "hint": "h" });
    mirror("RolloutReport", |one| {
        one.reads::<rollout::Report>(&verdicts.iter().map(report).collect::<Vec<_>>());
    });
}
