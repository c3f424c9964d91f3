//! Reading and validating the rows. Every fault has a stable name; few faulty rows are left out and counted,
//! many are an error, because they mean that the data is not what the schema says.
use std::collections::BTreeMap;
use std::path::Path;

use crate::job::{Job, Schema};
use crate::{LearnError, disk};

/// Features a model may have; sensors of edge devices have tens, and wider tables make reference profiles
/// that no longer fit a telemetry payload.
pub const FEATURES_MAX: usize = 1024;
/// Classes a model may have.
pub const CLASSES_MAX: usize = 256;
/// Largest data file, bytes: what a worker holds in memory several times over.
pub const DATA_BYTES_MAX: u64 = 1 << 30;
/// Rows below which nothing can be held out and judged.
pub const ROWS_MIN: usize = 50;
/// Rows of a class below which its share in the hold-out is an accident.
pub const CLASS_ROWS_MIN: u64 = 5;
/// Share of faulty rows above which the whole file is refused, percent.
const FAULTY_PERCENT_MAX: usize = 5;

/// A cell has no value.
pub const MISSING: &str = "missing_value";
/// A value is not a finite number.
pub const NOT_FINITE: &str = "not_finite";
/// A value lies outside its feature's range.
pub const OUT_OF_RANGE: &str = "out_of_range";
/// A label is not one of the schema's.
pub const UNKNOWN_LABEL: &str = "unknown_label";
/// The header is not the schema's.
pub const COLUMNS: &str = "columns";
/// Too few rows.
pub const TOO_FEW_ROWS: &str = "too_few_rows";
/// A class with too few rows.
pub const RARE_CLASS: &str = "rare_class";

/// Validated rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Features of a row.
    pub width: usize,
    /// Classes.
    pub classes: usize,
    /// Row after row.
    pub x: Vec<f32>,
    /// Class of each row.
    pub y: Vec<u32>,
    /// Time of each row in Unix milliseconds, else its place in the file.
    pub order: Vec<i64>,
    /// Rows left out, by anomaly.
    pub dropped: BTreeMap<String, u64>,
}

/// What a cell may be faulty in.
type Fault = &'static str;

impl Table {
    /// Reads the data of a job and checks it against digest and schema.
    pub fn read(dir: &Path, job: &Job, schema: &Schema) -> Result<Self, LearnError> {
        let path = dir.join(&job.dataset.file);
        let bytes = disk::read(&path, DATA_BYTES_MAX)?;
        let found = disk::sha256(&bytes);
        if found != job.dataset.digest {
            let (expected, found) = (job.dataset.digest.to_string(), found.to_string());
            return Err(LearnError::DatasetDigest { path, expected, found });
        }
        Self::parse(&bytes, schema)
    }

    /// Parses CSV and checks it against the schema.
    pub fn parse(bytes: &[u8], schema: &Schema) -> Result<Self, LearnError> {
        let mut reader = csv::ReaderBuilder::new().from_reader(bytes);
        let header = reader.headers().map_err(csv_error)?.clone();
        let columns = Columns::find(&header, schema)?;
        let labels: BTreeMap<&str, u32> = schema.labels.iter().map(String::as_str).zip(0..).collect();
        let width = schema.features.len();
        let mut table = Self {
            width,
            classes: schema.labels.len(),
            x: Vec::new(),
            y: Vec::new(),
            order: Vec::new(),
            dropped: BTreeMap::new(),
        };
        let mut first_fault: Option<(u64, Fault, String)> = None;
        let mut rows = 0usize;
        let mut row = Vec::with_capacity(width);
        for record in reader.records() {
            let record = record.map_err(csv_error)?;
            rows += 1;
            row.clear();
            match columns.read(&record, schema, &labels, &mut row) {
                Ok((label, time)) => {
                    table.x.extend_from_slice(&row);
                    table.y.push(label);
                    table.order.push(time.unwrap_or(rows as i64));
                }
                Err((fault, column)) => {
                    *table.dropped.entry(fault.to_owned()).or_default() += 1;
                    first_fault.get_or_insert((
                        record.position().map_or(0, csv::Position::line),
                        fault,
                        column,
                    ));
                }
            }
        }
        if let Some((line, anomaly, column)) = first_fault {
            let faulty = rows - table.y.len();
            if faulty * 100 > rows * FAULTY_PERCENT_MAX {
                let detail = format!(
                    "{faulty} of {rows} rows are faulty, at most {FAULTY_PERCENT_MAX} % may be; the first is line {line}, column {column:?}"
                );
                return Err(LearnError::Anomaly { anomaly, detail });
            }
        }
        table.check_counts(schema)?;
        Ok(table)
    }

