//! Prometheus text exposition, format 0.0.4.

use std::fmt::Write;

use crate::serve::{AnsweredBy, TaskView};

/// Counters and gauges of all tasks. Names and ids need no escaping: they hold neither quotes nor backslashes.
pub(super) fn text(views: &[TaskView]) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, u64)>| {
        // Writing to a string does not fail.
        let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _infallible = writeln!(out, "{name}{{{labels}}} {value}");
        }
    };
    let answered = views.iter().flat_map(|v| {
        AnsweredBy::ALL
            .iter()
            .zip(v.answered)
            .map(|(by, n)| (format!("task=\"{}\",by=\"{}\"", v.task, by.as_str()), n))
    });
    family("dunlin_requests_total", "counter", "Requests answered.", answered.collect());
    let failed = views.iter().map(|v| (format!("task=\"{}\"", v.task), v.failed));
    family("dunlin_model_failures_total", "counter", "Runs of models that failed.", failed.collect());
    let generation = views.iter().map(|v| (format!("task=\"{}\"", v.task), v.generation));
    family("dunlin_generation", "gauge", "Generation of the assignment in force.", generation.collect());
    let probation = views.iter().map(|v| (format!("task=\"{}\"", v.task), u64::from(v.probation)));
    family("dunlin_probation", "gauge", "Whether the champion is in probation.", probation.collect());
    let degraded = views.iter().map(|v| (format!("task=\"{}\"", v.task), u64::from(v.degraded.is_some())));
    family(
        "dunlin_degraded",
        "gauge",
        "Whether a smaller member answers because of the device's context.",
        degraded.collect(),
    );
    let away = views.iter().map(|v| (format!("task=\"{}\"", v.task), v.away.len() as u64));
    family("dunlin_members_away", "gauge", "Members that there is no room for in memory.", away.collect());
    let latency = views.iter().flat_map(|v| {
        v.members.iter().map(|m| {
            (format!("task=\"{}\",release=\"{}\",role=\"{}\"", v.task, m.release, m.role.as_str()), m.row_us)
        })
    });
    family(
        "dunlin_model_row_microseconds",
        "gauge",
        "Moving average of the time of one row.",
        latency.collect(),
    );
    out
}
