//! The two tree operators as tract sees them.

use std::sync::Arc;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::{Scores, read};

/// Registers both operators, over tract's own where it has one.
pub(crate) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("TreeEnsembleClassifier", classifier);
    ops.insert("TreeEnsembleRegressor", regressor);
}

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn classifier(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let (scores, labels) = read::classifier(node)?;
    Ok((expand(Trees { scores: Arc::new(scores), labels: Some(labels.into()) }), vec![]))
}

fn regressor(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    Ok((expand(Trees { scores: Arc::new(read::regressor(node)?), labels: None }), vec![]))
}

/// With labels a classifier (outputs: label, scores), without a regressor (output: values).
#[derive(Debug, Clone)]
struct Trees {
    scores: Arc<Scores>,
    labels: Option<Arc<[i64]>>,
}

impl PartialEq for Trees {
    /// Two nodes are equal if they share their ensemble; comparing millions of nodes would buy nothing.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.scores, &other.scores)
    }
}

impl Eq for Trees {}

impl Expansion for Trees {
    fn name(&self) -> StaticName {
        "TreeEnsemble".into()
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
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, self.nboutputs()?)?;
        let scores = outputs.len() - 1;
        s.equals(&inputs[0].rank, 2)?;
        s.equals(&outputs[scores].rank, 2)?;
        s.equals(&outputs[scores].datum_type, DatumType::F32)?;
        s.equals(&outputs[scores].shape[0], &inputs[0].shape[0])?;
        s.equals(&outputs[scores].shape[1], self.scores.width().to_dim())?;
        if self.labels.is_some() {
            s.equals(&outputs[0].datum_type, DatumType::I64)?;
            s.equals(&outputs[0].rank, 1)?;
            s.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Trees {
    fn name(&self) -> StaticName {
        "TreeEnsemble".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Trees {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let input = input.cast_to::<f32>()?;
        let width = self.scores.width();
        let &[rows, columns] = input.shape() else {
            bail!("a tree ensemble takes rows of features");
        };
        ensure!(
            columns >= self.scores.features(),
            "rows of {columns} features where {} are looked at",
            self.scores.features()
        );
        let plain = input.try_as_plain_ram()?;
        let scores = self.scores.eval(plain.as_slice::<f32>()?, columns);
        let mut out = tvec!();
        if let Some(labels) = &self.labels {
            let best: Vec<i64> = scores.chunks_exact(width).map(|row| labels[best(row)]).collect();
            out.push(Tensor::from_shape(&[rows], &best)?.into_tvalue());
        }
        out.push(Tensor::from_shape(&[rows, width], &scores)?.into_tvalue());
        Ok(out)
    }
}

impl TypedOp for Trees {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [rows, columns] = inputs[0].shape.dims() else { bail!("a tree ensemble takes rows of features") };
        if let Ok(columns) = columns.to_usize() {
            ensure!(
                columns >= self.scores.features(),
                "rows of {columns} features where {} are looked at",
                self.scores.features()
            );
        }
        let scores = f32::fact([rows.clone(), self.scores.width().to_dim()]);
        Ok(if self.labels.is_some() { tvec!(i64::fact([rows.clone()]), scores) } else { tvec!(scores) })
    }

    as_op!();
}

/// Index of the largest score, the first of equal ones.
fn best(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}
