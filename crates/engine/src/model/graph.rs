//! From a file to a graph: over any number of rows, over one, or over as many as the file says.

use std::collections::HashMap;

use dunlin_protocol::TensorSpec;
use tract_onnx::pb;
use tract_onnx::pb::tensor_shape_proto::Dimension;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::tract_hir::internal::{Framework, InferenceModelExt, ToDim, TypedModel};

use super::ROWS_MAX;
use crate::check::{self, too_large, unsupported};
use crate::origin::Origins;
use crate::plan::{Plan, prepare};
use crate::runtime::{contained, framework};
use crate::{EngineError, amend, layout, steps, tensor};

/// Name of the symbol that stands for the number of rows while a graph is prepared.
const ROWS: &str = "dunlin_rows";

/// The plan for so many rows of a graph over any number.
pub(super) fn concrete(typed: &TypedModel, rows: usize) -> Result<Plan, EngineError> {
    let model = contained("fixing the number of rows", || {
        let subs = HashMap::from([(typed.symbols.sym(ROWS), rows.to_dim())]);
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
        layout::keep(&mut typed).map_err(prepare)?;
        typed.into_decluttered().map_err(prepare)
    })
}

/// The graph for one row alone, from the file once more.
pub(super) fn single_row(
    onnx: &[u8],
    inputs: &[TensorSpec],
    origins: &Origins,
) -> Result<TypedModel, EngineError> {
    let mut file = check::decode(onnx)?;
    set_rows(&mut file, inputs, &Dim::DimValue(1));
    prepared(file, origins)
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
            set_rows(file, inputs, &Dim::DimParam(ROWS.to_owned()));
            Ok(None)
        }
    }
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
    let rows = typed.symbols.sym(ROWS).to_dim();
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
