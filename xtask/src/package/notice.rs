//! What others wrote and is linked into an agent, and its licences: one text that goes with every package.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::source;
use crate::command::{cargo, output, root};
use crate::cross::{How, Libc, Target};

/// How the names of files begin that hold licences and notices, in lower case.
const NAMES: [&str; 6] = ["license", "licence", "unlicense", "copying", "copyright", "notice"];
/// What the names of files hold whose licence need not be given where a crate may be had under the MIT licence instead.
const NOT_TAKEN: [&str; 6] = ["apache", "blueoak", "bsd", "isc", "unlicense", "zlib"];

/// A package, as `cargo metadata` tells of it.
#[derive(Deserialize)]
struct Crate {
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<PathBuf>,
    authors: Vec<String>,
    manifest_path: PathBuf,
    /// Where it came from; nothing for those of the workspace.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
}

/// The notice for the agent as it is released for `target`; `linked` says that its C library is in it.
pub(super) fn of(target: &Target, linked: bool) -> Result<String> {
    let mut text = format!(
        "What others wrote and is linked into dunlin-agent for {}, and its licences.\n\n\
         A crate that may be had under the MIT licence or another is taken under the MIT licence. A number in brackets is\n\
         that of a text at the end. Macros and programs that only took part in the build are not in the program.\n",
        target.triple
    );
    for part in runtime(target, linked) {
        let path = source().join("notices").join(part).with_extension("txt");
        let licence =
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        write!(text, "\n{LINE}\n{part}\n{LINE}\n\n{licence}")?;
    }
    write!(text, "\n{LINE}\ncrates\n{LINE}\n\n")?;
    let mut texts = Texts::default();
    for part in crates(&target.triple)? {
        writeln!(text, "{}", part.line(&mut texts)?)?;
    }
    for (number, licence) in texts.list.iter().enumerate() {
        write!(text, "\n{LINE}\n[{}]\n{LINE}\n\n{licence}\n", number + 1)?;
    }
    Ok(text)
}

/// Stands above and below the name of a part.
const LINE: &str = "----------------------------------------------------------------";

/// The files of `firmware-targets/notices` that tell of what a toolchain links in.
fn runtime(target: &Target, linked: bool) -> Vec<&'static str> {
    let mut parts = vec!["rust"];
    match target.libc {
        Libc::Musl => parts.extend(["musl", "llvm"]),
        Libc::Glibc if linked => parts.extend(["glibc", "llvm"]),
        Libc::Glibc => parts.push("llvm"),
    }
    if target.how != How::Zig {
        parts.push("gcc");
    }
    parts
}

/// The crates of others that are linked into the agent of the small feature set.
fn crates(triple: &str) -> Result<Vec<Crate>> {
    let edges = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
    let told = read(&[&["tree", "--package", "dunlin-agent", "--target", triple][..], &edges].concat())?;
    let named: BTreeSet<(&str, &str)> = told
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, rest)| Some((name, rest.split(' ').next()?.strip_prefix('v')?)))
        .collect();
    let told = read(&["metadata", "--format-version", "1", "--filter-platform", triple])?;
    let mut metadata: Metadata = serde_json::from_str(&told).context("cargo metadata printed no JSON")?;
    metadata.packages.retain(|part| named.contains(&(&part.name, &part.version)));
    if metadata.packages.len() != named.len() {
        bail!("cargo metadata knows {} of the {} crates in the agent", metadata.packages.len(), named.len());
    }
    metadata.packages.retain(|part| part.source.is_some());
    metadata.packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(metadata.packages)
}

/// What Cargo says, without the network where it has all that it needs.
fn read(words: &[&str]) -> Result<String> {
    let offline = cargo(&[words, &["--locked", "--offline"]].concat()).output()?;
    if offline.status.success() {
        return Ok(String::from_utf8(offline.stdout)?);
    }
    output(&mut cargo(&[words, &["--locked"]].concat()))
}

/// Different texts, each once.
#[derive(Default)]
struct Texts {
    list: Vec<String>,
    /// Their numbers, by their words.
    known: BTreeMap<String, usize>,
}

impl Texts {
    /// The number of a text, which is added if no other differs from it in space alone.
    fn number(&mut self, text: &str) -> usize {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        *self.known.entry(words).or_insert_with(|| {
            let lines: Vec<_> = text.lines().map(str::trim_end).collect();
            self.list.push(lines.join("\n").trim_matches('\n').to_owned());
            self.list.len()
        })
    }
}

