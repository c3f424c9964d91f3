use std::io::Write;
use std::path::{Path, PathBuf};

use dunlin_protocol::{Bytes, Digest};
use dunlin_trust::{EcdsaP256Signer, Signer};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Entry;
use crate::broker::challenge::verifies;
use crate::identity::{Identity, IdentityError};

/// The head's file within a data folder.
pub const HEAD_FILE: &str = "audit.head";
/// Where a head goes that does not fit its log.
const ASIDE_FILE: &str = "audit.head.kept";
/// What is signed begins with these bytes, so that the signature fits nothing else.
const CONTEXT: &[u8] = b"dunlin-audit-head-v1\0";

/// The last row of the log at some moment, signed. Whoever keeps one can tell later that the log still holds it, and
/// with it every row before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Head {
    /// Number of the row.
    pub no: u64,
    /// When the row was written, Unix milliseconds.
    pub at_ms: u64,
    /// Its hash.
    #[schema(value_type = String)]
    pub hash: Digest,
    /// ECDSA P-256 with SHA-256 (fixed form) by the key of the controller's own client.
    #[schema(value_type = String)]
    pub signature: Bytes,
}

impl Head {
    fn signing_bytes(no: u64, at_ms: u64, hash: &Digest) -> Vec<u8> {
        [CONTEXT, &no.to_be_bytes(), &at_ms.to_be_bytes(), &hash.0].concat()
    }

    /// Whether the key (SubjectPublicKeyInfo, DER) signed it.
    pub fn is_signed_by(&self, spki: &[u8]) -> bool {
        verifies(spki, &Self::signing_bytes(self.no, self.at_ms, &self.hash), self.signature.as_slice())
    }
}

/// Signs heads and keeps the last one beside the log.
pub(super) struct Keeper {
    folder: PathBuf,
    signer: EcdsaP256Signer,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keeper({})", self.folder.display())
    }
}

impl Keeper {
    pub(super) fn open(data: &Path, identity: &Identity) -> Result<Self, IdentityError> {
        Ok(Self { folder: data.to_owned(), signer: identity.controller_signer()? })
    }

    pub(super) fn sign(&self, entry: &Entry) -> Option<Head> {
        let Entry { no, at_ms, hash, .. } = *entry;
        match self.signer.sign(&Head::signing_bytes(no, at_ms, &hash)) {
            Ok(signature) => Some(Head { no, at_ms, hash, signature: Bytes(signature) }),
            Err(error) => {
                tracing::error!(%error, "the head of the audit log can not be signed");
                None
            }
        }
    }

    /// Writes the head of a row durably. The row is stored already; a head that stays behind hides no cut before it.
    pub(super) fn keep(&self, entry: &Entry) {
        let Some(head) = self.sign(entry) else { return };
        let (path, fresh) = (self.folder.join(HEAD_FILE), self.folder.join(format!("{HEAD_FILE}.new")));
        let text = serde_json::to_vec(&head).expect("a head is JSON");
        let written = std::fs::File::create(&fresh)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&fresh, &path));
        if let Err(error) = written {
            tracing::error!(%error, path = %path.display(), "the head of the audit log can not be written");
        }
    }

    /// The head that lies there. One that can not be read reads as a row that no log has.
    pub(super) fn read(&self) -> Option<Head> {
        read(&self.folder.join(HEAD_FILE))
    }

    pub(super) fn put_aside(&self) {
        if let Err(error) = std::fs::rename(self.folder.join(HEAD_FILE), self.folder.join(ASIDE_FILE)) {
            tracing::error!(%error, "the head that does not fit the audit log can not be put aside");
        }
    }
}

/// The head in a file; none if there is no file. One that can not be read names a row that no log has.
pub fn read(path: &Path) -> Option<Head> {
    let bytes = std::fs::read(path).ok()?;
    let torn = Head { no: u64::MAX, at_ms: 0, hash: super::GENESIS, signature: Bytes::default() };
    Some(serde_json::from_slice(&bytes).unwrap_or(torn))
}
