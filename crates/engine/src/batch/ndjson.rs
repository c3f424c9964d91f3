use std::path::Path;

use serde_json::Value;

use super::lines::Lines;
use super::{BatchError, Columns, Position, Row, Source};

/// A JSON value a line: an object with the features by name, or an array of them in order.
#[derive(Debug)]
pub struct Ndjson {
    lines: Lines,
    columns: Columns,
}

impl Ndjson {
    /// Opens the lines at `from`.
    ///
    /// # Errors
    /// The file can not be read.
    pub fn open(path: &Path, columns: &Columns, from: Position) -> Result<Self, BatchError> {
        Ok(Self { lines: Lines::open(path, from)?, columns: columns.clone() })
    }
}

impl Source for Ndjson {
    fn next(&mut self) -> Result<Option<Row>, BatchError> {
        let Some((place, line)) = self.lines.next()? else { return Ok(None) };
        let cells = cells(&self.columns, line);
        Ok(Some(Row { place, cells }))
    }

    fn position(&self) -> Position {
        self.lines.position()
    }
}

fn cells(columns: &Columns, line: &str) -> Result<Vec<Value>, String> {
    match serde_json::from_str(line).map_err(|e| format!("it is no JSON: {e}"))? {
        Value::Array(values) if values.len() == columns.count() => Ok(values),
        Value::Array(values) => {
            Err(format!("{} values where the model has {} columns", values.len(), columns.count()))
        }
        Value::Object(mut named) => {
            let names: Vec<String> = named.keys().cloned().collect();
            let places = columns.places(&names).map_err(|e| e.to_string())?;
            Ok(places
                .iter()
                .map(|&at| named.get_mut(&names[at]).map(Value::take).unwrap_or_default())
                .collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err("it is neither an object nor an array".into())
        }
    }
}
