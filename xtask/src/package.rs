//! `cargo xtask package`: built agents become Debian packages, archives with an installer, and a container image.
//!
//! The same input gives the same bytes: entries are sorted, owners and modes are fixed, and times are `SOURCE_DATE_EPOCH`.
mod deb;
mod lifecycle;
mod notice;
mod oci;
mod recipes;
mod root;
mod tarball;
mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use dunlin_protocol::DeviceProfile;

use crate::boards::{self, Board};
use crate::command::{output, root, target_dir};
use crate::cross::{self, Elf, Features, Machine};
use crate::programs;
pub(crate) use recipes::lint;
use tree::Tree;

#[derive(Args)]
pub(crate) struct Options {
    /// Target triple of the matrix, any number of them; all of tier 1 if none is given
    #[arg(long)]
    target: Vec<String>,
    /// For this board of `firmware-targets/boards` instead: its target, with its profile and its bound of memory
    #[arg(long, conflicts_with = "target")]
    board: Option<String>,
    /// What to make; everything if left out
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Program to pack, for a single target; the one that `cargo xtask cross dist` left, if left out
    #[arg(long)]
    program: Option<PathBuf>,
    /// Version of the package; the workspace's if left out
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    package_version: String,
    /// Folder to write to; `target/packages`, and in it one of the board's name, if left out
    #[arg(long)]
    out: Option<PathBuf>,
    /// Instead of writing anything, install each Debian package in a root file system that is only in memory, have its agent
    /// come to a session with a controller, behind an emulator if it is for another machine, upgrade it, and purge it; needs root
    #[arg(long, conflicts_with_all = ["kind", "out"])]
    check: bool,
    /// Folder with `dunlin` of this machine for that, instead of one that is built
    #[arg(long, requires = "check")]
    programs: Option<PathBuf>,
    /// Check the recipe for Yocto instead
    #[arg(long, conflicts_with_all = ["target", "board", "kind", "program", "package_version", "out", "check", "programs"])]
    lint: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Debian package, one for each target
    Deb,
    /// Archive with an installer, one for each target
    Tar,
    /// OCI image layout as an archive, one for all targets
    Oci,
}

/// An agent and what goes with it.
struct Package {
    version: String,
    triple: String,
    machine: &'static Machine,
    /// Without a C library beside it the program does not run.
    is_dynamic: bool,
    program: Vec<u8>,
    /// What the build wrote of its origin, where it lies beside the program.
    provenance: Option<Vec<u8>>,
    /// What others wrote of it, and under which terms. Filled in once it is known what is linked in.
    notice: String,
    board: Option<(String, Board)>,
    /// Seconds since 1970 that all entries bear.
    epoch: u64,
    /// How hard to press, 0 to 9.
    preset: u32,
}

/// As hard as Debian's own packages are pressed; what unpacks them needs 8 MiB for it.
const PRESET: u32 = 6;

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.lint {
        return lint();
    }
    let board = match &options.board {
        Some(name) => Some((name.clone(), boards::named(name)?)),
        None => None,
    };
    let triples = match &board {
        Some((_, board)) => vec![board.build.triple.clone()],
        None if options.target.is_empty() => cross::released_triples()?,
        None => options.target.clone(),
    };
    if options.program.is_some() && triples.len() != 1 {
        bail!("--program is for one target; name it with --target or --board");
    }
    let epoch = epoch()?;
    let mut packages = Vec::new();
    for triple in &triples {
        let program = options.program.clone().unwrap_or_else(|| cross::released(triple, Features::Edge));
        let mut package = Package::new(triple, &program, &options.package_version, epoch)?;
        package.knows_its_parts()?;
        packages.push(package);
    }
    distinct(&packages)?;
    // A board has one target.
    if let [package] = &mut packages[..] {
        package.board = board;
    }
    if options.check {
        let programs = match &options.programs {
            Some(folder) => std::path::absolute(folder)?,
            None => programs::here()?,
        };
        return packages.into_iter().try_for_each(|package| checked(package, &programs));
    }
    let folder = options.out.clone().unwrap_or_else(|| {
        let all = target_dir().join("packages");
        options.board.as_ref().map_or(all.clone(), |board| all.join(board))
    });
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let wanted = |kind| options.kind.is_none_or(|wanted| wanted == kind);
    let write = |(name, bytes): (String, Vec<u8>)| {
        let path = folder.join(name);
        std::fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
        println!("{} ({} bytes)", path.display(), bytes.len());
        Ok::<_, anyhow::Error>(())
    };
    for package in &packages {
        if wanted(Kind::Deb) {
            write(deb::pack(package)?)?;
        }
        if wanted(Kind::Tar) {
            write(tarball::pack(package)?)?;
        }
    }
    if wanted(Kind::Oci) { write(oci::pack(&packages)?) } else { Ok(()) }
}

