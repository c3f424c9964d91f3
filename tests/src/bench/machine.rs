//! What the numbers were measured on.
use std::time::SystemTime;

use anyhow::Result;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A machine, a day and a source tree.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    /// Processes that wanted a core in the minute before, on average: numbers of a busy machine say less.
    load: f64,
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
        Ok(Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: kib.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            date: OffsetDateTime::from(SystemTime::now()).format(&Rfc3339)?,
            commit: commit.to_owned(),
        })
    }

    pub(crate) fn print(&self) {
        println!("{}, {} cores, {} MiB, Linux {}", self.cpu, self.cores, self.memory_mib, self.kernel);
        println!("{}, commit {}, load {} at the start", self.date, self.commit, self.load);
    }
}
