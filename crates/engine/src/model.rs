use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use dunlin_protocol::{Bytes, DType, IntoTree, TensorData, TensorSpec};
use tract_onnx::pb;
use tract_onnx::tract_hir::internal::{TValue, TVec, Tensor, TypedModel};

use crate::check::{self, Inspection};
use crate::explain::TreeSum;
use crate::origin::Origins;
use crate::plan::{Plan, run, value};
use crate::words::Words;
use crate::{EngineError, mixing, tensor};

mod graph;

/// Row counts that a graph is prepared for. A request is cut into these, largest first: single rows are fast,
/// batches reuse what they load, and a hostile mix of sizes makes no more than three plans.
pub const ROWS_TOGETHER: [usize; 3] = [32, 8, 1];
/// Fewest rows that are run together instead of one after the other.
pub const ROWS_TOGETHER_MIN: usize = ROWS_TOGETHER[1];
/// Most rows of one request: bounds the time one request holds a worker.
pub const ROWS_MAX: usize = 4096;

/// A loaded model: immutable, shared between threads, many runs side by side.
#[derive(Debug)]
pub struct Model {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    ops: BTreeSet<String>,
    rows: Rows,
    /// What the texts of `BYTES` inputs and outputs stand for.
    words: Option<Words>,
    /// The tree ensemble that its answer is made of, if it is one.
    trees: Option<TreeSum>,
}

/// How many rows the graph takes.
#[derive(Debug)]
enum Rows {
    /// Exactly this many, as the file says.
    Fixed(usize, Plan),
    /// Any number: the graph over a symbol, and a plan for each of [`ROWS_TOGETHER`], made when first used.
    Free { typed: Box<TypedModel>, plans: [OnceLock<Result<Plan, EngineError>>; ROWS_TOGETHER.len()] },
}

impl Model {
    /// Loads a model from the bytes of an ONNX file. `batch` is a hint: the plan for that many rows is made ready
    /// at once; the one for single rows always is.
    ///
    /// A panic of the runtime is caught and is an error. Memory and time are bounded only as far as the file
    /// shows: an unknown model is first loaded in a child process, see [`crate::prove`].
    ///
    /// # Errors
    /// Whatever [`crate::inspect`] refuses, free dimensions other than the first, and what the runtime refuses.
    pub fn load(onnx: &[u8], batch: Option<usize>) -> Result<Self, EngineError> {
        let file = check::decode(onnx)?;
        let words = Words::of(&file)?;
        let mut model = Self::of_numbers(file, onnx, batch)?;
        if let Some(words) = &words {
            words.declare(&mut model.inputs, &mut model.outputs)?;
        }
        model.words = words;
        Ok(model)
    }

    /// The graph itself, which knows no text.
    fn of_numbers(mut file: pb::ModelProto, onnx: &[u8], batch: Option<usize>) -> Result<Self, EngineError> {
        let Inspection { mut inputs, mut outputs, ops, .. } = check::check(&file)?;
        let origins = Origins::of(file.graph.as_ref());
        let fixed = graph::free_rows(&mut file, &inputs)?;
        let inexact = file.graph.as_ref().is_some_and(check::inexact);
        let typed = match graph::prepared(file, &origins) {
            Ok(typed) => typed,
            // Some graphs have the single row written into their constants.
            Err(symbolic) if fixed.is_none() => {
                let (typed, outputs) =
                    graph::single_row(onnx, &inputs, &origins, outputs).map_err(|error| {
                        if matches!(error, EngineError::Unsupported { .. }) { error } else { symbolic }
                    })?;
                return Self::fixed(1, typed, inputs, outputs, ops);
            }
            Err(e) => return Err(e),
        };
        graph::describe(&typed, &origins, &mut outputs)?;
        if let Some(rows) = fixed {
            return Self::fixed(rows, typed, inputs, outputs, ops);
        }
        graph::row_by_row(&typed, &origins, &outputs, -1)?;
        if inexact || mixing::over_rows(&typed, &graph::rows(&typed)) {
            drop(typed);
            let (typed, outputs) = graph::single_row(onnx, &inputs, &origins, outputs)?;
            return Self::fixed(1, typed, inputs, outputs, ops);
        }
        inputs.iter_mut().filter_map(|i| i.shape.first_mut()).for_each(|rows| *rows = -1);
        let trees = TreeSum::of(&typed);
        let model = Self {
            inputs,
            outputs,
            ops,
            rows: Rows::Free {
                typed: Box::new(typed),
                plans: [const { OnceLock::new() }; ROWS_TOGETHER.len()],
            },
            words: None,
            trees,
        };
        for rows in [1, batch.unwrap_or(1)] {
            model.plan(rows)?;
        }
        Ok(model)
    }

    fn fixed(
        rows: usize,
        typed: TypedModel,
        mut inputs: Vec<TensorSpec>,
        outputs: Vec<TensorSpec>,
        ops: BTreeSet<String>,
    ) -> Result<Self, EngineError> {
        for input in &mut inputs {
            if let Some(first) = input.shape.first_mut() {
                *first = rows as i64;
            }
        }
        let trees = TreeSum::of(&typed);
        Ok(Self { inputs, outputs, ops, rows: Rows::Fixed(rows, Plan::new(typed)?), words: None, trees })
    }

