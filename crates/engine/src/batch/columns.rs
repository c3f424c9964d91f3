use std::collections::BTreeMap;

use dunlin_protocol::{Bundle, Bytes, DType, IntoTree, TaskType, TensorData, TensorSpec};
use serde_json::{Number, Value};

use super::{BatchError, CHUNK_BYTES, CHUNK_ROWS_MAX};
use crate::json;

/// Bytes that a text is taken for before it is read.
const TEXT_BYTES: usize = 64;

/// The columns of a table that a model answers rows of, and those of its answers.
#[derive(Debug, Clone)]
pub struct Columns {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    /// Classes, if one is predicted.
    labels: Vec<String>,
    /// Name and type of each column.
    columns: Vec<(String, DType)>,
    by_name: BTreeMap<String, usize>,
}

/// Values in one row of a tensor.
fn width(spec: &TensorSpec) -> usize {
    spec.shape.iter().skip(1).map(|d| usize::try_from(*d).unwrap_or(0)).product()
}

/// A value for people: text without its quotation marks.
fn shown(cell: &Value) -> String {
    cell.as_str().map_or_else(|| cell.to_string(), ToOwned::to_owned)
}

impl Columns {
    /// The columns of a bundle: the features of its signature; where those are not named, the name of the input, with the
    /// place behind a dot if it has several values.
    ///
    /// # Errors
    /// [`BatchError::Model`] if the model takes a fixed number of rows, a type without a text form, or a name twice.
    pub fn of(bundle: &Bundle) -> Result<Self, BatchError> {
        let signature = &bundle.signature;
        let refuse = |problem: String| Err(BatchError::Model(problem));
        let mut columns = Vec::new();
        for (i, spec) in signature.inputs.iter().enumerate() {
            if !matches!(spec.shape.first(), Some(-1 | 1)) {
                return refuse(format!("input {:?} does not take any number of rows", spec.name));
            }
            if spec.datatype == DType::Fp16 {
                return refuse(format!("input {:?} is FP16, which has no text form", spec.name));
            }
            let n = width(spec);
            let names: Vec<String> = match n {
                _ if i == 0 && signature.features.len() == n => {
                    signature.features.iter().map(|feature| feature.name.clone()).collect()
                }
                1 => vec![spec.name.clone()],
                n => (0..n).map(|place| format!("{}.{place}", spec.name)).collect(),
            };
            columns.extend(names.into_iter().map(|name| (name, spec.datatype)));
        }
        let by_name: BTreeMap<String, usize> =
            columns.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).into_tree();
        if by_name.len() != columns.len() || columns.is_empty() {
            return refuse("its features have no names of their own".into());
        }
        let labels = match bundle.task_type {
            TaskType::Classification => signature.labels.clone(),
            TaskType::Regression | TaskType::Clustering | TaskType::Recommendation => Vec::new(),
        };
        Ok(Self {
            inputs: signature.inputs.clone(),
            outputs: signature.outputs.clone(),
            labels,
            columns,
            by_name,
        })
    }

    /// Number of columns.
    pub fn count(&self) -> usize {
        self.columns.len()
    }

    /// The type of a column.
    pub fn kind(&self, column: usize) -> DType {
        self.columns[column].1
    }

    /// The column of that name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Where in a table with this header each column is. Further columns are passed over: a row's number leads back to them.
    ///
    /// # Errors
    /// [`BatchError::Table`] names what is missing, or there twice.
    pub fn places<S: AsRef<str>>(&self, header: &[S]) -> Result<Vec<usize>, BatchError> {
        let mut places = vec![None; self.columns.len()];
        for (at, name) in header.iter().enumerate() {
            let Some(column) = self.find(name.as_ref()) else { continue };
            if places[column].replace(at).is_some() {
                return Err(BatchError::Table(format!("the column {:?} is there twice", name.as_ref())));
            }
        }
        let missing: Vec<&str> = places
            .iter()
            .zip(&self.columns)
            .filter(|(place, _)| place.is_none())
            .map(|(_, (name, _))| name.as_str())
            .collect();
        match missing.as_slice() {
            [] => Ok(places.into_iter().flatten().collect()),
            [first, rest @ ..] => Err(BatchError::Table(format!(
                "the table has no column {first:?}{}",
                if rest.is_empty() {
                    String::new()
                } else {
                    format!(", nor {} others of the model", rest.len())
                }
            ))),
        }
    }

    /// A value from its text; what is wrong with it otherwise. An empty text, and one that says so, is a missing number.
    ///
    /// # Errors
    /// It is not of the column's type.
    pub fn value(&self, column: usize, text: &str) -> Result<Value, String> {
        let kind = self.kind(column);
        let trimmed = text.trim();
        let missing = trimmed.is_empty() || trimmed.eq_ignore_ascii_case("nan");
        let value = match kind {
            DType::Bytes => Some(Value::from(text)),
            DType::Fp16 | DType::Fp32 | DType::Fp64 if missing => Some(Value::Null),
            DType::Fp16 | DType::Fp32 | DType::Fp64 => {
                trimmed.parse().ok().and_then(Number::from_f64).map(Value::Number)
            }
            DType::Bool => match trimmed {
                "0" | "false" | "False" | "FALSE" => Some(Value::Bool(false)),
                "1" | "true" | "True" | "TRUE" => Some(Value::Bool(true)),
                _ => None,
            },
            DType::Uint64 => trimmed.parse::<u64>().ok().map(Value::from),
            DType::Uint8
            | DType::Uint16
            | DType::Uint32
            | DType::Int8
            | DType::Int16
            | DType::Int32
            | DType::Int64 => trimmed.parse::<i64>().ok().map(Value::from),
        };
        value.ok_or_else(|| self.wrong(column, text))
    }

    /// What is wrong with a value that is not of its column's type, for people.
    pub fn wrong(&self, column: usize, given: &str) -> String {
        let (name, kind) = &self.columns[column];
        let given: String = given.chars().take(40).collect();
        format!("column {name:?}: {given:?} is no {}", kind.as_str())
    }

    /// Most rows of a chunk.
    pub(super) fn rows_max(&self) -> usize {
        let row = |specs: &[TensorSpec]| -> usize {
            specs.iter().map(|spec| width(spec) * spec.datatype.size().unwrap_or(TEXT_BYTES)).sum()
        };
        let bytes = row(&self.inputs).max(row(&self.outputs)).max(1);
        (CHUNK_BYTES / bytes).clamp(1, CHUNK_ROWS_MAX)
    }

    /// The data of no rows, one buffer an input.
    pub(super) fn empty(&self) -> Vec<Vec<u8>> {
        vec![Vec::new(); self.inputs.len()]
    }

    /// Appends a row to the data, or says what is wrong with it and leaves the data as it was. A missing number is not a
    /// number, for models that know what to do with one.
    pub(super) fn push(&self, cells: &[Value], data: &mut [Vec<u8>]) -> Result<(), String> {
        let before: Vec<usize> = data.iter().map(Vec::len).collect();
        let pushed = self.append(cells, data);
        if pushed.is_err() {
            data.iter_mut().zip(before).for_each(|(out, length)| out.truncate(length));
        }
        pushed
    }

    fn append(&self, cells: &[Value], data: &mut [Vec<u8>]) -> Result<(), String> {
        let mut column = 0;
        for (spec, out) in self.inputs.iter().zip(data) {
            for _ in 0..width(spec) {
                let cell = cells.get(column).unwrap_or(&Value::Null);
                match (spec.datatype, cell) {
                    (DType::Fp32, Value::Null) => out.extend(f32::NAN.to_le_bytes()),
                    (DType::Fp64, Value::Null) => out.extend(f64::NAN.to_le_bytes()),
                    (kind, cell) => {
                        json::push(kind, cell, out).ok_or_else(|| self.wrong(column, &shown(cell)))?;
                    }
                }
                column += 1;
            }
        }
        Ok(())
    }

    /// The inputs that `rows` rows of data are.
    pub(super) fn tensors(&self, data: &[Vec<u8>], rows: usize) -> Vec<TensorData> {
        let inputs = self.inputs.iter().zip(data);
        inputs
            .map(|(spec, data)| {
                let rest = spec.shape.iter().skip(1).map(|d| d.unsigned_abs());
                TensorData {
                    name: spec.name.clone(),
                    datatype: spec.datatype,
                    shape: std::iter::once(rows as u64).chain(rest).collect(),
                    data: Bytes(data.clone()),
                }
            })
            .collect()
    }

    /// Classes by index; none if no class is predicted.
    pub(super) fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The columns of the answers as a flat table has them: by output, with the class or the place where it has several.
    pub(super) fn of_answers(&self) -> Vec<String> {
        let last = self.outputs.len().saturating_sub(1);
        let of = |(i, spec): (usize, &TensorSpec)| -> Vec<String> {
            match width(spec) {
                n if i == last && self.labels.len() == n => {
                    self.labels.iter().map(|label| format!("{}.{label}", spec.name)).collect()
                }
                1 => vec![spec.name.clone()],
                n => (0..n).map(|place| format!("{}.{place}", spec.name)).collect(),
            }
        };
        self.outputs.iter().enumerate().flat_map(of).collect()
    }
}
