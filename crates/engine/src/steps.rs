//! The roundings of quantised networks in one pass over a tensor.
//!
//! In a file a rounding is what ONNX has for it: `Div`, `Round`, `Add`, `Max`, `Min` and a `Cast` to the integers, and
//! `Cast`, `Sub` and `Mul` back to the numbers that they stand for. Each is a pass over the tensor, and a network has a
//! rounding behind every layer. While a file is loaded those chains become one operator, which goes the same steps for
//! each value at once.

use std::collections::HashMap;

use dunlin_kernels::Steps;
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};

use crate::attributes::Attributes;
use crate::check::malformed;

/// The operator; no file that is taken in may hold it.
const NAME: &str = "RoundToSteps";
/// Its attribute: the fields of [`Steps`] in their order.
const STEPS: &str = "steps";

/// Puts one operator for every chain that ends in a float. What lay in between stays where anything else reads it.
pub(crate) fn fuse(graph: &mut GraphProto) {
    if !graph.node.iter().any(|node| node.op_type == "Round") {
        return;
    }
    let chains = Chains::of(graph);
    let found = graph.node.iter().enumerate().filter_map(|(at, node)| {
        let (steps, x) = match node.op_type.as_str() {
            "Min" => chains.steps(node.output.first()?)?,
            "Mul" => chains.numbers(node.output.first()?)?,
            _ => return None,
        };
        steps.is_sound().then(|| (at, steps, x.to_owned()))
    });
    for (at, steps, x) in found.collect::<Vec<_>>() {
        let node = &mut graph.node[at];
        NAME.clone_into(&mut node.op_type);
        node.input = vec![x];
        let Steps { scale, least, most, shift, unit } = steps;
        node.attribute = vec![AttributeProto {
            name: STEPS.to_owned(),
            floats: vec![scale, least, most, shift, unit],
            ..AttributeProto::default()
        }];
    }
}

/// What is needed to look upstream.
struct Chains<'a> {
    made: HashMap<&'a str, &'a NodeProto>,
    scalars: HashMap<&'a str, f32>,
}

impl<'a> Chains<'a> {
    fn of(graph: &'a GraphProto) -> Self {
        let made = graph.node.iter().flat_map(|node| node.output.iter().map(move |o| (o.as_str(), node)));
        let scalars = graph.initializer.iter().filter_map(|t| Some((t.name.as_str(), scalar(t)?)));
        Self { made: made.collect(), scalars: scalars.collect() }
    }

    /// The node of ONNX's own that makes `name`, if it is this operator.
    fn node(&self, name: &str, op: &str) -> Option<&'a NodeProto> {
        self.made.get(name).copied().filter(|node| node.op_type == op && node.domain.is_empty())
    }

    /// What a node takes, and the scalar that it takes besides.
    fn by(&self, name: &str, op: &str) -> Option<(&'a str, f32)> {
        let [x, y] = self.node(name, op)?.input.as_slice() else { return None };
        Some((x, *self.scalars.get(y.as_str())?))
    }

    /// What a cast takes, and the type that it gives.
    fn cast(&self, name: &str) -> Option<(&'a str, DataType)> {
        let node = self.node(name, "Cast")?;
        let to = Attributes { node }.int("to", 0);
        Some((node.input.first()?, DataType::try_from(i32::try_from(to).ok()?).ok()?))
    }

    /// The chain that makes integers of numbers, as floats.
    fn steps(&self, name: &str) -> Option<(Steps, &'a str)> {
        let (x, most) = self.by(name, "Min")?;
        let (x, least) = self.by(x, "Max")?;
        let (x, zero) = self.by(x, "Add").unwrap_or((x, 0.0));
        let x = self.node(x, "Round")?.input.first()?;
        let (x, scale) = self.by(x, "Div")?;
        // Each by itself: differences of others can look like integers.
        if ![zero, least, most].into_iter().all(Steps::is_whole) {
            return None;
        }
        Some((Steps { scale, least: least - zero, most: most - zero, shift: zero, unit: 1.0 }, x))
    }

    /// The same and back: what the integers stand for.
    fn numbers(&self, name: &str) -> Option<(Steps, &'a str)> {
        let (x, unit) = self.by(name, "Mul")?;
        let (x, zero) = self.by(x, "Sub").unwrap_or((x, 0.0));
        let (x, DataType::Float) = self.cast(x)? else { return None };
        let (x, kind) = self.cast(x)?;
        let (steps, x) = self.steps(x)?;
        let (least, most) = range(kind)?;
        let fits = least <= steps.least + steps.shift && steps.most + steps.shift <= most;
        (fits && Steps::is_whole(zero)).then_some((Steps { shift: steps.shift - zero, unit, ..steps }, x))
    }
}

