//! Debian packages of any suite and architecture, fetched and unpacked without being installed.
//!
//! A second architecture for the machine's own package manager would tie the versions of its libraries to those of the
//! other. So each pair of suite and architecture has a state folder of its own here; the archive is the machine's.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{output, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Architectures with builds of the security suite that can be relied on.
const WITH_SECURITY: [&str; 2] = ["amd64", "arm64"];

/// One suite of the archive for one architecture.
pub(super) struct Archive {
    folder: PathBuf,
}

/// Address of the archive that serves `release` to this machine, as its package manager knows it.
fn address(release: &str) -> Result<String> {
    let list = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let found = list.lines().find_map(|line| {
        let (address, rest) = line.split_once('|')?;
        (rest == format!("{release}|main")).then(|| address.to_owned())
    });
    found.with_context(|| format!("this machine's package manager knows no suite {release}"))
}

impl Archive {
    /// Reads the package lists of `suite` for `arch`, with the security suite where there is one.
    pub(super) fn open(home: &Path, suite: &str, arch: &str) -> Result<Self> {
        let folder = home.join("apt").join(format!("{suite}-{arch}"));
        for made in ["state/lists/partial", "cache/archives/partial", "debs"] {
            std::fs::create_dir_all(folder.join(made))?;
        }
        let base = suite.split('-').next().unwrap_or(suite);
        let host = host_suite()?;
        let mut sources = format!("deb [signed-by={KEYRING}] {} {suite} main\n", address(&host)?);
        if suite == base && WITH_SECURITY.contains(&arch) {
            let security = address(&format!("{host}-security"))?;
            writeln!(sources, "deb [signed-by={KEYRING}] {security} {suite}-security main")
                .expect("writing to a string");
        }
        std::fs::write(folder.join("sources.list"), sources)?;
        std::fs::write(folder.join("status"), "")?;
        let at = folder.display();
        // None of the machine's own hooks: some images empty the archive's folder after every update.
        let settings = format!(
            "APT::Architecture \"{arch}\"; APT::Architectures {{ \"{arch}\"; }};\n\
             Dir::Etc::parts \"/dev/null\"; Dir::Etc::main \"/dev/null\"; Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::sourcelist \"{at}/sources.list\"; Dir::State \"{at}/state\"; Dir::State::status \"{at}/status\";\n\
             Dir::Cache \"{at}/cache\"; Dir::Cache::pkgcache \"\"; Dir::Cache::srcpkgcache \"\";\n\
             APT::Sandbox::User \"root\"; Debug::NoLocking \"1\"; Acquire::Languages \"none\"; Acquire::Retries \"3\";\n"
        );
        std::fs::write(folder.join("apt.conf"), settings)?;
        let archive = Self { folder };
        run(archive.apt("apt-get").args(["-qq", "update"]))
            .with_context(|| format!("reading the lists of {suite} for {arch}"))?;
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf")).current_dir(self.folder.join("debs"));
        command
    }

    /// The first dependency of `package` whose name begins so: some packages only name the present version of another.
    pub(super) fn depends(&self, package: &str, prefix: &str) -> Result<String> {
        let list = output(self.apt("apt-cache").args(["depends", package]))?;
        let found = list.lines().find_map(|line| line.trim().strip_prefix("Depends: ")?.strip_prefix(prefix));
        found
            .map(|rest| format!("{prefix}{rest}"))
            .with_context(|| format!("{package} depends on no {prefix}*"))
    }

    /// Fetches packages and unpacks them into `into`. Each becomes a line of `home/packages.tsv`, which provenance
    /// quotes.
    pub(super) fn unpack(&self, home: &Path, into: &Path, packages: &[&str]) -> Result<()> {
        std::fs::create_dir_all(into)?;
        run(self.apt("apt-get").args(["-qq", "download"]).args(packages))?;
        let mut names: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(self.folder.join("debs"))? {
            names.push(entry?.path());
        }
        if names.len() != packages.len() {
            bail!("asked for {} packages, {} came", packages.len(), names.len());
        }
        names.sort();
        for deb in names {
            let format = "${Package}\t${Version}\t${Architecture}";
            let what = output(Command::new("dpkg-deb").args(["--show", "--showformat", format]).arg(&deb))?;
            let digest = sha256(&deb)?;
            run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(into))?;
            std::fs::remove_file(&deb)?;
            note(home, &format!("{what}\t{digest}"))?;
        }
        Ok(())
    }
}

/// Deletes the package lists, which are larger than what they lead to and old tomorrow.
pub(super) fn forget(home: &Path) -> Result<()> {
    let lists = home.join("apt");
    if lists.exists() { Ok(std::fs::remove_dir_all(lists)?) } else { Ok(()) }
}

/// Codename of the Debian release that runs here.
pub(super) fn host_suite() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.trim_matches('"').to_owned()))
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        _ => bail!(
            "this is no Debian: add the target with rustup, put the C cross compiler on the path, or use cross/Cross.toml"
        ),
    }
}

/// SHA-256 of a file, in hex.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let text = output(Command::new("sha256sum").arg(path))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Where [`Archive::unpack`] writes down what it unpacked.
pub(super) fn notes(home: &Path) -> PathBuf {
    home.join("packages.tsv")
}

fn note(home: &Path, line: &str) -> Result<()> {
    let path = notes(home);
    let mut text = std::fs::read_to_string(&path).unwrap_or_default();
    if !text.lines().any(|known| known == line) {
        text.push_str(line);
        text.push('\n');
    }
    Ok(std::fs::write(path, text)?)
}
