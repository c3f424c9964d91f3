//! What this device is, as far as the agent itself can tell.

use dunlin_protocol::{Arch, Budgets, ClassName, DeviceProfile};

/// The architecture this agent was built for.
pub const ARCH: Arch = if cfg!(target_arch = "aarch64") {
    Arch::Aarch64
} else if cfg!(target_arch = "arm") {
    Arch::Armv7
} else if cfg!(target_arch = "riscv64") {
    Arch::Riscv64
} else {
    Arch::X86_64
};

/// Where boards with a device tree show their serial number (devicetree specification §2.3, `serial-number`).
const SERIAL_FILE: &str = "/proc/device-tree/serial-number";

/// Serial number of the board, if it shows one.
pub fn serial() -> Option<String> {
    let text = std::fs::read_to_string(SERIAL_FILE).ok()?;
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!text.is_empty()).then(|| text.to_owned())
}

/// The device's profile: what was configured, the rest measured. The architecture and the operators are those
/// of this very binary, whatever a board file says.
pub fn profile(
    class: ClassName,
    cores: Option<u32>,
    ram_bytes: Option<u64>,
    budgets: Budgets,
) -> DeviceProfile {
    let measured_cores =
        || std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    DeviceProfile {
        class,
        arch: ARCH,
        cores: cores.unwrap_or_else(measured_cores),
        ram_bytes: ram_bytes.unwrap_or_else(crate::sampler::memory_bytes),
        budgets,
        ops: dunlin_engine::supported_ops(),
        agent: crate::VERSION.to_owned(),
    }
}
