//! What builds a target: compiler, standard library, C compiler, emulator. Where rustup has the target it is used; where
//! not, Debian's packages, unpacked into one folder that outlives the build folder.
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::archive::{self, Archive, host_suite};
use super::artifact::machine;
use super::matrix::{Debian, How, Libc, Target};
use super::{musl, zig};
use crate::command::{cargo, on_path, output, run};
use crate::install;

/// The machines that Debian's programs are unpacked for, as Rust calls them, and as Debian does.
const HOST: &str = "x86_64";
const HOST_ARCH: &str = "amd64";
/// Folder of its libraries.
const HOST_LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The folder of everything that is fetched or built once.
pub(super) fn home() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
    from("DUNLIN_CROSS_HOME")
        .or_else(|| Some(cache()?.join("dunlin-cross")))
        .context("neither HOME nor DUNLIN_CROSS_HOME is set")
}

/// A toolchain for one target.
pub(super) struct Toolchain<'a> {
    pub(super) target: &'a Target,
    pub(super) home: PathBuf,
    /// Whether rustup's compiler has the target.
    rustup: bool,
}

impl<'a> Toolchain<'a> {
    /// Makes everything that `target` needs, if it is not there.
    pub(super) fn set_up(target: &'a Target) -> Result<Self> {
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let rustup = standard_library(Path::new(sysroot.trim()), &target.triple);
        let toolchain = Self { target, home: home()?, rustup };
        if target.how == How::Native {
            return Ok(toolchain);
        }
        if !rustup {
            runs_unpacked(std::env::consts::ARCH, &target.triple)?;
        }
        std::fs::create_dir_all(toolchain.home.join("bin"))?;
        // Until it is dropped: another call may make the same things, or delete the package lists.
        let alone = File::create(toolchain.home.join("lock"))?;
        alone.lock().context("waiting for another set-up")?;
        if let Some(debian) = &target.debian {
            toolchain.c_compiler(debian)?;
        }
        if target.how == How::Zig {
            zig::set_up(&toolchain.home, target)?;
        }
        if !rustup {
            toolchain.compiler()?;
            if toolchain.links_by_lld() {
                toolchain.lld()?;
            }
        }
        if let (Libc::Musl, Some(debian)) = (target.libc, &target.debian) {
            musl::set_up(&toolchain.home, &toolchain.sysroot()?, target, debian, !rustup)?;
        }
        if !rustup {
            toolchain.build_standard_library()?;
        }
        toolchain.emulator()?;
        archive::forget(&toolchain.home)?;
        Ok(toolchain)
    }

