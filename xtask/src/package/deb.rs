//! Debian packages, deb(5): an ar archive of a version, a control archive and a data archive.
use std::fmt::Write as _;

use anyhow::Result;
use lzma_rust2::FilterType;

use super::tree::{Tree, xz};
use super::{DOCUMENTS, Package, source};

/// What a dynamic build needs beside it: the oldest C library that it was seen to run with.
const DEPENDS: &str = "libc6 (>= 2.36), libgcc-s1";

/// Whose instructions the program is, for what packs it: forms that xz reads since 5.4, which is Debian 12's. Archives do without,
/// as small images unpack them with less.
fn code(arch: &str) -> Option<FilterType> {
    match arch {
        "amd64" => Some(FilterType::BcjX86),
        "arm64" => Some(FilterType::BcjArm64),
        "armhf" => Some(FilterType::BcjArm),
        _ => None,
    }
}

/// Name and bytes of the package.
pub(super) fn pack(package: &Package) -> Result<(String, Vec<u8>)> {
    let from = source().join("debian");
    let mut data = package.installed()?;
    data.copy(&format!("{DOCUMENTS}/copyright"), &from.join("copyright"))?;

    let (version, arch) = (&package.version, package.machine.debian);
    let mut fields = format!(
        "Package: dunlin-agent\nVersion: {version}\nArchitecture: {arch}\nInstalled-Size: {}\n",
        data.bytes().div_ceil(1024)
    );
    if package.is_dynamic {
        writeln!(fields, "Depends: {DEPENDS}")?;
    }
    fields += &std::fs::read_to_string(from.join("control"))?;
    let settings = data.0.iter().filter(|(path, entry)| path.starts_with("etc/") && entry.bytes.is_some());
    let settings: String = settings.map(|(path, _)| format!("/{path}\n")).collect();

    let mut control = Tree::default();
    control.file("control", 0o644, fields.into_bytes());
    control.file("conffiles", 0o644, settings.into_bytes());
    for script in ["postinst", "prerm", "postrm"] {
        control.copy(script, &from.join(script))?;
    }
    let archive = |tree: &Tree, code| xz(&tree.tar("./", package.epoch)?, package.preset, code);
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.xz", archive(&control, None)?),
        ("data.tar.xz", archive(&data, code(arch))?),
    ];
    Ok((format!("dunlin-agent_{version}_{arch}.deb"), ar(&members, package.epoch)))
}

/// The common form of ar, as deb(5) describes it.
fn ar(members: &[(&str, Vec<u8>)], epoch: u64) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let header = format!("{name:<16}{epoch:<12}{0:<6}{0:<6}{1:<8}{2:<10}`\n", 0, "100644", bytes.len());
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    archive
}
