//! Link options of the program.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=layout.ld");
    if !var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        return;
    }
    // Relative relocations packed to a hundredth: 1 MB less file, which the loader would read at every start. Linkers
    // that can not do this for a target say so and go on. Needs glibc 2.36 or musl 1.2.4 at run time.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // Only where memory counts more than the time to link.
    if var("OPT_LEVEL").is_ok_and(|level| level == "z") {
        let folder = var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/layout.ld");
        // Functions with the same code become one, on the target for which Rust brings a linker that can do it.
        let is = |name: &str, value: &str| var(name).is_ok_and(|is| is == value);
        if is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu") {
            println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        }
    }
}
