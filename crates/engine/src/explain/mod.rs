//! Why a model answered as it did: Shapley values of the features of one row.
//!
//! The game is the interventional one: a feature is absent when a background row's value stands in its place. The
//! values of a row add up to its answer minus the mean answer over the background rows, but for rounding.

mod permutation;
mod trees;

use dunlin_protocol::{DType, GoldenSet};

pub(crate) use trees::TreeSum;

use crate::{EngineError, Model, ROWS_MAX, floats};

/// Most background rows: the error of a mean falls with their root, the cost rises with their number.
pub const BACKGROUND_ROWS_MAX: usize = 32;
/// Most features of a row that is explained. Beyond it a picture is asked about, not a table; and both directions of a
/// walk fit into one batch.
pub const EXPLAINED_FEATURES_MAX: usize = 1024;
const _: () = assert!(2 * EXPLAINED_FEATURES_MAX <= ROWS_MAX);
/// Most orders of the features that are walked for one background row: beyond it the values of real models no longer
/// move by a thousandth.
pub const PERMUTATIONS_MAX: usize = 1024;

/// How contributions are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// From the nodes of a tree ensemble, exactly.
    Tree,
    /// From answers along random orders of the features.
    Permutation,
}

/// What the values of an explanation add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explains {
    /// The sum over the trees with its constants, before a link makes probabilities of it. Of two margins of a column, the other
    /// columns being equal, the larger one gives the larger answer.
    Margin,
    /// The last output, as the model answers it.
    Output,
}

/// What may be spent on one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Use [`Method::Permutation`] for tree ensembles too.
    pub sampled: bool,
    /// Orders of the features a background row, taken in pairs of an order and its reverse.
    pub permutations: usize,
    /// Where the orders begin: the same seed gives the same values.
    pub seed: u64,
}

/// The explanation of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// How it was found.
    pub method: Method,
    /// What `value` is.
    pub explains: Explains,
    /// By output column: the mean over the background rows.
    pub base: Vec<f64>,
    /// By output column: what the row itself gives.
    pub value: Vec<f64>,
    /// Output column by output column, one contribution a feature.
    pub contributions: Vec<f64>,
    /// Background rows that took part.
    pub background: usize,
    /// Orders that were walked for each of them; zero where none had to be.
    pub permutations: usize,
    /// False if the caller's budget ended it early: fewer orders or background rows took part than there are.
    pub complete: bool,
}

impl Explanation {
    /// The contributions to one output column.
    pub fn of(&self, column: usize) -> &[f64] {
        let features = self.contributions.len() / self.value.len().max(1);
        self.contributions.get(column * features..(column + 1) * features).unwrap_or_default()
    }
}

/// Up to [`BACKGROUND_ROWS_MAX`] rows of the golden inputs, evenly spread over them; none if the model takes no table.
pub fn background(model: &Model, golden: &GoldenSet) -> Vec<f32> {
    let Ok(columns) = model.columns() else { return Vec::new() };
    let name = &model.inputs()[0].name;
    let given = golden.inputs.iter().find(|t| t.name == *name && t.datatype == DType::Fp32);
    let values = given.and_then(floats).unwrap_or_default();
    let rows: Vec<&[f32]> =
        values.chunks_exact(columns).filter(|row| row.iter().all(|x| x.is_finite())).collect();
    let take = rows.len().min(BACKGROUND_ROWS_MAX);
    (0..take).flat_map(|i| rows[i * rows.len() / take]).copied().collect()
}

impl Model {
    /// Columns of the table the model takes.
    ///
    /// # Errors
    /// [`EngineError::Input`] if it takes something else: several inputs, another type than `FP32`, more dimensions
    /// than rows and columns, a fixed number of rows, or more than [`EXPLAINED_FEATURES_MAX`] columns.
    pub fn columns(&self) -> Result<usize, EngineError> {
        let refuse = |problem: &str| {
            let name = self.inputs().first().map(|spec| spec.name.clone()).unwrap_or_default();
            Err(EngineError::Input {
                name,
                problem: format!("only rows of FP32 features are explained; {problem}"),
            })
        };
        let [spec] = self.inputs() else { return refuse("the model takes several inputs") };
        let &[rows, _] = spec.shape.as_slice() else { return refuse("the model takes no table") };
        if spec.datatype != DType::Fp32 {
            return refuse(&format!("the model takes {}", spec.datatype.as_str()));
        }
        if !matches!(rows, -1 | 1) {
            return refuse(&format!("the model takes {rows} rows at once"));
        }
        match self.row_len() {
            columns @ 1..=EXPLAINED_FEATURES_MAX => Ok(columns),
            columns => refuse(&format!("{columns} features are not from 1 to {EXPLAINED_FEATURES_MAX}")),
        }
    }

    /// Explains one row against `background`, row after row. `go_on` is asked between pieces of work, each of them the
    /// runs of one background row; after the first piece, no ends the work with what there is.
    ///
    /// # Errors
    /// As [`Model::columns`]; [`EngineError::Input`] if `x` or the background is not made of such rows or not finite;
    /// what running the model gives, and [`EngineError::Run`] if an answer is not finite.
    pub fn explain(
        &self,
        x: &[f32],
        background: &[f32],
        effort: &Effort,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Explanation, EngineError> {
        let columns = self.columns()?;
        let refuse =
            |problem: String| Err(EngineError::Input { name: self.inputs()[0].name.clone(), problem });
        if x.len() != columns {
            return refuse(format!("{} values are not one row of {columns}", x.len()));
        }
        if background.is_empty() || !background.len().is_multiple_of(columns) {
            return refuse(format!("there are no background rows of {columns} features to compare with"));
        }
        if x.iter().chain(background).any(|x| !x.is_finite()) {
            return refuse("a value is not finite".into());
        }
        match self.trees().filter(|_| !effort.sampled) {
            Some(trees) => Ok(trees.explain(x, background, go_on)),
            None => {
                let mut answer = |rows: &[f32], n: usize| self.run_f32(rows, n);
                permutation::explain(&mut answer, x, background, effort, go_on)
            }
        }
    }
}