/// A constant of one float and no dimensions.
fn scalar(tensor: &TensorProto) -> Option<f32> {
    // Where there is raw data, that is what counts.
    let typed = tensor.data_type == DataType::Float as i32 && tensor.raw_data.is_empty();
    let plain = typed && tensor.dims.is_empty();
    match tensor.float_data.as_slice() {
        [x] if plain => Some(*x),
        _ => None,
    }
}

/// Least and largest integer of the types that are rounded to.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is ONNX's; nothing is rounded to the other types"
)]
pub(crate) fn range(kind: DataType) -> Option<(f32, f32)> {
    Some(match kind {
        DataType::Int8 => (-128.0, 127.0),
        DataType::Uint8 => (0.0, 255.0),
        DataType::Int16 => (-32768.0, 32767.0),
        DataType::Uint16 => (0.0, 65535.0),
        _ => return None,
    })
}

pub(crate) fn register(ops: &mut OnnxOpRegister) {
    ops.insert(NAME, read);
}

fn read(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let &[scale, least, most, shift, unit] = Attributes { node }.floats(STEPS) else {
        return Err(malformed("a rounding without its steps").into());
    };
    let rounding = Rounding(Steps { scale, least, most, shift, unit });
    Ok((ElementWiseOp(Box::new(rounding), None).into_hir(), vec![]))
}

#[derive(Debug, Clone, PartialEq)]
struct Rounding(Steps);

/// Its steps are sound, so none of their numbers is NaN.
impl Eq for Rounding {}

