//! zig as C compiler and linker of a target: it brings the C library, the start-up objects and the unwinder, each compiled
//! from source when it is first asked for.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::archive::{note, sha256};
use super::matrix::Target;
use super::toolchain::script;
use crate::command::output;
use crate::install;

/// The release whose words for processors and whose way with libraries the scripts below were written for.
const VERSION: &str = "0.15.2";

/// What Cargo tells rustc: the program is static, and its start-up objects are the linker's, as musl is.
pub(super) const RUSTFLAGS: &str = "-Ctarget-feature=+crt-static -Clink-self-contained=no";

/// Drops what zig says itself or in words of its own: the target, the processor, and the C library, which would be linked
/// twice; and what its linker has no word for, which changes nothing in a program without relocations. C is compiled without the checks for undefined behaviour that zig adds to what is not optimised, as every other
/// compiler of the matrix does.
const COMPILER: &str = r#"n=$#
while [ "$n" -gt 0 ]; do
    word=$1; shift; n=$((n - 1))
    case $word in
        --target=* | -march=* | -lc | -Wl,-z,pack-relative-relocs) ;;
        -lgcc_s) set -- "$@" -lunwind ;;
        *) set -- "$@" "$word" ;;
    esac
done
"#;

/// Where the script lies that compiles and links.
pub(super) fn compiler(home: &Path, target: &Target) -> String {
    in_bin(home, target, "cc").display().to_string()
}

/// Where the script lies that makes archives.
pub(super) fn archiver(home: &Path, target: &Target) -> String {
    in_bin(home, target, "ar").display().to_string()
}

fn in_bin(home: &Path, target: &Target, verb: &str) -> PathBuf {
    home.join("bin").join(format!("{}-zig-{verb}", target.triple))
}

/// What zig calls the target: the triple without its vendor and without the processor's extensions.
fn name(target: &Target) -> Result<String> {
    let words: Vec<_> = target.triple.split('-').collect();
    let [processor, _vendor, system, library] = words[..] else {
        anyhow::bail!("{} does not have four parts", target.triple);
    };
    Ok(format!("{}-{system}-{library}", processor.strip_suffix("gc").unwrap_or(processor)))
}

/// Installs zig and writes its scripts, each time anew: they name a folder of this checkout.
pub(super) fn set_up(home: &Path, target: &Target) -> Result<()> {
    let python = install::python("zig", &[&format!("ziglang=={VERSION}")])?;
    let find = "import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name('zig'))";
    let zig =
        output(Command::new(python).args(["-c", find])).context("finding zig among Python's packages")?;
    let zig = zig.trim();
    note(home, &format!("ziglang\t{VERSION}\tPyPI\t{}", sha256(Path::new(zig))?))?;
    let cache = home.join("zig").display().to_string();
    let head = format!("#!/bin/sh\nexport ZIG_GLOBAL_CACHE_DIR='{cache}' ZIG_LOCAL_CACHE_DIR='{cache}'\n");
    let name = name(target)?;
    let compile = format!("exec '{zig}' cc -target {name} -fno-sanitize=undefined \"$@\"\n");
    script(Path::new(&compiler(home, target)), &format!("{head}{COMPILER}{compile}"))?;
    script(Path::new(&archiver(home, target)), &format!("{head}exec '{zig}' ar \"$@\"\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cross;

    #[test]
    fn zig_has_its_own_names_for_targets() {
        let named = |triple: &str| name(&cross::target(triple).unwrap()).unwrap();
        assert_eq!(named("riscv64gc-unknown-linux-musl"), "riscv64-linux-musl");
    }

    /// The words that rustc and the builders of C code use, given to the script with a program in zig's place.
    #[test]
    fn the_compiler_s_script_keeps_every_word_that_zig_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cc");
        script(&path, &format!("#!/bin/sh\n{COMPILER}printf '%s\\n' \"$@\"\n")).unwrap();
        let target = ["--target=riscv64-unknown-linux-musl", "-march=rv64gc", "-Wl,-z,pack-relative-relocs"];
        let given = [&["-O2"], &target[..], &["a b.o", "-lc", "-lm", "-lgcc_s"]].concat();
        let told = output(Command::new(&path).args(given)).unwrap();
        assert_eq!(told.lines().collect::<Vec<_>>(), ["-O2", "a b.o", "-lm", "-lunwind"]);
    }
}
