//! What a board prints of its agent: the kernel's own counts, from which windows are made.
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// How every line of a look begins; the rest of it is what the kernel tells.
const MARK: &str = "look: ";
/// Its last line.
const END: &str = "look: end";
/// Ticks of a second, in which the kernel tells processor time; the same on all machines.
const TICKS: f64 = 100.0;
/// Bytes of a sector, in which the kernel counts what is written to any disk.
const SECTOR_BYTES: u64 = 512;
const DAY_S: f64 = 86_400.0;
const HOUR_S: f64 = 3_600.0;

/// Everything that is seen at one moment. Counts begin when the board is switched on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Look {
    /// Seconds since the board was switched on.
    uptime_s: f64,
    /// Processes of the agent.
    processes: u32,
    /// Their memory, each shared page by its share, KiB.
    pss_kib: u64,
    /// Their processor time, that of children which ended included, ticks.
    ticks: u64,
    /// Bytes written to the disk.
    written_bytes: u64,
    /// Bytes received and sent, frames and all.
    network_bytes: u64,
    /// What the kernel could still give away, KiB.
    free_kib: u64,
}

/// All looks at a running agent in a board's log.
pub(super) fn looks(log: &str) -> Result<Vec<Look>> {
    let mut all = Vec::new();
    let mut look = Look::default();
    // What comes after may be half of a line.
    let ended = &log[..log.rfind(END).map_or(0, |at| at + END.len())];
    for line in ended.lines().filter_map(|line| Some(line.split_once(MARK)?.1.trim())) {
        if line == "end" {
            let whole = std::mem::take(&mut look);
            all.extend((whole.processes > 0).then_some(whole));
        } else {
            look.read(line).with_context(|| format!("the board printed {line:?}"))?;
        }
    }
    Ok(all)
}

impl Look {
    fn read(&mut self, line: &str) -> Result<()> {
        let (what, told) = line.split_once(' ').context("nothing is told")?;
        match what {
            "uptime" => self.uptime_s = field(told, 0)?,
            "stat" => {
                // proc(5): the name in brackets is the second field; 14 to 17 are user and system time, its own and that
                // of children which ended.
                let rest = told.rsplit_once(')').context("no name")?.1;
                for number in 11..=14 {
                    self.ticks += field::<u64>(rest, number)?;
                }
                self.processes += 1;
            }
            "memory" => self.pss_kib += field::<u64>(told, 1)?,
            // The kernel's text on iostats: the tenth field is the number of sectors written.
            "disk" => self.written_bytes = field::<u64>(told, 9)? * SECTOR_BYTES,
            "network" => {
                let counts = told.split_once(':').context("no interface")?.1;
                self.network_bytes = field::<u64>(counts, 0)? + field::<u64>(counts, 8)?;
            }
            "free" => self.free_kib = field(told, 1)?,
            other => anyhow::bail!("{other} is nothing that is looked at"),
        }
        Ok(())
    }
}

/// The field of that number, from 0.
fn field<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    text: &str,
    number: usize,
) -> Result<T> {
    let field = text.split_whitespace().nth(number).with_context(|| format!("no field {number}"))?;
    field.parse().with_context(|| format!("field {number}"))
}

/// What the agent took from one look to another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) seconds: f64,
    /// The most memory that a look saw, KiB.
    pub(crate) pss_kib: u64,
    /// Processor time in seconds.
    pub(crate) cpu_s: f64,
    pub(crate) written_bytes: u64,
    pub(crate) network_bytes: u64,
    /// The least memory that was left to the board, KiB.
    pub(crate) free_kib: u64,
}

impl Window {
    /// From the first look to the one that comes `seconds` later; none if that has not come.
    pub(super) fn over(looks: &[Look], seconds: f64) -> Result<Option<Self>> {
        let Some(first) = looks.first() else { return Ok(None) };
        let Some(end) = looks.iter().position(|look| look.uptime_s >= first.uptime_s + seconds) else {
            return Ok(None);
        };
        let (looks, last) = (&looks[..=end], &looks[end]);
        ensure!(last.ticks >= first.ticks, "the agent was started anew within the window");
        Ok(Some(Self {
            seconds: last.uptime_s - first.uptime_s,
            pss_kib: looks.iter().map(|look| look.pss_kib).max().unwrap_or(0),
            cpu_s: (last.ticks - first.ticks) as f64 / TICKS,
            written_bytes: last.written_bytes - first.written_bytes,
            network_bytes: last.network_bytes - first.network_bytes,
            free_kib: looks.iter().map(|look| look.free_kib).min().unwrap_or(0),
        }))
    }

    /// Several as one.
    pub(crate) fn joined(windows: &[Self]) -> Option<Self> {
        windows.iter().copied().reduce(|a, b| Self {
            seconds: a.seconds + b.seconds,
            pss_kib: a.pss_kib.max(b.pss_kib),
            cpu_s: a.cpu_s + b.cpu_s,
            written_bytes: a.written_bytes + b.written_bytes,
            network_bytes: a.network_bytes + b.network_bytes,
            free_kib: a.free_kib.min(b.free_kib),
        })
    }

    /// Processor time as a share of one core, per cent.
    pub(crate) fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu_s / self.seconds
    }

    /// Bytes written in an hour that is like the window.
    pub(crate) fn written_hour(&self) -> f64 {
        self.written_bytes as f64 * HOUR_S / self.seconds
    }

    /// Bytes written in such a day.
    pub(crate) fn written_day(&self) -> f64 {
        self.written_bytes as f64 * DAY_S / self.seconds
    }

    /// Bytes received and sent in such a day.
    pub(crate) fn network_day(&self) -> f64 {
        self.network_bytes as f64 * DAY_S / self.seconds
    }
}

