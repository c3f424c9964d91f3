use std::borrow::Cow;
use std::path::Path;

use super::lines::Lines;
use super::{BatchError, Columns, Position, Row, Source};

/// A table of comma-separated values, RFC 4180 but for line ends within quotes. Its first line names the columns.
#[derive(Debug)]
pub struct Csv {
    lines: Lines,
    columns: Columns,
    /// Where each column is.
    places: Vec<usize>,
    /// Fields of the header, and so of every row.
    fields: usize,
}

impl Csv {
    /// Opens a table and reads its header; rows begin at `from`.
    ///
    /// # Errors
    /// The file can not be read, or its header lacks a column of the model.
    pub fn open(path: &Path, columns: &Columns, from: Position) -> Result<Self, BatchError> {
        let mut lines = Lines::open(path, Position::default())?;
        let (places, fields) = match lines.next()? {
            Some((_, line)) => {
                let header = fields(line.trim_start_matches('\u{feff}'))
                    .map_err(|problem| BatchError::Table(format!("the header: {problem}")))?;
                let header: Vec<&str> = header.iter().map(|name| name.trim()).collect();
                (columns.places(&header)?, header.len())
            }
            None => {
                return Err(BatchError::Table("the table is empty: its first line names the columns".into()));
            }
        };
        if from != Position::default() {
            lines = Lines::open(path, from)?;
        }
        Ok(Self { lines, columns: columns.clone(), places, fields })
    }

    fn cells(&self, fields: &[Cow<'_, str>]) -> Result<Vec<serde_json::Value>, String> {
        if fields.len() != self.fields {
            return Err(format!("{} fields where the header has {}", fields.len(), self.fields));
        }
        self.places.iter().enumerate().map(|(column, &at)| self.columns.value(column, &fields[at])).collect()
    }
}

impl Source for Csv {
    fn next(&mut self) -> Result<Option<Row>, BatchError> {
        let Some((place, line)) = self.lines.next()? else { return Ok(None) };
        // The line is the reader's own until the next one is read.
        let line = line.to_owned();
        let cells = fields(&line).and_then(|fields| self.cells(&fields));
        Ok(Some(Row { place, cells }))
    }

    fn position(&self) -> Position {
        self.lines.position()
    }
}

/// The fields of a line.
fn fields(line: &str) -> Result<Vec<Cow<'_, str>>, String> {
    let mut all = Vec::new();
    let mut rest = line;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, after) = rest.split_at(end);
                if field.contains('"') {
                    return Err("a quotation mark within a field that is not quoted".into());
                }
                (Cow::Borrowed(field), after)
            }
        };
        all.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(all),
            None => return Err("text follows a closing quotation mark".into()),
        }
    }
}

/// A quoted field after its opening mark, and what follows it.
fn unquoted(text: &str) -> Result<(Cow<'_, str>, &str), String> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"').ok_or("a quoted field does not end on its line")?;
        let after = &rest[end + 1..];
        match after.strip_prefix('"') {
            Some(more) => {
                field.push_str(&rest[..=end]);
                rest = more;
            }
            None if field.is_empty() => return Ok((Cow::Borrowed(&rest[..end]), after)),
            None => {
                field.push_str(&rest[..end]);
                return Ok((Cow::Owned(field), after));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn fields_are_split_as_rfc_4180_says() {
        for (line, want) in [
            ("1,2,3", &["1", "2", "3"][..]),
            ("", &[""]),
            (",", &["", ""]),
            ("\"a,b\",c", &["a,b", "c"]),
            ("\"say \"\"hi\"\"\",\"\"", &["say \"hi\"", ""]),
            ("\"\"\"\"", &["\""]),
            ("ä, b ", &["ä", " b "]),
        ] {
            assert_eq!(fields(line).unwrap(), want, "{line}");
        }
        for line in ["\"open", "\"a\"b", "a\"b", "\"a\"\""] {
            assert!(fields(line).is_err(), "{line}");
        }
    }
}
