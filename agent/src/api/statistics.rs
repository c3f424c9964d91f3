//! The statistics extension, in the shape Triton gives it.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::refusal::{self, Refusal};
use super::{Answered, Api, models};
use crate::serve::{Member, Span, TaskView};

/// Answers are kept in no cache.
pub(super) const NO_CACHE: Span = Span { count: 0, ns: 0 };

/// Members of all tasks, of one, or the one that a version names.
pub(super) fn members(
    api: &Api,
    name: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<(TaskView, Member)>, Refusal> {
    let views = match name {
        Some(name) => vec![models::view(api, name)?],
        None => api.serving.view(),
    };
    let mut all = Vec::new();
    for view in views {
        let chosen = match version {
            Some(version) => vec![models::member(&view, version)?.clone()],
            None => view.members.clone(),
        };
        all.extend(chosen.into_iter().map(|member| (view.clone(), member)));
    }
    Ok(all)
}

pub(super) fn answer(api: &Api, name: Option<&str>, version: Option<&str>) -> Result<Answered, Refusal> {
    let stats: Vec<Value> =
        members(api, name, version)?.iter().map(|(view, member)| one(view, member)).collect();
    Ok(refusal::json(StatusCode::OK, &json!({ "model_stats": stats })))
}

fn one(view: &TaskView, member: &Member) -> Value {
    let tally = &member.tally;
    let batches: Vec<Value> = tally
        .batches
        .iter()
        .map(|(rows, batch)| {
            json!({
                "batch_size": rows,
                "compute_input": span(&batch.input),
                "compute_infer": span(&batch.infer),
                "compute_output": span(&batch.output),
            })
        })
        .collect();
    json!({
        "name": view.task.as_str(),
        "version": member.release.to_string(),
        "last_inference": tally.last_ms,
        "inference_count": tally.rows,
        "execution_count": tally.executions,
        "inference_stats": {
            "success": span(&tally.success),
            "fail": span(&tally.fail),
            "queue": span(&tally.queue),
            "compute_input": span(&tally.input),
            "compute_infer": span(&tally.infer),
            "compute_output": span(&tally.output),
            "cache_hit": span(&NO_CACHE),
            "cache_miss": span(&NO_CACHE),
        },
        "batch_stats": batches,
    })
}

fn span(span: &Span) -> Value {
    json!({ "count": span.count, "ns": span.ns })
}
