//! The first file system of a board, in the form that Linux unpacks: "newc" of cpio.
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::parts::Parts;
use crate::command::run;

/// What the emulated machine needs beyond what is built into the kernel. The file system asks for its checksum by name, so that it
/// does not say that it depends on it.
const MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "rtc_pl031",
    "crc32c_generic",
    "ext4",
];
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_600;
/// Where the kernel writes what init prints.
const CONSOLE: [u32; 2] = [5, 1];

/// An archive in the making.
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

impl Initramfs {
    /// Folders, busybox and the modules.
    pub(super) fn of(parts: &Parts) -> Result<Self> {
        let mut made = Self { bytes: Vec::new(), entries: 0 };
        for folder in
            ["bin", "data", "dev", "etc", "etc/dunlin", "lib", "lib/modules", "proc", "run", "sys", "tmp"]
        {
            made.add(folder, FOLDER, &[]);
        }
        made.entry("dev/console", DEVICE, &[], CONSOLE);
        made.program("bin/busybox", &parts.board().join("bin/busybox"))?;
        made.add("bin/sh", LINK, b"busybox");
        made.add("init", PROGRAM, include_bytes!("init.sh"));
        let mut order = String::new();
        for (name, path) in modules(&parts.board().join("lib/modules"))? {
            made.add(&format!("lib/modules/{name}.ko"), FILE, &std::fs::read(path)?);
            order.push_str(&format!("{name}.ko\n"));
        }
        made.add("lib/modules/order", FILE, order.as_bytes());
        Ok(made)
    }

    /// Adds a text.
    pub(super) fn text(&mut self, name: &str, text: &str) {
        self.add(name, FILE, text.as_bytes());
    }

    /// Adds a program.
    pub(super) fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        self.add(name, PROGRAM, &bytes);
        Ok(())
    }

    /// Adds the C library and what lies beside it, for programs that are not static.
    pub(super) fn libraries(&mut self, root: &Path, libraries: &str) -> Result<()> {
        // Where programs of some machines look for what loads them.
        self.add("lib64", LINK, b"lib");
        for folder in ["lib", "usr/lib"] {
            let Ok(entries) = std::fs::read_dir(root.join(folder).join(libraries)) else { continue };
            for entry in entries {
                let path = entry?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                // Links are followed: the loader asks for names, and a few copies cost nothing.
                if name.contains(".so") && path.is_file() {
                    self.program(&format!("lib/{name}"), &path)?;
                }
            }
        }
        Ok(())
    }

    /// Ends the archive and writes it, packed: a small board has to hold it beside what it is unpacked to.
    pub(super) fn write(mut self, path: &Path) -> Result<()> {
        self.add("TRAILER!!!", 0, &[]);
        std::fs::write(path, self.bytes).with_context(|| format!("writing {}", path.display()))?;
        let packed = File::create(path.with_extension("packed"))?;
        run(Command::new("gzip").args(["-n", "-c"]).arg(path).stdout(packed))?;
        std::fs::rename(path.with_extension("packed"), path)?;
        Ok(())
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, mode, content, [0; 2]);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], [major, minor]: [u32; 2]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).expect("no part of a board has 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("a name is short");
        let links = if mode == FOLDER { 2 } else { 1 };
        // Number, mode, owner, group, links, time, length, device of the archive, device, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, length, 0, 0, major, minor, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The modules with those that they depend on, which come before them. What is not there is built into the kernel.
fn modules(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut all = BTreeMap::new();
    collect(folder, &mut all)?;
    let mut order = Vec::new();
    for module in MODULES {
        require(module, &all, &mut order)?;
    }
    Ok(order)
}

fn collect(folder: &Path, all: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, all)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko")) {
            all.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn require(name: &str, all: &BTreeMap<String, PathBuf>, order: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let Some(path) = all.get(name) else { return Ok(()) };
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    for dependency in dependencies(&std::fs::read(path)?) {
        require(&dependency, all, order)?;
    }
    order.push((name.to_owned(), path.clone()));
    Ok(())
}

/// What a module says it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else { return Vec::new() };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let text = String::from_utf8_lossy(&rest[..end]);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_content_at_multiples_of_four() {
        let mut made = Initramfs { bytes: Vec::new(), entries: 0 };
        made.text("a", "xyz");
        let header = "07070100000001000081A40000000000000000000000010000000000000003000000000000000000000000000000000000000200000000";
        assert_eq!(made.bytes, [header.as_bytes(), b"a\0", b"xyz\0"].concat());
    }

    #[test]
    fn a_module_names_what_it_depends_on() {
        assert_eq!(dependencies(b"...\0depends=net-failover,failover\0x"), ["net_failover", "failover"]);
        assert_eq!(dependencies(b"\0depends=\0"), [""; 0]);
        assert_eq!(dependencies(b""), [""; 0]);
    }
}
