//! An operator that looks at each row of a table by itself: what tree ensembles and support vector machines have in
//! common as far as tract is concerned.

use std::fmt::Debug;
use std::sync::Arc;

use tract_onnx::tract_hir::internal::*;

use crate::tree::Scores;

/// Work on rows of features.
pub(crate) trait RowWork: Debug + Send + Sync {
    /// Whether there is a label beside the scores.
    fn labels(&self) -> bool;

    /// Columns of the scores.
    fn width(&self) -> usize;

    /// Least number of features of a row, and whether there may be more.
    fn features(&self) -> (usize, bool);

    /// How features in double precision become single; `None` if no way keeps the answer.
    fn narrow(&self) -> Option<fn(f64) -> f32>;

    /// The tree ensemble it is, if it is one.
    fn trees(&self) -> Option<&Scores> {
        None
    }

    /// Labels, if it makes any, and scores of `rows` of `columns` features, row after row. What comes of a row may
    /// not depend on the rows it comes with.
    fn eval(&self, rows: &[f32], columns: usize) -> (Vec<i64>, Vec<f32>);
}

/// The operator: with labels a classifier (outputs: label, scores), without a regressor (output: values).
pub(crate) fn op(name: &'static str, work: Arc<dyn RowWork>) -> Box<dyn InferenceOp> {
    expand(Rows { name, work })
}

/// The work on the rows of a graph's one input whose scores an outlet holds.
pub(crate) fn work_at(graph: &TypedModel, outlet: OutletId) -> Option<Arc<dyn RowWork>> {
    let node = &graph.nodes[outlet.node];
    let rows = node.op_as::<Rows>()?;
    let is_scores = outlet.slot + 1 == node.outputs.len();
    let of_input = graph.input_outlets().ok()? == node.inputs.as_slice();
    (is_scores && of_input).then(|| Arc::clone(&rows.work))
}

#[derive(Debug, Clone)]
struct Rows {
    name: &'static str,
    work: Arc<dyn RowWork>,
}

impl PartialEq for Rows {
    /// Two nodes are equal if they share their work; comparing millions of tree nodes would buy nothing.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.work, &other.work)
    }
}

impl Eq for Rows {}

impl Rows {
    fn fits(&self, columns: usize) -> TractResult<()> {
        let (least, more) = self.work.features();
        ensure!(
            columns == least || (more && columns > least),
            "rows of {columns} features where {least} are looked at"
        );
        Ok(())
    }
}

impl Rows {
    fn single<'a>(&self, input: &'a Tensor) -> TractResult<std::borrow::Cow<'a, Tensor>> {
        if input.datum_type() != DatumType::F64 {
            return input.cast_to::<f32>();
        }
        let narrow = self.work.narrow().context("features in double precision")?;
        let plain = input.try_as_plain_ram()?;
        let values: Vec<f32> = plain.as_slice::<f64>()?.iter().copied().map(narrow).collect();
        Ok(std::borrow::Cow::Owned(Tensor::from_shape(input.shape(), &values)?))
    }
}

/// What is known of an operator on a table beforehand: scores of `width` for each row and, if there are `labels`, those before.
pub(crate) fn scored<'r, 'p: 'r>(
    s: &mut Solver<'r>,
    inputs: &'p [TensorProxy],
    outputs: &'p [TensorProxy],
    labels: bool,
    width: usize,
) -> InferenceResult {
    check_input_arity(inputs, 1)?;
    check_output_arity(outputs, if labels { 2 } else { 1 })?;
    let scores = outputs.len() - 1;
    s.equals(&inputs[0].rank, 2)?;
    s.equals(&outputs[scores].rank, 2)?;
    s.equals(&outputs[scores].datum_type, DatumType::F32)?;
    s.equals(&outputs[scores].shape[0], &inputs[0].shape[0])?;
    s.equals(&outputs[scores].shape[1], width.to_dim())?;
    if labels {
        s.equals(&outputs[0].datum_type, DatumType::I64)?;
        s.equals(&outputs[0].rank, 1)?;
        s.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
    }
    Ok(())
}

impl Expansion for Rows {
    fn name(&self) -> StaticName {
        self.name.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(if self.work.labels() { 2 } else { 1 })
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        scored(s, inputs, outputs, self.work.labels(), self.work.width())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Rows {
    fn name(&self) -> StaticName {
        self.name.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Rows {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let input = self.single(&input)?;
        let &[rows, columns] = input.shape() else { bail!("{} takes rows of features", self.name) };
        self.fits(columns)?;
        let plain = input.try_as_plain_ram()?;
        let (labels, scores) = self.work.eval(plain.as_slice::<f32>()?, columns);
        let mut out = tvec!();
        if self.work.labels() {
            out.push(Tensor::from_shape(&[rows], &labels)?.into_tvalue());
        }
        out.push(Tensor::from_shape(&[rows, self.work.width()], &scores)?.into_tvalue());
        Ok(out)
    }
}

impl TypedOp for Rows {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [rows, columns] = inputs[0].shape.dims() else { bail!("{} takes rows of features", self.name) };
        if let Ok(columns) = columns.to_usize() {
            self.fits(columns)?;
        }
        ensure!(
            inputs[0].datum_type != DatumType::F64 || self.work.narrow().is_some(),
            "{} of features in double precision: export it for float32",
            self.name
        );
        let scores = f32::fact([rows.clone(), self.work.width().to_dim()]);
        Ok(if self.work.labels() { tvec!(i64::fact([rows.clone()]), scores) } else { tvec!(scores) })
    }

    as_op!();
}

/// The nearest value in single precision.
pub(crate) fn nearest(x: f64) -> f32 {
    x as f32
}

/// The least value in single precision that is not below `x`: for a threshold `t` in single precision, `x <= t` holds
/// exactly if it holds for this.
pub(crate) fn not_below(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) < x { near.next_up() } else { near }
}

/// Index of the largest score, the first of equal ones.
pub(crate) fn best<T: PartialOrd>(row: &[T]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_keep_their_side_of_a_single_threshold() {
        let threshold = 0.1_f32;
        let exact = f64::from(threshold);
        for x in [exact.next_down(), exact, exact.next_up(), exact + 1e-9, -1e300, 1e300, f64::INFINITY] {
            assert_eq!(not_below(x) <= threshold, x <= exact, "{x:e}");
        }
        assert!(not_below(f64::NAN).is_nan());
        // The nearest one does not.
        assert!(nearest(exact.next_up()) <= threshold);
    }
}
