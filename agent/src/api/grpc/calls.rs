//! The calls, one function each.

use std::collections::HashMap;
use std::time::Instant;

use super::message::{
    BatchStatistics, Empty, IndexRequest, IndexResponse, InferRequest, InferResponse, LiveResponse,
    MetadataResponse, ModelIndex, ModelMetadataResponse, ModelRequest, ModelStatistics, OutputTensor,
    Parameter, ParameterChoice, ReadyResponse, RepositoryRequest, StatisticDuration, Statistics,
    StatisticsResponse, TensorMetadata,
};
use super::tensor;
use crate::api::infer::{choose, fresh_id, nanos, version};
use crate::api::refusal::Refusal;
use crate::api::request::{self, Wanted};
use crate::api::{Api, Residency, models, repository, statistics};
use crate::serve::{Member, Span, TaskView};

pub(super) async fn server_live(_: &Api, _: Empty) -> Result<LiveResponse, Refusal> {
    Ok(LiveResponse { live: true })
}

pub(super) async fn server_ready(api: &Api, _: Empty) -> Result<ReadyResponse, Refusal> {
    Ok(ReadyResponse { ready: models::waiting(api).is_empty() })
}

pub(super) async fn server_metadata(_: &Api, _: Empty) -> Result<MetadataResponse, Refusal> {
    Ok(MetadataResponse {
        name: "dunlin-agent".into(),
        version: crate::VERSION.into(),
        extensions: models::EXTENSIONS.map(str::to_owned).into(),
    })
}

/// The version that a message names; an empty one names none.
fn named(version: &str) -> Option<&str> {
    Some(version).filter(|version| !version.is_empty())
}

pub(super) async fn model_ready(api: &Api, asked: ModelRequest) -> Result<ReadyResponse, Refusal> {
    let ready = models::view(api, &asked.name).is_ok_and(|view| match named(&asked.version) {
        Some(version) => models::member(&view, version).is_ok_and(|member| member.out.is_none()),
        None => view.is_ready(),
    });
    Ok(ReadyResponse { ready })
}

pub(super) async fn model_metadata(api: &Api, asked: ModelRequest) -> Result<ModelMetadataResponse, Refusal> {
    let view = models::view(api, &asked.name)?;
    let member = match named(&asked.version) {
        Some(version) => Some(models::member(&view, version)?),
        None => view.members.first(),
    };
    let ports = |specs: &[dunlin_protocol::TensorSpec]| {
        specs
            .iter()
            .map(|spec| TensorMetadata {
                name: spec.name.clone(),
                datatype: spec.datatype.as_str().into(),
                shape: spec.shape.clone(),
            })
            .collect()
    };
    Ok(ModelMetadataResponse {
        name: view.task.to_string(),
        versions: view.versions().into_iter().map(ToString::to_string).collect(),
        platform: "onnx_onnxv1".into(),
        inputs: member.map(|m| ports(&m.inputs)).unwrap_or_default(),
        outputs: member.map(|m| ports(&m.outputs)).unwrap_or_default(),
    })
}

pub(super) async fn model_statistics(api: &Api, asked: ModelRequest) -> Result<StatisticsResponse, Refusal> {
    let members = statistics::members(api, named(&asked.name), named(&asked.version))?;
    Ok(StatisticsResponse { model_stats: members.iter().map(|(view, member)| stats(view, member)).collect() })
}

fn stats(view: &TaskView, member: &Member) -> ModelStatistics {
    let span = |span: &Span| Some(StatisticDuration { count: span.count, ns: span.ns });
    let tally = &member.tally;
    ModelStatistics {
        name: view.task.to_string(),
        version: member.release.to_string(),
        last_inference: tally.last_ms,
        inference_count: tally.rows,
        execution_count: tally.executions,
        inference_stats: Some(Statistics {
            success: span(&tally.success),
            fail: span(&tally.fail),
            queue: span(&tally.queue),
            compute_input: span(&tally.input),
            compute_infer: span(&tally.infer),
            compute_output: span(&tally.output),
            cache_hit: span(&statistics::NO_CACHE),
            cache_miss: span(&statistics::NO_CACHE),
        }),
        batch_stats: tally
            .batches
            .iter()
            .map(|(rows, batch)| BatchStatistics {
                batch_size: *rows,
                compute_input: span(&batch.input),
                compute_infer: span(&batch.infer),
                compute_output: span(&batch.output),
            })
            .collect(),
    }
}

/// `room` is kept until it is answered.
pub(super) async fn model_infer(
    api: &Api,
    asked: InferRequest,
    room: impl Send + 'static,
) -> Result<InferResponse, Refusal> {
    let from = Instant::now();
    let task = models::task(&asked.model_name)?;
    let release = match named(&asked.model_version) {
        Some(version) => {
            let view = models::view(api, &asked.model_name)?;
            Some(models::member(&view, version)?.release.clone())
        }
        None => None,
    };
    request::ports(asked.inputs.len().max(asked.outputs.len()), &api.limits)?;
    let id = request::id(asked.id)?.unwrap_or_else(fresh_id);
    request::supported("the request", asked.parameters.keys())?;
    for output in &asked.outputs {
        request::supported("an output", output.parameters.keys())?;
    }
    for input in &asked.inputs {
        request::supported("an input", input.parameters.keys())?;
    }
    let wanted = (!asked.outputs.is_empty())
        .then(|| asked.outputs.into_iter().map(|o| Wanted { name: o.name, binary: true }).collect());
    let inputs = tensor::inputs(asked.inputs, asked.raw_input_contents, &api.limits)?;
    let input_ns = nanos(from);
    let answer = api.answered(&task, release, &id, inputs, room).await?;
    let from = Instant::now();
    let chosen = choose(&answer, wanted, true)?;
    let parameter = |choice| Parameter { choice: Some(choice) };
    let text = |text: String| parameter(ParameterChoice::String(text));
    let mut parameters: HashMap<String, Parameter> = HashMap::from([
        ("generation".into(), parameter(ParameterChoice::Uint64(answer.generation))),
        ("answered_by".into(), text(answer.by.as_str().into())),
    ]);
    parameters.extend(answer.notes().map(|(name, value)| (name.into(), text(value))));
    let response = InferResponse {
        model_name: asked.model_name,
        model_version: version(&answer),
        id,
        parameters,
        outputs: chosen
            .iter()
            .map(|(output, _)| OutputTensor {
                name: output.name.clone(),
                datatype: output.datatype.as_str().into(),
                shape: output.shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
            })
            .collect(),
        raw_output_contents: chosen.iter().map(|(output, _)| output.data.0.clone().into()).collect(),
    };
    api.serving.tally(&task, &answer, input_ns, nanos(from), (api.clock)().wall_ms);
    Ok(response)
}

pub(super) async fn repository_index(api: &Api, asked: IndexRequest) -> Result<IndexResponse, Refusal> {
    let line = |entry: repository::Entry| ModelIndex {
        state: entry.state().into(),
        name: entry.name,
        version: entry.version,
        reason: entry.reason,
    };
    Ok(IndexResponse { models: repository::entries(api, asked.ready).into_iter().map(line).collect() })
}

pub(super) async fn load(api: &Api, asked: RepositoryRequest) -> Result<Empty, Refusal> {
    repository::nothing_brought(asked.parameters.keys().map(String::as_str))?;
    repository::carry_out(api, &asked.model_name, Residency::Loaded).await.map(|()| Empty {})
}

pub(super) async fn unload(api: &Api, asked: RepositoryRequest) -> Result<Empty, Refusal> {
    repository::carry_out(api, &asked.model_name, Residency::Unloaded).await.map(|()| Empty {})
}
