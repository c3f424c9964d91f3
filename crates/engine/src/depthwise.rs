//! Convolutions with a filter for each channel, by this project's own kernel.
//!
//! Small networks for images and sound are made of them, on images of a few pixels. tract computes tap by tap where a
//! filter reaches over the edge, and where outputs lie apart, which there is nearly everywhere.

use dunlin_kernels::depthwise::{Axis, Depthwise};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::cnn::{Conv, KernelFormat};

/// Puts the own kernel in place of each convolution of `model` that it can compute. Only where every dimension is known.
pub(crate) fn put(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let Some(filters) = filters(model, model.node(id))? else { continue };
        let node = model.node(id);
        let mut patch = TypedModelPatch::default();
        let image = patch.tap_model(model, node.inputs[0])?;
        let wire = patch.wire_node(&node.name, filters, &[image])?[0];
        patch.shunt_outside(model, id.into(), wire)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// What a node computes, if it is such a convolution: of float32, channels first, with constant weights.
fn filters(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Filters>> {
    let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
    let spec = &conv.pool_spec;
    let channels = spec.output_channels;
    let each_its_own = conv.group == channels && spec.input_channels == channels;
    let first = !spec.data_format.c_is_last() && conv.kernel_fmt == KernelFormat::OIHW;
    if !each_its_own || !first || channels == 0 || conv.q_params.is_some() {
        return Ok(None);
    }
    let [image, kernel, bias] = model.node_input_facts(node.id)?[..] else { return Ok(None) };
    let (Some(dims), Some(kernel), Some(bias)) = (image.shape.as_concrete(), &kernel.konst, &bias.konst)
    else {
        return Ok(None);
    };
    if [image.datum_type, kernel.datum_type(), bias.datum_type()] != [DatumType::F32; 3] {
        return Ok(None);
    }
    let output = spec.output_shape(dims)?;
    let axes = spec.computed_padding(spec.data_format.shape(dims)?.hw_dims());
    let axes = axes.iter().enumerate().map(|(i, padded)| Axis {
        image: padded.deconvoluted,
        output: padded.convoluted,
        kernel: spec.kernel_shape[i],
        stride: spec.stride(i),
        dilation: spec.dilation(i),
        before: padded.pad_before,
    });
    // Along one axis alone: an image of one row.
    let row = Axis { image: 1, output: 1, kernel: 1, stride: 1, dilation: 1, before: 0 };
    let (rows, columns) = match axes.collect::<TVec<_>>()[..] {
        [columns] => (row, columns),
        [rows, columns] => (rows, columns),
        _ => return Ok(None),
    };
    let Some(depthwise) = Depthwise::new(rows, columns) else { return Ok(None) };
    let floats = |tensor: &Tensor| TractResult::Ok(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec());
    let (weights, mut bias) = (floats(kernel)?, floats(bias)?);
    if bias.len() == 1 {
        bias = vec![bias[0]; channels];
    }
    let fit = weights.len() == channels * rows.kernel * columns.kernel && bias.len() == channels;
    Ok(fit.then(|| Filters { depthwise, weights, bias, shape: output.shape.clone() }))
}

#[derive(Debug, Clone, PartialEq)]
struct Filters {
    depthwise: Depthwise,
    weights: Vec<f32>,
    bias: Vec<f32>,
    /// Of what comes out.
    shape: TVec<usize>,
}

/// A filter with a weight that is no number is unlike itself, and so is not merged with another one.
impl Eq for Filters {}

impl Op for Filters {
    fn name(&self) -> StaticName {
        "Filters".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Filters {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut output = Tensor::zero::<f32>(&self.shape)?;
        let images = inputs[0].try_as_plain_ram()?;
        let mut to = output.try_as_plain_ram_mut()?;
        self.depthwise.run(images.as_slice()?, &self.weights, &self.bias, to.as_slice_mut()?);
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Filters {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.shape)))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use tract_onnx::tract_hir::tract_core::ops::cnn::{PaddingSpec, PoolSpec};
    use tract_onnx::tract_hir::tract_core::ops::nn::DataFormat;

    use super::*;
    use crate::layout::tests::numbers;

    const CHANNELS: usize = 4;

    /// One convolution of images of these dimensions, by a kernel of 3 along each.
    fn network(
        dims: &[usize],
        format: DataFormat,
        padding: PaddingSpec,
        stride: usize,
        dilation: usize,
        bias: &[usize],
    ) -> TypedModel {
        let mut model = TypedModel::default();
        let image = model.add_source("image", f32::fact(dims)).unwrap();
        let axes = format.shape(dims).unwrap().hw_rank();
        let mut kernel = vec![CHANNELS, 1];
        kernel.resize(2 + axes, 3);
        let pool_spec = PoolSpec::new(
            format,
            kernel[2..].iter().copied().collect(),
            padding,
            Some(tvec![dilation; axes]),
            Some(tvec![stride; axes]),
            CHANNELS,
            CHANNELS,
        );
        let kernel = model.add_const("kernel", numbers(&kernel)).unwrap();
        let bias = model.add_const("bias", numbers(bias)).unwrap();
        let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group: CHANNELS, q_params: None };
        let wires = model.wire_node("conv", conv, &[image, kernel, bias]).unwrap();
        model.select_output_outlets(&wires).unwrap();
        model
    }

    fn plain(dims: &[usize], format: DataFormat) -> TypedModel {
        network(dims, format, PaddingSpec::Valid, 1, 1, &[CHANNELS])
    }

    fn answer(model: TypedModel, dims: &[usize]) -> Tensor {
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        plan.run(tvec!(numbers(dims).into())).unwrap().remove(0).into_tensor()
    }

    fn own(model: &TypedModel) -> usize {
        model.nodes.iter().filter(|node| node.op_is::<Filters>()).count()
    }

    #[test]
    fn it_answers_as_the_runtime_does() {
        let uneven = |axes: usize| PaddingSpec::Explicit(tvec![2; axes], tvec![1; axes]);
        let shapes: [(DataFormat, &[usize]); 3] = [
            (DataFormat::NCHW, &[2, CHANNELS, 6, 9]),
            (DataFormat::CHW, &[CHANNELS, 8, 5]),
            (DataFormat::NCHW, &[2, CHANNELS, 7]),
        ];
        for (format, dims) in shapes {
            let uneven = uneven(format.shape(dims).unwrap().hw_rank());
            for padding in [PaddingSpec::Valid, PaddingSpec::SameUpper, PaddingSpec::SameLower, uneven] {
                for (stride, dilation) in [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)] {
                    // A number alone is the bias of every channel.
                    for bias in [&[CHANNELS][..], &[]] {
                        let model = network(dims, format, padding.clone(), stride, dilation, bias);
                        let mut put_in = model.clone();
                        put(&mut put_in).unwrap();
                        assert_eq!(own(&put_in), 1);
                        let (got, want) = (answer(put_in, dims), answer(model, dims));
                        got.close_enough(&want, Approximation::Close)
                            .unwrap_or_else(|e| panic!("{dims:?} {padding:?} {stride} {dilation}: {e}"));
                    }
                }
            }
        }
    }

    #[test]
    fn other_convolutions_are_left_to_the_runtime() {
        let left = |mut model: TypedModel| {
            put(&mut model).unwrap();
            own(&model) == 0
        };
        assert!(left(plain(&[1, 5, 5, CHANNELS], DataFormat::NHWC)), "channels last");
        assert!(left(plain(&[1, CHANNELS, 5, 5, 5], DataFormat::NCHW)), "three axes");
        let mut any_rows = TypedModel::default();
        let rows = any_rows.symbols.sym("N").to_dim();
        let image = [rows, CHANNELS.to_dim(), 5.to_dim(), 5.to_dim()];
        let template = plain(&[1, CHANNELS, 5, 5], DataFormat::NCHW);
        let image = any_rows.add_source("image", f32::fact(image)).unwrap();
        let kernel = any_rows.add_const("kernel", numbers(&[CHANNELS, 1, 3, 3])).unwrap();
        let bias = any_rows.add_const("bias", numbers(&[CHANNELS])).unwrap();
        let conv = template.nodes.iter().find_map(|node| node.op_as::<Conv>()).unwrap().clone();
        let wires = any_rows.wire_node("conv", conv, &[image, kernel, bias]).unwrap();
        any_rows.select_output_outlets(&wires).unwrap();
        assert!(left(any_rows), "any number of rows");
    }
}
