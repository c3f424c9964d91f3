//! Plots as SVG: lines over time, and shares with their intervals.
use std::fmt::Write as _;

use dunlin_monitor::rate::Rate;

const COLOURS: [&str; 6] = ["#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#57606a"];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 45.0;
const TOP: f64 = 30.0;
const BELOW: f64 = 40.0;
/// Two-sided 95 %.
const Z95: f64 = 1.96;

/// A line of a plot.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What the values of a plot are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scale {
    /// Shares, shown in percent.
    Share,
    /// Counts up to this many; a line keeps its value until the next point.
    Count(usize),
}

/// Text as it may stand in the page.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn y(share: f64) -> f64 {
    TOP + (1.0 - share) * (HEIGHT - TOP - BELOW)
}

/// The frame with five lines across, labelled by `label` of the share of the height.
fn frame(label: impl Fn(f64) -> String) -> String {
    let mut svg =
        format!("<svg viewBox='0 0 {WIDTH} {HEIGHT}' font-size='11' font-family='system-ui,sans-serif'>");
    for step in 0..=5 {
        let share = f64::from(step) / 5.0;
        let at = y(share);
        write!(
            svg,
            "<line x1='{LEFT}' x2='{WIDTH}' y1='{at}' y2='{at}' stroke='#d8dee4'/><text x='5' y='{}'>{}</text>",
            at + 4.0,
            label(share)
        )
        .expect("writing to a string");
    }
    svg
}

/// Names of what is drawn, below it.
fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) {
    for (i, name) in names.enumerate() {
        write!(
            svg,
            "<text x='{}' y='{}' fill='{}'>■ {}</text>",
            LEFT + 210.0 * i as f64,
            HEIGHT - 8.0,
            COLOURS[i % COLOURS.len()],
            escape(name)
        )
        .expect("writing to a string");
    }
}

/// Lines over seconds, with marks at moments.
pub(crate) fn lines(series: &[Series], marks: &[(f64, &str)], scale: Scale) -> String {
    let end = series.iter().flat_map(|s| &s.points).map(|p| p.0).fold(1.0, f64::max);
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - 10.0);
    let top = match scale {
        Scale::Share => 1.0,
        Scale::Count(n) => n.max(1) as f64,
    };
    let mut svg = frame(|share| match scale {
        Scale::Share => format!("{:.0} %", share * 100.0),
        Scale::Count(_) => format!("{:.0}", share * top),
    });
    for (i, (at, text)) in marks.iter().enumerate() {
        let at = x(*at);
        let row = TOP - 18.0 + 11.0 * (i % 2) as f64;
        write!(
            svg,
            "<line x1='{at}' x2='{at}' y1='{TOP}' y2='{}' stroke='#57606a' stroke-dasharray='3'/><text x='{at}' y='{row}'>{}</text>",
            HEIGHT - BELOW,
            escape(text)
        )
        .expect("writing to a string");
    }
    for (i, line) in series.iter().enumerate() {
        let mut points = String::new();
        let mut last = None;
        for (at, value) in &line.points {
            let (at, value) = (x(*at), y(value / top));
            if let (Scale::Count(_), Some(last)) = (scale, last) {
                write!(points, "{at:.1},{last:.1} ").expect("writing to a string");
            }
            write!(points, "{at:.1},{value:.1} ").expect("writing to a string");
            last = Some(value);
        }
        write!(
            svg,
            "<polyline fill='none' stroke='{}' stroke-width='2' points='{points}'/>",
            COLOURS[i % COLOURS.len()]
        )
        .expect("writing to a string");
    }
    legend(&mut svg, series.iter().map(|line| line.name.as_str()));
    svg + &format!("<text x='{}' y='{}'>{end:.0} s</text></svg>", WIDTH - 45.0, HEIGHT - 24.0)
}

/// Rates with their 95 % Wilson intervals: a group of marks for each name, a colour for each moment.
pub(crate) fn intervals(moments: &[&str], groups: &[(String, Vec<Rate>)]) -> String {
    let mut svg = frame(|share| format!("{:.0} %", share * 100.0));
    let step = (WIDTH - LEFT - 10.0) / groups.len().max(1) as f64;
    for (i, (name, rates)) in groups.iter().enumerate() {
        let left = LEFT + step * i as f64;
        write!(svg, "<text x='{}' y='{}'>{}</text>", left + 8.0, HEIGHT - 26.0, escape(name))
            .expect("writing to a string");
        for (j, rate) in rates.iter().enumerate() {
            let Some(value) = rate.value() else { continue };
            let (interval, colour) = (rate.wilson(Z95), COLOURS[j % COLOURS.len()]);
            let x = left + step * (j as f64 + 1.0) / (rates.len() as f64 + 1.0);
            write!(
                svg,
                "<line x1='{x:.1}' x2='{x:.1}' y1='{:.1}' y2='{:.1}' stroke='{colour}' stroke-width='3'/><circle cx='{x:.1}' cy='{:.1}' r='4' fill='{colour}'/>",
                y(interval.low),
                y(interval.high),
                y(value)
            )
            .expect("writing to a string");
        }
    }
    legend(&mut svg, moments.iter().copied());
    svg + "</svg>"
}