/// Takes a package through its life, with a controller of `programs`.
fn checked(package: Package, programs: &Path) -> Result<()> {
    let begin = Instant::now();
    let triple = package.triple.clone();
    let folder = target_dir().join("packages").join(format!("life-{}", package.machine.debian));
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    let [mounted, controller] = ["root", "controller"].map(|name| folder.join(name));
    for made in [&mounted, &controller] {
        std::fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
    }
    lifecycle::lives(package, [&mounted, &controller, programs], |_, _| Ok(()))
        .with_context(|| format!("{triple}; the controller's files are left in {}", controller.display()))?;
    std::fs::remove_dir_all(&folder)?;
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{triple}: installed, enrolled, had sessions before and after an upgrade, purged; {seconds:.0} s"
    );
    Ok(())
}

/// The same for the package of a program, as part of the tests, which have built it and the programs of this machine.
pub(crate) fn test(triple: &str, program: &Path) -> Result<()> {
    let mut package = Package::new(triple, program, env!("CARGO_PKG_VERSION"), epoch()?)?;
    package.preset = 0;
    checked(package, &target_dir().join("debug"))
}

/// Bytes of the Debian package of a program.
pub(crate) fn deb_bytes(triple: &str, program: &Path) -> Result<usize> {
    let mut package = Package::new(triple, program, env!("CARGO_PKG_VERSION"), epoch()?)?;
    package.knows_its_parts()?;
    Ok(deb::pack(&package)?.1.len())
}

/// Packages of one machine would have one name, and an image one platform twice.
fn distinct(packages: &[Package]) -> Result<()> {
    for (number, package) in packages.iter().enumerate() {
        let other = packages[..number].iter().find(|other| other.machine.debian == package.machine.debian);
        if let Some(other) = other {
            bail!(
                "{} and {} are both {}; name one of them",
                other.triple,
                package.triple,
                package.machine.debian
            );
        }
    }
    Ok(())
}

/// The time of the commit, unless the one who builds says another.
fn epoch() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => output(Command::new("git").current_dir(root()).args(["log", "-1", "--format=%ct"]))
            .context("set SOURCE_DATE_EPOCH where there is no repository")?,
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH is seconds since 1970, not {text:?}"))
}

/// Where everything lies that is installed beside the program.
fn source() -> PathBuf {
    root().join("firmware-targets")
}

/// What the agent's own share of memory may grow to.
const AGENT_BYTES: u64 = 64 << 20;
/// What it takes of that when it is idle.
const IDLE_BYTES: u64 = 10 << 20;
/// Bytes of memory that a byte of JSON takes at most.
const JSON_EXPANSION: u64 = 6;
/// Bytes of all bodies that are read or answered at one time: in memory they fit into what is left of the agent's own share.
const BODIES_BYTES: u64 = (AGENT_BYTES - IDLE_BYTES) / JSON_EXPANSION;
/// Models in memory at one time at most when one is replaced: champion, fallback, the one before, and the one that is proven.
const MODELS: u64 = 4;

/// The bound of memory of a board's agent. Boards whose line-ups have further members need a drop-in of their own.
fn memory_max(device: &DeviceProfile) -> u64 {
    AGENT_BYTES + MODELS * device.budgets.model_ram_bytes_max
}

