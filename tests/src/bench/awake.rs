//! Cores that do not sleep.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};

/// Where the kernel is told how long waking a core may take (Linux, `Documentation/power/pm_qos_interface.rst`).
const LATENCY: &str = "/dev/cpu_dma_latency";

/// Keeps every core of this machine awake as long as it lives: what is then measured is the program, and not how long
/// hardware or a host takes to go on with a core that had nothing to do.
pub(crate) struct Awake {
    /// What was asked for holds until this is closed.
    _asked: File,
}

impl Awake {
    /// Asks for it, which by default only root may.
    pub(crate) fn keep() -> io::Result<Self> {
        let mut asked = OpenOptions::new().write(true).open(LATENCY)?;
        asked.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self { _asked: asked })
    }
}
