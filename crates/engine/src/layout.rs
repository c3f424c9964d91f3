//! Networks keep the layout of their convolutions.
//!
//! What Keras and TensorFlow export takes images channels last, turns them around, and goes on channels first. tract
//! would rather carry the turn through to the end, where nothing is left of it: its convolutions then run channels last,
//! for which it has slower kernels, and so does a mean over an image. A copy of the input costs less.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::cnn::Conv;

/// Axes of a batch of images.
const IMAGE_RANK: usize = 4;

/// Fixes the turns of images that lie before the first convolution where they are.
pub(crate) fn keep(model: &mut TypedModel) -> TractResult<()> {
    let mut convolved = vec![false; model.nodes.len()];
    for id in model.eval_order()? {
        let node = &mut model.nodes[id];
        convolved[id] = node.op_is::<Conv>() || node.inputs.iter().any(|input| convolved[input.node]);
        let fact = &node.outputs[0].fact;
        let is_image = fact.rank() == IMAGE_RANK && fact.konst.is_none();
        if let Some(&AxisOp::Move(from, to)) = node.op_as::<AxisOp>()
            && is_image
            && !convolved[id]
        {
            node.op = Box::new(Turn { from, to });
        }
    }
    Ok(())
}

/// Moves an axis, as [`AxisOp::Move`] does, but tells nobody, so that nothing is moved past it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turn {
    from: usize,
    to: usize,
}

impl Turn {
    fn axes(&self) -> AxisOp {
        AxisOp::Move(self.from, self.to)
    }
}

impl Op for Turn {
    fn name(&self) -> StaticName {
        "Turn".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Turn {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.axes().eval(context, inputs)
    }
}

impl TypedOp for Turn {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.axes().output_facts(inputs)
    }

    as_op!();
}

#[cfg(test)]
pub(crate) mod tests {
    use tract_onnx::tract_hir::tract_core::ops::cnn::{KernelFormat, PaddingSpec, PoolSpec};
    use tract_onnx::tract_hir::tract_core::ops::math;
    use tract_onnx::tract_hir::tract_core::ops::nn::DataFormat;

    use super::*;

    const CHANNELS: usize = 3;
    const FILTERS: usize = 8;

    /// Few different numbers around zero.
    pub(crate) fn numbers(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        Tensor::from_shape(shape, &values).unwrap()
    }

    /// Images channels last, halved, turned, and convolved channels first.
    fn network(rows: usize) -> TypedModel {
        let mut model = TypedModel::default();
        let image = f32::fact([rows, 6, 6, CHANNELS]);
        let mut wire = model.add_source("image", image).unwrap();
        let half = model.add_const("half", numbers(&[1, 1, 1, 1])).unwrap();
        wire = model.wire_node("halved", math::mul(), &[wire, half]).unwrap()[0];
        wire = model.wire_node("turned", AxisOp::Move(3, 1), &[wire]).unwrap()[0];
        let kernel = model.add_const("kernel", numbers(&[FILTERS, CHANNELS, 3, 3])).unwrap();
        let bias = model.add_const("bias", numbers(&[FILTERS])).unwrap();
        let pool_spec =
            PoolSpec::new(DataFormat::NCHW, tvec!(3, 3), PaddingSpec::Valid, None, None, CHANNELS, FILTERS);
        let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
        let wires = model.wire_node("conv", conv, &[wire, kernel, bias]).unwrap();
        let wires = model.wire_node("back", AxisOp::Move(1, 3), &wires).unwrap();
        model.select_output_outlets(&wires).unwrap();
        model
    }

    fn layouts(model: &TypedModel) -> Vec<DataFormat> {
        model.nodes.iter().filter_map(|node| node.op_as::<Conv>()).map(|c| c.pool_spec.data_format).collect()
    }

    fn answer(model: TypedModel, rows: usize) -> Tensor {
        let plan = model.into_runnable().unwrap();
        plan.run(tvec!(numbers(&[rows, 6, 6, CHANNELS]).into())).unwrap().remove(0).into_tensor()
    }

    #[test]
    fn convolutions_stay_channels_first_and_answer_the_same() {
        for rows in [1, 2] {
            let moved = network(rows).into_decluttered().unwrap();
            assert_eq!(layouts(&moved), [DataFormat::NHWC], "without this module");

            let mut kept = network(rows);
            keep(&mut kept).unwrap();
            let kept = kept.into_decluttered().unwrap();
            assert_eq!(layouts(&kept), [DataFormat::NCHW]);

            let expected = answer(network(rows), rows);
            answer(kept, rows).close_enough(&expected, Approximation::Close).unwrap();
            answer(moved, rows).close_enough(&expected, Approximation::Close).unwrap();
        }
    }

    #[test]
    fn turns_behind_a_convolution_are_left_alone() {
        let mut model = network(1);
        keep(&mut model).unwrap();
        let left: Vec<&AxisOp> = model.nodes.iter().filter_map(|node| node.op_as::<AxisOp>()).collect();
        assert_eq!(left, [&AxisOp::Move(1, 3)]);
    }
}
