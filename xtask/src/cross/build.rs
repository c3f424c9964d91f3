//! Building for a target.
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::Features;
use super::artifact::Kernels;
use super::matrix::{How, Libc};
use super::toolchain::Toolchain;
use crate::command::{MESSAGES, output, target_dir};

/// Where Cargo builds for targets: apart from the ordinary build, whose dependencies other flags would rebuild.
fn folder() -> PathBuf {
    target_dir().join("cross")
}

/// Cargo with what it has to know about the target.
pub(super) fn cargo(toolchain: &Toolchain<'_>, verb: &str, profile: &str) -> Command {
    let target = toolchain.target;
    let mut command =
        crate::command::cargo(&[verb, "--locked", "--target", &target.triple, "--profile", profile]);
    command.env("CARGO_TARGET_DIR", folder()).envs(toolchain.environment());
    // Cargo takes flags from one place alone, and these would stand before the target's.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    if target.is_static && target.libc == Libc::Glibc && target.how == How::Native {
        command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    command
}

/// An agent that was built.
pub(super) struct Built {
    /// Where it lies.
    pub(super) program: PathBuf,
    /// What of tract's is in it.
    pub(super) kernels: Kernels,
}

impl Built {
    /// The agent of a build, by Cargo's messages of it.
    pub(super) fn told(toolchain: &Toolchain<'_>, profile: &str, messages: &str) -> Result<Self> {
        Ok(Self { program: program(toolchain, profile), kernels: Kernels::told(messages)? })
    }
}

/// Builds the agent of a feature set.
pub(super) fn agent(toolchain: &Toolchain<'_>, profile: &str, features: Features) -> Result<Built> {
    let mut build = cargo(toolchain, "build", profile);
    build.args(["-p", "dunlin-agent", "--bin", "dunlin-agent"]);
    if features == Features::Full {
        build.args(["--features", features.name()]);
    }
    Built::told(toolchain, profile, &output(build.args(MESSAGES))?)
}

/// Where a target's agent lies once it is built.
fn program(toolchain: &Toolchain<'_>, profile: &str) -> PathBuf {
    let subfolder = if profile == "dev" { "debug" } else { profile };
    folder().join(&toolchain.target.triple).join(subfolder).join("dunlin-agent")
}
