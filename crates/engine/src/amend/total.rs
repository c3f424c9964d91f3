//! Sums of integers. tract adds them up in 32 bits, whatever their own are.

use std::num::Wrapping;

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, Reducer};

/// The operator, if `node` is a sum of integers.
pub(super) fn of(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Total>> {
    let Some(op) = node.op_as::<Reduce>().filter(|op| op.reducer == Reducer::Sum) else { return Ok(None) };
    let kind = model.outlet_fact(node.inputs[0])?.datum_type;
    let is_integer = matches!(kind, DatumType::I64 | DatumType::U64 | DatumType::I32 | DatumType::U32);
    Ok(is_integer.then(|| Total { axes: op.axes.clone() }))
}

/// Adds up along axes, each of which is left as one place; what does not fit wraps around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) axes: TVec<usize>,
}

impl Total {
    fn add<T>(&self, values: &Tensor) -> TractResult<Tensor>
    where
        T: Datum + Copy,
        Wrapping<T>: std::ops::Add<Output = Wrapping<T>> + Default,
    {
        let mut left = values.to_plain_array_view::<T>()?.to_owned();
        for &axis in &self.axes {
            let axis = tract_ndarray::Axis(axis);
            let zero = Wrapping::<T>::default().0;
            left = left.fold_axis(axis, zero, |a, b| (Wrapping(*a) + Wrapping(*b)).0).insert_axis(axis);
        }
        Ok(left.into_tensor())
    }
}

impl Op for Total {
    fn name(&self) -> StaticName {
        "Total".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Total {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let values = &inputs[0];
        let kind = values.datum_type();
        let made = if kind == DatumType::I64 {
            self.add::<i64>(values)
        } else if kind == DatumType::U64 {
            self.add::<u64>(values)
        } else if kind == DatumType::U32 {
            self.add::<u32>(values)
        } else {
            self.add::<i32>(values)
        };
        Ok(tvec!(made?.into_tvalue()))
    }
}

impl TypedOp for Total {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        self.axes.iter().for_each(|&axis| shape[axis] = 1.to_dim());
        Ok(tvec!(inputs[0].datum_type.fact(shape)))
    }

    as_op!();
}
