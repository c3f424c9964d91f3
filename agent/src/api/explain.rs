//! The explain verb of KServe: Open Inference Protocol V2 inputs, or the instances of V1.

use std::time::Duration;

use dunlin_engine::{Effort, Explains, Method, PERMUTATIONS_MAX, of_floats};
use dunlin_protocol::{TaskId, TensorData};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, Whole};
use super::refusal::{self, Refusal};
use super::request::{self, Layout};
use super::{Answered, Api, infer, models};
use crate::serve::{
    Budget, EXPLAIN_BUDGET, EXPLAIN_BUDGET_MAX, EXPLAIN_PERMUTATIONS, EXPLAINED_ROWS_MAX, Explained,
};

/// The part of a request that is about the explanation.
#[derive(Debug, Default, Deserialize)]
struct Wire {
    #[serde(default)]
    parameters: Wanted,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    budget_ms: Option<u64>,
    permutations: Option<usize>,
    seed: u64,
    /// `predicted`, or `all` classes.
    classes: Option<Classes>,
    /// `auto`: from the nodes where the answer is made of one tree ensemble; or `permutation`.
    method: Option<WantedMethod>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Classes {
    Predicted,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WantedMethod {
    Auto,
    Permutation,
}

impl Wanted {
    fn budget(&self) -> Result<Budget, Refusal> {
        let most = EXPLAIN_BUDGET_MAX.as_millis() as u64;
        let time = match self.budget_ms {
            None => EXPLAIN_BUDGET,
            Some(ms @ 1..) if ms <= most => Duration::from_millis(ms),
            Some(ms) => return Err(Refusal::bad(format!("budget_ms is {ms}; it goes from 1 to {most}"))),
        };
        let permutations = self.permutations.unwrap_or(EXPLAIN_PERMUTATIONS);
        if !(1..=PERMUTATIONS_MAX).contains(&permutations) {
            return Err(Refusal::bad(format!(
                "permutations is {permutations}; it goes from 1 to {PERMUTATIONS_MAX}"
            )));
        }
        let sampled = self.method == Some(WantedMethod::Permutation);
        Ok(Budget { time, effort: Effort { sampled, permutations, seed: self.seed } })
    }
}

/// `POST /v2/models/{name}/explain`: a request as for inference.
pub(super) async fn answer(
    api: &Api,
    name: &str,
    version: Option<&str>,
    request: Request<Incoming>,
) -> Result<Answered, Refusal> {
    let _place = api.enter()?;
    let task = models::task(name)?;
    let layout = request::layout(request.headers())?;
    let Whole { bytes: body, held: _held } = body::read(request, api).await?;
    let json_length = match layout {
        Layout::Json => body.len(),
        Layout::Binary(length) => length,
        Layout::Raw => {
            return Err(Refusal::bad("explain takes a request in JSON, with binary tensors or without"));
        }
    };
    let asked = request::read(&body, Some(json_length), &api.limits)?;
    let wanted = wanted(&body[..json_length])?;
    let id = asked.id.unwrap_or_else(infer::fresh_id);
    explain(api, &task, version, asked.inputs, wanted, Some(id)).await
}

fn wanted(text: &[u8]) -> Result<Wanted, Refusal> {
    let wire: Wire =
        serde_json::from_slice(text).map_err(|e| Refusal::bad(format!("reading the parameters: {e}")))?;
    Ok(wire.parameters)
}

#[derive(Debug, Deserialize)]
struct Instances {
    #[serde(deserialize_with = "request::few")]
    instances: Vec<Vec<f32>>,
}

/// `POST /v1/models/{name}:explain`: rows of features as `instances`.
pub(super) async fn answer_v1(
    api: &Api,
    name: &str,
    request: Request<Incoming>,
) -> Result<Answered, Refusal> {
    let _place = api.enter()?;
    let view = models::view(api, name)?;
    let Whole { bytes: body, held: _held } = body::read(request, api).await?;
    let Instances { instances } =
        serde_json::from_slice(&body).map_err(|e| Refusal::bad(format!("reading the instances: {e}")))?;
    if !(1..=EXPLAINED_ROWS_MAX).contains(&instances.len()) {
        return Err(Refusal::bad(format!(
            "{} instances; from 1 to {EXPLAINED_ROWS_MAX} are explained at once",
            instances.len()
        )));
    }
    let columns = instances[0].len();
    if instances.iter().any(|row| row.len() != columns) {
        return Err(Refusal::bad("the instances are not all of one length"));
    }
    // Without a member the refusal comes from the line-up.
    let input = view.members.first().and_then(|m| m.inputs.first()).map_or("", |spec| spec.name.as_str());
    let shape = [instances.len() as u64, columns as u64];
    let inputs = vec![of_floats(input, &shape, &instances.concat())];
    explain(api, &view.task, None, inputs, wanted(&body)?, None).await
}

async fn explain(
    api: &Api,
    task: &TaskId,
    version: Option<&str>,
    inputs: Vec<TensorData>,
    wanted: Wanted,
    id: Option<String>,
) -> Result<Answered, Refusal> {
    let budget = wanted.budget()?;
    let version = match version {
        Some(version) => Some(models::member(&models::view(api, task.as_str())?, version)?.release.clone()),
        None => None,
    };
    let explained = api.serving.explain(task, version.as_ref(), inputs, budget).await?;
    let all = wanted.classes == Some(Classes::All);
    let rows: Vec<Value> = explained.rows.iter().map(|row| one(&explained, row, all)).collect();
    let mut body = json!({
        "model_name": task.as_str(),
        "model_version": explained.release.to_string(),
        "parameters": { "generation": explained.generation },
        "features": explained.features,
        "explanations": rows,
    });
    if let Some(id) = id {
        body["id"] = Value::from(id);
    }
    Ok(refusal::json(StatusCode::OK, &body))
}

fn one(explained: &Explained, row: &dunlin_engine::Explanation, all: bool) -> Value {
    let predicted = explained.predicted(row);
    let method = match row.method {
        Method::Tree => "tree",
        Method::Permutation => "permutation",
    };
    let explains = match row.explains {
        Explains::Margin => "margin",
        Explains::Output => "output",
    };
    let shown =
        explained.columns.iter().enumerate().filter(|(i, _)| all || predicted.is_none_or(|p| p == *i));
    let outputs: Vec<Value> = shown
        .map(|(i, name)| {
            json!({
                "name": name,
                "base_value": row.base[i],
                "value": row.value[i],
                "contributions": row.of(i),
            })
        })
        .collect();
    json!({
        "method": method,
        "explains": explains,
        "predicted": predicted.map(|class| &explained.columns[class]),
        "background_rows": row.background,
        "permutations": row.permutations,
        "complete": row.complete,
        "outputs": outputs,
    })
}
