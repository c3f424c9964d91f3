//! `ai.onnx.ml` `LinearClassifier` and `LinearRegressor` as ONNX Runtime answers them, wired as tract's own arithmetic.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{Gather, TypedConcat};
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_hir::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, Reducer, Softmax, sigmoid};
use tract_onnx::tract_hir::tract_core::ops::{logic, math};

use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{malformed, node_name, unsupported};
use crate::rows;

/// Registers both operators, over tract's own.
pub(crate) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("LinearClassifier", classifier);
    ops.insert("LinearRegressor", regressor);
}

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn classifier(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let all = Attributes { node };
    let labels = all.ints("classlabels_ints").to_vec();
    let intercepts = all.floats("intercepts");
    let rows = intercepts.len();
    if rows == 0 {
        return Err(unsupported(
            "ai.onnx.ml/LinearClassifier without intercepts, which ONNX Runtime does not load,",
            node_name(node),
            "write zeros",
        )
        .into());
    }
    if labels.len() < 2 || (labels.len() != rows && (labels.len(), rows) != (2, 1)) {
        let what = format!("{:?} has {} classes and {rows} intercepts", node_name(node), labels.len());
        return Err(malformed(&what).into());
    }
    Ok((expand(Linear::read(node, rows, Some(labels))?), vec![]))
}

fn regressor(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let all = Attributes { node };
    let targets = usize::try_from(all.int("targets", 1)).unwrap_or(0);
    let linear = Linear::read(node, targets, None)?;
    if targets == 1 && linear.link != Link::None {
        return Err(unsupported(
            "a post transform of the one target of ai.onnx.ml/LinearRegressor, which ONNX Runtime passes over \
             against its specification,",
            node_name(node),
            "use NONE, with an operator behind it",
        )
        .into());
    }
    Ok((expand(linear), vec![]))
}

/// What is done to the sums at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    None,
    Softmax,
    Logistic,
}

/// `x * coefficients + intercepts`; with labels a classifier.
#[derive(Debug, Clone, PartialEq)]
struct Linear {
    /// By feature, a coefficient for each sum.
    coefficients: Arc<Tensor>,
    intercepts: Option<Arc<Tensor>>,
    sums: usize,
    link: Link,
    labels: Option<Vec<i64>>,
}

impl Linear {
    fn read(node: &NodeProto, sums: usize, labels: Option<Vec<i64>>) -> TractResult<Self> {
        let all = Attributes { node };
        let bad = |what: &str| TractError::from(malformed(&format!("{:?} has {what}", node_name(node))));
        let coefficients = all.floats("coefficients");
        if sums == 0 || coefficients.is_empty() || !coefficients.len().is_multiple_of(sums) {
            return Err(bad(&format!("{} coefficients for {sums} sums", coefficients.len())));
        }
        let shape = [sums, coefficients.len() / sums];
        let coefficients = Tensor::from_shape(&shape, coefficients)?.permute_axes(&[1, 0])?;
        let intercepts = match all.floats("intercepts") {
            [] => None,
            list => {
                Some(Tensor::from_shape(&[1, sums], all.same("intercepts", list, sums)?)?.into_arc_tensor())
            }
        };
        let link = link(&all)?;
        Ok(Self { coefficients: coefficients.into_arc_tensor(), intercepts, sums, link, labels })
    }

    /// Whether one sum decides between two classes.
    fn is_one_of_two(&self) -> bool {
        self.labels.is_some() && self.sums == 1
    }

    fn width(&self) -> usize {
        if self.is_one_of_two() { 2 } else { self.sums }
    }

    /// The labels by the sums, before the link.
    fn label(&self, prefix: &str, model: &mut TypedModel, sums: OutletId) -> TractResult<Option<OutletId>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let name = |what: &str| format!("{prefix}.label.{what}");
        let place = if self.is_one_of_two() {
            let zero = model.add_const(name("zero"), tensor2(&[[0.0_f32]]))?;
            let above = model.wire_node(name("above"), TypedBinOp(logic::comp_gt(), None), &[sums, zero])?;
            model.wire_node(name("place"), cast(i64::datum_type()), &above)?
        } else {
            let most = Reduce::new(tvec!(1), Reducer::ArgMax(false));
            model.wire_node(name("place"), most, &[sums])?
        };
        let place = model.wire_node(name("list"), AxisOp::Rm(1), &place)?;
        let labels = model.add_const(name("all"), tensor1(labels))?;
        Ok(Some(model.wire_node(name("label"), Gather::new(0), &[labels, place[0]])?[0]))
    }

    fn scores(&self, prefix: &str, model: &mut TypedModel, sums: OutletId) -> TractResult<OutletId> {
        let name = |what: &str| format!("{prefix}.{what}");
        let softmax = || Softmax { axes: tvec!(1), ..Softmax::default() };
        Ok(match self.link {
            Link::Logistic => {
                let score = model.wire_node(name("logistic"), sigmoid(), &[sums])?[0];
                // tract's curve takes what is no number for one.
                let is_number = TypedBinOp(logic::comp_eq(), None);
                let is_number = model.wire_node(name("is-number"), is_number, &[sums, sums])?[0];
                model.wire_node(name("score"), logic::Iff, &[is_number, score, sums])?[0]
            }
            Link::Softmax if !self.is_one_of_two() => {
                model.wire_node(name("softmax"), softmax(), &[sums])?[0]
            }
            Link::None | Link::Softmax => sums,
        })
    }

    /// The score of the second class beside its complement.
    fn both(&self, prefix: &str, model: &mut TypedModel, second: OutletId) -> TractResult<OutletId> {
        let one = model.add_const(format!("{prefix}.one"), tensor2(&[[1.0_f32]]))?;
        let first = model.wire_node(format!("{prefix}.complement"), math::sub(), &[one, second])?[0];
        Ok(model.wire_node(format!("{prefix}.both"), TypedConcat::new(1), &[first, second])?[0])
    }
}

fn link(all: &Attributes<'_>) -> Result<Link, EngineError> {
    Ok(match all.text("post_transform", "NONE").as_str() {
        "NONE" => Link::None,
        "SOFTMAX" => Link::Softmax,
        "LOGISTIC" => Link::Logistic,
        other => {
            return Err(unsupported(
                &format!("the post transform {other:?} of ai.onnx.ml/{}", all.node.op_type),
                node_name(all.node),
                "use NONE, SOFTMAX or LOGISTIC",
            ));
        }
    })
}

impl Expansion for Linear {
    fn name(&self) -> StaticName {
        "Linear".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(if self.labels.is_some() { 2 } else { 1 })
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        rows::scored(s, inputs, outputs, self.labels.is_some(), self.width())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let x = model.wire_node(format!("{prefix}.x"), cast(f32::datum_type()), inputs)?[0];
        let coefficients =
            model.add_const(format!("{prefix}.coefficients"), Arc::clone(&self.coefficients))?;
        let axes = AxesMapping::for_numpy_matmul(2, false, false, false)?;
        let product = EinSum::new(axes, f32::datum_type());
        let mut sums = model.wire_node(format!("{prefix}.product"), product, &[x, coefficients])?[0];
        if let Some(intercepts) = &self.intercepts {
            let intercepts = model.add_const(format!("{prefix}.intercepts"), Arc::clone(intercepts))?;
            sums = model.wire_node(format!("{prefix}.sums"), math::add(), &[sums, intercepts])?[0];
        }
        let mut scores = self.scores(prefix, model, sums)?;
        if self.is_one_of_two() {
            scores = self.both(prefix, model, scores)?;
        }
        Ok(self.label(prefix, model, sums)?.into_iter().chain([scores]).collect())
    }
}
