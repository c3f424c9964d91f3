//! `ReduceMax` and `ReduceMin` of floats. tract begins with the largest finite number, so that it makes a finite one of
//! infinities, and passes over NaN.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::nn::{Reduce, Reducer};

use super::Built;
use crate::attributes::Attributes;

/// First default operator set whose axes are an input.
const AXES_INPUT: i64 = 18;

pub(super) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("ReduceMax", |context, node| read(context, node, true));
    ops.insert("ReduceMin", |context, node| read(context, node, false));
}

fn read(context: &ParsingContext<'_>, node: &NodeProto, largest: bool) -> Built {
    let all = Attributes { node };
    let as_input = context.onnx_operator_set_version >= AXES_INPUT;
    Ok((
        expand(Reduction {
            axes: all.find("axes").filter(|_| !as_input).map(|a| a.ints.clone()),
            keep: all.int("keepdims", 1) == 1,
            noop: as_input && all.int("noop_with_empty_axes", 0) == 1,
            largest,
        }),
        vec![],
    ))
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reduction {
    axes: Option<Vec<i64>>,
    keep: bool,
    /// Whether no axes are none rather than all.
    noop: bool,
    largest: bool,
}

impl Reduction {
    /// The reduction as tract has it, over these axes or those of the file.
    fn over(&self, axes: Option<&Tensor>) -> TractResult<Reduce> {
        let given = match axes {
            Some(axes) => {
                let axes = axes.cast_to::<i64>()?;
                Some(axes.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
            }
            None => self.axes.clone(),
        };
        let named = given.filter(|axes| !axes.is_empty()).or(self.noop.then(Vec::new));
        Ok(Reduce::new(named, self.keep, if self.largest { Reducer::Max } else { Reducer::Min }))
    }
}

impl Expansion for Reduction {
    fn name(&self) -> StaticName {
        if self.largest { "ReduceMax" } else { "ReduceMin" }.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        let Some(axes) = inputs.get(1) else {
            return s.given(&inputs[0].shape, move |s, shape| {
                s.equals(&outputs[0].shape, self.over(None)?.output_shape(&shape))
            });
        };
        s.given_2(&inputs[0].shape, &axes.value, move |s, shape, axes| {
            s.equals(&outputs[0].shape, self.over(Some(&axes))?.output_shape(&shape))
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let axes = match inputs.get(1) {
            Some(&axes) => {
                let axes = model.outlet_fact(axes)?.konst.clone();
                Some(axes.ok_or_else(|| format_err!("axes that are no constant"))?)
            }
            None => None,
        };
        let reduce = self.over(axes.as_deref())?;
        let fact = model.outlet_fact(inputs[0])?;
        if fact.datum_type != DatumType::F32 {
            return reduce.wire(prefix, model, &inputs[..1]);
        }
        let rank = fact.rank();
        let axes: TVec<usize> = (0..rank).filter(|&axis| reduce.must_reduce(axis, rank)).collect();
        let op = Extreme { axes: axes.clone(), largest: self.largest };
        let mut wire = model.wire_node(prefix, op, &inputs[..1])?;
        for axis in axes.into_iter().rev().filter(|_| !self.keep) {
            wire = model.wire_node(format!("{prefix}.without-{axis}"), AxisOp::Rm(axis), &wire)?;
        }
        Ok(wire)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extreme {
    pub(crate) axes: TVec<usize>,
    largest: bool,
}

impl Extreme {
    /// What two values come to; NaN, if either is.
    fn of_two(&self, a: f32, b: f32) -> f32 {
        let second = if self.largest { a < b } else { a > b };
        if second || b.is_nan() { b } else { a }
    }
}

impl Op for Extreme {
    fn name(&self) -> StaticName {
        "Extreme".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Extreme {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let first = if self.largest { f32::NEG_INFINITY } else { f32::INFINITY };
        let mut left = inputs[0].to_plain_array_view::<f32>()?.to_owned();
        for &axis in &self.axes {
            let axis = tract_ndarray::Axis(axis);
            left = left.fold_axis(axis, first, |a, b| self.of_two(*a, *b)).insert_axis(axis);
        }
        Ok(tvec!(left.into_tensor().into_tvalue()))
    }
}

impl TypedOp for Extreme {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        self.axes.iter().for_each(|&axis| shape[axis] = 1.to_dim());
        Ok(tvec!(inputs[0].datum_type.fact(shape)))
    }

    as_op!();
}
