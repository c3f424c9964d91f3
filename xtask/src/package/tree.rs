//! Files in memory with fixed modes and owners, and what they are packed into.
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lzma_rust2::{FilterType, XzOptions, XzWriter};

/// A file, or a folder where there are no bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u32,
    /// Number of user and group.
    pub(super) owner: u64,
    pub(super) bytes: Option<Vec<u8>>,
}

/// Entries by their path, which has no slash at its ends. Sorted, so that a folder stands before what is in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree(pub(super) BTreeMap<String, Entry>);

impl Tree {
    /// Adds a file of root's, and the folders above it.
    pub(super) fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry { mode, owner: 0, bytes: Some(bytes) });
    }

    /// Adds a folder, and those above it.
    pub(super) fn folder(&mut self, path: &str, mode: u32, owner: u64) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry { mode, owner, bytes: None });
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let parent = || Entry { mode: 0o755, owner: 0, bytes: None };
            self.0.entry(path[..end].to_owned()).or_insert_with(parent);
        }
    }

    /// Adds a copy of a file; of its mode it counts whether it can be executed.
    pub(super) fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let read = || Ok::<_, std::io::Error>((std::fs::read(from)?, std::fs::metadata(from)?));
        let (bytes, metadata) = read().with_context(|| format!("reading {}", from.display()))?;
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        self.file(path, mode, bytes);
        Ok(())
    }

    /// Adds copies of all files below a folder, with their paths below `at`.
    pub(super) fn take(&mut self, at: &str, from: &Path) -> Result<()> {
        for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { bail!("{}: its name is no text", entry.path().display()) };
            let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
            if entry.file_type()?.is_dir() {
                self.take(&path, &entry.path())?;
            } else {
                self.copy(&path, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Adds all of another tree below `at`.
    pub(super) fn graft(&mut self, at: &str, other: Self) {
        for (path, entry) in other.0 {
            let path = format!("{at}/{path}");
            self.parents(&path);
            self.0.insert(path, entry);
        }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> usize {
        self.0.values().filter_map(|entry| entry.bytes.as_ref()).map(Vec::len).sum()
    }

    /// A tar archive, each path with `prefix` before it.
    pub(super) fn tar(&self, prefix: &str, epoch: u64) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            let mut header = tar::Header::new_gnu();
            let bytes = entry.bytes.as_deref().unwrap_or_default();
            let name = format!("{prefix}{path}{}", if entry.bytes.is_none() { "/" } else { "" });
            // By hand, as the crate would drop a leading "./", which Debian's packages have.
            let field = &mut header.as_old_mut().name;
            if name.len() > field.len() {
                bail!("{name} is longer than the {} bytes that every tar reads", field.len());
            }
            field[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(if entry.bytes.is_none() {
                tar::EntryType::Directory
            } else {
                tar::EntryType::Regular
            });
            header.set_mode(entry.mode);
            header.set_uid(entry.owner);
            header.set_gid(entry.owner);
            header.set_mtime(epoch);
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append(&header, bytes)?;
        }
        Ok(builder.into_inner()?)
    }
}

/// In the form of xz. `code` says whose instructions most of it is: the addresses in branches are then written in a form that
/// repeats, which takes a twentieth off the C library of arm64.
pub(super) fn xz(bytes: &[u8], preset: u32, code: Option<FilterType>) -> Result<Vec<u8>> {
    let mut options = XzOptions::with_preset(preset);
    if let Some(code) = code {
        options.prepend_pre_filter(code, 0);
        // Instructions of four bytes: what stands at the same place in the one before tells more than what stands just before.
        if matches!(code, FilterType::BcjArm | FilterType::BcjArm64) {
            (options.lzma_options.lc, options.lzma_options.lp) = (2, 2);
        }
    }
    let mut writer = XzWriter::new(Vec::new(), options)?;
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}