    /// What Cargo has to be told in its environment.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let bin = |name: &str| self.home.join("bin").join(name).display().to_string();
        let (lower, upper) = (self.target.triple.replace('-', "_"), self.target.variable());
        let linker = self.linker();
        let (compiler, archiver) = match (self.target.how, &self.target.debian) {
            (How::Native, _) | (How::Cross, None) => return Vec::new(),
            (How::Zig, _) => (linker.clone(), zig::archiver(&self.home, self.target)),
            (How::Cross, Some(debian)) => {
                let musl = debian.musl.as_ref().map(|musl| self.made_or_on_path(&format!("{musl}-gcc")));
                (musl.unwrap_or_else(|| linker.clone()), format!("{}-ar", debian.gnu))
            }
        };
        let mut environment = vec![
            (format!("CC_{lower}"), compiler),
            (format!("AR_{lower}"), archiver),
            (format!("CARGO_TARGET_{upper}_LINKER"), linker),
        ];
        let flags = match self.target.how {
            How::Zig => zig::RUSTFLAGS.into(),
            How::Cross if self.links_by_lld() => self.small(),
            How::Cross | How::Native => String::new(),
        };
        if !flags.is_empty() {
            environment.push((format!("CARGO_TARGET_{upper}_RUSTFLAGS"), flags));
        }
        if !self.rustup {
            environment.push(("RUSTC".into(), bin("rustc")));
            environment.push(("RUSTDOC".into(), bin("rustdoc")));
        }
        if let Some(runner) = self.runner() {
            environment.push((format!("CARGO_TARGET_{upper}_RUNNER"), runner.join(" ")));
        }
        environment
    }

    /// Whether programs are linked by LLVM's linker, that of Debian's compiler: it makes functions with the same code one.
    fn links_by_lld(&self) -> bool {
        self.target.how == How::Cross && self.target.libc == Libc::Musl && !self.rustup
    }

    /// What makes programs smaller. Code that occurs again is only made a function of its own where that saves more than
    /// the 32 bytes by which unwinders learn of the function.
    fn small(&self) -> String {
        let folder = self.lld_folder().display().to_string();
        format!(
            "-Clink-arg=-fuse-ld=lld -Clink-arg=-B{folder} -Clink-arg=-Wl,--icf=all -Cllvm-args=-outliner-benefit-threshold=32 {}",
            self.instructions()
        )
    }

    /// The instruction set of 32 bits: Thumb-2, as Debian's own compilers take it there, is a third smaller than the other one.
    fn instructions(&self) -> &'static str {
        if self.target.triple.starts_with("armv7") { "-Ctarget-feature=+thumb-mode" } else { "" }
    }

    fn lld_folder(&self) -> PathBuf {
        self.home.join("bin/lld")
    }

    /// The command that a program of the target is put behind.
    pub(super) fn runner(&self) -> Option<Vec<String>> {
        let runner = self.target.runner.as_ref()?;
        let mut command = vec![self.made_or_on_path(runner)];
        if let (Libc::Glibc, Some(debian)) = (self.target.libc, &self.target.debian) {
            // The target's loader and C library are not in this machine's root folder.
            command.extend(["-L".into(), format!("/usr/{}", debian.gnu)]);
        }
        Some(command)
    }

    /// The Rust compiler that builds the target.
    pub(super) fn rustc(&self) -> PathBuf {
        if self.rustup { "rustc".into() } else { self.home.join("bin/rustc") }
    }

    /// The C compiler's driver, which links.
    pub(super) fn linker(&self) -> String {
        match (self.target.how, &self.target.debian) {
            (How::Zig, _) => zig::compiler(&self.home, self.target),
            (How::Native | How::Cross, Some(debian)) => format!("{}-gcc", debian.gnu),
            (How::Native | How::Cross, None) => "cc".into(),
        }
    }

    /// What takes symbols from the target's programs.
    pub(super) fn strip(&self) -> String {
        self.target.debian.as_ref().map_or_else(|| "strip".into(), |debian| format!("{}-strip", debian.gnu))
    }

    fn sysroot(&self) -> Result<PathBuf> {
        Ok(output(Command::new(self.rustc()).args(["--print", "sysroot"]))?.trim().into())
    }

    /// A program that was made here, else the one of that name on the path.
    fn made_or_on_path(&self, name: &str) -> String {
        let made = self.home.join("bin").join(name);
        if made.is_file() { made.display().to_string() } else { name.to_owned() }
    }

    fn c_compiler(&self, debian: &Debian) -> Result<()> {
        if host_suite().is_err() {
            return archive::elsewhere(&format!("{}-gcc", debian.gnu));
        }
        if machine(std::env::consts::ARCH).is_ok_and(|here| here.debian == debian.arch) {
            return install::debian("gcc", "gcc");
        }
        let headers = format!("libc6-dev-{}-cross", debian.arch);
        install::debian_packages(&[&format!("gcc-{}", debian.gnu), &headers])
    }

    /// Debian's newest compiler, unpacked: what it installs as would stand in the way of the machine's own. It and the
    /// source of its standard library are of one version or the build fails.
    fn compiler(&self) -> Result<()> {
        let folder = self.home.join("rust");
        if !folder.join("usr/bin/rustc").is_file() {
            self.unpack_compiler(&folder)?;
        }
        for program in ["rustc", "rustdoc"] {
            // Not `sh`, which takes variables out of the environment whose names have a hyphen: Cargo tells tests by such
            // ones where programs are.
            let text = format!(
                "#!/bin/bash\nLD_LIBRARY_PATH=\"{0}/{HOST_LIBRARIES}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\" exec {0}/usr/bin/{program} \"$@\"\n",
                folder.display()
            );
            script(&self.home.join("bin").join(program), &text)?;
        }
        Ok(())
    }

    fn unpack_compiler(&self, folder: &Path) -> Result<()> {
        println!("unpacking Debian's Rust compiler into {} (once, 700 MB)", folder.display());
        let archive = Archive::open(&self.home, &host_suite()?, HOST_ARCH)?;
        let library = archive.depends("libstd-rust-web-dev", "libstd-rust-web-")?;
        let llvm = archive.depends(&library, "libllvm")?;
        let fresh = fresh(folder)?;
        let packages = ["rustc-web", "libstd-rust-web-dev", &library, &llvm, "rust-web-src"];
        archive.unpack(&self.home, &fresh, &packages)?;
        std::fs::remove_dir_all(fresh.join("usr/share"))?;
        keep_only_library(&fresh.join("usr/src"))?;
        Ok(std::fs::rename(&fresh, folder)?)
    }

    /// The linker of the version of LLVM that the compiler is of, whose library it shares.
    fn lld(&self) -> Result<()> {
        let program = self.lld_folder().join("ld.lld");
        if program.is_file() {
            return Ok(());
        }
        let archive = Archive::open(&self.home, &host_suite()?, HOST_ARCH)?;
        let library = archive.depends("libstd-rust-web-dev", "libstd-rust-web-")?;
        let llvm = archive.depends(&library, "libllvm")?;
        let version = llvm.strip_prefix("libllvm").context("a library of LLVM is named by its version")?;
        let folder = self.home.join("lld");
        archive.unpack(&self.home, &folder, &[&format!("lld-{version}")])?;
        std::fs::create_dir_all(self.lld_folder())?;
        let text = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH=\"{}/{HOST_LIBRARIES}\" exec {}/usr/lib/llvm-{version}/bin/ld.lld \"$@\"\n",
            self.home.join("rust").display(),
            folder.display()
        );
        script(&program, &text)
    }

    /// Compiles the standard library into the compiler's own folder, so that everything after is an ordinary build: for size,
    /// and without what reads symbols for backtraces, as released agents have none.
    fn build_standard_library(&self) -> Result<()> {
        let triple = &self.target.triple;
        let into = library_folder(&self.sysroot()?, triple);
        let manifest = "[package]\nname = \"nothing\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                        [profile.release]\ncodegen-units = 1\nopt-level = \"z\"\n[workspace]\n";
        let parts = [
            "-Zbuild-std=std,panic_unwind,panic_abort,proc_macro,test",
            "-Zbuild-std-features=panic-unwind,optimize_for_size",
        ];
        // One that was built in another way is built anew.
        // Fat LTO reads bitcode.
        let flags = format!("-Cembed-bitcode=yes {}", self.instructions());
        let (stamp, recipe) = (into.join("recipe"), format!("{manifest}{}\n{flags}", parts.join("\n")));
        if std::fs::read_to_string(&stamp).is_ok_and(|built| built == recipe) {
            return Ok(());
        }
        println!("building the standard library for {triple} (once, about a minute)");
        let work = self.home.join("std");
        let built = work.join(triple);
        std::fs::create_dir_all(work.join("src"))?;
        std::fs::write(work.join("src/lib.rs"), "")?;
        std::fs::write(work.join("Cargo.toml"), manifest)?;
        // As the bootstrap of Rust does: the crate that aborts is itself compiled to abort, all others to unwind.
        let wrapper = self.home.join("bin/std-wrapper");
        let text = "#!/bin/sh\nr=$1; shift\ncase \" $* \" in *\" --crate-name panic_abort \"*) exec \"$r\" \"$@\" -Cpanic=abort;; esac\nexec \"$r\" \"$@\"\n";
        script(&wrapper, text)?;
        run(cargo(&["build", "--quiet", "--release", "--target", triple])
            .args(parts)
            .current_dir(&work)
            .env("RUSTC", self.rustc())
            .env("RUSTC_WRAPPER", &wrapper)
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", &built))?;
        std::fs::create_dir_all(&into)?;
        for entry in std::fs::read_dir(&into)? {
            let path = entry?.path();
            if is_library(&path) {
                std::fs::remove_file(path)?;
            }
        }
        for entry in std::fs::read_dir(built.join(triple).join("release/deps"))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if is_library(&path) && !name.starts_with("libnothing-") {
                std::fs::copy(&path, into.join(name))?;
            }
        }
        std::fs::write(stamp, recipe)?;
        Ok(std::fs::remove_dir_all(built)?)
    }

    /// qemu's user-mode emulators of Debian's backports: older ones hide what the emulated processor can do.
    fn emulator(&self) -> Result<()> {
        let Some(runner) = &self.target.runner else { return Ok(()) };
        let program = self.home.join("bin").join(runner);
        if program.is_file() {
            return Ok(());
        }
        let Some(host) = host_suite().ok().filter(|_| std::env::consts::ARCH == HOST) else {
            return if on_path(runner) { Ok(()) } else { bail!("`{runner}` is missing: install qemu-user") };
        };
        let archive = Archive::open(&self.home, &format!("{host}-backports"), HOST_ARCH)?;
        let unpacked = fresh(&self.home.join("qemu"))?;
        archive.unpack(&self.home, &unpacked, &["qemu-user"])?;
        for emulator in ["qemu-aarch64", "qemu-arm", "qemu-riscv64"] {
            std::fs::copy(unpacked.join("usr/bin").join(emulator), self.home.join("bin").join(emulator))?;
        }
        Ok(std::fs::remove_dir_all(unpacked)?)
    }
}

