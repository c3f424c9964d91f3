//! `Cast` to int64. tract takes the result for dimensions, which hold no more than 32 bits of what they are made of.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::cast::cast;

use super::Built;
use crate::attributes::Attributes;

pub(super) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("Cast", read);
}

fn read(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    if (Attributes { node }).int("to", 0) == DataType::Int64 as i64 {
        return Ok((expand(ToInt64), vec![]));
    }
    super::theirs(context, node)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ToInt64;

impl Expansion for ToInt64 {
    fn name(&self) -> StaticName {
        "CastToInt64".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)?;
        s.given(&inputs[0].datum_type, move |s, from| s.equals(&outputs[0].datum_type, target(from)))
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let from = model.outlet_fact(inputs[0])?.datum_type;
        model.wire_node(prefix, cast(target(from)), inputs)
    }
}

/// Dimensions stay what they are, so that a batch that is still open can be counted with.
fn target(from: DatumType) -> DatumType {
    if from == DatumType::TDim { from } else { DatumType::I64 }
}
