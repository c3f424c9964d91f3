//! The registry: model lines, their immutable releases, and the blobs these are made of.
//!
//! A model comes in through [`Registry::push`] (from a person) or [`Registry::examine`] and
//! [`Registry::register`] (from a training worker). Either way it is first parsed, loaded and replayed in a child
//! process under limits; only then does this process touch it. A release becomes *approved* when published
//! targets list it, and *withdrawn* when its line's floor passes it; nothing else changes it.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use dunlin_engine::EngineError;
use dunlin_engine::prove::ProveError;

use crate::audit::Audit;
use crate::repo::{RepoError, Repos};
use crate::store::{Store, StoreError};

mod approval;
mod blobs;
mod drawn;
mod intake;
mod program;
mod proof;
mod push;
mod trained;

pub use approval::POLICY_BYTES_MAX;
pub use blobs::{BLOB_BYTES_MAX, Blobs};
pub(crate) use drawn::inputs;
pub use program::{ProgramPush, arch_of};
pub use proof::ENGINE_CHILD;
pub(crate) use proof::{examine, runnable};
pub use push::Push;
pub(crate) use push::TOLERANCE_PPM;
pub use trained::{Examined, ExaminedCandidate, anchor_set};

/// Why something was not taken in or not found.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repositories.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The blob store failed.
    #[error("could not {attempted}")]
    Blob {
        /// What was attempted.
        attempted: &'static str,
        /// Why it failed.
        #[source]
        source: object_store::Error,
    },
    /// A file could not be read or written.
    #[error("could not {attempted} {path}")]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The content is not what its name says.
    #[error("{what} has digest {found}, not {expected}")]
    Digest {
        /// Which content.
        what: String,
        /// Expected digest.
        expected: String,
        /// Digest found.
        found: String,
    },
    /// The engine refuses the model.
    #[error("the model is refused")]
    Engine(#[from] EngineError),
    /// The engine refuses the model, or its child came to grief over it.
    #[error("the model is refused")]
    Import(#[source] ProveError),
    /// The model did not pass its proof in a child process.
    #[error("the model did not pass its proof")]
    Proof(#[from] ProveError),
    /// What was handed in does not fit together.
    #[error("{0}")]
    Refused(String),
    /// A training result that does not hold what it claims.
    #[error("training result: {0}")]
    Claim(String),
    /// The job folder of a training result.
    #[error("the job folder can not be used")]
    Learn(#[from] dunlin_learn::LearnError),
}

impl RegistryError {
    pub(crate) fn file(attempted: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { attempted, path, source }
    }
}

/// Models and their blobs.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    repos: Arc<Repos>,
    audit: Audit,
    blobs: Blobs,
    /// Where models lie while they are proven.
    proofs: PathBuf,
    /// The program whose verb `engine-child` runs a proof.
    prover: PathBuf,
}

impl Registry {
    /// Opens the registry of a data folder, whose changes go to `audit`. Proofs run in children of this very program.
    ///
    /// # Errors
    /// The blob folder can not be made or opened.
    pub fn open(data: &Path, store: Store, repos: Arc<Repos>, audit: Audit) -> Result<Self, RegistryError> {
        let proofs = data.join("proofs");
        std::fs::create_dir_all(&proofs).map_err(RegistryError::file("create", &proofs))?;
        let prover = dunlin_engine::this_program().map_err(RegistryError::file("find this program", data))?;
        Ok(Self { store, repos, audit, blobs: Blobs::open(data)?, proofs, prover })
    }

    /// Lets another program run the proofs, for processes that do not have the verb `engine-child`.
    pub fn with_prover(mut self, exe: PathBuf) -> Self {
        self.prover = exe;
        self
    }

    /// Runs file work on the repositories off the async threads.
    async fn on_repos<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Repos) -> Result<T, RepoError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let repos = Arc::clone(&self.repos);
        Ok(tokio::task::spawn_blocking(move || work(&repos))
            .await
            .expect("the repositories return their errors")?)
    }

    /// The blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }
}

/// What the hidden verb [`ENGINE_CHILD`] does: one examination or proof, under the limits on its standard input.
pub fn engine_child() -> ExitCode {
    dunlin_engine::prove::intake_main()
}
