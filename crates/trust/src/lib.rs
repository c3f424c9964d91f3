//! What may be believed: The Update Framework (specification 1.0) with Uptane's two repositories, verified on
//! the device and signed on the controller.
//!
//! This crate deliberately does no input or output and reads no clock: files, time and randomness of the
//! metadata's content come in as arguments (the one exception is key generation and ECDSA signing, which draw
//! from the system). It fetches nothing, and it does not know what a model is beyond its signed constraints.
//!
//! Invariants:
//! - [`Verified`] is only made here, and only after signatures were counted by one threshold function.
//! - A repository's state changes by a whole update or not at all; versions never fall below their floors,
//!   unless a newer root took the key away that raised them.
//! - Without a known time nothing new is accepted.
//!
//! ```
//! use dunlin_trust::{Ed25519Signer, RepoKind, Signer, TrustedRepo, write};
//! let signer = Ed25519Signer::from_pkcs8(&Ed25519Signer::generate_pkcs8()?)?;
//! let role = write::RoleSpec { keys: vec![signer.key().clone()], threshold: 1 };
//! let spec = write::RootSpec { root: role.clone(), timestamp: role.clone(), snapshot: role.clone(), targets: role };
//! let root = write::sign(&write::root(1, 2_000_000_000_000, &spec)?, &[&signer as &dyn Signer])?;
//! let repo = TrustedRepo::pinned(RepoKind::Image, &root)?;
//! assert_eq!(repo.versions().root, 1);
//! assert!(repo.target("meter.1.json").is_none());
//! # Ok::<(), dunlin_trust::TrustError>(())
//! ```

mod approve;
mod canonical;
mod constraints;
mod document;
pub mod envelope;
mod error;
pub mod floors;
mod key;
mod lookup;
pub mod metadata;
mod repo;
mod sign;
mod spki;
mod stored;
mod tasks;
pub mod write;

pub use approve::{
    Approved, ApprovedFile, ApprovedProgram, ApprovedRelease, ApprovedTask, TASKS_MAX, approve,
};
pub use canonical::{FloatError, canonical};
pub use constraints::{Refusal, at_least, check_bundle, check_hard, check_retrained};
pub use document::{Document, Signed, Verified};
pub use error::TrustError;
pub use floors::{CountedBy, Floors, Recovery};
pub use key::{Key, sha256};
pub use lookup::{Lookup, TargetInfo};
pub use repo::{DELEGATIONS_MAX, RETRAINED, ROOTS_MAX, RepoKind, TrustedRepo};
pub use sign::{EcdsaP256Signer, Ed25519Signer, Signer};
pub use stored::StoredFiles;
pub use tasks::{held_roles, roles_digest, speaks_for, task_of, task_role};

/// The pin of a first root: the SHA-256 of its exact bytes, as a claim token carries it.
pub fn pin(root: &[u8]) -> dunlin_protocol::Digest {
    sha256(root)
}

/// Updates both repositories from one composite check, or neither.
///
/// # Errors
/// The first rule that is broken in either.
pub fn update_both(
    image: &mut TrustedRepo,
    director: &mut TrustedRepo,
    check: &dunlin_protocol::Check,
    now: dunlin_protocol::Now,
) -> Result<(), TrustError> {
    let (mut next_image, mut next_director) = (image.clone(), director.clone());
    next_image.update(&check.image, now)?;
    next_director.update(&check.director, now)?;
    (*image, *director) = (next_image, next_director);
    Ok(())
}