impl ElementWiseMiniOp for Rounding {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        self.0.round(tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::framework;

    fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: op.to_owned(),
            name: output.to_owned(),
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    fn cast(input: &str, to: DataType, output: &str) -> NodeProto {
        let to = AttributeProto { name: "to".into(), r#type: 2, i: to as i64, ..AttributeProto::default() };
        NodeProto { attribute: vec![to], ..node("Cast", &[input], output) }
    }

    /// `x` rounded to `kind` as `q`, and back as `y`; with zero points 3 and 1 or with none.
    fn graph(kind: DataType, with_zero: bool) -> GraphProto {
        let (least, most) = range(kind).unwrap();
        let mut nodes = vec![node("Div", &["x", "scale"], "divided"), node("Round", &["divided"], "rounded")];
        nodes.push(node("Add", &["rounded", "zero"], "moved"));
        nodes.push(node("Max", &["moved", "least"], "above"));
        nodes.push(node("Min", &["above", "most"], "within"));
        nodes.push(cast("within", kind, "q"));
        nodes.push(cast("q", DataType::Float, "float"));
        nodes.push(node("Sub", &["float", "back"], "less"));
        nodes.push(node("Mul", &["less", "unit"], "y"));
        if !with_zero {
            nodes[3].input[0] = "rounded".into();
            nodes[8].input[0] = "float".into();
            nodes.retain(|node| node.op_type != "Add" && node.op_type != "Sub");
        }
        let scalars =
            [("scale", 0.3), ("zero", 3.0), ("least", least), ("most", most), ("back", 1.0), ("unit", 0.7)];
        let scalar = |(name, value): (&str, f32)| TensorProto {
            name: name.into(),
            data_type: DataType::Float as i32,
            float_data: vec![value],
            ..TensorProto::default()
        };
        let initializer = scalars.into_iter().map(scalar).collect();
        GraphProto { node: nodes, initializer, ..GraphProto::default() }
    }

    fn count(graph: &GraphProto) -> usize {
        graph.node.iter().filter(|node| node.op_type == NAME).count()
    }

    /// What tract answers, decluttered, and how many operators it runs for that.
    fn answer(graph: GraphProto, x: &Tensor) -> (Tensor, Tensor, usize) {
        use tract_onnx::pb::{ModelProto, OperatorSetIdProto, TypeProto, ValueInfoProto, type_proto};
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: None };
        let float = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        let port =
            |name: &str, r#type| ValueInfoProto { name: name.into(), r#type, doc_string: String::new() };
        let (input, output) = (vec![port("x", Some(float))], vec![port("y", None), port("q", None)]);
        let graph = GraphProto { input, output, ..graph };
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        let file = ModelProto { graph: Some(graph), opset_import, ir_version: 8, ..ModelProto::default() };
        let mut model = framework().model_for_proto_model(&file).unwrap();
        model.set_input_fact(0, f32::fact(x.shape()).into()).unwrap();
        let model = model.into_typed().unwrap().into_decluttered().unwrap();
        let ops = model.nodes().len();
        let plan = model.into_runnable().unwrap();
        let mut answers = plan.run(tvec!(x.clone().into())).unwrap();
        let q = answers.remove(1).into_tensor().cast_to::<f32>().unwrap().into_owned();
        (answers.remove(0).into_tensor(), q, ops)
    }

    #[test]
    fn a_chain_is_one_operator_that_divides() {
        let values: Vec<f32> =
            (-3000..3000).map(|i| i as f32 * 0.049).chain([1e9, -1e9, f32::NAN, 0.0]).collect();
        let x = Tensor::from_shape(&[2, values.len() / 2], &values).unwrap();
        for kind in [DataType::Int8, DataType::Uint8, DataType::Int16, DataType::Uint16] {
            for with_zero in [true, false] {
                let plain = graph(kind, with_zero);
                let mut fused = plain.clone();
                fuse(&mut fused);
                assert_eq!(count(&fused), 2, "one to the numbers, one to the integers");
                let (zero, back) = if with_zero { (3.0, 1.0) } else { (0.0, 0.0) };
                let (least, most) = range(kind).unwrap();
                let steps = |x: f32| ((x / 0.3).round_ties_even() + zero).max(least).min(most);
                let (numbers, integers, after) = answer(fused, &x);
                let (near_numbers, near_integers, before) = answer(plain, &x);
                assert!(after < before, "{after} operators, {before} before");
                let answers = [(integers, near_integers, 0.0, 1.0), (numbers, near_numbers, back, 0.7)];
                for (got, near, back, unit) in answers {
                    let want = values.iter().map(|&x| (steps(x) - back) * unit).collect::<Vec<_>>();
                    let want = Tensor::from_shape(x.shape(), &want).unwrap();
                    assert_eq!(got, want, "{kind:?}");
                    // tract multiplies by one over the scale, which can fall on the other side of a step.
                    near.close_enough(&want, Approximation::Custom(unit, 0.0, 0.0)).unwrap();
                }
            }
        }
    }

    #[test]
    fn what_is_not_quite_a_rounding_is_left_alone() {
        type Change = fn(&mut GraphProto);
        let unlike: [(&str, Change); 9] = [
            ("a limit that is no integer", |g| g.initializer[2].float_data = vec![-127.5]),
            ("a zero point that is no integer", |g| g.initializer[1].float_data = vec![0.5]),
            ("a limit that the zero point swallows", |g| g.initializer[2].float_data = vec![1e-7]),
            ("data of two kinds", |g| g.initializer[0].raw_data = 0.5_f32.to_le_bytes().to_vec()),
            ("values in between that are no integers", |g| {
                g.initializer[1].float_data = vec![0.5];
                g.initializer[2].float_data = vec![-127.5];
                g.initializer[3].float_data = vec![126.5];
                g.initializer[4].float_data = vec![0.5];
            }),
            ("a limit for each column", |g| g.initializer[3].dims = vec![1]),
            ("a computed scale", |g| g.initializer[0].name = "other".into()),
            ("another operator", |g| g.node[1].op_type = "Floor".into()),
            ("another domain", |g| g.node[1].domain = "other".into()),
        ];
        for (what, change) in unlike {
            let mut graph = graph(DataType::Int8, true);
            change(&mut graph);
            let before = graph.clone();
            fuse(&mut graph);
            assert_eq!(graph, before, "{what}");
        }
        // Integers that would wrap around are still made one by one.
        let mut wrapping = graph(DataType::Int8, true);
        wrapping.initializer[3].float_data = vec![255.0];
        fuse(&mut wrapping);
        assert_eq!(wrapping.node.last().unwrap().op_type, "Mul");
        assert_eq!(count(&wrapping), 1);
    }
}
