//! A blob on its way to the store.
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dunlin_protocol::Blob;
use dunlin_protocol::weaken::{self, Defence};
use ring::digest::{Context, SHA256};

use super::{CHUNK_BYTES, SYNC_BYTES, SYNC_EVERY, StoreError, hash, is, whole_chunks};

/// What may not be on the disk yet.
#[derive(Clone, Copy)]
struct Unsynced {
    bytes: u64,
    since: Instant,
}

impl Unsynced {
    fn since_now(bytes: u64) -> Self {
        Self { bytes, since: Instant::now() }
    }

    /// Whether it has to be synced before more is written, `waited` after the last sync.
    fn is_due(&self, waited: Duration) -> bool {
        self.bytes >= SYNC_BYTES || (self.bytes >= CHUNK_BYTES && waited >= SYNC_EVERY)
    }
}

/// A blob on its way to the store.
pub struct Partial {
    blob: Blob,
    file: File,
    context: Context,
    offset: u64,
    unsynced: Unsynced,
    part: PathBuf,
    whole: PathBuf,
    dir: PathBuf,
}

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Partial({:?} at {})", self.blob, self.offset)
    }
}

impl Partial {
    /// Opens what is at `part`, at its last whole chunk. It is hashed again, as it will be part of the digest.
    pub(super) fn open(blob: &Blob, part: PathBuf, whole: PathBuf, dir: PathBuf) -> Result<Self, StoreError> {
        let wrong = |source| StoreError::Io { digest: blob.digest, source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&part).map_err(wrong)?;
        let length = file.metadata().map_err(wrong)?.len();
        let offset =
            if length > blob.length || weaken::off(Defence::Resume) { 0 } else { whole_chunks(length) };
        file.set_len(offset).map_err(wrong)?;
        let context = hash(&mut file, offset).map_err(wrong)?;
        file.seek(SeekFrom::Start(offset)).map_err(wrong)?;
        // What a process that was killed wrote may not be on the disk either.
        let unsynced = Unsynced::since_now(offset);
        Ok(Self { blob: *blob, file, context, offset, unsynced, part, whole, dir })
    }

    /// Bytes that are there.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { digest: self.blob.digest, source }
    }

    /// Begins again at zero.
    ///
    /// # Errors
    /// The disk does not do it.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(|e| self.io(e))?;
        (self.context, self.offset, self.unsynced) = (Context::new(&SHA256), 0, Unsynced::since_now(0));
        Ok(())
    }

    /// Appends.
    ///
    /// # Errors
    /// That would be more than was signed, or the disk does not take it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let (digest, length) = (self.blob.digest, self.blob.length);
        if bytes.len() as u64 > length - self.offset {
            return Err(StoreError::TooLong { digest, length });
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.unsynced.is_due(self.unsynced.since.elapsed()) {
                self.file.sync_data().map_err(|e| self.io(e))?;
                self.unsynced = Unsynced::since_now(0);
            }
            let room = usize::try_from(SYNC_BYTES - self.unsynced.bytes).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at(rest.len().min(room));
            self.file.write_all(piece).map_err(|e| self.io(e))?;
            self.context.update(piece);
            self.offset += piece.len() as u64;
            self.unsynced.bytes += piece.len() as u64;
            rest = after;
        }
        Ok(())
    }

    /// Makes the blob durable under its digest. Wrong content is deleted.
    ///
    /// # Errors
    /// It is not whole, or not what was signed.
    pub fn finish(self) -> Result<(), StoreError> {
        let (digest, length) = (self.blob.digest, self.blob.length);
        if self.offset < length {
            return Err(StoreError::Short { digest, stored: self.offset, length });
        }
        let wrong = |source| StoreError::Io { digest, source };
        if !is(self.context.finish().as_ref(), digest) {
            std::fs::remove_file(&self.part).map_err(wrong)?;
            return Err(StoreError::Mismatch { digest });
        }
        self.file.sync_all().map_err(wrong)?;
        std::fs::rename(&self.part, &self.whole).map_err(wrong)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(wrong)
    }

    /// Forgets what is there, as it can not be part of the right content.
    ///
    /// # Errors
    /// The disk does not do it.
    pub fn discard(self) -> Result<(), StoreError> {
        std::fs::remove_file(&self.part).map_err(|e| self.io(e))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn a_fast_link_syncs_by_bytes_and_a_slow_one_by_time() {
        let due = |bytes, waited| Unsynced::since_now(bytes).is_due(waited);
        let soon = Duration::from_millis(10);
        assert!(due(SYNC_BYTES, soon) && !due(SYNC_BYTES - 1, soon));
        assert!(due(CHUNK_BYTES, SYNC_EVERY) && !due(CHUNK_BYTES, SYNC_EVERY - soon));
        assert!(
            !due(CHUNK_BYTES - 1, 60 * SYNC_EVERY),
            "a sync makes nothing durable that would be gone on from"
        );
    }

    #[test]
    fn no_more_than_is_said_is_ever_unsynced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        let bytes = vec![7; 5 * SYNC_BYTES as usize / 2];
        let blob = Blob { digest: dunlin_trust::sha256(&bytes), length: bytes.len() as u64 };
        let mut partial = store.resume(&blob).unwrap();
        for piece in bytes[..2 * SYNC_BYTES as usize].chunks(SYNC_BYTES as usize * 2 / 5) {
            partial.write(piece).unwrap();
            assert!(partial.unsynced.bytes <= SYNC_BYTES, "{}", partial.unsynced.bytes);
        }
        drop(partial);
        let mut partial = store.resume(&blob).unwrap();
        assert_eq!(
            partial.unsynced.bytes,
            partial.offset(),
            "nobody knows what a process that was killed had synced"
        );
        partial.write(&bytes[2 * SYNC_BYTES as usize..]).unwrap();
        assert!(partial.unsynced.bytes <= SYNC_BYTES / 2);
        partial.finish().unwrap();
        assert!(store.holds(&blob));
    }
}
