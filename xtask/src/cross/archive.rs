//! Debian packages of any suite and architecture, fetched and unpacked without being installed.
//!
//! A second architecture for the machine's own package manager would tie the versions of its libraries to those of the
//! other. So each pair of suite and architecture has a state folder of its own here; the archive is the machine's.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{on_path, output, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Architectures with builds of the security suite that can be relied on.
const WITH_SECURITY: [&str; 2] = ["amd64", "arm64"];

/// Where this machine's package manager keeps what is installed.
const INSTALLED: &str = "/var/lib/dpkg/status";

/// One suite of the archive for one architecture.
pub(crate) struct Archive {
    folder: PathBuf,
    suite: String,
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
    pub(crate) fn open(home: &Path, suite: &str, arch: &str) -> Result<Self> {
        Self::of(home, &[suite], arch)
    }

    /// Reads the lists of this machine's backports for `arch`, and those of the release whose packages they build on.
    pub(crate) fn open_backports(home: &Path, arch: &str) -> Result<Self> {
        let host = host_suite()?;
        Self::of(home, &[&format!("{host}-backports"), &host], arch)
    }

    /// Reads the lists of suites, the first of which is what is asked for.
    fn of(home: &Path, suites: &[&str], arch: &str) -> Result<Self> {
        let suite = suites.first().context("an archive has a suite")?.to_owned();
        let folder = home.join("apt").join(format!("{}-{arch}", suites.join("-")));
        for made in ["state/lists/partial", "cache/archives/partial", "debs"] {
            std::fs::create_dir_all(folder.join(made))?;
        }
        let host = host_suite()?;
        let mut sources = String::new();
        let mut source = |release: &str, suite: &str| -> Result<()> {
            let line = format!("deb [signed-by={KEYRING}] {} {suite} main", address(release)?);
            writeln!(sources, "{line}").expect("writing to a string");
            Ok(())
        };
        for suite in suites {
            source(&host, suite)?;
            if !suite.contains('-') && WITH_SECURITY.contains(&arch) {
                source(&format!("{host}-security"), &format!("{suite}-security"))?;
            }
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
        let archive = Self { folder, suite: suite.to_owned() };
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
    pub(crate) fn depends(&self, package: &str, prefix: &str) -> Result<String> {
        let list = output(self.apt("apt-cache").args(["depends", package]))?;
        let found = list.lines().find_map(|line| line.trim().strip_prefix("Depends: ")?.strip_prefix(prefix));
        found
            .map(|rest| format!("{prefix}{rest}"))
            .with_context(|| format!("{package} depends on no {prefix}*"))
    }

    /// Fetches packages and unpacks them into `into`. Each becomes a line of `home/packages.tsv`, which provenance
    /// quotes.
    pub(crate) fn unpack(&self, home: &Path, into: &Path, packages: &[&str]) -> Result<()> {
        run(self.apt("apt-get").args(["-qq", "download"]).args(packages))?;
        let unpacked = extract(&self.folder.join("debs"), home, into)?;
        if unpacked != packages.len() {
            bail!("asked for {} packages, {unpacked} came", packages.len());
        }
        Ok(())
    }

    /// The same for a package and whatever it needs; if it is to run here, what of that this machine lacks.
    pub(crate) fn unpack_whole(&self, home: &Path, into: &Path, package: &str, here: bool) -> Result<()> {
        let mut apt = self.apt("apt-get");
        if here {
            apt.args(["-o", &format!("Dir::State::status={INSTALLED}")]);
        }
        apt.args(["-qq", "-y", "--no-install-recommends", "--no-remove", "--download-only", "install"]);
        run(apt.args(["-t", &self.suite, package]))?;
        let unpacked = extract(&self.folder.join("cache/archives"), home, into)?;
        if unpacked == 0 && !here {
            bail!("nothing came of {package}");
        }
        Ok(())
    }
}

/// Unpacks the packages in `folder` into `into` and deletes them; returns how many they were.
fn extract(folder: &Path, home: &Path, into: &Path) -> Result<usize> {
    std::fs::create_dir_all(into)?;
    let mut packages: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        packages.push(entry?.path());
    }
    packages.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages.sort();
    for deb in &packages {
        let format = "${Package}\t${Version}\t${Architecture}";
        let what = output(Command::new("dpkg-deb").args(["--show", "--showformat", format]).arg(deb))?;
        let digest = sha256(deb)?;
        run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(into))?;
        std::fs::remove_file(deb)?;
        note(home, &format!("{what}\t{digest}"))?;
    }
    Ok(packages.len())
}

/// Deletes the package lists, which are larger than what they lead to and old tomorrow.
pub(crate) fn forget(home: &Path) -> Result<()> {
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
            "this is no Debian, whose packages the toolchain would be made of: add the target with rustup, or use cross/Cross.toml"
        ),
    }
}

/// An error if a compiler is missing that on Debian would be fetched.
pub(super) fn elsewhere(compiler: &str) -> Result<()> {
    ensure!(
        on_path(compiler),
        "this is no Debian, whose packages would be taken: put `{compiler}` on the path, or use cross/Cross.toml"
    );
    Ok(())
}

/// SHA-256 of a file, in hex.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let text = output(Command::new("sha256sum").arg(path))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Where [`Archive::unpack`] writes down what it unpacked.
pub(super) fn notes(home: &Path) -> PathBuf {
    home.join("packages.tsv")
}

/// Writes down what was fetched.
pub(super) fn note(home: &Path, line: &str) -> Result<()> {
    let path = notes(home);
    let mut text = std::fs::read_to_string(&path).unwrap_or_default();
    if !text.lines().any(|known| known == line) {
        text.push_str(line);
        text.push('\n');
    }
    Ok(std::fs::write(path, text)?)
}
