//! What the numbers were measured on.
use std::thread::{available_parallelism, scope};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// For how long the machine is watched.
const WATCHED: Duration = Duration::from_secs(3);
/// What counts as a stop: longer than any call of the kernel takes.
const STOP_MIN: Duration = Duration::from_millis(1);

/// How often threads that do nothing but look at the clock, one a core, find that they stood still: the scheduler, or a host,
/// gave their core to others. What is measured beside such stops has them in its highest quantiles.
#[derive(Debug, Serialize)]
struct Stops {
    per_second: f64,
    longest_ms: f64,
}

impl Stops {
    fn watch(cores: usize) -> Self {
        let one = || {
            let begin = Instant::now();
            let (mut last, mut gaps) = (begin, Vec::new());
            while last - begin < WATCHED {
                let now = Instant::now();
                if now - last > STOP_MIN {
                    gaps.push(now - last);
                }
                last = now;
            }
            gaps
        };
        let gaps: Vec<Duration> = scope(|scope| {
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(one)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        });
        let longest = gaps.iter().max().copied().unwrap_or_default();
        Self {
            per_second: gaps.len() as f64 / WATCHED.as_secs_f64(),
            longest_ms: longest.as_secs_f64() * 1e3,
        }
    }
}

/// A machine, a day and a source tree.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    /// Processes that wanted a core in the minute before, on average: numbers of a busy machine say less.
    load: f64,
    stops: Stops,
    date: String,
    commit: String,
}

impl Machine {
    /// Describes this one; `commit` names the source.
    pub(crate) fn read(commit: &str) -> Result<Self> {
        let field = |path: &str, name: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let kib = field("/proc/meminfo", "MemTotal");
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let cores = available_parallelism()?.get();
        Ok(Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores,
            memory_mib: kib.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            stops: Stops::watch(cores),
            date: OffsetDateTime::from(SystemTime::now()).format(&Rfc3339)?,
            commit: commit.to_owned(),
        })
    }

    pub(crate) fn print(&self) {
        println!("{}, {} cores, {} MiB, Linux {}", self.cpu, self.cores, self.memory_mib, self.kernel);
        println!("{}, commit {}, load {} at the start", self.date, self.commit, self.load);
        let Stops { per_second, longest_ms } = self.stops;
        println!(
            "threads that only look at the clock stood still for over 1 ms {per_second:.1} times a second, at most {longest_ms:.1} ms"
        );
    }
}