    /// Inputs, batch first; -1 where the request chooses.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// Outputs; for classification the last one holds the scores.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Operators it uses, as `domain/Name`.
    pub fn ops(&self) -> BTreeSet<String> {
        self.ops.clone()
    }

    /// Number of values in one row of the first input.
    pub fn row_len(&self) -> usize {
        self.inputs.first().map_or(0, row_len)
    }

    /// The tree ensemble that its answer is made of, if it is one.
    pub(crate) fn trees(&self) -> Option<&TreeSum> {
        self.trees.as_ref()
    }

    /// Runs the model. Inputs may come in any order; outputs come in the graph's.
    ///
    /// States are reused: once as many have been made as run side by side, a run takes from the heap what its rows and the
    /// values between its operators need, and gives it back. A row through 8 MB of weights takes at most 64 KiB, the
    /// thousandth as much as the tenth; through a thousand trees it takes at most a kilobyte more than through ten
    /// (`tests/allocation.rs`).
    ///
    /// # Errors
    /// [`EngineError::Input`] names the input at fault; [`EngineError::Run`] and [`EngineError::Panicked`] are
    /// the model's fault.
    pub fn run(&self, inputs: &[TensorData]) -> Result<Vec<TensorData>, EngineError> {
        let (rows, ordered) = self.order(inputs)?;
        let mut data: Vec<Vec<u8>> = vec![Vec::new(); self.outputs.len()];
        let mut shapes: Vec<Vec<u64>> = vec![Vec::new(); self.outputs.len()];
        let mut from = 0;
        for take in self.cut(rows) {
            let chunk = ordered
                .iter()
                .map(|given| {
                    let mut shape: Vec<usize> = given.shape.iter().map(|&d| d as usize).collect();
                    let row = given.data.0.len() / rows.max(1);
                    let bytes = if shape.is_empty() {
                        given.data.as_slice()
                    } else {
                        &given.data.0[from * row..(from + take) * row]
                    };
                    if let Some(first) = shape.first_mut() {
                        *first = take;
                    }
                    tensor::read(given.datatype, &shape, bytes).map(value)
                })
                .collect::<Result<TVec<_>, _>>()?;
            let made = self.plan(take)?.run(chunk)?;
            for (i, out) in made.iter().enumerate() {
                tensor::write(codes(self.outputs[i].datatype), out, &mut data[i])?;
                let shape: Vec<u64> = out.shape().iter().map(|&d| d as u64).collect();
                match shapes[i].first_mut() {
                    Some(first) => *first += take as u64,
                    None => shapes[i] = shape,
                }
            }
            from += take;
        }
        let named = self.outputs.iter().zip(shapes).zip(data);
        named
            .map(|((spec, shape), data)| {
                let data = match &self.words {
                    Some(words) if spec.datatype == DType::Bytes => words.decode(&data)?,
                    Some(_) | None => data,
                };
                Ok(TensorData { name: spec.name.clone(), datatype: spec.datatype, shape, data: Bytes(data) })
            })
            .collect()
    }

    /// The fast path: `n` rows of f32 features through a model with one `FP32` input, and the last output as
    /// f32, row after row. Of the heap it takes what [`Model::run`] does, without the names and bytes of tensors.
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn run_f32(&self, rows: &[f32], n: usize) -> Result<Vec<f32>, EngineError> {
        let [spec] = self.inputs.as_slice() else {
            return Err(input("", "the model takes several inputs"));
        };
        if spec.datatype != DType::Fp32 {
            return Err(input(&spec.name, "the model does not take FP32"));
        }
        let row = row_len(spec);
        if n == 0 || rows.len() != n * row {
            return Err(input(&spec.name, &format!("{} values are not {n} rows of {row}", rows.len())));
        }
        self.check_rows(n, &spec.name)?;
        let mut shape: Vec<usize> = spec.shape.iter().map(|&d| d.max(0) as usize).collect();
        let mut scores = Vec::new();
        let mut from = 0;
        for take in self.cut(n) {
            if let Some(first) = shape.first_mut() {
                *first = take;
            }
            let chunk = Tensor::from_shape(&shape, &rows[from * row..(from + take) * row]).map_err(run)?;
            let mut inputs: TVec<TValue> = TVec::new();
            inputs.push(value(chunk));
            let made = self.plan(take)?.run(inputs)?;
            let last = made.last().ok_or_else(|| EngineError::Run("there was no output".into()))?;
            let last = last.cast_to::<f32>().map_err(run)?;
            let plain = last.try_as_plain_ram().map_err(run)?;
            scores.extend_from_slice(plain.as_slice::<f32>().map_err(run)?);
            from += take;
        }
        Ok(scores)
    }

