//! What the demonstration saw: a timeline as it happens, claims that are checked, and one HTML page at the end.
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use dunlin_tests::claims::Claim as Checked;

use crate::plot::escape;

/// A claim and whether it was seen to be true.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) text: String,
    pub(crate) held: bool,
    pub(crate) evidence: String,
}

/// One line of the timeline.
#[derive(Debug)]
struct Entry {
    at: f64,
    text: String,
}

/// Everything that will be in the report.
#[derive(Debug)]
pub(crate) struct Report {
    begin: Instant,
    entries: Vec<Entry>,
    pub(crate) claims: Vec<Claim>,
    sections: Vec<(String, String)>,
    /// Titles of the acts, and when they began.
    acts: Vec<(String, f64)>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            begin: Instant::now(),
            entries: Vec::new(),
            claims: Vec::new(),
            sections: Vec::new(),
            acts: Vec::new(),
        }
    }

    /// Seconds since the beginning.
    pub(crate) fn now(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Begins an act.
    pub(crate) fn act(&mut self, title: &str) {
        println!();
        self.say(&format!("— {title} —"));
        self.acts.push((title.into(), self.now()));
    }

    /// Tells what just happened.
    pub(crate) fn say(&mut self, text: &str) {
        let at = self.now();
        println!("{at:6.1} s  {text}");
        self.entries.push(Entry { at, text: text.into() });
    }

    /// Records a claim with its evidence.
    pub(crate) fn claim(&mut self, text: &str, held: bool, evidence: impl Into<String>) {
        let evidence = evidence.into();
        self.say(&format!("{} {text}: {evidence}", if held { "✔" } else { "✘" }));
        self.claims.push(Claim { text: text.into(), held, evidence });
    }

    /// Records a claim that was checked, with its evidence or with why it does not hold.
    pub(crate) fn check(&mut self, text: &str, claim: Checked) {
        let held = claim.is_ok();
        self.claim(text, held, claim.unwrap_or_else(|error| format!("{error:#}")));
    }

    /// Adds how long each act took, and all of them together.
    pub(crate) fn times(&mut self) {
        let now = self.now();
        let ends = self.acts.iter().skip(1).map(|(_, at)| *at).chain([now]);
        let mut rows: Vec<Vec<String>> = self
            .acts
            .iter()
            .zip(ends)
            .map(|((title, from), to)| vec![title.clone(), format!("{:.0} s", to - from)])
            .collect();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        rows.push(vec![
            format!("in all, on {processors} processors"),
            format!("{now:.0} s = {:.1} minutes", now / 60.0),
        ]);
        self.table("How long it took", &["act", "time"], &rows);
    }

    /// Adds a table.
    pub(crate) fn table(&mut self, title: &str, head: &[&str], rows: &[Vec<String>]) {
        println!();
        let widths: Vec<usize> = (0..head.len())
            .map(|i| {
                rows.iter()
                    .map(|row| row[i].chars().count())
                    .chain([head[i].chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |cells: Vec<&str>| {
            let cells: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            println!("    {}", cells.join("  "));
        };
        println!("    {title}");
        line(head.to_vec());
        for row in rows {
            line(row.iter().map(String::as_str).collect());
        }
        println!();
        let cells = |tag: &str, cells: Vec<&str>| {
            let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let body: String =
            rows.iter().map(|row| cells("td", row.iter().map(String::as_str).collect())).collect();
        self.sections.push((title.into(), format!("<table>{}{body}</table>", cells("th", head.to_vec()))));
    }

    /// Adds text as it was printed by a program.
    pub(crate) fn quote(&mut self, title: &str, text: &str) {
        println!("\n    {title}");
        for line in text.lines() {
            println!("    | {line}");
        }
        self.sections.push((title.into(), format!("<pre>{}</pre>", escape(text))));
    }

    /// Adds a plot.
    pub(crate) fn plot(&mut self, title: &str, svg: String) {
        self.sections.push((title.into(), svg));
    }

    /// Whether every claim was seen to be true.
    pub(crate) fn all_held(&self) -> bool {
        !self.claims.is_empty() && self.claims.iter().all(|claim| claim.held)
    }

    /// Writes the page.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut page = String::from(
            "<!doctype html><html lang=en><meta charset=utf-8><title>Dunlin: a fleet's day</title><style>\
             body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
             table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem;border-bottom:1px solid #d8dee4;text-align:left}\
             pre{background:#f6f8fa;padding:1rem;overflow:auto;font-size:13px}.no{color:#b00020;font-weight:600}.yes{color:#1a7f37}\
             svg{max-width:100%;height:auto}h2{margin-top:2.2rem}</style><h1>Dunlin: a fleet's day</h1>",
        );
        let verdict =
            if self.all_held() { "Every claim below was checked and held." } else { "Not every claim held." };
        write!(page, "<p>{verdict}</p><h2>Claims</h2><table>")?;
        for claim in &self.claims {
            let (class, mark) = if claim.held { ("yes", "✔") } else { ("no", "✘") };
            let (text, evidence) = (escape(&claim.text), escape(&claim.evidence));
            write!(page, "<tr><td class={class}>{mark}</td><td>{text}</td><td>{evidence}</td></tr>")?;
        }
        page.push_str("</table>");
        for (title, body) in &self.sections {
            write!(page, "<h2>{}</h2>{body}", escape(title))?;
        }
        page.push_str("<h2>Timeline</h2><pre>");
        for entry in &self.entries {
            writeln!(page, "{:6.1} s  {}", entry.at, escape(&entry.text))?;
        }
        page.push_str("</pre></html>\n");
        std::fs::write(path, page)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Scale, Series, intervals, lines};

    #[test]
    fn the_page_stands_alone_and_holds_every_plot() {
        let mut report = Report::new();
        report.act("an act");
        report.check("it holds", Ok("because <b> & so".into()));
        report.quote("What was printed", "<link href=x> <img src=y>");
        report.table("A table", &["one"], &[vec!["<script src=z>".into()]]);
        let series = [Series { name: "managed".into(), points: vec![(0.0, 0.5), (1.0, 0.9)] }];
        report.plot("Lines", lines(&series, &[(0.5, "aged")], Scale::Share));
        report.plot("Intervals", intervals(&["before"], &[("small".into(), Vec::new())]));
        report.times();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        report.write(&path).unwrap();
        let page = std::fs::read_to_string(path).unwrap();
        assert_eq!((page.matches("<svg").count(), page.matches("</svg>").count()), (2, 2));
        assert!(page.contains("Every claim below was checked and held."));
        let markup = page.replace("http://www.w3.org/2000/svg", "");
        for tag in markup.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
            for outside in ["http:", "https:", "//", "src=", "href=", "link", "script", "@import", "url("] {
                assert!(!tag.contains(outside), "<{tag}>");
            }
        }
        let style = markup.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next()).unwrap();
        assert!(!style.contains("url(") && !style.contains("@import"), "{style}");
    }

    #[test]
    fn one_claim_that_does_not_hold_is_enough() {
        let mut report = Report::new();
        assert!(!report.all_held(), "nothing was claimed");
        report.check("it holds", Ok("so".into()));
        assert!(report.all_held());
        report.check("it does not", Err(anyhow::Error::msg("why")));
        report.check("it holds too", Ok("so".into()));
        assert!(!report.all_held());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        report.write(&path).unwrap();
        assert!(std::fs::read_to_string(path).unwrap().contains("Not every claim held."));
    }
}
