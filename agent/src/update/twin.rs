use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, Digest, SHA256};

use crate::damage;

/// First bytes of a record; the digit is the format number.
const MAGIC: &[u8; 8] = b"DUNTWN2\n";
/// Those of records whose checksum leaves the name out.
const MAGIC_NAMELESS: &[u8; 8] = b"DUNTWN1\n";
/// Magic, number of the write (u64, big-endian), length of the body (u32, big-endian).
const HEADER_BYTES: usize = MAGIC.len() + 8 + 4;
/// SHA-256 over the record's name, so that a file in another record's place is none, and all before the checksum.
const CHECKSUM_BYTES: usize = 32;

/// A small record in two files, `{name}.a` and `{name}.b`, written in turn. Whatever byte a write is cut at, and
/// whatever becomes of one file, the other still holds the record before it.
#[derive(Debug)]
pub struct Twin {
    dir: PathBuf,
    name: &'static str,
    write: u64,
}

/// What was found at opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The newest whole record.
    pub body: Option<Vec<u8>>,
    /// Whether a file was there that holds no whole record, or could not be read for a bad sector.
    pub damaged: bool,
}

impl Twin {
    /// Opens the record, or a place for it.
    ///
    /// # Errors
    /// A file is there and may not be read. One that is lost on the medium counts as damaged.
    pub fn open(dir: &Path, name: &'static str) -> io::Result<(Self, Found)> {
        Self::open_with(dir, name, &|path| std::fs::read(path))
    }

    /// The same, with a way to read files.
    pub(super) fn open_with(
        dir: &Path,
        name: &'static str,
        read: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    ) -> io::Result<(Self, Found)> {
        let mut newest: Option<(u64, Vec<u8>)> = None;
        let mut damaged = false;
        for side in ["a", "b"] {
            let Some(bytes) = damage::held(read(&dir.join(format!("{name}.{side}"))))? else { continue };
            match decode(name, &bytes) {
                Some((write, body)) if newest.as_ref().is_none_or(|(known, _)| write > *known) => {
                    newest = Some((write, body.to_vec()))
                }
                Some(_) => {}
                None => damaged = true,
            }
        }
        let write = newest.as_ref().map_or(0, |(write, _)| *write);
        let found = Found { body: newest.map(|(_, body)| body), damaged };
        Ok((Self { dir: dir.to_path_buf(), name, write }, found))
    }

    /// Makes `body` the record; it is durable on return.
    ///
    /// # Errors
    /// It could not be written; the record before it stands.
    pub fn save(&mut self, body: &[u8]) -> io::Result<()> {
        let write = self.write + 1;
        // The write's number says which file is the older one, so no pointer needs to be kept.
        let side = if write % 2 == 1 { "a" } else { "b" };
        write_or_overwrite(&self.dir, &format!("{}.{side}", self.name), &encode(self.name, write, body))?;
        self.write = write;
        Ok(())
    }
}

fn encode(name: &str, write: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len() + CHECKSUM_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&write.to_be_bytes());
    let length = u32::try_from(body.len()).expect("records are bounded far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    let checksum = checksum(name, &out);
    out.extend_from_slice(checksum.as_ref());
    out
}

fn checksum(name: &str, content: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(name.as_bytes());
    context.update(content);
    context.finish()
}

fn decode<'a>(name: &str, file: &'a [u8]) -> Option<(u64, &'a [u8])> {
    let (content, found) = file.split_last_chunk::<CHECKSUM_BYTES>()?;
    let (name, rest) = match content.strip_prefix(MAGIC) {
        Some(rest) => (name, rest),
        None => ("", content.strip_prefix(MAGIC_NAMELESS)?),
    };
    let (write, rest) = rest.split_first_chunk::<8>()?;
    let (length, body) = rest.split_first_chunk::<4>()?;
    let whole =
        u32::from_be_bytes(*length) as usize == body.len() && checksum(name, content).as_ref() == found;
    whole.then(|| (u64::from_be_bytes(*write), body))
}