    fn check_counts(&self, schema: &Schema) -> Result<(), LearnError> {
        if self.y.len() < ROWS_MIN {
            let detail = format!("{} sound rows, at least {ROWS_MIN} are needed", self.y.len());
            return Err(LearnError::Anomaly { anomaly: TOO_FEW_ROWS, detail });
        }
        for (class, count) in self.class_counts().into_iter().enumerate() {
            if count < CLASS_ROWS_MIN {
                let detail = format!(
                    "class {:?} has {count} rows, at least {CLASS_ROWS_MIN} are needed",
                    schema.labels[class]
                );
                return Err(LearnError::Anomaly { anomaly: RARE_CLASS, detail });
            }
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.y.len()
    }

    /// The features of one row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.x[i * self.width..(i + 1) * self.width]
    }

    /// Rows of each class.
    pub fn class_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.classes];
        for &class in &self.y {
            counts[class as usize] += 1;
        }
        counts
    }

    /// The rows at `indices`, in that order.
    pub fn take(&self, indices: &[usize]) -> Self {
        Self {
            width: self.width,
            classes: self.classes,
            x: indices.iter().flat_map(|&i| self.row(i)).copied().collect(),
            y: indices.iter().map(|&i| self.y[i]).collect(),
            order: indices.iter().map(|&i| self.order[i]).collect(),
            dropped: BTreeMap::new(),
        }
    }

    /// The values of one feature.
    pub fn column(&self, feature: usize) -> Vec<f32> {
        self.x.iter().skip(feature).step_by(self.width).copied().collect()
    }
}

fn csv_error(error: csv::Error) -> LearnError {
    let line = error.position().map_or(0, csv::Position::line);
    LearnError::Csv { line, problem: error.to_string() }
}

/// Where the schema's columns stand in the file.
struct Columns {
    features: Vec<usize>,
    label: usize,
    time: Option<usize>,
}

impl Columns {
    fn find(header: &csv::StringRecord, schema: &Schema) -> Result<Self, LearnError> {
        let bad = |detail| LearnError::Anomaly { anomaly: COLUMNS, detail };
        let find = |name: &str| {
            let mut places = header.iter().enumerate().filter(|(_, column)| *column == name).map(|(i, _)| i);
            match (places.next(), places.next()) {
                (Some(place), None) => Ok(place),
                (None, _) => Err(bad(format!("column {name:?} of the schema is not in the file"))),
                (Some(_), Some(_)) => Err(bad(format!("column {name:?} is there twice"))),
            }
        };
        let columns = Self {
            features: schema.features.iter().map(|feature| find(&feature.name)).collect::<Result<_, _>>()?,
            label: find(&schema.label)?,
            time: schema.time.as_deref().map(find).transpose()?,
        };
        let known = columns.features.len() + 1 + usize::from(columns.time.is_some());
        if header.len() != known {
            return Err(bad(format!("the file has {} columns, the schema {known}", header.len())));
        }
        Ok(columns)
    }

