//! Keys of the TUF roles: where they lie, how they are made, and how files are signed offline.
//!
//! `dunlin init` makes the online keys in the data folder. The key ceremony, run elsewhere, makes the keys of
//! both roots and of the image repository's targets; these are what approves models, and [`guard`] keeps the
//! controller from running beside them.
use std::io;
use std::path::PathBuf;

use dunlin_trust::TrustError;

mod ceremony;
mod delegate;
mod file;
mod guard;
mod offline;
mod online;
mod passphrase;
mod roots;

pub use ceremony::sealed_ceremony;
pub use ceremony::{Ceremony, CeremonyOptions, ceremony};
pub use delegate::{Delegated, Delegation, delegate, is_of, sign_task, sign_task_with, task_prefix};
pub use file::{Keyring, any_sealed, is_sealed, load, reseal, write_new};
pub use guard::guard;
pub use offline::{Addition, Request, cosign, cosign_with, sign_targets, sign_targets_with};
pub use online::{OnlineKeys, OnlineRole, OnlineSigners, create_online};
pub use passphrase::{PASSPHRASE_CHARS_MIN, Passphrase};
pub use roots::{
    OfflineRole, RoleChange, change_role, lacks, make_keys, renew_root, renew_root_with, role_key_ids,
};

/// Milliseconds of a day.
pub(crate) const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Life of a root; renewing it takes the root keys out of the safe, so once a year.
pub const ROOT_LIFE_MS: u64 = 365 * DAY_MS;
/// Life of the image repository's top-level targets; renewed with every approval, at least once a year.
pub const TARGETS_LIFE_MS: u64 = 365 * DAY_MS;

/// Why a key can not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or folder can not be read or written.
    #[error("could not {attempted} {path}")]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A private key that others can read.
    #[error(
        "{path} can be read by others (mode {mode:o}); take that away with `chmod 600` and consider the key leaked"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that should hold a key, holds something else.
    #[error("{path} does not hold an Ed25519 private key in PKCS#8 PEM form")]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: Option<TrustError>,
    },
    /// A key file is encrypted and no passphrase was given.
    #[error("{path} is encrypted; give its passphrase")]
    Sealed {
        /// The file.
        path: PathBuf,
    },
    /// Not the passphrase of this file.
    #[error("{path} does not open with this passphrase")]
    PassphraseWrong {
        /// The file.
        path: PathBuf,
    },
    /// A passphrase that is guessed too easily.
    #[error(
        "a passphrase of fewer than {PASSPHRASE_CHARS_MIN} characters is guessed too easily; take a longer one"
    )]
    PassphraseShort,
    /// Encrypting a key failed.
    #[error("could not encrypt a private key")]
    Seal,
    /// The file of online public keys does not read.
    #[error("{path} is not the online.json that `dunlin init` wrote: {what}")]
    Online {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Signing failed, or what was to be signed is malformed.
    #[error("could not {attempted}")]
    Trust {
        /// What was attempted.
        attempted: &'static str,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// A threshold that can not be met, or a number of keys without sense.
    #[error("a threshold of {threshold} of {n} keys makes no sense; use 1 <= threshold <= n <= {max}")]
    Threshold {
        /// Keys that must sign.
        threshold: u32,
        /// Keys there are.
        n: u32,
        /// Keys there may be.
        max: u32,
    },
    /// No key for the job in the folder.
    #[error("{folder} holds no key file named {prefix}*.pem")]
    NoneFound {
        /// The folder.
        folder: PathBuf,
        /// What the names begin with.
        prefix: String,
    },
    /// What is to be signed does not fit what is there.
    #[error("can not sign: {0}")]
    Request(String),
    /// A key that approves models lies in the data folder.
    #[error(
        "{path} is a private key of the role {role}; such a key must not be in reach of the controller: \
         move it away, and consider whether it has leaked"
    )]
    Guarded {
        /// The file.
        path: PathBuf,
        /// The role it signs for.
        role: &'static str,
    },
}

impl KeyError {
    pub(crate) fn trust(attempted: &'static str) -> impl Fn(TrustError) -> Self {
        move |source| Self::Trust { attempted, source }
    }

    pub(crate) fn file(attempted: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { attempted, path, source }
    }
}
