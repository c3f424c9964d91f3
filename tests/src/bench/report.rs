//! Numbers with their bars, printed as a table and kept as JSON.
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Machine;

/// What a number is held against.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
    Below(f64),
}

impl Bar {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bar) => value <= bar,
            Self::AtLeast(bar) => value >= bar,
            Self::Below(bar) => value < bar,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bar) => format!("≤ {}", number(bar)),
            Self::AtLeast(bar) => format!("≥ {}", number(bar)),
            Self::Below(bar) => format!("< {}", number(bar)),
        }
    }
}

/// One number.
#[derive(Debug, Serialize)]
struct Measure {
    what: String,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<Bar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

/// The numbers of one subject, or why there are none.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    name: &'static str,
    seconds: f64,
    measures: Vec<Measure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    #[serde(skip)]
    started: Instant,
}

impl Section {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            seconds: 0.0,
            measures: Vec::new(),
            notes: Vec::new(),
            failed: None,
            started: Instant::now(),
        }
    }

    /// A number that informs.
    pub(crate) fn add(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.measures.push(Measure { what: what.into(), value, unit, bar: None, met: None });
    }

    /// A number that has a bar.
    pub(crate) fn hold(&mut self, what: impl Into<String>, value: f64, unit: &'static str, bar: Bar) {
        self.measures.push(Measure {
            what: what.into(),
            value,
            unit,
            bar: Some(bar),
            met: Some(bar.met(value)),
        });
    }

    /// What a reader of the numbers has to know.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub(crate) fn end(&mut self, outcome: Result<()>) {
        self.seconds = self.started.elapsed().as_secs_f64();
        self.failed = outcome.err().map(|error| format!("{error:#}"));
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed.is_some()
    }

    /// How many bars there are, and how many are met.
    fn bars(&self) -> (usize, usize) {
        let met: Vec<bool> = self.measures.iter().filter_map(|measure| measure.met).collect();
        (met.len(), met.iter().filter(|met| **met).count())
    }

    pub(crate) fn print(&self) {
        println!("\n{} ({:.0} s)", self.name, self.seconds);
        let width = self.measures.iter().map(|measure| measure.what.chars().count()).max().unwrap_or(0);
        for measure in &self.measures {
            let verdict = match measure.met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            let bar = measure.bar.map(Bar::text).unwrap_or_default();
            let pad = " ".repeat(width - measure.what.chars().count());
            println!(
                "  {}{pad}  {:>10} {:<11} {bar:<10} {verdict}",
                measure.what,
                number(measure.value),
                measure.unit
            );
        }
        for note in &self.notes {
            println!("  {note}");
        }
        if let Some(failure) = &self.failed {
            println!("  NOT MEASURED: {failure}");
        }
    }
}

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) sections: Vec<Section>,
}

impl Report {
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    pub(crate) fn summary(&self) -> String {
        let (bars, met) =
            self.sections.iter().map(Section::bars).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        format!("{met} of {bars} bars met")
    }
}

/// Three digits that matter; whole numbers as they are.
fn number(value: f64) -> String {
    match value {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ if value.abs() >= 100.0 => format!("{value:.0}"),
        _ if value.abs() >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_on_its_own_side() {
        assert!(Bar::AtMost(2.0).met(2.0) && !Bar::AtMost(2.0).met(2.1));
        assert!(Bar::AtLeast(2.0).met(2.0) && !Bar::AtLeast(2.0).met(1.9));
        assert!(!Bar::Below(2.0).met(2.0) && Bar::Below(2.0).met(1.9));
        assert!(!Bar::AtMost(2.0).met(f64::NAN));
    }

    #[test]
    fn numbers_are_short_and_true() {
        assert_eq!([0.123, 12.34, 123.4, 1_500_000.0].map(number), ["0.12", "12.3", "123", "1500000"]);
    }
}