/// An error on machines on which the compiler that would be unpacked does not run.
fn runs_unpacked(arch: &str, triple: &str) -> Result<()> {
    ensure!(
        arch == HOST,
        "Debian's compiler is unpacked for {HOST_ARCH} alone, and this machine is {arch}: `rustup target add {triple}` gives rustup's compiler the target"
    );
    Ok(())
}

/// Of the compiler's own source nothing is needed.
fn keep_only_library(sources: &Path) -> Result<()> {
    for source in std::fs::read_dir(sources)? {
        for part in std::fs::read_dir(source?.path())? {
            let part = part?;
            if part.file_name() != "library" {
                let remove =
                    if part.file_type()?.is_dir() { std::fs::remove_dir_all } else { std::fs::remove_file };
                remove(part.path())?;
            }
        }
    }
    Ok(())
}

/// An empty folder beside `folder`, to be filled before it takes that name: what was interrupted is begun anew.
fn fresh(folder: &Path) -> Result<PathBuf> {
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)?;
    }
    std::fs::create_dir_all(&fresh)?;
    Ok(fresh)
}

/// Writes a program that is a text, unless it is there: somebody may be running it.
pub(super) fn script(path: &Path, text: &str) -> Result<()> {
    if !std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        std::fs::write(path, text)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn library_folder(sysroot: &Path, triple: &str) -> PathBuf {
    sysroot.join("lib/rustlib").join(triple).join("lib")
}

fn is_library(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rlib" || extension == "rmeta")
}

fn standard_library(sysroot: &Path, triple: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(library_folder(sysroot, triple)) else { return false };
    entries.flatten().any(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.starts_with("libstd-") && name.ends_with(".rlib"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_debian_s_compiler_would_not_run_on_is_told_what_to_do() {
        let triple = "armv7-unknown-linux-musleabihf";
        assert!(runs_unpacked("x86_64", triple).is_ok());
        let refusal = runs_unpacked("aarch64", triple).unwrap_err().to_string();
        assert!(refusal.contains("this machine is aarch64"), "{refusal}");
        assert!(refusal.contains(&format!("rustup target add {triple}")), "{refusal}");
    }
}
