//! What tests and benches need beyond Rust, a C compiler and Node: installed when possible, else named.
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{cargo, on_path, output, run, target_dir};

/// The release of cargo-deny that the licence and source checks are written for.
const CARGO_DENY: &str = "0.20.2";

/// Makes `program` of Debian's `package` available: installs it when root on a Debian system.
pub(crate) fn debian(program: &str, package: &str) -> Result<()> {
    if on_path(program) { Ok(()) } else { install(&[package]) }
}

/// The same for packages that bring no program of a known name.
pub(crate) fn debian_packages(packages: &[&str]) -> Result<()> {
    let there = |package: &&str| {
        let query = ["--show", "--showformat", "${db:Status-Status}", package];
        let told = Command::new("dpkg-query").args(query).output();
        told.is_ok_and(|told| told.status.success() && told.stdout == b"installed")
    };
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !there(package)).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    let user = output(Command::new("id").arg("-u"))?;
    if user.trim() != "0" || !on_path("apt-get") {
        bail!(
            "missing: {names}. Install these Debian packages (as root: apt-get install {names}) and run this again"
        );
    }
    println!("installing the Debian packages {names}");
    let apt =
        |args: &[&str]| run(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"));
    apt(&["-qq", "update"])?;
    // The tests start their own broker on their own port; a package's service must not start beside it.
    let quietly = ["-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "install"];
    apt(&[&quietly, packages].concat())
        .with_context(|| format!("the Debian packages {names} could not be installed"))
}

/// Path of cargo-deny, built once into the target folder if it is not on the path in the right release.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    if on_path("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let tools = target_dir().join("tools");
    let program = tools.join("bin/cargo-deny");
    if !program.is_file() {
        println!("building cargo-deny {CARGO_DENY} (once)");
        let tools = tools.to_str().context("the target folder's path is not UTF-8")?;
        run(&mut cargo(&[
            "install",
            "--quiet",
            "--locked",
            "cargo-deny",
            "--version",
            CARGO_DENY,
            "--root",
            tools,
        ]))?;
    }
    Ok(program)
}

/// A Python with the given packages, in a virtual environment of its own in the target folder.
pub(crate) fn python(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = target_dir().join("python").join(name);
    let python = folder.join("bin/python3");
    let marker = folder.join("installed.txt");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&marker).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    println!("installing {} into a Python environment of their own", packages.join(", "));
    run(Command::new("python3").arg("-m").arg("venv").arg("--clear").arg(&folder))
        .context("Python 3 with venv is needed (Debian: python3-venv)")?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(packages))?;
    std::fs::write(&marker, wanted)?;
    Ok(python)
}

/// npm packages in a folder of their own in the target folder, `node/{name}/node_modules`.
pub(crate) fn node(name: &str, packages: &[&str]) -> Result<()> {
    let folder = target_dir().join("node").join(name);
    let marker = folder.join("installed.txt");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&marker).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    println!("installing {} into a folder of their own", packages.join(", "));
    std::fs::create_dir_all(&folder)?;
    // Without a manifest of its own, npm would look for one further up.
    std::fs::write(folder.join("package.json"), "{}")?;
    run(Command::new("npm")
        .current_dir(&folder)
        .args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"])
        .args(packages))
    .context("Node with npm is needed (Debian: nodejs, npm)")?;
    std::fs::write(&marker, wanted)?;
    Ok(())
}
