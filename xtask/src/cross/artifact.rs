//! What came out of a build: whether it is what it should be, and what it was made of.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::archive::{notes, sha256};
use super::toolchain::Toolchain;
use crate::command::{output, root};

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

/// Checks that `program` is one for the target, and static if it shall be, and asks it for its version.
pub(super) fn check(toolchain: &Toolchain<'_>, program: &Path) -> Result<String> {
    let elf = std::fs::read(program).with_context(|| format!("{} was not made", program.display()))?;
    let target = toolchain.target;
    if !Elf(&elf).is_for(machine(&target.triple)?) {
        bail!("{} is for another machine than {}", program.display(), target.triple);
    }
    if target.is_static && Elf(&elf).has_interpreter() {
        bail!("{} asks for a dynamic loader, so it is not static", program.display());
    }
    let mut words = toolchain.runner().unwrap_or_default();
    words.push(program.display().to_string());
    let version = output(Command::new(&words[0]).args(&words[1..]).arg("--version"))?;
    Ok(version.trim().to_owned())
}

/// Writes `dunlin-agent.provenance.json` beside the program.
pub(super) fn provenance(toolchain: &Toolchain<'_>, program: &Path, profile: &str) -> Result<PathBuf> {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let git = |args: &[&str]| output(Command::new("git").current_dir(root()).args(args));
    let rustc = output(Command::new(toolchain.rustc()).current_dir(root()).arg("-vV"))?;
    let linker = output(Command::new(toolchain.linker()).arg("--version"))?;
    let packages = std::fs::read_to_string(notes(&toolchain.home)).unwrap_or_default();
    let packages: Vec<Value> = packages
        .lines()
        .map(|line| {
            let mut fields = line.split('\t');
            let mut next = || fields.next().unwrap_or_default();
            json!({"package": next(), "version": next(), "architecture": next(), "sha256": next()})
        })
        .collect();
    let text = json!({
        "triple": toolchain.target.triple,
        "profile": profile,
        "sha256": sha256(program)?,
        "bytes": std::fs::metadata(program)?.len(),
        "commit": git(&["rev-parse", "HEAD"])?.trim(),
        "uncommitted": !git(&["status", "--porcelain"])?.is_empty(),
        "cargo_lock_sha256": sha256(&root().join("Cargo.lock"))?,
        "rustc": lines(&rustc),
        "linker": linker.lines().next(),
        "unpacked_packages": packages,
        "kernels": kernels(program)?,
    });
    let path = program.with_extension("provenance.json");
    std::fs::write(&path, format!("{text:#}\n"))?;
    Ok(path)
}

/// The kernels that tract found this C compiler able to assemble: it leaves out the others without a word.
fn kernels(program: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let folder = program.parent().context("a program lies in a folder")?.join("build");
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path().join("output");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if path.to_str().is_some_and(|path| path.contains("/tract-linalg-")) {
            let switches = text.lines().filter_map(|line| {
                line.split_once("rustc-cfg=")
                    .map(|(_, switch)| switch)
                    .filter(|switch| switch.starts_with("tract"))
            });
            found.extend(switches.map(str::to_owned));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
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

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let this_test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(Elf(&this_test).has_interpreter());
        assert!(Elf(&this_test).machine().is_some());
        assert!(!Elf(b"\x7fELF").has_interpreter());
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
