//! musl for a target: start-up objects, the library and an unwinder where rustc looks for them, and a C compiler that sees
//! musl's headers.
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::archive::{Archive, elsewhere, host_suite};
use super::matrix::{Debian, Target};
use super::toolchain::script;
use crate::command::{output, run};

/// The suite that musl is taken from: the first release of musl that asks name servers over TCP is in it.
const SUITE: &str = "trixie";
/// Debian builds its unwinder with checks of glibc that musl lacks.
const FORTIFIED: &str = "#include <stdio.h>\n#include <stdarg.h>\nint __fprintf_chk(FILE *f, int g, const char *s, ...) { va_list a; va_start(a, s); int r = vfprintf(f, s, a); va_end(a); return r; }\n";

/// Makes all of it, if it is not there. `own` says that the compiler is Debian's, which comes without musl.
pub(super) fn set_up(home: &Path, sysroot: &Path, target: &Target, debian: &Debian, own: bool) -> Result<()> {
    let name = debian.musl.as_deref().with_context(|| format!("{} has no folder of musl", target.triple))?;
    let folder = home.join("musl").join(&debian.arch);
    let library = folder.join("usr/lib").join(name);
    let compiler = home.join("bin").join(format!("{name}-gcc"));
    let objects = sysroot.join("lib/rustlib").join(&target.triple).join("lib/self-contained");
    if compiler.is_file() && (!own || objects.join("libunwind.a").is_file()) {
        return Ok(());
    }
    if !own && host_suite().is_err() {
        return elsewhere(&format!("{name}-gcc"));
    }
    println!("unpacking musl for {}", target.triple);
    Archive::open(home, SUITE, &debian.arch)?.unpack(home, &folder, &["musl-dev"])?;
    let specs = std::fs::read_to_string(library.join("musl-gcc.specs"))?
        .replace(&format!("/usr/lib/{name}"), &library.display().to_string())
        .replace(
            &format!("/usr/include/{name}"),
            &folder.join("usr/include").join(name).display().to_string(),
        );
    let specs_file = home.join("bin").join(format!("{name}.specs"));
    std::fs::write(&specs_file, specs)?;
    let gcc = format!("{}-gcc", debian.gnu);
    script(&compiler, &format!("#!/bin/sh\nexec {gcc} \"$@\" -specs {}\n", specs_file.display()))?;
    if !own {
        return Ok(());
    }

    Archive::open(home, &host_suite()?, &debian.arch)?.unpack(home, &folder, &["libunwind-14-dev"])?;
    std::fs::create_dir_all(&objects)?;
    for object in ["crt1.o", "rcrt1.o", "Scrt1.o", "crti.o", "crtn.o", "libc.a"] {
        std::fs::copy(library.join(object), objects.join(object))?;
    }
    for object in ["crtbegin.o", "crtbeginS.o", "crtend.o", "crtendS.o"] {
        let path = output(Command::new(&gcc).arg(format!("-print-file-name={object}")))?;
        std::fs::copy(path.trim(), objects.join(object))?;
    }
    let (source, object) = (folder.join("fortified.c"), folder.join("fortified.o"));
    std::fs::write(&source, FORTIFIED)?;
    run(Command::new(&compiler)
        .args(["-O2", "-U_FORTIFY_SOURCE", "-fPIC", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&object))?;
    // C code calls helpers of gcc that Rust's own lack; gcc's unwinder wants glibc, so LLVM's is taken.
    let helpers = output(Command::new(&gcc).arg("-print-libgcc-file-name"))?;
    let merge = format!(
        "create {}\naddlib {}\naddlib {}\naddmod {}\nsave\nend\n",
        objects.join("libunwind.a").display(),
        folder.join("usr/lib/llvm-14/lib/libunwind.a").display(),
        helpers.trim(),
        object.display()
    );
    let merge_file = folder.join("merge.ar");
    std::fs::write(&merge_file, merge)?;
    run(Command::new(format!("{}-ar", debian.gnu))
        .arg("-M")
        .stdin(Stdio::from(std::fs::File::open(&merge_file)?)))
}
