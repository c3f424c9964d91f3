//! What came out of a build: whether it is what it should be, and what it was made of.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::archive::{notes, sha256};
use super::toolchain::Toolchain;
use crate::command::{output, root};

/// ELF's numbers of machines (System V ABI, `e_machine`).
const MACHINES: [(&str, u16); 4] = [("x86_64", 62), ("aarch64", 183), ("armv7", 40), ("riscv64gc", 243)];

/// Checks that `program` is one for the target, and static if it shall be, and asks it for its version.
pub(super) fn check(toolchain: &Toolchain<'_>, program: &Path) -> Result<String> {
    let elf = std::fs::read(program).with_context(|| format!("{} was not made", program.display()))?;
    let target = toolchain.target;
    let arch = target.triple.split('-').next().unwrap_or_default();
    let wanted = MACHINES.iter().find(|(name, _)| *name == arch).map(|(_, machine)| *machine);
    if Elf(&elf).machine() != wanted {
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
struct Elf<'a>(&'a [u8]);

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

    /// Whether there is a PT_INTERP program header. Tables of programs lie in the first 4 GiB.
    fn has_interpreter(&self) -> bool {
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
    fn a_32_bit_program_keeps_its_headers_elsewhere() {
        let mut elf = vec![0; 52 + 32];
        elf[..5].copy_from_slice(b"\x7fELF\x01");
        (elf[18], elf[28], elf[42], elf[44]) = (40, 52, 32, 1);
        assert_eq!((Elf(&elf).machine(), Elf(&elf).has_interpreter()), (Some(40), false));
        elf[52] = 3;
        assert!(Elf(&elf).has_interpreter());
    }
}
