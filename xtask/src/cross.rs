//! Building for other machines, from the one list in `cross/matrix.toml`.
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::Deserialize;

use crate::command::{cargo, output, root, run as execute, target_dir};

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the matrix
    List,
    /// Build the agent for a target and check what came out
    Build {
        /// Target triple, one of the matrix
        triple: String,
        /// Use the size profile instead of the development one
        #[arg(long)]
        dist: bool,
    },
}

/// The matrix file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Matrix {
    /// Its targets.
    pub(crate) target: Vec<Target>,
}

/// One target of the matrix.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    pub(crate) triple: String,
    pub(crate) tier: u8,
    pub(crate) libc: String,
    #[serde(rename = "static")]
    pub(crate) is_static: bool,
    pub(crate) how: How,
}

/// How a target is built.
#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// By the installed toolchain.
    Native,
    /// Not yet.
    Planned,
}

/// Reads the matrix.
pub(crate) fn matrix() -> Result<Matrix> {
    let path = root().join("cross/matrix.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))
}

pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.verb {
        Verb::List => {
            for target in matrix()?.target {
                let how = if target.how == How::Native { "native" } else { "planned" };
                let link = if target.is_static { "static" } else { "dynamic" };
                println!("tier {}  {:34} {:6} {:8} {how}", target.tier, target.triple, target.libc, link);
            }
            Ok(())
        }
        Verb::Build { triple, dist } => build(triple, *dist),
    }
}

/// Builds a static agent for `triple` and runs it, so that a file that only looks like one is found.
pub(crate) fn build(triple: &str, dist: bool) -> Result<()> {
    let matrix = matrix()?;
    let Some(target) = matrix.target.iter().find(|target| target.triple == triple) else {
        bail!("{triple} is not in cross/matrix.toml; `cargo xtask cross list` prints what is");
    };
    if target.how == How::Planned {
        bail!("{triple} is planned but not built yet");
    }
    // A folder of its own: other flags would rebuild every dependency of the ordinary build.
    let folder = target_dir().join("cross");
    let (profile, subfolder) = if dist { ("dist", "dist") } else { ("dev", "debug") };
    let mut command =
        cargo(&["build", "--locked", "-p", "dunlin-agent", "--target", triple, "--profile", profile]);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static").env("CARGO_TARGET_DIR", &folder);
    execute(&mut command)?;
    let program: PathBuf = folder.join(triple).join(subfolder).join("dunlin-agent");
    let bytes =
        std::fs::metadata(&program).with_context(|| format!("{} was not made", program.display()))?.len();
    if needs_interpreter(&std::fs::read(&program)?) {
        bail!("{} asks for a dynamic loader, so it is not static", program.display());
    }
    let version = output(Command::new(&program).arg("--version"))?;
    println!("{}: {} in {bytes} bytes, static, runs", program.display(), version.trim());
    Ok(())
}

/// Whether a 64-bit little-endian ELF file has a PT_INTERP program header (ELF-64 object file format, §"Program header").
fn needs_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| elf.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let offset = elf.get(32..40).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    let (size, count) = (usize::from(u16_at(54)), usize::from(u16_at(56)));
    (0..count).any(|i| {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i * size);
        elf.get(at..at.saturating_add(4))
            .is_some_and(|b| u32::from_le_bytes(b.try_into().expect("four bytes")) == PT_INTERP)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let this_test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needs_interpreter(&this_test));
        assert!(!needs_interpreter(b"\x7fELF"));
    }
}
