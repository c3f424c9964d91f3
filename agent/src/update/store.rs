mod partial;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{Blob, Digest};
use ring::digest::{Context, SHA256};

pub use partial::Partial;

/// A download resumes at a multiple of this: what an interrupted process has to fetch again at most.
pub const CHUNK_BYTES: u64 = 64 * 1024;
/// Most bytes between two syncs: what a power cut may cost where a link is fast. A sync for each chunk would halve the
/// speed of an SD card.
pub const SYNC_BYTES: u64 = 1024 * 1024;
/// Longest time between two syncs, once a chunk is written: a cut costs a second of a slow link, or the chunk that took longer.
pub(super) const SYNC_EVERY: Duration = Duration::from_secs(1);

/// What went wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk did not do as it was told.
    #[error("accessing blob {digest}")]
    Io {
        /// The blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// More came than was signed.
    #[error("blob {digest} is longer than the signed {length} bytes")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Bytes it should have.
        length: u64,
    },
    /// Less came than was signed.
    #[error("blob {digest} has {stored} of {length} bytes")]
    Short {
        /// The blob.
        digest: Digest,
        /// Bytes it has.
        stored: u64,
        /// Bytes it should have.
        length: u64,
    },
    /// It is something else.
    #[error("what was fetched as blob {digest} has another digest")]
    Mismatch {
        /// The blob.
        digest: Digest,
    },
}

impl StoreError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::TooLong { .. } | Self::Short { .. } | Self::Mismatch { .. } => false,
        }
    }
}

/// Free space, held against what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that are missing.
    pub missing: u64,
    /// Bytes that are free, without the reserve.
    pub free: u64,
}

impl Room {
    /// Whether it all fits.
    pub fn enough(&self) -> bool {
        self.missing <= self.free
    }
}

/// Blobs by digest in one folder: `{sha256}` whole, `{sha256}.part` on the way.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    reserve: u64,
}

