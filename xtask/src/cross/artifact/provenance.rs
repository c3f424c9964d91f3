//! What an agent is and was made of, written down beside it.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use super::started;
use crate::command::{git, is_changed, output, root};
use crate::cross::Features;
use crate::cross::archive::{notes, sha256};
use crate::cross::build::Built;
use crate::cross::matrix::{How, Libc, Target};
use crate::cross::toolchain::Toolchain;

/// Writes `dunlin-agent.provenance.json` beside the program.
pub(in crate::cross) fn provenance(
    toolchain: &Toolchain<'_>,
    Built { program, kernels }: &Built,
    profile: &str,
) -> Result<PathBuf> {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let rustc = output(Command::new(toolchain.rustc()).current_dir(root()).arg("-vV"))?;
    let compiler = output(Command::new(toolchain.linker()).arg("--version"))?;
    let unpacked = std::fs::read_to_string(notes(&toolchain.home)).unwrap_or_default();
    let own_rustc = toolchain.rustc().is_absolute();
    let unpacked: Vec<Value> = unpacked
        .lines()
        .map(package)
        .filter(|package| takes_part(toolchain.target, own_rustc, package))
        .collect();
    let text = json!({
        "triple": toolchain.target.triple,
        "profile": profile,
        "features": features(toolchain, program)?.name(),
        "sha256": sha256(program)?,
        "bytes": std::fs::metadata(program)?.len(),
        "commit": git(&["rev-parse", "HEAD"])?.trim(),
        "uncommitted": is_changed()?,
        "cargo_lock_sha256": sha256(&root().join("Cargo.lock"))?,
        "rustc": lines(&rustc),
        "c_compiler": compiler.lines().next(),
        "linker": linker(toolchain, program)?,
        "unpacked_packages": unpacked,
        "installed_packages": installed(toolchain)?,
        "kernels": kernels.archives,
        "kernel_switches": kernels.switches,
    });
    let path = program.with_extension("provenance.json");
    std::fs::write(&path, format!("{text:#}\n"))?;
    Ok(path)
}

/// What LLVM's linker begins its entry with in the notes of every program that it links, and its name in that entry.
const OWN_WORD: (&[u8], &str) = (b"Linker: ", "LLD");

/// What linked a program, and its version: the program's own word, else that of the linker that the C compiler calls.
fn linker(toolchain: &Toolchain<'_>, program: &Path) -> Result<String> {
    let bytes = std::fs::read(program)?;
    let (begin, name) = OWN_WORD;
    let begins = bytes.windows(begin.len()).enumerate().filter(|(_, window)| *window == begin);
    let mut words = begins.filter_map(|(at, _)| bytes[at + begin.len()..].split(|byte| *byte == 0).next());
    if let Some(word) =
        words.find_map(|word| std::str::from_utf8(word).ok().filter(|word| word.contains(name)))
    {
        return Ok(word.to_owned());
    }
    // The driver tells on standard error at length what it starts.
    let told = Command::new(toolchain.linker()).arg("-Wl,--version").stderr(Stdio::null()).output()?;
    Ok(String::from_utf8(told.stdout)?.lines().next().unwrap_or_default().to_owned())
}

/// A package by a line of its name, version, architecture and, where it was unpacked, digest.
fn package(line: &str) -> Value {
    let fields = ["package", "version", "architecture", "sha256"].into_iter().zip(line.split('\t'));
    fields.map(|(name, field)| (name.to_owned(), json!(field))).collect::<Map<_, _>>().into()
}

/// Whether a package that was unpacked takes part in a build of `target`: the folder holds those of all targets. `own_rustc`
/// says that the compiler was unpacked too.
fn takes_part(target: &Target, own_rustc: bool, package: &Value) -> bool {
    let of_target = target.debian.as_ref().is_some_and(|debian| package["architecture"] == debian.arch);
    match package["package"].as_str().unwrap_or_default() {
        "musl-dev" => of_target && target.libc == Libc::Musl,
        name if name.starts_with("libunwind-") => of_target && target.libc == Libc::Musl && own_rustc,
        "qemu-user" => target.runner.is_some(),
        "ziglang" => target.how == How::Zig,
        _ => own_rustc,
    }
}

/// The packages of this machine that the C compiler and what it compiles with come from; none where it is of no package.
fn installed(toolchain: &Toolchain<'_>) -> Result<Vec<Value>> {
    if toolchain.target.how == How::Zig {
        return Ok(Vec::new());
    }
    let compiler = toolchain.linker();
    let ask = |what: String| output(Command::new(&compiler).arg(what));
    let mut programs = vec![compiler.clone()];
    for program in ["cc1", "as", "ld"] {
        programs.push(ask(format!("-print-prog-name={program}"))?);
    }
    // What it looks for on the path it names without one; and it names what is not there.
    let mut files: Vec<String> = programs
        .iter()
        .filter_map(|program| output(Command::new("which").arg(program.trim())).ok())
        .collect();
    for library in ["libgcc.a", "libc.so"] {
        files.push(ask(format!("-print-file-name={library}"))?);
    }
    packages_of(&files)
}

