//! `ai.onnx.ml` `Scaler`: `(x - offset) * scale`, wired as tract's own arithmetic so that it fuses.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::check::{malformed, node_name};

pub(crate) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("Scaler", scaler);
}

fn scaler(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let floats = |name: &str| {
        node.attribute.iter().find(|a| a.name == name).map(|a| a.floats.clone()).unwrap_or_default()
    };
    let (offset, scale) = (floats("offset"), floats("scale"));
    if offset.is_empty() || scale.is_empty() {
        return Err(malformed(&format!("scaler {:?} lacks offset or scale", node_name(node))).into());
    }
    Ok((expand(Scaler { offset, scale }), vec![]))
}

#[derive(Debug, Clone, PartialEq)]
struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

impl Expansion for Scaler {
    fn name(&self) -> StaticName {
        "Scaler".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, DatumType::F32)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        use tract_onnx::tract_core::ops::{cast, math};
        let fact = model.outlet_fact(inputs[0])?.clone();
        let rank = fact.rank();
        let columns = fact.shape.last().and_then(|d| d.to_usize().ok());
        let mut wire = model.wire_node(format!("{prefix}.cast"), cast::cast(f32::datum_type()), inputs)?[0];
        for (name, values, op) in [("offset", &self.offset, math::sub()), ("scale", &self.scale, math::mul())]
        {
            // One value serves all columns.
            if values.len() != 1 && columns != Some(values.len()) {
                bail!("scaler {prefix}: {} values of {name} for {columns:?} columns", values.len());
            }
            let mut shape = vec![1; rank];
            if let Some(last) = shape.last_mut() {
                *last = values.len();
            }
            let constant =
                model.add_const(format!("{prefix}.{name}"), Tensor::from_shape(&shape, values)?)?;
            wire = model.wire_node(format!("{prefix}.by_{name}"), op, &[wire, constant])?[0];
        }
        Ok(tvec!(wire))
    }
}
