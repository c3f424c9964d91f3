//! What the driver works with, and why it can not.
use std::path::PathBuf;
use std::time::Duration;

use super::super::trusted::TrustedError;
use crate::config::Settings;
use crate::identity::IdentityError;

/// Bytes of the file system that downloads leave free: the spool, logs and the system itself write there too.
const RESERVE_BYTES: u64 = 32 * 1024 * 1024;

/// Why the driver can not start.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// State can not be read or written.
    #[error("accessing update state in {dir}")]
    State {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Trust can not be judged.
    #[error("taking up what this device trusts")]
    Trusted(#[from] TrustedError),
    /// The identity is not usable for TLS.
    #[error("setting up downloads")]
    Identity(#[from] IdentityError),
    /// The path of this program is not known.
    #[error("finding this program's own file")]
    Program(#[source] std::io::Error),
}

/// What the driver works with.
#[derive(Debug, Clone)]
pub struct UpdateConfig {
    /// Where journal, generation records and blobs lie.
    pub slots_dir: PathBuf,
    /// What this device is.
    pub profile: dunlin_protocol::DeviceProfile,
    /// The program whose verb [`crate::update::ENGINE_CHILD`] proves models.
    pub exe: PathBuf,
    /// Interval of checks that nobody asked for.
    pub check: Duration,
    /// Pause after a check that got no answer, at first.
    pub retry_min: Duration,
    /// The same at most.
    pub retry_max: Duration,
    /// While this file exists, nothing new is installed.
    pub inhibit_file: Option<PathBuf>,
    /// Bytes of the file system that are left free.
    pub reserve_bytes: u64,
}

impl UpdateConfig {
    /// As the settings say.
    ///
    /// # Errors
    /// The path of this program is not known.
    pub fn of(settings: &Settings) -> Result<Self, UpdateError> {
        Ok(Self {
            slots_dir: settings.state_dir.join("slots"),
            profile: settings.device.clone(),
            exe: dunlin_engine::this_program().map_err(UpdateError::Program)?,
            check: settings.update.check,
            retry_min: settings.update.retry_min,
            retry_max: settings.update.retry_max,
            inhibit_file: settings.update.inhibit_file.clone(),
            reserve_bytes: RESERVE_BYTES,
        })
    }
}
