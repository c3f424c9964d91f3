//! The operators this engine runs right, and what to do about the others.

use std::collections::BTreeSet;

use dunlin_protocol::IntoTree;
use tract_onnx::pb::NodeProto;

use super::{node_name, unsupported};
use crate::attributes::Attributes;
use crate::{EngineError, known};

/// `ai.onnx` operators that tract computes as ONNX Runtime does. Left out on purpose: control flow (`If`,
/// `Loop`, `Scan`: unbounded time), random ones (golden vectors would not hold), everything about quantised graphs
/// (computed wrongly in places), and what it answers otherwise; [`crate::import`] rewrites some of these.
const ONNX: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "RNN",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// `ai.onnx.ml` operators: tract's own, and those of this crate. Others are rewritten to these, see [`crate::import`].
const ML: &[&str] = &[
    "LinearClassifier",
    "LinearRegressor",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
];

/// This project's own operators, which only rewritten files hold.
const OWN: &[&str] = &[known::NAME];

/// The operators this engine runs, as `domain/Name`: the capability a device reports.
pub fn supported_ops() -> BTreeSet<String> {
    let onnx = ONNX.iter().map(|op| format!("ai.onnx/{op}"));
    let ml = ML.iter().map(|op| format!("ai.onnx.ml/{op}"));
    onnx.chain(ml).chain(OWN.iter().map(|op| format!("{}/{op}", known::DOMAIN))).into_tree()
}

/// `domain/Name` of a node, the default domain spelt out.
pub(crate) fn full_name(domain: &str, op: &str) -> String {
    format!("{}/{op}", if domain.is_empty() { "ai.onnx" } else { domain })
}

pub(crate) fn is_supported(domain: &str, op: &str) -> bool {
    match domain {
        "" | "ai.onnx" => ONNX.contains(&op),
        "ai.onnx.ml" => ML.contains(&op),
        known::DOMAIN => OWN.contains(&op),
        _ => false,
    }
}

/// What a publisher can do about an operator that is refused.
pub(crate) fn advice(domain: &str, op: &str) -> &'static str {
    match op {
        "ArrayFeatureExtractor"
        | "ReduceLogSumExp"
        | "ZipMap"
        | "Imputer"
        | "OneHotEncoder"
        | "LabelEncoder"
        | "Binarizer"
        | "Normalizer"
        | "FeatureVectorizer"
        | "TreeEnsemble"
        | "QuantizeLinear"
        | "DequantizeLinear"
        | "QLinearConv"
        | "QLinearMatMul" => "take the file in with `dunlin model push`, which rewrites this",
        "CategoryMapper" => "use LabelEncoder",
        "StringNormalizer" | "TfIdfVectorizer" | "Tokenizer" | "RegexFullMatch" | "StringConcat"
        | "StringSplit" => "prepare text before the model, and give it categories or numbers",
        "If" | "Loop" | "Scan" | "SequenceMap" => "export without control flow, recurrent layers unrolled",
        "DynamicQuantizeLinear" | "MatMulInteger" | "ConvInteger" | "QGemm" => {
            "ship the float32 model, or quantise statically with QuantizeLinear and DequantizeLinear"
        }
        "RandomNormal" | "RandomUniform" | "RandomNormalLike" | "RandomUniformLike" | "Multinomial"
        | "Bernoulli" => "a served model answers the same each time: export without randomness",
        _ if !matches!(domain, "" | "ai.onnx" | "ai.onnx.ml") => "export to the standard ONNX operators",
        _ => "export to other ONNX operators",
    }
}

/// Refuses of a recurrent operator what the runtime passes over: it knows the usual activations alone, and takes sequences
/// forwards or both ways.
pub(crate) fn recurrent(node: &NodeProto) -> Result<(), EngineError> {
    let usual: &[&[u8]] = match node.op_type.as_str() {
        "LSTM" => &[b"Sigmoid", b"Tanh", b"Tanh"],
        "GRU" => &[b"Sigmoid", b"Tanh"],
        "RNN" => &[b"Tanh"],
        _ => return Ok(()),
    };
    let all = Attributes { node };
    let mut activations = all.strings("activations").iter().zip(usual.iter().cycle());
    let (what, advice) = if !activations.all(|(asked, known)| asked.eq_ignore_ascii_case(known)) {
        (
            "activations other than the usual ones",
            "train with sigmoid and tanh, or unroll the sequence at export",
        )
    } else if all.text("direction", "forward") == "reverse" {
        ("a sequence taken backwards", "turn the sequence round before the model")
    } else if all.find("clip").is_some() || all.int("input_forget", 0) != 0 || all.int("layout", 0) != 0 {
        ("clip, input_forget or layout", "export without them")
    } else {
        return Ok(());
    };
    Err(unsupported(
        &format!("{} with {what}", full_name(&node.domain, &node.op_type)),
        node_name(node),
        advice,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_of_the_table_is_registered_with_the_runtime() {
        let framework = crate::runtime::framework();
        for op in ONNX.iter().chain(ML).chain(OWN) {
            assert!(
                framework.op_register.0.contains_key(*op),
                "{op} is promised, and the runtime does not have it"
            );
        }
    }

    #[test]
    fn refused_families_are_not_in_the_table() {
        for op in ["If", "Loop", "Scan", "QuantizeLinear", "DequantizeLinear", "RandomNormal", "Multinomial"]
        {
            assert!(!is_supported("", op), "{op}");
        }
        assert!(!is_supported("com.microsoft", "Gemm"));
    }
}
