//! Memory of a process and its children, as the kernel counts it.
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Kibibytes as `/proc` writes them.
const KIB: u64 = 1024;

/// Memory of one process or of a tree of them, bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Pages in memory, shared ones by their share.
    pub pss: u64,
    /// Pages in memory.
    pub rss: u64,
    /// Those of them that no file backs.
    pub anonymous: u64,
}

fn path(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

/// A field of a file of `Name:   12 kB` lines, bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * KIB)
}

/// Memory of one process.
///
/// # Errors
/// There is no such process, or the kernel does not say.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = std::fs::read_to_string(path(pid, "smaps_rollup"))
        .with_context(|| format!("reading the memory of process {pid}"))?;
    let get = |name| field(&text, name).with_context(|| format!("no {name} of process {pid}"));
    Ok(Memory { pss: get("Pss")?, rss: get("Rss")?, anonymous: get("Anonymous")? })
}

/// Processes that this one started and that still run.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(path(pid, "task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// Memory of a process and its children; a child that ends meanwhile counts as nothing.
///
/// # Errors
/// There is no such process, or the kernel does not say.
pub fn tree(pid: u32) -> Result<Memory> {
    let mut sum = memory(pid)?;
    for child in children(pid) {
        let Ok(one) = tree(child) else { continue };
        sum = Memory {
            pss: sum.pss + one.pss,
            rss: sum.rss + one.rss,
            anonymous: sum.anonymous + one.anonymous,
        };
    }
    Ok(sum)
}

/// Makes the kernel forget the peak of a process, so that [`peak`] counts from now.
///
/// # Errors
/// There is no such process, or it is another user's.
pub fn forget_peak(pid: u32) -> Result<()> {
    std::fs::write(path(pid, "clear_refs"), "5")
        .with_context(|| format!("resetting the peak of process {pid}"))
}

/// The most pages a process has had in memory, bytes.
///
/// # Errors
/// There is no such process.
pub fn peak(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(path(pid, "status"))?;
    field(&text, "VmHWM").with_context(|| format!("no peak of process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Pss_Dirty:  7 kB\nPss:      12 kB\nRss: 20 kB\n";
        assert_eq!(
            (field(text, "Pss"), field(text, "Rss"), field(text, "Swap")),
            (Some(12 << 10), Some(20 << 10), None)
        );
    }

    #[test]
    fn this_process_has_memory_and_a_peak_above_it() {
        let own = std::process::id();
        let now = memory(own).unwrap();
        assert!(now.anonymous > 0 && now.anonymous <= now.rss && now.pss <= now.rss);
        assert!(peak(own).unwrap() > 0 && tree(own).unwrap().rss > 0);
    }
}
