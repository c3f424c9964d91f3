//! The kinds of machine that boards are emulated as.
use anyhow::{Result, bail};
use dunlin_protocol::{Arch, DeviceProfile};

/// Most memory of an emulated board, MiB; one that has more does not need it here.
const MEMORY_MIB_MAX: u64 = 256;
/// The processor of a board whose file names none.
const PROCESSOR: &str = "max";

/// A kind of machine, by what differs.
pub(super) struct Kind {
    /// The emulator's program, and Debian's package of it.
    pub(super) emulator: (&'static str, &'static str),
    /// The machine, as the emulator calls it.
    pub(super) machine: &'static str,
    /// Its network, and its disk.
    pub(super) devices: [&'static str; 2],
    /// What the kernel is told: where it prints, and what emulation needs.
    pub(super) console: &'static str,
    /// Debian's name of the architecture.
    pub(super) arch: &'static str,
    /// Debian's package with the newest kernel, for virtual machines where there is one: a fifth of the ordinary one.
    pub(super) kernel: &'static str,
    /// Debian's name of the folder of libraries.
    pub(super) libraries: &'static str,
}

const AARCH64: Kind = Kind {
    emulator: ("qemu-system-aarch64", "qemu-system-arm"),
    machine: "virt,gic-version=3",
    devices: ["virtio-net-device", "virtio-blk-device"],
    console: "console=ttyAMA0",
    arch: "arm64",
    kernel: "linux-image-cloud-arm64",
    libraries: "aarch64-linux-gnu",
};

const ARMV7: Kind = Kind {
    emulator: ("qemu-system-arm", "qemu-system-arm"),
    // Its kernel is one without the extension for more than 4 GiB of addresses, beyond which the emulator puts devices.
    machine: "virt,gic-version=2,highmem=off",
    devices: ["virtio-net-device", "virtio-blk-device"],
    console: "console=ttyAMA0",
    arch: "armhf",
    // There is none for virtual machines.
    kernel: "linux-image-armmp",
    libraries: "arm-linux-gnueabihf",
};

const X86_64: Kind = Kind {
    emulator: ("qemu-system-x86_64", "qemu-system-x86"),
    machine: "q35",
    // It starts from no network, so that it needs no program for that.
    devices: ["virtio-net-pci,romfile=", "virtio-blk-pci"],
    // A busy machine is late with the interrupts that the kernel would check its timer by.
    console: "console=ttyS0 no_timer_check",
    arch: "amd64",
    kernel: "linux-image-cloud-amd64",
    libraries: "x86_64-linux-gnu",
};

impl Kind {
    /// That of a board.
    pub(super) fn of(device: &DeviceProfile) -> Result<&'static Self> {
        match device.arch {
            Arch::Aarch64 => Ok(&AARCH64),
            Arch::X86_64 => Ok(&X86_64),
            Arch::Armv7 => Ok(&ARMV7),
            Arch::Riscv64 => bail!("no emulated machine stands for {}", device.class),
        }
    }
}

/// Memory that a board is emulated with, MiB.
pub(super) fn memory_mib(device: &DeviceProfile) -> u64 {
    (device.ram_bytes >> 20).min(MEMORY_MIB_MAX)
}

/// Processor, cores and memory of the emulated board, as the emulator's options.
pub(super) fn size(device: &DeviceProfile, processor: Option<&str>, memory_mib: u64) -> [String; 6] {
    let [cpu, cores, memory_option] = ["-cpu", "-smp", "-m"].map(str::to_owned);
    [
        cpu,
        processor.unwrap_or(PROCESSOR).to_owned(),
        cores,
        device.cores.to_string(),
        memory_option,
        memory_mib.to_string(),
    ]
}