impl Store {
    /// Opens or makes the folder. `reserve` bytes of its file system are left to others.
    ///
    /// # Errors
    /// The folder can not be made.
    pub fn open(dir: &Path, reserve: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_path_buf(), reserve })
    }

    /// Where a whole blob lies.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}.part"))
    }

    /// Whether a blob is whole by its length. Its content was checked when it came, and is by [`Store::verify`].
    pub fn holds(&self, blob: &Blob) -> bool {
        std::fs::metadata(self.path(&blob.digest))
            .is_ok_and(|meta| meta.is_file() && meta.len() == blob.length)
    }

    /// Bytes of a blob that need not be fetched.
    pub fn stored(&self, blob: &Blob) -> u64 {
        if self.holds(blob) {
            return blob.length;
        }
        std::fs::metadata(self.part(&blob.digest)).map_or(0, |meta| whole_chunks(meta.len().min(blob.length)))
    }

    /// Reads a blob back; one with other content is deleted and the answer is false.
    ///
    /// # Errors
    /// It can not be read.
    pub fn verify(&self, blob: &Blob) -> Result<bool, StoreError> {
        let wrong = |source| StoreError::Io { digest: blob.digest, source };
        if !self.holds(blob) {
            return Ok(false);
        }
        let mut file = File::open(self.path(&blob.digest)).map_err(wrong)?;
        let context = hash(&mut file, blob.length).map_err(wrong)?;
        let right = is(context.finish().as_ref(), blob.digest);
        if !right {
            std::fs::remove_file(self.path(&blob.digest)).map_err(wrong)?;
        }
        Ok(right)
    }

    /// The content of a blob, checked.
    ///
    /// # Errors
    /// It is not there, not whole, or not what its name says.
    pub fn read(&self, blob: &Blob) -> Result<Vec<u8>, StoreError> {
        let digest = blob.digest;
        let file = File::open(self.path(&digest)).map_err(|source| StoreError::Io { digest, source })?;
        let mut bytes = Vec::new();
        // One byte more than it should have tells a longer file without reading it all.
        file.take(blob.length.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| StoreError::Io { digest, source })?;
        if bytes.len() as u64 != blob.length || !is(&dunlin_trust::sha256(&bytes).0, digest) {
            return Err(StoreError::Mismatch { digest });
        }
        Ok(bytes)
    }

    /// Compares what of these blobs is missing with what is free.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn room(&self, blobs: &[Blob]) -> io::Result<Room> {
        let mut seen = BTreeSet::new();
        let missing =
            blobs.iter().filter(|blob| seen.insert(blob.digest)).map(|blob| blob.length - self.stored(blob));
        let missing = missing.fold(0u64, u64::saturating_add);
        let fs = rustix::fs::statvfs(&self.dir)?;
        let free = fs.f_bavail.saturating_mul(fs.f_frsize).saturating_sub(self.reserve);
        Ok(Room { missing, free })
    }

    /// Whether programs may be started from here: the file system is not mounted with `noexec`.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn is_executable(&self) -> io::Result<bool> {
        let fs = rustix::fs::statvfs(&self.dir)?;
        Ok(!fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
    }

    /// Opens a blob to be fetched, at the last whole chunk it has. What is there is hashed again, as it will be
    /// part of the digest.
    ///
    /// # Errors
    /// The disk does not do it.
    pub fn resume(&self, blob: &Blob) -> Result<Partial, StoreError> {
        Partial::open(blob, self.part(&blob.digest), self.path(&blob.digest), self.dir.clone())
    }

    /// Puts small content in place at once.
    ///
    /// # Errors
    /// It is not what `blob` says, or the disk does not take it.
    pub fn put(&self, blob: &Blob, bytes: &[u8]) -> Result<(), StoreError> {
        if self.holds(blob) {
            return Ok(());
        }
        let mut partial = self.resume(blob)?;
        partial.restart()?;
        partial.write(bytes)?;
        partial.finish()
    }

    /// Deletes what is not in `keep`; how many files that were.
    ///
    /// # Errors
    /// The folder can not be listed.
    pub fn keep_only(&self, keep: &BTreeSet<Digest>) -> io::Result<usize> {
        let mut dropped = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name
                .to_str()
                .and_then(|name| name.strip_suffix(".part").unwrap_or(name).parse::<Digest>().ok());
            if digest.is_none_or(|digest| !keep.contains(&digest))
                && std::fs::remove_file(entry.path()).is_ok()
            {
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}

fn whole_chunks(length: u64) -> u64 {
    length - length % CHUNK_BYTES
}

/// Whether content of this digest is what was signed.
fn is(content: &[u8], signed: Digest) -> bool {
    content == signed.0 || weaken::off(Defence::Digest)
}

fn hash(file: &mut File, length: u64) -> io::Result<Context> {
    file.seek(SeekFrom::Start(0))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut rest = length;
    while rest > 0 {
        let want = usize::try_from(rest.min(CHUNK_BYTES)).unwrap_or(buffer.len());
        file.read_exact(&mut buffer[..want])?;
        context.update(&buffer[..want]);
        rest -= want as u64;
    }
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(bytes: &[u8]) -> Blob {
        Blob { digest: dunlin_trust::sha256(bytes), length: bytes.len() as u64 }
    }

    fn content() -> Vec<u8> {
        (0..3 * CHUNK_BYTES + 17).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn a_cut_at_any_length_resumes_at_a_whole_chunk_and_ends_right() {
        let bytes = content();
        let blob = blob(&bytes);
        for cut in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, bytes.len() as u64]
        {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), 0).unwrap();
            let mut partial = store.resume(&blob).unwrap();
            partial.write(&bytes[..cut as usize]).unwrap();
            drop(partial);
            assert_eq!(store.stored(&blob), cut - cut % CHUNK_BYTES);
            let mut partial = store.resume(&blob).unwrap();
            assert!(cut - partial.offset() < CHUNK_BYTES);
            let from = partial.offset() as usize;
            partial.write(&bytes[from..]).unwrap();
            partial.finish().unwrap();
            assert!(store.holds(&blob) && store.verify(&blob).unwrap());
            assert_eq!(store.read(&blob).unwrap(), bytes);
        }
    }

    #[test]
    fn wrong_longer_and_shorter_content_never_gets_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        let bytes = content();
        let blob = blob(&bytes);
        let mut other = bytes.clone();
        other[5] ^= 1;
        assert!(matches!(store.put(&blob, &other), Err(StoreError::Mismatch { .. })));
        assert_eq!(store.stored(&blob), 0, "wrong content is not resumed");
        other.push(0);
        assert!(matches!(store.put(&blob, &other), Err(StoreError::TooLong { .. })));
        assert!(matches!(store.put(&blob, &bytes[1..]), Err(StoreError::Short { .. })));
        assert!(!store.holds(&blob));
    }

    #[test]
    fn rot_is_found_and_the_blob_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        let blob = blob(b"model");
        store.put(&blob, b"model").unwrap();
        std::fs::write(store.path(&blob.digest), b"mobel").unwrap();
        assert!(store.holds(&blob));
        assert!(matches!(store.read(&blob), Err(StoreError::Mismatch { .. })));
        assert!(!store.verify(&blob).unwrap());
        assert!(!store.holds(&blob));
    }

    #[test]
    fn space_counts_what_is_missing_once_and_leaves_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = content();
        let (here, there) = (blob(b"here"), blob(&bytes));
        let store = Store::open(dir.path(), 0).unwrap();
        store.put(&here, b"here").unwrap();
        let room = store.room(&[here, there, there]).unwrap();
        assert_eq!(room.missing, there.length);
        let tight = Store::open(dir.path(), u64::MAX).unwrap().room(&[there]).unwrap();
        assert!(!tight.enough() && room.enough());
    }

    #[test]
    fn only_what_is_kept_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        let (a, b, c) = (blob(b"a"), blob(b"b"), blob(&content()));
        store.put(&a, b"a").unwrap();
        store.put(&b, b"b").unwrap();
        store.resume(&c).unwrap().write(&content()[..CHUNK_BYTES as usize]).unwrap();
        assert_eq!(store.keep_only(&[a.digest, c.digest].into()).unwrap(), 1);
        assert!(store.holds(&a) && !store.holds(&b));
        assert_eq!(store.stored(&c), CHUNK_BYTES);
    }
}