    fn read(
        &self,
        record: &csv::StringRecord,
        schema: &Schema,
        labels: &BTreeMap<&str, u32>,
        row: &mut Vec<f32>,
    ) -> Result<(u32, Option<i64>), (Fault, String)> {
        for (feature, &place) in schema.features.iter().zip(&self.features) {
            let fault = |fault| (fault, feature.name.clone());
            let text = record.get(place).unwrap_or_default().trim();
            if text.is_empty() {
                return Err(fault(MISSING));
            }
            let value: f32 = text.parse().map_err(|_| fault(NOT_FINITE))?;
            if !value.is_finite() {
                return Err(fault(NOT_FINITE));
            }
            let wide = f64::from(value);
            if feature.min.is_some_and(|min| wide < min) || feature.max.is_some_and(|max| wide > max) {
                return Err(fault(OUT_OF_RANGE));
            }
            row.push(value);
        }
        let label = record.get(self.label).unwrap_or_default().trim();
        let label = *labels
            .get(label)
            .ok_or((if label.is_empty() { MISSING } else { UNKNOWN_LABEL }, schema.label.clone()))?;
        let time = match (self.time, &schema.time) {
            (Some(place), Some(name)) => Some(
                record
                    .get(place)
                    .unwrap_or_default()
                    .trim()
                    .parse()
                    .map_err(|_| (NOT_FINITE, name.clone()))?,
            ),
            (Some(_), None) | (None, _) => None,
        };
        Ok((label, time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Feature;

    fn schema() -> Schema {
        let feature = |name: &str| Feature {
            name: name.into(),
            unit: String::new(),
            min: Some(-100.0),
            max: Some(100.0),
        };
        Schema {
            features: vec![feature("a"), feature("b")],
            label: "y".into(),
            labels: vec!["no".into(), "yes".into()],
            time: None,
        }
    }

    fn rows(n: usize) -> String {
        (0..n).map(|i| format!("{i},{},{}\n", i % 7, if i % 2 == 0 { "no" } else { "yes" })).collect()
    }

    fn anomaly(text: String) -> &'static str {
        Table::parse(text.as_bytes(), &schema()).unwrap_err().code()
    }

    #[test]
    fn columns_may_stand_in_any_order() {
        let text = format!("y,b,a\n{}", "no,1,2\nyes,3,4\n".repeat(30));
        let table = Table::parse(text.as_bytes(), &schema()).unwrap();
        assert_eq!((table.row(0), table.row(1)), (&[2.0, 1.0][..], &[4.0, 3.0][..]));
        assert_eq!(table.class_counts(), [30, 30]);
    }

    #[test]
    fn few_faulty_rows_are_counted_many_are_refused() {
        let table =
            Table::parse(format!("a,b,y\n{}1,,no\n1,2,maybe\n", rows(98)).as_bytes(), &schema()).unwrap();
        assert_eq!(table.rows(), 98);
        assert_eq!(table.dropped.values().sum::<u64>(), 2);
        for (faulty, name) in [
            ("1,,no\n", MISSING),
            ("1,inf,no\n", NOT_FINITE),
            ("1,2,maybe\n", UNKNOWN_LABEL),
            ("1,101,no\n", OUT_OF_RANGE),
            ("x,1,no\n", NOT_FINITE),
        ] {
            assert_eq!(anomaly(format!("a,b,y\n{}{}", rows(98), faulty.repeat(10))), name);
        }
    }

    #[test]
    fn a_file_of_another_form_is_refused() {
        assert_eq!(anomaly(format!("a,c,y\n{}", rows(98))), COLUMNS);
        assert_eq!(anomaly(format!("a,b,y,z\n{}", rows(98).replace('\n', ",0\n"))), COLUMNS);
        assert_eq!(anomaly(format!("a,b,y\n{}", rows(20))), TOO_FEW_ROWS);
        assert_eq!(anomaly(format!("a,b,y\n{}", "1,2,no\n".repeat(60))), RARE_CLASS);
        assert_eq!(anomaly(format!("a,b,y\n{}1,2\n", rows(98))), "csv");
    }
}
