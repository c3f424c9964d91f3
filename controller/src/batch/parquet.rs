use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_engine::batch::{BatchError, Columns, Position, Row, Source};
use dunlin_protocol::DType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row as Record};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use serde_json::{Number, Value};

/// Rows of a Parquet file, one row group after the other; uncompressed or in Snappy's form.
pub struct Parquet {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    columns: Columns,
    /// The columns of the model alone.
    wanted: SchemaDescPtr,
    /// Where in a record each column is.
    places: Vec<usize>,
    group: usize,
    rows: Option<ReaderIter>,
    position: u64,
}

impl std::fmt::Debug for Parquet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parquet")
            .field("path", &self.path)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Parquet {
    /// Opens a file at row `from.offset`. Row groups before it are passed over unread.
    ///
    /// # Errors
    /// It can not be read, or lacks a column of the model.
    pub fn open(path: &Path, columns: &Columns, from: Position) -> Result<Self, BatchError> {
        let file = File::open(path).map_err(BatchError::file("open", path))?;
        let reader = SerializedFileReader::new(file).map_err(wrong(path))?;
        let schema = reader.metadata().file_metadata().schema();
        // Only the model's columns are read from the disk.
        let fields: Vec<Arc<Type>> = schema
            .get_fields()
            .iter()
            .filter(|field| columns.find(field.name()).is_some())
            .cloned()
            .collect();
        let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        let places = columns.places(&names)?;
        let wanted = Type::group_type_builder(schema.name())
            .with_fields(fields.clone())
            .build()
            .map_err(wrong(path))?;
        let mut source = Self {
            path: path.to_owned(),
            reader,
            columns: columns.clone(),
            wanted: Arc::new(SchemaDescriptor::new(Arc::new(wanted))),
            places,
            group: 0,
            rows: None,
            position: 0,
        };
        source.skip(from.offset)?;
        Ok(source)
    }

    fn skip(&mut self, rows: u64) -> Result<(), BatchError> {
        while let Some(length) = self.length().filter(|length| self.position + length <= rows) {
            self.position += length;
            self.group += 1;
        }
        while self.position < rows && self.record()?.is_some() {}
        Ok(())
    }

    /// Rows of the group that is read next.
    fn length(&self) -> Option<u64> {
        let metadata = self.reader.metadata();
        let group = (self.group < metadata.num_row_groups()).then(|| metadata.row_group(self.group))?;
        Some(u64::try_from(group.num_rows()).unwrap_or(0))
    }

    fn record(&mut self) -> Result<Option<Record>, BatchError> {
        loop {
            if let Some(record) = self.rows.as_mut().and_then(Iterator::next) {
                self.position += 1;
                return record.map(Some).map_err(wrong(&self.path));
            }
            self.rows = None;
            if self.length().is_none() {
                return Ok(None);
            }
            let group = self.reader.get_row_group(self.group).map_err(wrong(&self.path))?;
            let rows = TreeBuilder::new().as_iter(self.wanted.clone(), group.as_ref());
            self.rows = Some(rows.map_err(wrong(&self.path))?);
            self.group += 1;
        }
    }
}

impl Source for Parquet {
    fn next(&mut self) -> Result<Option<Row>, BatchError> {
        let Some(record) = self.record()? else { return Ok(None) };
        let fields: Vec<&Field> = record.get_column_iter().map(|(_, field)| field).collect();
        let cell = |(column, &at): (usize, &usize)| {
            let kind = self.columns.kind(column);
            fields.get(at).and_then(|field| value(kind, field)).ok_or_else(|| {
                let given = fields.get(at).map(ToString::to_string).unwrap_or_default();
                self.columns.wrong(column, &given)
            })
        };
        let cells = self.places.iter().enumerate().map(cell).collect();
        Ok(Some(Row { place: self.position, cells }))
    }

    fn position(&self) -> Position {
        Position { offset: self.position, place: self.position }
    }

    fn unit(&self) -> &'static str {
        "row"
    }
}

fn wrong(path: &Path) -> impl Fn(ParquetError) -> BatchError {
    let path = path.to_owned();
    move |error| BatchError::file("read", &path)(io::Error::other(error))
}

/// A field as the text forms have it; `None` if there is no such form. What is not a number is missing, as there.
fn value(kind: DType, field: &Field) -> Option<Value> {
    let number = |x: f64| match x.is_nan() {
        true => Some(Value::Null),
        false => Number::from_f64(x).map(Value::Number),
    };
    // Whole numbers are read as floats where the model takes these, as `1` is in a text.
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => Value::Bool(*x),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        Field::Long(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::Float16(x) => number(f64::from(f32::from(*x)))?,
        Field::Float(x) => number(f64::from(*x))?,
        Field::Double(x) => number(*x)?,
        Field::Str(text) if kind == DType::Bytes => Value::from(text.as_str()),
        Field::Bytes(bytes) if kind == DType::Bytes => Value::from(bytes.as_utf8().ok()?),
        Field::Str(_)
        | Field::Bytes(_)
        | Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)
        | Field::Group(_)
        | Field::ListInternal(_)
        | Field::MapInternal(_) => return None,
    })
}
