//! The operators this engine runs right, and what to do about the others.

use std::collections::BTreeSet;

/// `ai.onnx` operators that tract computes as ONNX Runtime does. Left out on purpose: control flow (`If`,
/// `Loop`, `Scan`: unbounded time), random ones (golden vectors would not hold), and everything about quantised
/// graphs (computed wrongly in places, and slower than f32).
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
    "ReduceLogSumExp",
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

/// `ai.onnx.ml` operators: tract's own, and the three of this crate.
const ML: &[&str] = &[
    "ArrayFeatureExtractor",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
];

/// The operators this engine runs, as `domain/Name`: the capability a device reports.
pub fn supported_ops() -> BTreeSet<String> {
    let onnx = ONNX.iter().map(|op| format!("ai.onnx/{op}"));
    onnx.chain(ML.iter().map(|op| format!("ai.onnx.ml/{op}"))).collect()
}

/// `domain/Name` of a node, the default domain spelt out.
pub(crate) fn full_name(domain: &str, op: &str) -> String {
    format!("{}/{op}", if domain.is_empty() { "ai.onnx" } else { domain })
}

pub(crate) fn is_supported(domain: &str, op: &str) -> bool {
    match domain {
        "" | "ai.onnx" => ONNX.contains(&op),
        "ai.onnx.ml" => ML.contains(&op),
        _ => false,
    }
}

/// What a publisher can do about an operator that is refused.
pub(crate) fn advice(domain: &str, op: &str) -> &'static str {
    match op {
        "ZipMap" => "export with zipmap=False",
        "Imputer" => "impute with Where(IsNaN(x), value, x)",
        "OneHotEncoder" | "LabelEncoder" | "CategoryMapper" | "Binarizer" => {
            "encode in the pipeline's feature step, or with Equal and Cast, and keep the names in the manifest"
        }
        "SVMClassifier" | "SVMRegressor" => "use a linear, tree or neural model",
        "If" | "Loop" | "Scan" | "SequenceMap" => "export without control flow",
        "QuantizeLinear"
        | "DequantizeLinear"
        | "DynamicQuantizeLinear"
        | "QLinearConv"
        | "QLinearMatMul"
        | "MatMulInteger"
        | "ConvInteger"
        | "QGemm" => "ship the float32 model: quantised graphs are slower here and not exact",
        "RandomNormal" | "RandomUniform" | "RandomNormalLike" | "RandomUniformLike" | "Multinomial"
        | "Bernoulli" => "a served model answers the same each time: export without randomness",
        _ if !matches!(domain, "" | "ai.onnx" | "ai.onnx.ml") => "export to the standard ONNX operators",
        _ => "export to other ONNX operators",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_of_the_table_is_registered_with_the_runtime() {
        let framework = crate::runtime::framework();
        for op in ONNX.iter().chain(ML) {
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
