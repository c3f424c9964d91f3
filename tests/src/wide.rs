//! A network of the same answers and more bytes, for downloads that last long enough to be cut.
use anyhow::{Context, Result, ensure};
use dunlin_engine::onnx_pb::{ModelProto, TensorProto};
use prost::Message;

/// Widens the first hidden layer of a trained multi-layer perceptron to `units` by units that are always zero.
pub fn widen(onnx: &[u8], units: usize) -> Result<Vec<u8>> {
    let mut model = ModelProto::decode(onnx).context("an ONNX file")?;
    let graph = model.graph.as_mut().context("a graph")?;
    ensure!(units > 0, "a layer has units");
    for (name, axis) in [("weights_0", 1), ("bias_0", 0), ("weights_1", 0)] {
        let tensor = graph
            .initializer
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .with_context(|| format!("no tensor {name}"))?;
        pad(tensor, axis, units)?;
    }
    Ok(model.encode_to_vec())
}

/// The same model with this much text in it that nothing reads.
pub fn annotate(onnx: &[u8], bytes: usize) -> Result<Vec<u8>> {
    let mut model = ModelProto::decode(onnx).context("an ONNX file")?;
    model.doc_string = "annotated ".repeat(bytes / 10);
    Ok(model.encode_to_vec())
}

/// Pads `axis` of a float tensor with zeros up to `len`.
fn pad(tensor: &mut TensorProto, axis: usize, len: usize) -> Result<()> {
    let dims: Vec<usize> = tensor.dims.iter().map(|dim| usize::try_from(*dim)).collect::<Result<_, _>>()?;
    let inner: usize = dims[axis..].iter().product::<usize>() * 4;
    let wide = inner / dims[axis] * len;
    ensure!(wide >= inner && tensor.raw_data.len().is_multiple_of(inner), "{} has {dims:?}", tensor.name);
    let mut padded = Vec::with_capacity(tensor.raw_data.len() / inner * wide);
    for block in tensor.raw_data.chunks_exact(inner) {
        padded.extend_from_slice(block);
        padded.resize(padded.len() + wide - inner, 0);
    }
    tensor.raw_data = padded;
    tensor.dims[axis] = i64::try_from(len)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_keeps_what_was_there() {
        let mut tensor = TensorProto {
            name: "w".into(),
            dims: vec![2, 1],
            raw_data: [1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect(),
            ..Default::default()
        };
        pad(&mut tensor, 1, 2).unwrap();
        let values: Vec<f32> =
            tensor.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!((tensor.dims, values), (vec![2, 2], vec![1.0, 0.0, 2.0, 0.0]));
    }
}