/// The Debian packages that files come from, each once.
fn packages_of(files: &[String]) -> Result<Vec<Value>> {
    let files = files.iter().filter_map(|file| std::fs::canonicalize(file.trim()).ok());
    // It fails where one of the files is of no package, and names those of the others; and where there is no such program.
    let Ok(told) = Command::new("dpkg-query").arg("--search").args(files).output() else {
        return Ok(Vec::new());
    };
    let told = String::from_utf8(told.stdout)?;
    let owners = told.lines().filter_map(|line| Some(line.split_once(": ")?.0));
    // Others tell of diversions.
    let names: BTreeSet<&str> = owners.filter(|owner| !owner.contains(' ')).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let format = "${Package}\t${Version}\t${Architecture}\n";
    let told = output(Command::new("dpkg-query").args(["--show", "--showformat", format]).args(names))?;
    Ok(told.lines().map(package).collect())
}

/// The feature set of an agent, as the agent tells: it refuses a setting for what it was built without.
fn features(toolchain: &Toolchain<'_>, program: &Path) -> Result<Features> {
    let mut check = started(toolchain, program);
    let told = check.arg("check").env("DUNLIN_API__GRPC_LISTEN", "127.0.0.1:0").output()?;
    let error = String::from_utf8_lossy(&told.stderr);
    match (told.status.success(), error.contains("built without gRPC")) {
        (true, _) => Ok(Features::Full),
        (false, true) => Ok(Features::Edge),
        (false, false) => bail!("{} does not tell its feature set: {error}", program.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cross::artifact::Kernels;
    use crate::cross::target;
    use crate::cross::toolchain::script;

    #[test]
    fn a_provenance_names_what_the_program_is_and_was_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("dunlin-agent");
        // An agent that knows nothing but its feature set.
        script(&program, "#!/bin/sh\necho 'this program was built without gRPC' >&2\nexit 2\n").unwrap();
        let [archives, switches] = ["x86_64", "tract_avxvnni"].map(|name| vec![name.to_owned()]);
        let built = Built { program: program.clone(), kernels: Kernels { archives, switches } };
        let target = target("x86_64-unknown-linux-gnu").unwrap();
        let toolchain = Toolchain::set_up(&target).unwrap();
        let path = provenance(&toolchain, &built, "dist").unwrap();
        let told: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for (field, value) in [
            ("triple", json!(target.triple)),
            ("profile", json!("dist")),
            ("features", json!("edge")),
            ("sha256", json!(sha256(&program).unwrap())),
            ("bytes", json!(std::fs::metadata(&program).unwrap().len())),
            ("cargo_lock_sha256", json!(sha256(&root().join("Cargo.lock")).unwrap())),
            ("kernels", json!(["x86_64"])),
            ("kernel_switches", json!(["tract_avxvnni"])),
            ("unpacked_packages", json!([])),
        ] {
            assert_eq!(told[field], value, "{field}");
        }
        assert_eq!(told["commit"].as_str().unwrap().len(), 40);
        assert!(told["uncommitted"].is_boolean());
        assert!(told["rustc"][0].as_str().unwrap().starts_with("rustc 1."));
        // A text names no linker, so it is the one that this machine's C compiler calls.
        assert!(told["linker"].as_str().unwrap().starts_with("GNU "), "{}", told["linker"]);
        assert!(told["c_compiler"].as_str().unwrap().contains("cc "), "{}", told["c_compiler"]);
        let installed = told["installed_packages"].as_array().unwrap();
        for part in ["gcc-", "cpp-", "binutils-", "libgcc-", "libc6-dev"] {
            let of = |package: &&Value| package["package"].as_str().unwrap().starts_with(part);
            let package = installed.iter().find(of).unwrap_or_else(|| panic!("no {part} in {installed:?}"));
            assert!(package["version"].as_str().unwrap().starts_with(|c: char| c.is_ascii_digit()));
            assert!(package["architecture"].is_string());
        }
    }

    #[test]
    fn a_program_s_own_word_says_what_linked_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("dunlin-agent");
        std::fs::write(&program, b"\x01Linker: \xff\0Linker: x\0GCC: 12\0Linker: Debian LLD 22.1.8\0rustc\0")
            .unwrap();
        let target = target("x86_64-unknown-linux-gnu").unwrap();
        let toolchain = Toolchain::set_up(&target).unwrap();
        assert_eq!(linker(&toolchain, &program).unwrap(), "Debian LLD 22.1.8");
    }

    #[test]
    fn a_provenance_leaves_out_what_was_unpacked_for_other_targets() {
        let packages = [
            "rustc-web\t1\tamd64\td",
            "musl-dev\t1\tarm64\td",
            "musl-dev\t1\tamd64\td",
            "libunwind-14-dev\t1\tarm64\td",
            "qemu-user\t1\tamd64\td",
            "ziglang\t1\tPyPI\td",
        ];
        let of = |triple: &str, own_rustc| {
            let target = target(triple).unwrap();
            packages.map(package).map(|package| takes_part(&target, own_rustc, &package))
        };
        let musl = "aarch64-unknown-linux-musl";
        assert_eq!(of(musl, true), [true, true, false, true, true, false]);
        assert_eq!(of(musl, false), [false, true, false, false, true, false]);
        assert_eq!(of("aarch64-unknown-linux-gnu", true), [true, false, false, false, true, false]);
        assert_eq!(of("x86_64-unknown-linux-musl", true), [true, false, true, false, false, false]);
        assert_eq!(of("riscv64gc-unknown-linux-musl", true), [true, false, false, false, true, true]);
    }
}
