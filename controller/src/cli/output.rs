use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::ApiFailure;

/// Where verbs print: JSON for programs, text for people.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Prints JSON if `json`.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or what `text` makes of it for people.
    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json { self.text(&serde_json::to_string_pretty(value)?) } else { self.text(&text(value)) }
    }

    /// Prints rows under headings; with `--json` the value instead.
    pub fn table<T: Serialize>(&self, value: &T, headings: &[&str], rows: &[Vec<String>]) -> Result<()> {
        self.show(value, |_| table(headings, rows))
    }

    /// Prints a text as it is.
    pub fn text(&self, text: &str) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", text.trim_end())?;
        stdout.flush()?;
        Ok(())
    }

    /// Tells people on standard error how things go; says nothing with `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            // Nobody is left to tell if standard error is closed.
            drop(writeln!(std::io::stderr().lock(), "{text}"));
        }
    }

    /// Prints an error with its causes and what to do.
    pub fn error(&self, error: &anyhow::Error) {
        let hint = error
            .downcast_ref::<ApiFailure>()
            .map(|failure| failure.hint.clone())
            .filter(|hint| !hint.is_empty());
        let text = if self.json {
            serde_json::json!({ "error": format!("{error:#}"), "hint": hint }).to_string()
        } else {
            let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
            format!("error: {error:#}{hint}")
        };
        drop(writeln!(std::io::stderr().lock(), "{text}"));
    }
}

fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|text| text.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "x".to_owned()], vec!["long".to_owned(), "y".to_owned()]];
        assert_eq!(table(&["id", "v"], &rows), "id    v\na     x\nlong  y\n");
    }
}