impl Crate {
    /// What stands of it in the list: name, version, the terms it is offered under, and where the texts are.
    fn line(&self, texts: &mut Texts) -> Result<String> {
        let terms = self.license.as_deref().unwrap_or("terms of its own");
        let mut line = format!("{} {}: {terms}", self.name, self.version);
        let files = self.texts()?;
        if files.is_empty() {
            let number = texts.number(&self.declared()?);
            write!(line, "; its package has no text, so the common one of what it declares [{number}]")?;
        }
        for text in files {
            write!(line, " [{}]", texts.number(&text))?;
        }
        Ok(line)
    }

    /// The texts in its package.
    fn texts(&self) -> Result<Vec<String>> {
        let folder = self.manifest_path.parent().context("a manifest lies in a folder")?;
        let mut files = BTreeSet::new();
        licences(folder, &mut files)?;
        files.extend(self.license_file.iter().map(|file| folder.join(file)));
        let named = |file: &Path, words: &[&str]| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            words.iter().any(|word| name.contains(word))
        };
        if self.may_be_had_under_mit() && files.iter().any(|file| named(file, &["mit"])) {
            files.retain(|file| !named(file, &NOT_TAKEN));
        }
        let read = |file: &PathBuf| {
            let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        files.iter().map(read).collect()
    }

    /// Whether the MIT licence is one of several that it is offered under.
    fn may_be_had_under_mit(&self) -> bool {
        let terms = self.license.as_deref().unwrap_or_default().replace('/', " OR ");
        !terms.contains(" AND ") && terms.split(" OR ").any(|offer| offer.trim() == "MIT")
    }

    /// The text of the licence that it declares, for packages that leave it out.
    fn declared(&self) -> Result<String> {
        let text = |name: &str| std::fs::read_to_string(root().join(name));
        if self.may_be_had_under_mit() {
            let ours = text("LICENSE-MIT")?;
            let (_, terms) = ours.split_once("\n\nPermission").context("LICENSE-MIT gives permission")?;
            let authors =
                if self.authors.is_empty() { "its authors".into() } else { self.authors.join(", ") };
            return Ok(format!("Copyright (c) {authors}\n\nPermission{terms}"));
        }
        if self.license.as_deref() == Some("Apache-2.0") {
            return Ok(text("LICENSE-APACHE")?);
        }
        bail!("{} {} declares {:?} and has no text of it", self.name, self.version, self.license)
    }
}

