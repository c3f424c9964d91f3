//! Getting models onto the device and keeping them there: the shell around `dunlin-update` and `dunlin-trust`.
//!
//! [`UpdateDriver`] owns the update machine and carries out its orders. Below it: [`Store`], a content-addressed
//! store of blobs; [`Twin`], small records that survive a cut at any byte; [`Trusted`], both repositories'
//! verified state and the floors; [`Fetcher`], downloads that resume; and proofs in a child process. The agent's own program is
//! updated by the same machine; `program.rs` starts it.

mod anew;
mod aside;
mod carry;
mod crowd;
mod driver;
mod fetch;
mod load;
mod marker;
mod program;
mod prove;
mod store;
mod stored;
mod trusted;
mod twin;

pub use anew::begin_anew;
pub use driver::{Notice, Order, UpdateConfig, UpdateDriver, UpdateError};
pub(crate) use fetch::chain;
pub use fetch::{FetchError, Fetcher, MANIFEST_BYTES_MAX, check_path, is_the_rest, retry_after_ms};
pub(crate) use marker::KERNEL_BOOT;
pub use program::{SELF_TEST, SOUND, WATCH, watch, words};
pub(crate) use program::{launch, self_test, start_anew};
pub use prove::{ENGINE_CHILD, prove};
pub use store::{CHUNK_BYTES, Partial, Room, SYNC_BYTES, Store, StoreError};
pub use stored::Stored;
pub use trusted::{Acknowledged, FloorsFound, Trusted, TrustedError};
pub use twin::{Found, Twin};

/// Does what waits for the disk where it stands, and lets another thread take the tasks of this one meanwhile: there are
/// only two, and they answer requests. Unlike work on another thread it ends with the task that does it, so that nothing
/// writes on after a cancelled update. A runtime of one thread, as tests have it, just waits.
fn at_disk<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    if matches!(Handle::current().runtime_flavor(), RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}