/// Seconds from the start of the agent to the first answer of a model, if the log tells both.
pub(super) fn first_answer_s(log: &str) -> Result<Option<f64>> {
    let after = |words: &str| -> Result<Option<f64>> {
        log.lines().find_map(|line| line.split_once(words)).map(|(_, told)| field(told, 0)).transpose()
    };
    let (start, answer) = (after("board: the agent starts at ")?, after("board: the first answer at ")?);
    Ok(start.zip(answer).map(|(start, answer)| answer - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a board prints it, with its line ends, its agent's lines between looks, and numbers that are made up.
    fn log(uptime: f64, ticks: u64, sectors: u64, received: u64) -> String {
        [
            "2026-01-01T00:00:00Z  INFO dunlin_agent: session with the broker epoch=1",
            &format!("look: uptime {uptime:.2} 190.11"),
            &format!(
                "look: stat 77 (dunlin (x) agent) S 70 1 1 0 -1 4194560 9 0 0 0 {ticks} 20 3 4 20 0 3 0 212"
            ),
            "look: memory Pss:                6100 kB",
            "look: stat 91 (dunlin-agent) S 77 1 1 0 -1 4194560 9 0 0 0 1 1 0 0 20 0 3 0 212",
            "look: memory Pss:                 100 kB",
            &format!("look: disk  254       0 vda 11 0 900 5 7 1 {sectors} 8 0 9 9"),
            &format!("look: network   eth0: {received} 10 0 0 0 0 0 0 2000 12 0 0 0 0 0 0"),
            "look: free MemAvailable:      30000 kB",
            "look: end",
            "",
        ]
        .join("\r\n")
    }

    #[test]
    fn a_look_is_the_sum_of_the_agent_s_processes_and_the_board_s_counts() {
        let look = Look {
            uptime_s: 100.5,
            processes: 2,
            pss_kib: 6200,
            ticks: 10 + 20 + 3 + 4 + 2,
            written_bytes: 64 * 512,
            network_bytes: 3000,
            free_kib: 30_000,
        };
        assert_eq!(looks(&log(100.5, 10, 64, 1000)).unwrap(), [look]);
    }

    #[test]
    fn a_look_at_a_board_whose_agent_does_not_run_or_that_has_not_ended_is_none() {
        assert_eq!(
            looks("look: uptime 3.10 2.00\r\nlook: free MemAvailable: 9 kB\r\nlook: end\r\n").unwrap(),
            []
        );
        let whole = log(100.5, 10, 64, 1000);
        assert_eq!(looks(whole.strip_suffix("look: end\r\n").unwrap()).unwrap(), []);
        for end in 0..whole.len() {
            assert!(
                looks(&[&whole, &whole[..end]].concat()).unwrap().len()
                    == 1 + usize::from(end + 2 >= whole.len())
            );
        }
        assert_eq!(looks("board: up\r\n").unwrap(), []);
    }

    #[test]
    fn a_look_that_can_not_be_read_is_an_error_that_quotes_it() {
        for line in
            ["look: memory Pss: many kB", "look: stat 7 (x) S 1", "look: network eth0", "look: weight 3"]
        {
            let error = format!("{:#}", looks(&format!("{line}\n{END}\n")).unwrap_err());
            assert!(error.contains(line.strip_prefix("look: ").unwrap()), "{error}");
        }
    }

    #[test]
    fn a_window_is_what_went_on_between_its_first_look_and_the_one_that_ends_it() {
        let text =
            [log(100.0, 10, 64, 1000), log(400.0, 99, 66, 1500), log(700.0, 310, 264, 61_000)].concat();
        let looks = looks(&text).unwrap();
        assert_eq!(Window::over(&looks, 601.0).unwrap(), None);
        assert_eq!(Window::over(&[], 600.0).unwrap(), None);
        let window = Window::over(&looks, 600.0).unwrap().unwrap();
        assert_eq!((window.seconds, window.pss_kib, window.free_kib), (600.0, 6200, 30_000));
        assert_eq!((window.cpu_s, window.cpu_percent()), (3.0, 0.5));
        assert_eq!((window.written_bytes, window.written_hour()), (200 * 512, 6.0 * 102_400.0));
        assert_eq!((window.network_bytes, window.network_day()), (60_000, 144.0 * 60_000.0));
        let joined = Window::joined(&[window, Window { written_bytes: 0, pss_kib: 7000, ..window }]).unwrap();
        assert_eq!((joined.seconds, joined.pss_kib, joined.cpu_percent()), (1200.0, 7000, 0.5));
        assert_eq!(joined.written_day(), 72.0 * 102_400.0);
    }

    #[test]
    fn an_agent_that_was_started_anew_makes_no_window() {
        let looks = looks(&[log(100.0, 500, 64, 1000), log(700.0, 10, 64, 1000)].concat()).unwrap();
        assert!(Window::over(&looks, 600.0).is_err());
    }

    #[test]
    fn the_first_answer_is_counted_from_the_start_of_the_agent() {
        let start = "board: the agent starts at 4.25 7.01\r\n";
        assert_eq!(first_answer_s(start).unwrap(), None);
        let whole = format!("{start}INFO x\r\nboard: the first answer at 9.75 12.00\r\n");
        assert_eq!(first_answer_s(&whole).unwrap(), Some(5.5));
        assert!(first_answer_s("board: the first answer at noon").is_err());
    }
}
