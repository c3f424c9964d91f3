//! The one list of targets, `cross/matrix.toml`.
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::root;

/// An environment that tests are repeated in.
pub(crate) type Variant = BTreeMap<String, String>;

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
    pub(crate) libc: Libc,
    #[serde(rename = "static")]
    pub(crate) is_static: bool,
    pub(crate) how: How,
    /// What Debian calls the target; absent where the host's own tools do.
    pub(crate) debian: Option<Debian>,
    /// The program that runs the target's programs; absent where the host does.
    pub(crate) runner: Option<String>,
    /// What the engine's tests are repeated in; all else has the first. If there is none, it is an empty one.
    #[serde(default)]
    variant: Vec<Variant>,
}

/// Names in Debian.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Debian {
    /// Architecture of its packages.
    pub(crate) arch: String,
    /// Prefix of its C compiler and binutils.
    pub(crate) gnu: String,
    /// Folder of its musl, for targets that use it.
    pub(crate) musl: Option<String>,
}

/// C library.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Libc {
    /// GNU.
    Glibc,
    /// musl.
    Musl,
}

impl Libc {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
        }
    }
}

/// How a target is built.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// By the installed toolchain alone.
    Native,
    /// With a C cross compiler, and the standard library from rustup or, where rustup has none, from Debian's source.
    Cross,
    /// With zig as C compiler and linker, which brings its own musl, and the standard library likewise.
    Zig,
}

impl How {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Cross => "cross",
            Self::Zig => "zig",
        }
    }
}

impl Target {
    /// The triple as it stands in names of environment variables, in capitals.
    pub(crate) fn variable(&self) -> String {
        self.triple.replace('-', "_").to_uppercase()
    }

    /// The environments to test in, at least one.
    pub(crate) fn variants(&self) -> Vec<Variant> {
        if self.variant.is_empty() { vec![Variant::new()] } else { self.variant.clone() }
    }
}

/// Reads the matrix.
pub(crate) fn matrix() -> Result<Matrix> {
    let path = root().join("cross/matrix.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))
}

/// The target of that triple.
pub(crate) fn target(triple: &str) -> Result<Target> {
    let mut targets = chosen(matrix()?, Some(triple), u8::MAX)?;
    targets.pop().context("a triple names a target")
}

/// The target that is named, of whatever tier; where none is, those of the tiers up to the last one given.
pub(super) fn chosen(matrix: Matrix, triple: Option<&str>, last_tier: u8) -> Result<Vec<Target>> {
    let mut targets = matrix.target;
    targets.retain(|target| triple.map_or(target.tier <= last_tier, |triple| target.triple == triple));
    if let (Some(triple), true) = (triple, targets.is_empty()) {
        bail!("{triple} is not in cross/matrix.toml; `cargo xtask cross list` prints what is");
    }
    Ok(targets)
}
