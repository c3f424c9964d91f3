//! Forms of supported operators that the runtime passes over or computes otherwise: refused, each with what to do instead.

use std::collections::BTreeMap;

use tract_onnx::pb::{NodeProto, TensorProto};

use super::{node_name, ops, unsupported};
use crate::EngineError;
use crate::attributes::Attributes;
use crate::import::tensor::ints;

/// Attributes that the operators of `ai.onnx` are computed by. An operator that is not here has none. One that is not
/// listed is of an operator set that is not known, or would be passed over.
const ATTRIBUTES: &[(&[&str], &[&str])] = &[
    (&["ArgMax", "ArgMin"], &["axis", "keepdims", "select_last_index"]),
    (
        &["AveragePool"],
        &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"],
    ),
    (&["BatchNormalization"], &["epsilon", "momentum", "spatial", "training_mode"]),
    (&["Cast"], &["round_mode", "saturate", "to"]),
    (&["CastLike"], &["round_mode", "saturate"]),
    (&["Celu", "Elu", "LeakyRelu", "ThresholdedRelu"], &["alpha"]),
    (&["Clip"], &["max", "min"]),
    (
        &["Concat", "Flatten", "Gather", "GatherElements", "Hardmax", "LogSoftmax", "OneHot", "Softmax"],
        &["axis"],
    ),
    (&["Constant"], &["value", "value_float", "value_floats", "value_int", "value_ints"]),
    (&["ConstantOfShape"], &["value"]),
    (&["Conv"], &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    (
        &["ConvTranspose"],
        &[
            "auto_pad",
            "dilations",
            "group",
            "kernel_shape",
            "output_padding",
            "output_shape",
            "pads",
            "strides",
        ],
    ),
    (&["CumSum"], &["exclusive", "reverse"]),
    (&["DepthToSpace"], &["blocksize", "mode"]),
    (&["Dropout"], &["ratio", "seed"]),
    (&["Einsum"], &["equation"]),
    (
        &["GRU", "LSTM", "RNN"],
        &[
            "activation_alpha",
            "activation_beta",
            "activations",
            "clip",
            "direction",
            "hidden_size",
            "input_forget",
            "layout",
            "linear_before_reset",
        ],
    ),
    (&["GatherND"], &["batch_dims"]),
    (&["Gelu"], &["approximate"]),
    (&["Gemm"], &["alpha", "beta", "transA", "transB"]),
    (&["HardSigmoid"], &["alpha", "beta"]),
    (&["InstanceNormalization"], &["epsilon"]),
    (&["IsInf"], &["detect_negative", "detect_positive"]),
    (&["LRN"], &["alpha", "beta", "bias", "size"]),
    (&["LayerNormalization"], &["axis", "epsilon", "stash_type"]),
    (&["LpNormalization"], &["axis", "p"]),
    (
        &["MaxPool"],
        &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"],
    ),
    (&["Mod"], &["fmod"]),
    (&["Pad"], &["mode", "pads", "value"]),
    (&["Range"], &["stash_type"]),
    (
        &[
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ],
        &["axes", "keepdims", "noop_with_empty_axes"],
    ),
    (&["Reshape"], &["allowzero"]),
    (&["ScatterElements"], &["axis", "reduction"]),
    (&["ScatterND"], &["reduction"]),
    (&["Selu"], &["alpha", "gamma"]),
    (&["Shape"], &["end", "start"]),
    (&["Slice"], &["axes", "ends", "starts"]),
    (&["SpaceToDepth"], &["blocksize"]),
    (&["Split"], &["axis", "num_outputs", "split"]),
    (&["Squeeze", "Unsqueeze"], &["axes"]),
    (&["TopK"], &["axis", "k", "largest", "sorted"]),
    (&["Transpose"], &["perm"]),
    (&["Trilu"], &["upper"]),
];

/// The constants of a file, by name.
pub(super) type Constants<'a> = BTreeMap<&'a str, &'a TensorProto>;

/// Refuses what the runtime would pass over, or compute otherwise, of a node of `ai.onnx`.
pub(super) fn check(node: &NodeProto, constants: &Constants<'_>) -> Result<(), EngineError> {
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Ok(());
    }
    let known = ATTRIBUTES.iter().find(|(ops, _)| ops.contains(&node.op_type.as_str()));
    let known = known.map(|(_, attributes)| *attributes).unwrap_or_default();
    if let Some(other) = node.attribute.iter().find(|a| !known.contains(&a.name.as_str())) {
        let what = format!("with the attribute {:?}", other.name);
        return Err(refused(node, &what, "export with an operator set that is not newer than this engine"));
    }
    match odd(node, constants) {
        Some((what, advice)) => Err(refused(node, what, advice)),
        None => Ok(()),
    }
}

fn refused(node: &NodeProto, what: &str, advice: &str) -> EngineError {
    unsupported(&format!("{} {what}", ops::full_name(&node.domain, &node.op_type)), node_name(node), advice)
}

/// What is odd about a node, and what to do instead.
fn odd(node: &NodeProto, constants: &Constants<'_>) -> Option<(&'static str, &'static str)> {
    let all = Attributes { node };
    let given = |index: usize| node.input.get(index).filter(|name| !name.is_empty());
    let constant = |index: usize| given(index).and_then(|name| constants.get(name.as_str()).copied());
    let any = |index: usize, is: fn(&i64) -> bool| {
        constant(index).and_then(ints).is_some_and(|values| values.iter().any(is))
    };
    let same = matches!(all.text("auto_pad", "NOTSET").as_str(), "SAME_UPPER" | "SAME_LOWER");
    match node.op_type.as_str() {
        "BatchNormalization" if all.int("training_mode", 0) != 0 => {
            Some(("in training mode", "export the model for inference"))
        }
        "Dropout" if given(2).is_some() && !constant(2).is_some_and(is_zero) => {
            let drops = !constant(1).is_some_and(is_zero);
            drops.then_some(("in training mode", "export the model for inference"))
        }
        "MaxPool" | "AveragePool" if same && all.ints("dilations").iter().any(|&d| d != 1) => {
            Some(("with auto_pad and dilations", "export with explicit pads"))
        }
        "MaxPool" | "AveragePool"
            if all.text("auto_pad", "NOTSET") == "VALID" && all.int("ceil_mode", 0) != 0 =>
        {
            Some(("with auto_pad VALID and ceil_mode", "export with explicit pads"))
        }
        "ConvTranspose" if all.find("output_shape").is_some() => {
            Some(("with output_shape", "export with pads and output_padding"))
        }
        "Pad" if all.ints("pads").iter().any(|&n| n < 0) || any(1, |&n| n < 0) => {
            Some(("with negative pads", "use Slice to take values away"))
        }
        "ScatterND" | "GatherND" if any(1, |&n| n < 0) => {
            Some(("with negative indices", "count them from the beginning"))
        }
        "Div" | "Mod" if any(1, |&n| n == 0) => {
            Some(("of integers by a constant zero", "divide by what is not zero"))
        }
        "Einsum" if all.text("equation", "").trim_end().ends_with("->") => {
            Some(("over all axes", "use ReduceSum for the last step"))
        }
        _ => None,
    }
}

/// Whether a constant of one number is zero, or false.
fn is_zero(tensor: &TensorProto) -> bool {
    tensor.raw_data.iter().all(|&byte| byte == 0)
        && tensor.int32_data.iter().all(|&n| n == 0)
        && tensor.float_data.iter().all(|&x| x == 0.0)
        && tensor.double_data.iter().all(|&x| x == 0.0)
}