/// What a board file says of the device, and bounds of requests that keep to the bound of memory, as settings. They rank above the installed file, in which every key has a value;
/// a board file that the settings only name ranks below it.
fn device_settings(name: &str) -> Result<String> {
    let path = boards::path(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut board: toml::Table = toml::from_str(&text)?;
    board.retain(|key, _| key == "device");
    // Two of the largest at one time, as in the installed file.
    let bounds = format!("body_bytes_max = {}\nbodies_bytes_max = {BODIES_BYTES}\n", BODIES_BYTES / 2);
    let device = toml::to_string(&board)?;
    Ok(format!(
        "# {name}: what this package was made for.\n{device}\n\
        # What fits into the bound of memory; whoever raises it raises MemoryMax, by {JSON_EXPANSION} bytes for each.\n\
        [api]\n{bounds}"
    ))
}

/// Licences of the program, by the folder they lie in.
const LICENCES: [&str; 2] = ["LICENSE-MIT", "LICENSE-APACHE"];
const PROGRAM: &str = "usr/bin/dunlin-agent";
const DOCUMENTS: &str = "usr/share/doc/dunlin-agent";
/// The notice of what others wrote.
const THIRD_PARTIES: &str = "THIRD-PARTIES";

impl Package {
    fn new(triple: &str, program: &Path, version: &str, epoch: u64) -> Result<Self> {
        let machine = cross::machine(triple)?;
        cross::target(triple)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".+~".contains(c);
        ensure!(
            version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(plain),
            "the version {version:?} does not begin with a digit, or has other characters than letters, digits and .+~"
        );
        let bytes = std::fs::read(program).with_context(|| {
            format!("reading {}; `cargo xtask cross dist {triple}` builds what is packed", program.display())
        })?;
        ensure!(
            Elf(&bytes).is_for(machine),
            "{} is no program for {triple}; name its target",
            program.display()
        );
        Ok(Self {
            version: version.to_owned(),
            triple: triple.to_owned(),
            machine,
            is_dynamic: Elf(&bytes).has_interpreter(),
            provenance: std::fs::read(program.with_extension("provenance.json")).ok(),
            program: bytes,
            notice: String::new(),
            board: None,
            epoch,
            preset: PRESET,
        })
    }

    /// Fills in the notice, which is of the crates that `Cargo.lock` names: of a program of another one it would be wrong.
    fn knows_its_parts(&mut self) -> Result<()> {
        if let Some(provenance) = &self.provenance {
            let told: serde_json::Value =
                serde_json::from_slice(provenance).context("reading the provenance")?;
            ensure!(
                told["cargo_lock_sha256"] == cross::sha256(&root().join("Cargo.lock"))?,
                "the agent of {0} that is to be packed was built with another Cargo.lock; `cargo xtask cross dist {0}` builds it anew",
                self.triple
            );
        }
        self.notice = notice::of(&cross::target(&self.triple)?, !self.is_dynamic)?;
        Ok(())
    }

    /// Whether the program is for another machine than this one.
    fn is_foreign(&self) -> bool {
        cross::machine(std::env::consts::ARCH).is_ok_and(|here| here.debian != self.machine.debian)
    }

    /// What is installed, whatever starts it: the program, what it is licensed under and made of, its settings, its board.
    fn common(&self) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.file(PROGRAM, 0o755, self.program.clone());
        for licence in LICENCES {
            tree.copy(&format!("{DOCUMENTS}/{licence}"), &root().join(licence))?;
        }
        tree.file(&format!("{DOCUMENTS}/{THIRD_PARTIES}"), 0o644, self.notice.clone().into_bytes());
        if let Some(provenance) = &self.provenance {
            tree.file(&format!("{DOCUMENTS}/provenance.json"), 0o644, provenance.clone());
        }
        tree.take("etc/dunlin", &source().join("rootfs/etc/dunlin"))?;
        if let Some((name, _)) = &self.board {
            tree.file("etc/dunlin/agent.d/10-board.toml", 0o644, device_settings(name)?.into_bytes());
        }
        Ok(tree)
    }

    /// The same with everything of `rootfs`, and the drop-in of the board.
    fn installed(&self) -> Result<Tree> {
        let mut tree = self.common()?;
        tree.take("", &source().join("rootfs"))?;
        if let Some((name, board)) = &self.board {
            tree.file(
                "usr/lib/systemd/system/dunlin-agent.service.d/10-board.conf",
                0o644,
                format!("# {name}\n[Service]\nMemoryMax={}\n", memory_max(&board.device)).into_bytes(),
            );
        }
        Ok(tree)
    }
}

#[cfg(test)]
mod environment;
#[cfg(test)]
mod tests;
