//! How many devices the machine has memory for.
use anyhow::{Context, Result, ensure};

/// Devices of the demonstration, if memory allows.
pub(crate) const DEVICES: usize = 24;
/// Fewer leave a class without two devices that are retrained beside two that are not.
pub(crate) const DEVICES_MIN: usize = 12;
/// What an agent of an ordinary build takes at most with the process that proves its next model, MiB.
const AGENT_MIB: u64 = 96;
/// What the controller, the trainer and the operator's programs take together, MiB.
const REST_MIB: u64 = 1024;

/// How many of `wanted` devices fit into the memory that is available, and what there is to say about it.
pub(crate) fn devices(wanted: usize) -> Result<(usize, Option<String>)> {
    ensure!(
        wanted >= DEVICES_MIN,
        "at least {DEVICES_MIN} devices are needed: two of each class are never retrained"
    );
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    fit(wanted, available_mib(&text).context("/proc/meminfo does not say what is available")?)
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

fn fit(wanted: usize, available: u64) -> Result<(usize, Option<String>)> {
    let room = usize::try_from(available.saturating_sub(REST_MIB) / AGENT_MIB)?;
    ensure!(
        room >= DEVICES_MIN,
        "{available} MiB of memory are available, and {DEVICES_MIN} devices need {}",
        REST_MIB + AGENT_MIB * DEVICES_MIN as u64
    );
    let devices = wanted.min(room);
    let why = if devices < wanted {
        Some(format!(
            "only {devices} of {wanted} devices, as {available} MiB of memory are available and each takes up to {AGENT_MIB}"
        ))
    } else if wanted < DEVICES {
        Some(format!("only {devices} devices, as it was asked; {DEVICES} are usual"))
    } else {
        None
    };
    Ok((devices, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_alone_makes_them_fewer_and_it_is_said() {
        assert_eq!(fit(24, 8192).unwrap(), (24, None));
        let (devices, why) = fit(24, REST_MIB + AGENT_MIB * 18 + 5).unwrap();
        assert_eq!(devices, 18);
        assert!(why.unwrap().contains("only 18 of 24"));
        assert!(fit(24, 1500).is_err());
        assert!(fit(12, 8192).unwrap().1.unwrap().contains("as it was asked"));
    }

    #[test]
    fn what_is_available_is_read_from_the_kernel() {
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:   2097152 kB\n"), Some(2048));
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
    }
}
