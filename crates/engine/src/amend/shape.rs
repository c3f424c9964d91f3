//! `Shape` and `Size`. tract makes dimensions of them, which divide and overflow otherwise than integers do; what is known is
//! made integers at once. And `ConstantOfShape`, whose zeros are doubles to tract where the file does not say.

use std::ops::Range;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array::ConstantOfShape;

use super::Built;
use crate::attributes::Attributes;

pub(super) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("Shape", shape);
    ops.insert("Size", |_, _| Ok((expand(Extent::Size), vec![])));
    ops.insert("ConstantOfShape", filled);
}

fn shape(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let all = Attributes { node };
    Ok((expand(Extent::Shape { start: all.int("start", 0), end: all.find("end").map(|a| a.i) }), vec![]))
}

fn filled(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    if (Attributes { node }).find("value").is_none() {
        return Ok((expand(ConstantOfShape::new(rctensor0(0_f32))), vec![]));
    }
    super::theirs(context, node)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Extent {
    /// The dimensions from one axis up to another.
    Shape { start: i64, end: Option<i64> },
    /// Their product.
    Size,
}

impl Extent {
    fn axes(start: i64, end: Option<i64>, rank: usize) -> Range<usize> {
        let rank = rank as i64;
        let axis = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
        let (start, end) = (axis(start), end.map_or(rank as usize, axis));
        start..end.max(start)
    }

    /// Integers, or dimensions where one is still open.
    fn of(&self, dims: &[TDim]) -> TractResult<Tensor> {
        let made = match self {
            Self::Shape { start, end } => tensor1(&dims[Self::axes(*start, *end, dims.len())]),
            Self::Size => tensor0(dims.iter().product::<TDim>()),
        };
        let known = made.cast_to::<i64>().map(|known| known.into_owned());
        Ok(known.unwrap_or(made))
    }
}

impl Expansion for Extent {
    fn name(&self) -> StaticName {
        "Extent".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].rank, if *self == Self::Size { 0 } else { 1 })?;
        s.given(&inputs[0].shape, move |s, dims| {
            let value = self.of(&dims)?;
            s.equals(&outputs[0].datum_type, value.datum_type())?;
            s.equals(&outputs[0].value, value.into_arc_tensor())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let value = self.of(&model.outlet_fact(inputs[0])?.shape.to_tvec())?;
        Ok(tvec!(model.add_const(prefix, value)?))
    }
}
