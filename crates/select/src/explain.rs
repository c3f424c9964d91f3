use alloc::string::String;
use core::fmt::Write;

use crate::{Selection, Verdict, Why};

impl Selection {
    /// The choice for people: the decision in one line, then a line for every candidate.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a string does not fail");
        text
    }

    fn write(&self, text: &mut String) -> core::fmt::Result {
        match &self.chosen {
            Some(release) => write!(text, "{} {release}: ", if self.is_kept() { "keep" } else { "run" })?,
            None => text.push_str("run the constant baseline: "),
        }
        match &self.why {
            Why::NoneEligible => text.push_str("no candidate is eligible"),
            Why::First => text.push_str("the highest score, and nothing serves yet"),
            Why::CurrentIneligible => {
                text.push_str("the highest score, and what serves is not eligible any more")
            }
            Why::Trial => text.push_str("a rollout tries it here"),
            Why::Best => text.push_str("it has the highest score"),
            Why::Dwell { challenger, served_ms, dwell_ms } => {
                write!(text, "{challenger} scores higher, but it has served {served_ms} of {dwell_ms} ms")?;
            }
            Why::NotSure { challenger, probability, needed } => {
                write!(
                    text,
                    "{challenger} scores higher, but a change pays with probability {probability:.3}, not over {needed}"
                )?;
            }
            Why::Better { probability } => write!(text, "a change pays with probability {probability:.3}")?,
        }
        for row in &self.rows {
            write!(text, "\n  {}: ", row.release)?;
            match &row.verdict {
                Verdict::Eligible(score) => write!(
                    text,
                    "score {:.4} = accuracy {:+.4} latency {:+.4} bytes {:+.4} energy {:+.4}, less deviation {:.4} \
                     (accuracy {:.4} on {} labels here, {} on the class and {} earlier; {} µs {})",
                    score.cautious,
                    score.accuracy_part,
                    score.latency_part,
                    score.bytes_part,
                    score.energy_part,
                    score.deviation,
                    score.accuracy,
                    score.labels.0,
                    score.labels.1,
                    score.labels_earlier,
                    score.latency_us,
                    score.latency_source,
                )?,
                Verdict::Excluded(constraints) => {
                    text.push_str("excluded: ");
                    for (i, constraint) in constraints.iter().enumerate() {
                        write!(text, "{}{constraint}", if i > 0 { "; " } else { "" })?;
                    }
                }
            }
        }
        Ok(())
    }
}
