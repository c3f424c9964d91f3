//! From a file to a graph: over any number of rows, over one, or over as many as the file says.

use std::collections::HashMap;

use dunlin_protocol::TensorSpec;
use tract_onnx::pb;
use tract_onnx::pb::tensor_shape_proto::Dimension;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::tract_hir::internal::{Framework, InferenceModelExt, Symbol, ToDim, TypedModel};

use super::ROWS_MAX;
use crate::check::{self, too_large, unsupported};
use crate::origin::{FIX_THE_BATCH, Origins};
use crate::plan::{Plan, prepare};
use crate::runtime::{contained, framework};
use crate::{EngineError, amend, layout, steps, tensor};

/// Name of the symbol that stands for the number of rows while a graph is prepared.
const ROWS: &str = "dunlin_rows";

/// The plan for so many rows of a graph over any number.
pub(super) fn concrete(typed: &TypedModel, rows: usize) -> Result<Plan, EngineError> {
    let model = contained("fixing the number of rows", || {
        let subs = HashMap::from([(self::rows(typed), rows.to_dim())]);
        typed.set_symbols(&subs).map_err(prepare)?.into_decluttered().map_err(prepare)
    })?;
    Plan::new(model)
}

/// Takes the file, because it holds all weights once more: it is gone before the graph is worked on.
pub(super) fn prepared(mut file: pb::ModelProto, origins: &Origins) -> Result<TypedModel, EngineError> {
    contained("preparing the model", move || {
        if let Some(graph) = &mut file.graph {
            steps::fuse(graph);
            amend::leave_out(graph);
        }
        let model = framework().model_for_proto_model(&file).map_err(prepare)?;
        drop(file);
        let mut typed = model.into_typed().map_err(prepare)?;
        amend::put(&mut typed).map_err(prepare)?;
        origins.check_types(&typed)?;
        origins.check_places(&typed)?;
        layout::keep(&mut typed).map_err(prepare)?;
        let typed = typed.into_decluttered().map_err(prepare)?;
        // Once more: an operator may have become another one, and its inputs constants.
        origins.check_types(&typed)?;
        origins.check_places(&typed)?;
        Ok(typed)
    })
}

/// The graph for one row alone, from the file once more, with its outputs: each must be one row.
pub(super) fn single_row(
    onnx: &[u8],
    inputs: &[TensorSpec],
    origins: &Origins,
    mut outputs: Vec<TensorSpec>,
) -> Result<(TypedModel, Vec<TensorSpec>), EngineError> {
    let mut file = check::decode(onnx)?;
    set_rows(&mut file, inputs, &Dim::DimValue(1));
    let typed = prepared(file, origins)?;
    describe(&typed, origins, &mut outputs)?;
    row_by_row(&typed, origins, &outputs, 1)?;
    Ok((typed, outputs))
}

/// The symbol that stands for the number of rows.
pub(super) fn rows(typed: &TypedModel) -> Symbol {
    typed.symbols.sym(ROWS)
}

/// Refuses outputs that have not `rows` of them: answers could not be put together from those of parts.
pub(super) fn row_by_row(
    typed: &TypedModel,
    origins: &Origins,
    outputs: &[TensorSpec],
    rows: i64,
) -> Result<(), EngineError> {
    let made = typed.output_outlets().map_err(prepare)?;
    match outputs.iter().zip(made).find(|(output, _)| output.shape.first() != Some(&rows)) {
        Some((output, made)) => Err(origins.refuse_rows(typed.node(made.node), &output.name)),
        None => Ok(()),
    }
}

/// Names the rows of every input by one symbol, unless the file fixes them; then returns how many.
pub(super) fn free_rows(
    file: &mut pb::ModelProto,
    inputs: &[TensorSpec],
) -> Result<Option<usize>, EngineError> {
    for spec in inputs {
        if spec.shape.iter().skip(1).any(|&d| d < 0) {
            return Err(unsupported(
                &format!("a free dimension of input {:?} after the first", spec.name),
                "",
                "fix every dimension but the batch at export",
            ));
        }
    }
    let mut fixed = inputs.iter().filter_map(|spec| spec.shape.first()).filter(|&&d| d > 0);
    let first = fixed.next();
    if let Some((one, other)) = first.and_then(|one| Some((one, fixed.find(|&d| d != one)?))) {
        return Err(unsupported(
            &format!("inputs of {one} and of {other} rows"),
            "",
            "give every input the same rows, and put weights, places and shapes into the file",
        ));
    }
    match first {
        Some(&rows) => {
            let rows = usize::try_from(rows).unwrap_or(usize::MAX);
            if rows > ROWS_MAX {
                return Err(too_large("the batch of the graph", rows as u64, ROWS_MAX as u64));
            }
            set_rows(file, inputs, &Dim::DimValue(rows as i64));
            Ok(Some(rows))
        }
        None => {
            places_in_batch(file)?;
            set_rows(file, inputs, &Dim::DimParam(ROWS.to_owned()));
            Ok(None)
        }
    }
}

/// Refuses the places of the largest values, which are counted through all rows.
fn places_in_batch(file: &pb::ModelProto) -> Result<(), EngineError> {
    let nodes = file.graph.as_ref().map(|graph| graph.node.as_slice()).unwrap_or_default();
    let counts = |node: &&pb::NodeProto| {
        node.op_type == "MaxPool" && node.output.get(1).is_some_and(|name| !name.is_empty())
    };
    nodes.iter().find(counts).map_or(Ok(()), |node| {
        let what = "ai.onnx/MaxPool with the places of the largest values of a free batch";
        Err(unsupported(what, check::node_name(node), FIX_THE_BATCH))
    })
}

/// Sets the first dimension of every true input.
fn set_rows(file: &mut pb::ModelProto, inputs: &[TensorSpec], rows: &Dim) {
    let Some(graph) = file.graph.as_mut() else { return };
    for info in graph.input.iter_mut().filter(|info| inputs.iter().any(|spec| spec.name == info.name)) {
        let Some(TypeValue::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
            continue;
        };
        let Some(first) = tensor.shape.as_mut().and_then(|s| s.dim.first_mut()) else { continue };
        *first = Dimension { denotation: String::new(), value: Some(rows.clone()) };
    }
}

/// Fills in types and shapes of the outputs as the runtime derived them.
pub(super) fn describe(
    typed: &TypedModel,
    origins: &Origins,
    outputs: &mut [TensorSpec],
) -> Result<(), EngineError> {
    let rows = rows(typed).to_dim();
    let facts = typed.output_outlets().map_err(prepare)?.to_vec();
    for (spec, outlet) in outputs.iter_mut().zip(facts) {
        let fact = typed.outlet_fact(outlet).map_err(prepare)?;
        spec.datatype = tensor::dtype(fact.datum_type).ok_or_else(|| {
            unsupported(
                &format!("the type {:?} of output {:?}", fact.datum_type, spec.name),
                "",
                "answer in float32",
            )
        })?;
        spec.shape = fact
            .shape
            .iter()
            .enumerate()
            .map(|(axis, dim)| match dim.to_i64() {
                Ok(n) => Ok(n),
                Err(_) if axis == 0 && *dim == rows => Ok(-1),
                Err(_) => Err(origins.refuse_shape(typed, &spec.name, &rows)),
            })
            .collect::<Result<_, _>>()?;
    }
    Ok(())
}
