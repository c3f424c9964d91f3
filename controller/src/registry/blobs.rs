//! Content-addressed blobs: files under `DATA/blobs`, behind the interface that an S3 bucket has too.
use std::path::Path;

use bytes::Bytes;
use dunlin_protocol::{Blob, Digest};
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};

use super::RegistryError;

/// Largest blob: the largest model the engine looks at.
pub const BLOB_BYTES_MAX: usize = dunlin_engine::MODEL_BYTES_MAX;

/// The blobs.
#[derive(Debug)]
pub struct Blobs {
    files: LocalFileSystem,
}

/// A part of a blob on its way out.
pub(crate) struct Part {
    /// First byte and the one after the last.
    pub(crate) range: std::ops::Range<u64>,
    /// Length of the whole blob.
    pub(crate) length: u64,
    /// The bytes.
    pub(crate) stream: BoxStream<'static, object_store::Result<Bytes>>,
}

/// The first byte of the digest as a folder keeps folders small.
fn key(digest: &Digest) -> Key {
    let hex = digest.to_string();
    Key::from_iter([&hex[..2], &hex])
}

impl Blobs {
    pub(super) fn open(data: &Path) -> Result<Self, RegistryError> {
        let folder = data.join("blobs");
        std::fs::create_dir_all(&folder).map_err(RegistryError::file("create", &folder))?;
        let files = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|source| RegistryError::Blob { attempted: "open the blob folder", source })?;
        Ok(Self { files: files.with_fsync(true) })
    }

    /// Stores bytes under their digest; durable on return. The same bytes twice are one blob.
    ///
    /// # Errors
    /// They are too many, or can not be written.
    pub async fn put(&self, bytes: impl Into<Bytes>) -> Result<Blob, RegistryError> {
        let bytes = bytes.into();
        if bytes.len() > BLOB_BYTES_MAX {
            return Err(RegistryError::Refused(format!(
                "a blob of {} bytes; at most {BLOB_BYTES_MAX} are kept",
                bytes.len()
            )));
        }
        let blob = Blob { digest: dunlin_trust::sha256(&bytes), length: bytes.len() as u64 };
        let put = self.files.put(&key(&blob.digest), PutPayload::from(bytes)).await;
        put.map_err(|source| RegistryError::Blob { attempted: "store a blob", source })?;
        Ok(blob)
    }

    /// Length of a blob, if it is here.
    ///
    /// # Errors
    /// The store can not be read.
    pub async fn length(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        match self.files.head(&key(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(RegistryError::Blob { attempted: "look a blob up", source }),
        }
    }

    /// A whole blob, verified against its digest.
    ///
    /// # Errors
    /// The store can not be read, or the blob was damaged on disk.
    pub async fn get(&self, digest: &Digest) -> Result<Option<Bytes>, RegistryError> {
        let failed = |source| RegistryError::Blob { attempted: "read a blob", source };
        let bytes = match self.files.get(&key(digest)).await {
            Ok(result) => result.bytes().await.map_err(failed)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let found = dunlin_trust::sha256(&bytes);
        if found != *digest {
            let (expected, found) = (digest.to_string(), found.to_string());
            return Err(RegistryError::Digest { what: "a stored blob".into(), expected, found });
        }
        Ok(Some(bytes))
    }

    /// A stream of a blob, or of a part of it. The receiver checks the digest.
    pub(crate) async fn stream(
        &self,
        digest: &Digest,
        range: Option<GetRange>,
    ) -> Result<Option<Part>, RegistryError> {
        let options = GetOptions { range, ..GetOptions::default() };
        match self.files.get_opts(&key(digest), options).await {
            Ok(result) => Ok(Some(Part {
                range: result.range.clone(),
                length: result.meta.size,
                stream: result.into_stream(),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(RegistryError::Blob { attempted: "read a blob", source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_comes_back_whole_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let blob = blobs.put(b"weights".to_vec()).await.unwrap();
        assert_eq!(blobs.put(b"weights".to_vec()).await.unwrap(), blob);
        assert_eq!(blobs.get(&blob.digest).await.unwrap().unwrap(), &b"weights"[..]);
        assert_eq!(blobs.length(&blob.digest).await.unwrap(), Some(7));
        let hex = blob.digest.to_string();
        std::fs::write(dir.path().join("blobs").join(&hex[..2]).join(&hex), b"wEights").unwrap();
        assert!(matches!(blobs.get(&blob.digest).await, Err(RegistryError::Digest { .. })));
        assert!(blobs.get(&Digest([0; 32])).await.unwrap().is_none());
    }
}