    /// The inputs in the graph's order, and the number of rows they agree on.
    fn order<'a>(&self, given: &'a [TensorData]) -> Result<(usize, Vec<Cow<'a, TensorData>>), EngineError> {
        let by_name: BTreeMap<&str, &TensorData> = given.iter().map(|t| (t.name.as_str(), t)).into_tree();
        if let Some(extra) = by_name.keys().find(|name| self.inputs.iter().all(|spec| spec.name != **name)) {
            let known: Vec<&str> = self.inputs.iter().map(|s| s.name.as_str()).collect();
            return Err(input(extra, &format!("the model has no such input, it takes {known:?}")));
        }
        if by_name.len() != given.len() {
            return Err(input(&given[0].name, "an input is there twice"));
        }
        let mut rows = None;
        let mut ordered = Vec::with_capacity(self.inputs.len());
        for spec in &self.inputs {
            let tensor =
                by_name.get(spec.name.as_str()).copied().ok_or_else(|| input(&spec.name, "it is missing"))?;
            let tensor = match &self.words {
                Some(words) if spec.datatype == DType::Bytes => Cow::Owned(words.encode(tensor)?),
                Some(_) | None => Cow::Borrowed(tensor),
            };
            fits(spec, &tensor)?;
            if let Some(&n) = tensor.shape.first() {
                if *rows.get_or_insert(n) != n {
                    return Err(input(&spec.name, "inputs disagree on the number of rows"));
                }
                self.check_rows(usize::try_from(n).unwrap_or(usize::MAX), &spec.name)?;
            }
            ordered.push(tensor);
        }
        Ok((rows.unwrap_or(1) as usize, ordered))
    }

    fn check_rows(&self, rows: usize, name: &str) -> Result<(), EngineError> {
        match &self.rows {
            Rows::Fixed(fixed, _) if rows == *fixed => Ok(()),
            // A graph for one row answers many, one after the other, if each of its outputs is one row.
            Rows::Fixed(1, _) if self.outputs.iter().any(|output| output.shape.first() != Some(&1)) => {
                Err(input(name, &format!("{rows} rows where the model takes one, of which it makes no rows")))
            }
            Rows::Fixed(1, _) | Rows::Free { .. } if (1..=ROWS_MAX).contains(&rows) => Ok(()),
            Rows::Fixed(1, _) | Rows::Free { .. } => {
                Err(input(name, &format!("{rows} rows; from 1 to {ROWS_MAX} are answered at once")))
            }
            Rows::Fixed(fixed, _) => {
                Err(input(name, &format!("{rows} rows where the model takes exactly {fixed}")))
            }
        }
    }

    /// The parts `rows` rows are run in.
    fn cut(&self, rows: usize) -> impl Iterator<Item = usize> + use<> {
        let fixed = match &self.rows {
            Rows::Fixed(n, _) => Some(*n),
            Rows::Free { .. } => None,
        };
        let mut left = rows;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let take =
                fixed.or_else(|| ROWS_TOGETHER.into_iter().find(|&b| b <= left)).unwrap_or(1).min(left);
            left -= take;
            Some(take)
        })
    }

    fn plan(&self, rows: usize) -> Result<&Plan, EngineError> {
        match &self.rows {
            Rows::Fixed(_, plan) => Ok(plan),
            Rows::Free { typed, plans } => {
                let bucket = ROWS_TOGETHER.iter().position(|&b| b <= rows).unwrap_or(ROWS_TOGETHER.len() - 1);
                plans[bucket]
                    .get_or_init(|| graph::concrete(typed, ROWS_TOGETHER[bucket]))
                    .as_ref()
                    .map_err(Clone::clone)
            }
        }
    }
}

fn fits(spec: &TensorSpec, given: &TensorData) -> Result<(), EngineError> {
    if given.datatype != codes(spec.datatype) {
        return Err(input(
            &spec.name,
            &format!("it is {} where {} belongs", given.datatype.as_str(), spec.datatype.as_str()),
        ));
    }
    let same = given.shape.len() == spec.shape.len()
        && spec.shape.iter().zip(&given.shape).skip(1).all(|(want, got)| u64::try_from(*want) == Ok(*got));
    if !same {
        return Err(input(
            &spec.name,
            &format!("its shape is {:?} where {:?} belongs", given.shape, spec.shape),
        ));
    }
    let elements = given.shape.iter().try_fold(1_u64, |all, &d| all.checked_mul(d));
    let bytes = elements.and_then(|n| n.checked_mul(given.datatype.size()? as u64));
    if bytes != Some(given.data.0.len() as u64) {
        return Err(input(
            &spec.name,
            &format!("it holds {} bytes, which is not shape {:?}", given.data.0.len(), given.shape),
        ));
    }
    Ok(())
}

/// The type inside: text is computed with as codes.
fn codes(kind: DType) -> DType {
    if kind == DType::Bytes { DType::Int64 } else { kind }
}

/// Values in one row of an input.
fn row_len(spec: &TensorSpec) -> usize {
    spec.shape.iter().skip(1).map(|&d| d.max(0) as usize).product()
}

fn input(name: &str, problem: &str) -> EngineError {
    EngineError::Input { name: name.chars().take(100).collect(), problem: problem.to_owned() }
}
