//! `OneHot`: a place beyond the depth has nothing on, where tract panics.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::OneHot;

/// The operator, if `node` is one.
pub(super) fn of(node: &TypedNode) -> TractResult<Option<Places>> {
    Ok(node.op_as::<OneHot>().map(|op| Places(op.clone())))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places(OneHot);

impl Op for Places {
    fn name(&self) -> StaticName {
        "Places".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Places {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let made = dispatch_copy!(Self::fill(self.0.off.datum_type())(self, &inputs[0]))?;
        Ok(tvec!(made.into_tvalue()))
    }
}

impl Places {
    fn fill<T: Datum + Copy>(&self, places: &Tensor) -> TractResult<Tensor> {
        let OneHot { axis, dim, off, on } = &self.0;
        let (off, on) = (off.try_as_plain_ram()?, on.try_as_plain_ram()?);
        let (off, on) = (*off.to_scalar::<T>()?, *on.to_scalar::<T>()?);
        let mut shape: TVec<usize> = places.shape().into();
        // Places behind the new axis lie next to one another.
        let inner = shape[*axis..].iter().product::<usize>().max(1);
        shape.insert(*axis, *dim);
        let places = places.cast_to::<i64>()?;
        let plain = places.try_as_plain_ram()?;
        let depth = *dim as i64;
        let mut values = Vec::with_capacity(shape.iter().product());
        for row in plain.as_slice::<i64>()?.chunks(inner) {
            for at in 0..depth {
                let is_on = |&place: &i64| place == at || place + depth == at;
                values.extend(row.iter().map(|place| if is_on(place) { on } else { off }));
            }
        }
        Tensor::from_shape(&shape, &values)
    }
}

impl TypedOp for Places {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    as_op!();
}