/// Adds all files below `folder` whose name is that of a licence.
fn licences(folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if entry.file_type()?.is_dir() {
            licences(&entry.path(), files)?;
        } else if NAMES.iter().any(|begins| name.starts_with(begins)) && !name.ends_with(".rs") {
            files.insert(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cross;

    const TRIPLES: [&str; 3] =
        ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl", "x86_64-unknown-linux-gnu"];

    /// The graph once more, as a tree that is walked here: what hangs below a macro takes part in the build alone.
    fn graph(triple: &str) -> BTreeSet<String> {
        let words = ["tree", "-p", "dunlin-agent", "--target", triple, "-e", "normal", "--prefix", "depth"];
        let told = read(&[&words[..], &["--no-dedupe"]].concat()).unwrap();
        let mut macros_at = None;
        let mut found = BTreeSet::new();
        for line in told.lines() {
            let digits = line.chars().take_while(char::is_ascii_digit).count();
            let depth: usize = line[..digits].parse().unwrap();
            if macros_at.is_some_and(|above| depth > above) {
                continue;
            }
            macros_at = line.contains("(proc-macro)").then_some(depth);
            // Those of the workspace have a path.
            if macros_at.is_none() && !line.contains("(/") {
                found.insert(line[digits..].replacen(" v", " ", 1));
            }
        }
        found
    }

    #[test]
    fn every_crate_in_the_agent_is_named_with_a_text_of_its_licence() {
        for triple in TRIPLES {
            let target = cross::target(triple).unwrap();
            let notice = of(&target, true).unwrap();
            let (_, list) = notice.split_once("\ncrates\n").unwrap();
            let graph = graph(triple);
            assert!(graph.len() > 100, "{triple}: {}", graph.len());
            for name in &graph {
                let line = list.lines().find(|line| line.starts_with(&format!("{name}: ")));
                let line = line.unwrap_or_else(|| panic!("{triple}: {name} is not named"));
                let numbers: Vec<_> =
                    line.split('[').skip(1).map(|rest| rest.split(']').next().unwrap()).collect();
                assert!(!numbers.is_empty(), "{line}");
                for number in numbers {
                    assert!(list.contains(&format!("\n[{number}]\n{LINE}\n\n")), "{line}");
                }
            }
            let named =
                list.lines().take_while(|line| !line.starts_with('[')).filter(|line| line.contains(" ["));
            assert_eq!(named.count(), graph.len(), "{triple}");
            // Who made it, and the terms of the three families.
            for words in [
                "Jorge Aparicio",
                "Apache License",
                "AND THE AUTHOR DISCLAIMS ALL",
                "Permission is hereby granted",
            ] {
                assert!(list.contains(words), "{triple}: {words}");
            }
        }
    }

    #[test]
    fn what_a_toolchain_links_in_is_named() {
        let parts = |triple: &str, linked| runtime(&cross::target(triple).unwrap(), linked);
        assert_eq!(parts("aarch64-unknown-linux-musl", true), ["rust", "musl", "llvm", "gcc"]);
        assert_eq!(parts("riscv64gc-unknown-linux-musl", true), ["rust", "musl", "llvm"]);
        assert_eq!(parts("x86_64-unknown-linux-gnu", true), ["rust", "glibc", "llvm", "gcc"]);
        assert_eq!(parts("aarch64-unknown-linux-gnu", false), ["rust", "llvm", "gcc"]);
        for target in cross::matrix().unwrap().target {
            for part in runtime(&target, true) {
                let path = source().join("notices").join(part).with_extension("txt");
                assert!(path.is_file(), "{}", path.display());
            }
        }
    }

    fn package(folder: &Path, license: &str, files: &[&str]) -> Crate {
        std::fs::remove_dir_all(folder).unwrap();
        for file in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("Text of {file}\n")).unwrap();
        }
        Crate {
            name: "name".into(),
            version: "1.0.0".into(),
            license: Some(license.into()),
            license_file: None,
            authors: vec!["A. Author".into()],
            manifest_path: folder.join("Cargo.toml"),
            source: None,
        }
    }

    #[test]
    fn of_several_offers_mit_is_taken_and_what_is_asked_for_together_is_all_given() {
        let folder = tempfile::tempdir().unwrap();
        let texts = |license: &str, files: &[&str]| package(folder.path(), license, files).texts().unwrap();
        let both = ["LICENSE-APACHE", "LICENSE-MIT", "src/other/COPYING", "src/license.rs", "README"];
        let (mit, other) = ("Text of LICENSE-MIT\n", "Text of src/other/COPYING\n");
        for offer in ["MIT OR Apache-2.0", "Apache-2.0/MIT"] {
            assert_eq!(texts(offer, &both), [mit, other], "{offer}");
        }
        assert_eq!(texts("MIT AND Apache-2.0", &both), ["Text of LICENSE-APACHE\n", mit, other]);
        assert_eq!(texts("MIT OR Apache-2.0", &["LICENSE-APACHE"]), ["Text of LICENSE-APACHE\n"]);
    }

    #[test]
    fn a_package_without_a_text_is_given_the_common_one_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let line = |license: &str| {
            let mut texts = Texts::default();
            let line = package(folder.path(), license, &["README"]).line(&mut texts);
            line.map(|line| (line, texts.list.concat())).map_err(|error| error.to_string())
        };
        let (named, text) = line("MIT OR Apache-2.0").unwrap();
        assert!(
            named.ends_with("its package has no text, so the common one of what it declares [1]"),
            "{named}"
        );
        assert!(text.starts_with("Copyright (c) A. Author\n\nPermission is hereby granted"), "{text}");
        assert!(line("Apache-2.0").unwrap().1.contains("Version 2.0, January 2004"));
        assert!(line("Zlib").unwrap_err().contains("has no text of it"));
    }

    #[test]
    fn a_text_is_given_once_however_its_lines_are_broken() {
        let mut texts = Texts::default();
        assert_eq!([texts.number("a b\nc\n"), texts.number("d"), texts.number(" a\n b  c")], [1, 2, 1]);
        assert_eq!(texts.list, ["a b\nc", "d"]);
    }
}