/// Writes a file through a temporary one and a rename, and syncs file and folder.
pub(crate) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// The same, or where the disk is full, over the file that is there: its blocks need no room. A cut then leaves the
/// file torn, so this is for files that have a twin, or whose content may be lost.
pub(super) fn write_or_overwrite(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    match write_durably(dir, name, bytes) {
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            // An empty file may be left; whether it goes changes nothing.
            let _gone = std::fs::remove_file(dir.join(format!("{name}.new")));
            let mut file = OpenOptions::new().write(true).open(dir.join(name)).map_err(|_| error)?;
            file.write_all(bytes)?;
            file.set_len(bytes.len() as u64)?;
            file.sync_all()
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_record_cut_at_every_byte_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let (mut twin, found) = Twin::open(dir.path(), "journal").unwrap();
        assert_eq!(found, Found { body: None, damaged: false });
        twin.save(b"the first").unwrap();
        twin.save(b"the second").unwrap();
        for (name, other) in [("journal.a", &b"the second"[..]), ("journal.b", b"the first")] {
            let path = dir.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            for cut in 0..whole.len() {
                for torn in [whole[..cut].to_vec(), [&whole[..cut], &vec![0; whole.len() - cut]].concat()] {
                    std::fs::write(&path, torn).unwrap();
                    let (mut twin, found) = Twin::open(dir.path(), "journal").unwrap();
                    assert_eq!(
                        found,
                        Found { body: Some(other.to_vec()), damaged: true },
                        "{name} cut at {cut}"
                    );
                    // The next write must not hit the only whole file.
                    if cut % 16 == 0 {
                        let copy = tempfile::tempdir().unwrap();
                        for side in ["journal.a", "journal.b"] {
                            std::fs::copy(dir.path().join(side), copy.path().join(side)).unwrap();
                        }
                        twin.dir = copy.path().to_path_buf();
                        twin.save(b"the third").unwrap();
                        assert_eq!(Twin::open(copy.path(), "journal").unwrap().1.body.unwrap(), b"the third");
                        let kept = [other, b"the third"].map(|body| {
                            ["journal.a", "journal.b"].iter().any(|side| {
                                let bytes = std::fs::read(copy.path().join(side)).unwrap();
                                decode("journal", &bytes).is_some_and(|(_, found)| found == body)
                            })
                        });
                        assert_eq!(kept, [true, true]);
                    }
                }
            }
            std::fs::write(&path, whole).unwrap();
        }
        assert_eq!(Twin::open(dir.path(), "journal").unwrap().1.body.unwrap(), b"the second");
    }

    #[test]
    fn a_bad_sector_in_one_file_leaves_the_record_of_the_other_and_the_next_write_takes_its_place() {
        let newest = |found: &Found| found.body.clone().unwrap();
        for (bad, other) in [("journal.a", &b"the second"[..]), ("journal.b", b"the first")] {
            let dir = tempfile::tempdir().unwrap();
            let (mut twin, _) = Twin::open(dir.path(), "journal").unwrap();
            twin.save(b"the first").unwrap();
            twin.save(b"the second").unwrap();
            let bad_sector = damage::reading(Errno::IO, |name| name == bad);
            let (mut twin, found) = Twin::open_with(dir.path(), "journal", &bad_sector).unwrap();
            assert_eq!((newest(&found).as_slice(), found.damaged), (other, true), "{bad}");
            let before = std::fs::metadata(dir.path().join(bad)).unwrap().ino();
            twin.save(b"the third").unwrap();
            let after = std::fs::metadata(dir.path().join(bad)).unwrap().ino();
            assert_ne!(before, after, "{bad} is another file now");
            assert_eq!(newest(&Twin::open(dir.path(), "journal").unwrap().1), b"the third");
            let wrong_owner = damage::reading(Errno::ACCESS, |name| name == bad);
            let error = Twin::open_with(dir.path(), "journal", &wrong_owner).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn a_record_in_the_place_of_another_is_none_and_a_nameless_one_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut twin = Twin::open(dir.path(), "slots").unwrap().0;
        twin.save(b"slots").unwrap();
        std::fs::rename(dir.path().join("slots.a"), dir.path().join("journal.a")).unwrap();
        let found = Twin::open(dir.path(), "journal").unwrap().1;
        assert_eq!(found, Found { body: None, damaged: true });

        let mut nameless = encode("", 8, b"the eighth");
        nameless.truncate(nameless.len() - CHECKSUM_BYTES);
        nameless[..MAGIC_NAMELESS.len()].copy_from_slice(MAGIC_NAMELESS);
        let checksum = checksum("", &nameless);
        nameless.extend_from_slice(checksum.as_ref());
        std::fs::write(dir.path().join("journal.b"), nameless).unwrap();
        let (mut twin, found) = Twin::open(dir.path(), "journal").unwrap();
        assert_eq!(found.body.unwrap(), b"the eighth");
        twin.save(b"the ninth").unwrap();
        assert_eq!(Twin::open(dir.path(), "journal").unwrap().1.body.unwrap(), b"the ninth");
    }
}
