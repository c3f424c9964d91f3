//! Getting models onto the device and keeping them there: the shell around `dunlin-update` and `dunlin-trust`.
//!
//! [`UpdateDriver`] owns the update machine and carries out its orders. Below it: [`Store`], a content-addressed
//! store of blobs; [`Twin`], small records that survive a cut at any byte; [`Trusted`], both repositories'
//! verified state and the floors; [`Fetcher`], downloads that resume; and proofs in a child process.

mod carry;
mod driver;
mod fetch;
mod load;
mod marker;
mod prove;
mod store;
mod trusted;
mod twin;

pub use driver::{Notice, Order, UpdateConfig, UpdateDriver, UpdateError};
pub use fetch::{FetchError, Fetcher, MANIFEST_BYTES_MAX};
pub use prove::{ENGINE_CHILD, prove};
pub use store::{CHUNK_BYTES, Partial, Room, Store, StoreError};
pub use trusted::{Trusted, TrustedError};
pub use twin::{Found, Twin};
