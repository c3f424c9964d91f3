//! Foreign models: rewrites what other exporters write into what this engine computes right.
//!
//! The pass runs where a model is taken in, never on a device: the file that comes out is what is proven, signed and
//! sent. It changes no answer; what it can not keep it refuses, with operator, node and advice. The same file always
//! becomes the same bytes, and a file that needs no change stays as it is.

mod arithmetic;
mod distance;
mod encode;
mod ensemble;
mod features;
mod graph;
mod half;
mod labels;
mod quantised;
pub(crate) mod tensor;
mod words;

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Serialize};
use tract_onnx::pb;

use crate::EngineError;
use crate::check::{self, MODEL_BYTES_MAX, NODES_MAX, malformed, too_large, unsupported};
use graph::Editor;

/// Oldest default operator set that can be rewritten: the first with `IsNaN`, `Where` and `Equal` as they are used.
const OPSET_MIN: i64 = 9;
/// The default operator set of files that name none, because they hold operators of `ai.onnx.ml` alone.
const OPSET_OWN: i64 = 17;
/// Nodes that one entry of [`Imported::rewritten`] names; the rest is counted.
const NAMED_MAX: usize = 5;

/// A model that this engine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The ONNX file, for [`crate::Model::load`].
    pub onnx: Vec<u8>,
    /// What was changed; empty if the file is as it came.
    pub rewritten: Vec<Rewrite>,
}

/// One kind of change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The operator (`domain/Name`) or feature.
    pub what: String,
    /// What it became.
    pub became: String,
    /// How many there were.
    pub count: usize,
    /// The first few of their nodes.
    pub nodes: Vec<String>,
}

/// The changes of one pass.
#[derive(Debug, Default)]
struct Rewrites(BTreeMap<(String, &'static str), (usize, Vec<String>)>);

impl Rewrites {
    fn add(&mut self, what: &str, became: &'static str, node: &str) {
        let (count, nodes) = self.0.entry((what.to_owned(), became)).or_default();
        *count += 1;
        if nodes.len() < NAMED_MAX {
            nodes.push(node.to_owned());
        }
    }

    fn list(self) -> Vec<Rewrite> {
        self.0
            .into_iter()
            .map(|((what, became), (count, nodes))| Rewrite { what, became: became.to_owned(), count, nodes })
            .collect()
    }
}

/// Rewrites an ONNX file for this engine. Nothing is run; time and memory are linear in the file's size.
///
/// # Errors
/// [`EngineError::Unsupported`] names operator and node of what can not be kept, with advice; otherwise as
/// [`crate::inspect`].
pub fn import(onnx: &[u8]) -> Result<Imported, EngineError> {
    let mut file = check::decode(onnx)?;
    let opset = opset_of(&file, |domain| matches!(domain, "" | "ai.onnx"));
    let ml = opset_of(&file, |domain| domain == "ai.onnx.ml").unwrap_or(1);
    let graph = file.graph.as_mut().ok_or_else(|| malformed("the file holds no graph"))?;
    if graph.node.len() > NODES_MAX {
        return Err(too_large("nodes of the graph", graph.node.len() as u64, NODES_MAX as u64));
    }
    let mut editor = Editor::new(graph, opset.unwrap_or(OPSET_OWN), ml);
    half::widen(&mut editor, graph)?;
    words::begin(&mut editor, graph)?;
    for node in std::mem::take(&mut graph.node) {
        editor.begin(&node);
        rewrite(&mut editor, node)?;
    }
    labels::outputs(&editor, graph);
    words::end(&mut editor, graph)?;
    let (words, rewrites) = editor.finish(graph);
    if rewrites.0.is_empty() {
        check::check(&file)?;
        return Ok(Imported { onnx: onnx.to_vec(), rewritten: Vec::new() });
    }
    // Shapes and types of values in between; some are not true any more, and none is needed.
    graph.value_info.clear();
    words.store(&mut file);
    match opset {
        Some(version) if version < OPSET_MIN => {
            return Err(unsupported(
                &format!("rewriting operator set {version}"),
                "",
                "export with operator set 9 or newer",
            ));
        }
        Some(_) => {}
        None => file.opset_import.push(pb::OperatorSetIdProto { domain: String::new(), version: OPSET_OWN }),
    }
    check::check(&file)?;
    let onnx = file.encode_to_vec();
    if onnx.len() > MODEL_BYTES_MAX {
        return Err(too_large("the rewritten file", onnx.len() as u64, MODEL_BYTES_MAX as u64));
    }
    Ok(Imported { onnx, rewritten: rewrites.list() })
}

fn opset_of(file: &pb::ModelProto, is_asked: impl Fn(&str) -> bool) -> Option<i64> {
    file.opset_import.iter().find(|set| is_asked(&set.domain)).map(|set| set.version)
}

fn rewrite(editor: &mut Editor, mut node: pb::NodeProto) -> Result<(), EngineError> {
    // Only these two look into text.
    if !matches!(node.op_type.as_str(), "LabelEncoder" | "OneHotEncoder") {
        node = words::node(editor, node)?;
    }
    match (node.domain.as_str(), node.op_type.as_str()) {
        ("ai.onnx.ml", "ZipMap") => labels::zip_map(editor, &node),
        ("ai.onnx.ml", "TreeEnsembleClassifier" | "LinearClassifier" | "SVMClassifier") => {
            labels::classifier(editor, node)
        }
        ("ai.onnx.ml", "LabelEncoder") => encode::labels(editor, &node),
        ("ai.onnx.ml", "OneHotEncoder") => encode::one_hot(editor, &node),
        ("ai.onnx.ml", "Imputer") => features::imputer(editor, &node),
        ("ai.onnx.ml", "Binarizer") => features::binarizer(editor, &node),
        ("ai.onnx.ml", "FeatureVectorizer") => features::vectorizer(editor, &node),
        ("ai.onnx.ml", "Normalizer") => features::normalizer(editor, &node),
        ("ai.onnx.ml", "TreeEnsemble") => ensemble::rewrite(editor, &node),
        ("" | "ai.onnx", "QuantizeLinear") => quantised::quantize(editor, &node),
        ("" | "ai.onnx", "DequantizeLinear") => quantised::dequantize(editor, &node),
        ("" | "ai.onnx", "QLinearConv") => quantised::convolution(editor, &node),
        ("" | "ai.onnx", "QLinearMatMul") => quantised::product(editor, &node),
        ("" | "ai.onnx", "ReduceLogSumExp") => arithmetic::log_sum_exp(editor, &node),
        ("" | "ai.onnx", "Scan") => distance::scan(editor, node),
        ("com.microsoft", "CDist") => distance::pairs(editor, &node),
        ("com.microsoft", "QLinearAdd" | "QLinearMul") => quantised::binary(editor, &node),
        (
            "com.microsoft",
            "QLinearGlobalAveragePool" | "QLinearSigmoid" | "QLinearLeakyRelu" | "QLinearSoftmax",
        ) => quantised::unary(editor, &node),
        ("com.microsoft", "QGemm") => quantised::affine(editor, &node),
        ("ai.onnx.ml", "ArrayFeatureExtractor") => arithmetic::extract(editor, &node),
        _ => editor.keep(node),
    }
}
