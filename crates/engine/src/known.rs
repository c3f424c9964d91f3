//! The operator `dunlin/KnownCategory`: passes one-hot rows through, and refuses a request with a row that holds no
//! category. Only files that were rewritten for this engine hold it.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::EngineError;
use crate::check::node_name;

/// Domain of this project's own operators.
pub(crate) const DOMAIN: &str = "dunlin";
/// Its name in that domain.
pub(crate) const NAME: &str = "KnownCategory";

pub(crate) fn register(ops: &mut OnnxOpRegister) {
    ops.insert(NAME, known);
}

fn known(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(Known { at: node_name(node).to_owned() }), vec![]))
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// The encoder, for people.
    at: String,
}

impl Expansion for Known {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, DatumType::F32)?;
        s.equals(&outputs[0].datum_type, DatumType::F32)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Known {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Known {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let width = inputs[0].shape().last().copied().unwrap_or(1).max(1);
        let plain = inputs[0].try_as_plain_ram()?;
        if let Some(row) = plain.as_slice::<f32>()?.chunks(width).position(|row| !row.contains(&1.0)) {
            let problem = format!("value {row} of encoder {:?} is none of its {width} categories", self.at);
            return Err(EngineError::Input { name: String::new(), problem }.into());
        }
        Ok(inputs)
    }
}

impl TypedOp for Known {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }

    as_op!();
}
