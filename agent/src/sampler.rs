//! What the agent and its device use: processor, memory, temperature, disk, network.

use std::path::{Path, PathBuf};
use std::time::Instant;

use dunlin_protocol::ResourceUse;
use sysinfo::{Components, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Physical memory, bytes; zero where the system does not tell.
pub fn memory_bytes() -> u64 {
    let Ok(mut system) = System::new() else { return 0 };
    system.refresh_memory();
    system.total_memory()
}

/// Free bytes on the file system that holds `path`, if it can be asked.
pub fn disk_free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Takes one [`ResourceUse`] per window. Processor time and network bytes are those since the last one.
#[derive(Debug)]
pub struct Sampler {
    system: Option<System>,
    components: Option<Components>,
    networks: Option<Networks>,
    pid: Option<Pid>,
    state_dir: PathBuf,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    at: Instant,
    cpu_ms: u64,
    rx: u64,
    tx: u64,
}

impl Sampler {
    /// A sampler of this process; `state_dir` names the file system whose free space is reported. A source that
    /// the system does not offer reads as zero ever after.
    pub fn new(state_dir: &Path) -> Self {
        let mut sampler = Self {
            system: System::new().ok(),
            components: Components::new_with_refreshed_list().ok(),
            networks: Networks::new_with_refreshed_list().ok(),
            pid: sysinfo::get_current_pid().ok(),
            state_dir: state_dir.to_path_buf(),
            last: None,
        };
        sampler.sample();
        sampler
    }

    /// What was used since the last call, and what is free at this moment.
    pub fn sample(&mut self) -> ResourceUse {
        let mut usage = ResourceUse::default();
        let mut cpu_ms = 0;
        if let Some(system) = &mut self.system {
            system.refresh_memory();
            usage.available_bytes = system.available_memory();
            if let Some(pid) = self.pid {
                let what = ProcessRefreshKind::nothing().with_cpu().with_memory();
                system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
                if let Some(process) = system.process(pid) {
                    usage.rss_bytes = process.memory();
                    cpu_ms = process.accumulated_cpu_time();
                }
            }
        }
        if let Some(components) = &mut self.components {
            components.refresh(false);
            let hottest = components
                .iter()
                .filter_map(|c| c.temperature())
                .filter(|t| t.is_finite())
                .fold(None, |a: Option<f32>, t| Some(a.map_or(t, |a| a.max(t))));
            usage.temperature_mc = hottest.map(|celsius| (f64::from(celsius) * 1000.0).round() as i64);
        }
        let (mut rx, mut tx) = (0, 0);
        if let Some(networks) = &mut self.networks {
            networks.refresh(false);
            for (_, network) in networks.iter().filter(|(name, _)| name.as_os_str() != "lo") {
                rx += network.total_received();
                tx += network.total_transmitted();
            }
        }
        usage.disk_free_bytes = disk_free_bytes(&self.state_dir).unwrap_or(0);
        let now = Last { at: Instant::now(), cpu_ms, rx, tx };
        if let Some(last) = self.last.replace(now) {
            let elapsed_ms =
                u64::try_from(now.at.duration_since(last.at).as_millis()).unwrap_or(u64::MAX).max(1);
            usage.cpu_ppm = cpu_ms.saturating_sub(last.cpu_ms).saturating_mul(1_000_000) / elapsed_ms;
            usage.net_rx_bytes = rx.saturating_sub(last.rx);
            usage.net_tx_bytes = tx.saturating_sub(last.tx);
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_a_disk_and_work_shows_as_processor_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut sampler = Sampler::new(dir.path());
        let started = Instant::now();
        let mut x = 1u64;
        while started.elapsed().as_millis() < 300 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        let usage = sampler.sample();
        assert!(usage.rss_bytes > 1 << 20, "{usage:?}");
        assert!(usage.available_bytes > 0 && usage.disk_free_bytes > 0, "{usage:?}");
        assert!(usage.cpu_ppm > 0, "{usage:?}");
    }
}
