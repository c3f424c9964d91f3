//! What came out of a build: whether it is what it should be, and what it was made of.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::build::Built;
use super::matrix::Target;
use super::toolchain::{Toolchain, home};
use crate::command::output;

mod kernels;
mod provenance;

pub(super) use kernels::Kernels;
pub(super) use provenance::provenance;

/// What others call the machine of a triple.
pub(crate) struct Machine {
    /// The triple's first word.
    name: &'static str,
    /// ELF's number (System V ABI, `e_machine`).
    pub(crate) elf: u16,
    /// Debian's architecture.
    pub(crate) debian: &'static str,
    /// The platform of container images: Go's `GOARCH`, and a variant.
    pub(crate) oci: (&'static str, Option<&'static str>),
}

const MACHINES: [Machine; 4] = [
    Machine { name: "x86_64", elf: 62, debian: "amd64", oci: ("amd64", None) },
    Machine { name: "aarch64", elf: 183, debian: "arm64", oci: ("arm64", Some("v8")) },
    Machine { name: "armv7", elf: 40, debian: "armhf", oci: ("arm", Some("v7")) },
    Machine { name: "riscv64gc", elf: 243, debian: "riscv64", oci: ("riscv64", None) },
];

/// The machine of a triple.
pub(crate) fn machine(triple: &str) -> Result<&'static Machine> {
    let arch = triple.split('-').next().unwrap_or_default();
    let known = MACHINES.iter().find(|machine| machine.name == arch);
    known.with_context(|| format!("{triple}: nothing is known about the machine {arch}"))
}

/// Checks that a program is one for the target, static if it shall be, and not without kernels, and asks it for its version.
pub(super) fn check(toolchain: &Toolchain<'_>, Built { program, kernels }: &Built) -> Result<String> {
    let elf = std::fs::read(program).with_context(|| format!("{} was not made", program.display()))?;
    let target = toolchain.target;
    if !Elf(&elf).is_for(machine(&target.triple)?) {
        bail!("{} is for another machine than {}", program.display(), target.triple);
    }
    if target.is_static && Elf(&elf).has_interpreter() {
        bail!("{} asks for a dynamic loader, so it is not static", program.display());
    }
    if kernels.archives.is_empty() {
        bail!("{}: the C compiler assembled none of tract's kernels", program.display());
    }
    let version = output(started(toolchain, program).arg("--version"))?;
    Ok(version.trim().to_owned())
}

impl Target {
    /// The program that its programs are put behind on this machine, if they are.
    pub(crate) fn emulator(&self) -> Result<Option<PathBuf>> {
        let Some(runner) = &self.runner else { return Ok(None) };
        let unpacked = home()?.join("bin").join(runner);
        if unpacked.is_file() {
            return Ok(Some(unpacked));
        }
        let installed = output(Command::new("which").arg(runner))
            .with_context(|| format!("`cargo xtask cross setup {}` fetches {runner}", self.triple))?;
        Ok(Some(installed.trim().into()))
    }
}

/// The program, behind what runs those of its target.
fn started(toolchain: &Toolchain<'_>, program: &Path) -> Command {
    let mut words = toolchain.runner().unwrap_or_default();
    words.push(program.display().to_string());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// A little-endian ELF file of 32 or 64 bits (System V ABI, "ELF header", "Program header").
pub(crate) struct Elf<'a>(pub(crate) &'a [u8]);

impl Elf<'_> {
    fn u16_at(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn machine(&self) -> Option<u16> {
        self.0.starts_with(b"\x7fELF").then(|| self.u16_at(18))?
    }

    /// Whether it is a program for that machine.
    pub(crate) fn is_for(&self, machine: &Machine) -> bool {
        self.machine() == Some(machine.elf)
    }

    /// Whether there is a PT_INTERP program header. Tables of programs lie in the first 4 GiB.
    pub(crate) fn has_interpreter(&self) -> bool {
        const PT_INTERP: u32 = 3;
        let wide = self.0.get(4) == Some(&2);
        let (offset, sizes) = if wide { (32, 54) } else { (28, 42) };
        let (Some(offset), Some(size), Some(count)) =
            (self.u32_at(offset), self.u16_at(sizes), self.u16_at(sizes + 2))
        else {
            return false;
        };
        (0..usize::from(count))
            .any(|i| self.u32_at((offset as usize).saturating_add(i * usize::from(size))) == Some(PT_INTERP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::root;
    use crate::cross::target;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let this_test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(Elf(&this_test).has_interpreter());
        assert!(Elf(&this_test).machine().is_some());
        assert!(!Elf(b"\x7fELF").has_interpreter());
    }

    #[test]
    fn an_agent_without_kernels_is_not_called_built() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("dunlin-agent");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut target = target("x86_64-unknown-linux-gnu").unwrap();
        target.is_static = false;
        let built = Built { program, kernels: Kernels::default() };
        let error = check(&Toolchain::set_up(&target).unwrap(), &built).unwrap_err().to_string();
        assert!(error.contains("none of tract's kernels"), "{error}");
    }

    #[test]
    fn the_container_has_what_each_released_target_is_built_with() {
        let read = |name: &str| std::fs::read_to_string(root().join("cross").join(name)).unwrap();
        let settings: toml::Table = toml::from_str(&read("Cross.toml")).unwrap();
        let container = read("Dockerfile");
        for triple in crate::cross::released_triples().unwrap() {
            let target = target(&triple).unwrap();
            let (triple, debian) = (&target.triple, target.debian.as_ref().unwrap());
            let args = &settings["target"][triple]["dockerfile"]["build-args"];
            let names = ["GNU", "ARCH", "MUSL"].map(|name| args[name].as_str());
            assert_eq!(names, [Some(&*debian.gnu), Some(&*debian.arch), debian.musl.as_deref()], "{triple}");
            let linker = format!("CARGO_TARGET_{}_LINKER={}-gcc ", target.variable(), debian.gnu);
            let compiler = format!("CC_{}=target-cc ", triple.replace('-', "_"));
            assert!(container.contains(&linker) && container.contains(&compiler), "{triple}");
        }
    }

    #[test]
    fn debian_s_architectures_are_those_of_the_matrix() {
        for target in crate::cross::matrix().unwrap().target {
            let machine = machine(&target.triple).unwrap();
            assert!(target.debian.is_none_or(|debian| debian.arch == machine.debian), "{}", target.triple);
        }
    }

    #[test]
    fn a_32_bit_program_keeps_its_headers_elsewhere() {
        let mut elf = vec![0; 52 + 32];
        elf[..5].copy_from_slice(b"\x7fELF\x01");
        (elf[18], elf[28], elf[42], elf[44]) = (40, 52, 32, 1);
        assert_eq!((Elf(&elf).machine(), Elf(&elf).has_interpreter()), (Some(40), false));
        elf[52] = 3;
        assert!(Elf(&elf).has_interpreter());
    }
}
