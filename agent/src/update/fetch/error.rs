//! Why something could not be fetched, and what follows from it.
use dunlin_protocol::ReasonCode;
use dunlin_update::Fault;

use super::super::store::StoreError;
use super::CHECK_BYTES_MAX;

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("fetching {url}")]
    Link {
        /// What was fetched.
        url: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// Somebody answered in the server's place.
    #[error("fetching {url}: the server does not prove to be the controller")]
    Untrusted {
        /// What was fetched.
        url: String,
        /// How it shows.
        source: reqwest::Error,
    },
    /// The server was silent or slow.
    #[error("fetching {url}: the server is too slow")]
    Slow {
        /// What was fetched.
        url: String,
    },
    /// The server answered with a status that is no success.
    #[error("fetching {url}: status {status}")]
    Status {
        /// What was fetched.
        url: String,
        /// The status.
        status: u16,
        /// The wait it asked for, milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// The answer to a check does not end where any metadata does.
    #[error("fetching {url}: the answer is longer than {CHECK_BYTES_MAX} bytes")]
    Endless {
        /// What was fetched.
        url: String,
    },
    /// The answer is not what it should be.
    #[error("fetching {url}: {problem}")]
    Answer {
        /// What was fetched.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// No thread for it.
    #[error("starting a transfer")]
    Thread(#[source] std::io::Error),
    /// The transfer panicked; the log says where.
    #[error("the transfer panicked")]
    Panicked,
    /// The store refused what came.
    #[error("storing what was fetched")]
    Store(#[from] StoreError),
}

impl FetchError {
    /// The code that crosses the wire for this error.
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::Untrusted { .. } => ReasonCode::ServerUntrusted,
            Self::Slow { .. } => ReasonCode::SlowRetrieval,
            Self::Endless { .. } => ReasonCode::MetadataTooLarge,
            Self::Status { status: 404 | 410, .. } => ReasonCode::FileMissing,
            Self::Link { .. }
            | Self::Status { .. }
            | Self::Answer { .. }
            | Self::Thread(_)
            | Self::Panicked => ReasonCode::FetchFailed,
            Self::Store(error) => match error {
                StoreError::Io { .. } if error.is_full() => ReasonCode::DiskFull,
                StoreError::Io { .. } | StoreError::Short { .. } => ReasonCode::FetchFailed,
                StoreError::TooLong { .. } => ReasonCode::LengthMismatch,
                StoreError::Mismatch { .. } => ReasonCode::DigestMismatch,
            },
        }
    }

    /// The same as the update machine sees it.
    pub fn fault(&self) -> Fault {
        let (reason, detail) = (self.reason(), chain(self));
        let passes = match self {
            Self::Link { .. } | Self::Untrusted { .. } | Self::Slow { .. } | Self::Thread(_) => true,
            // What is gone or was never there may still be on its way to this mirror; but not for ever.
            Self::Status { status, .. } => !matches!(status, 404 | 410),
            // What panicked once does so again, at the same file.
            Self::Endless { .. } | Self::Answer { .. } | Self::Panicked => false,
            Self::Store(StoreError::Io { .. } | StoreError::Short { .. }) => true,
            Self::Store(StoreError::TooLong { .. } | StoreError::Mismatch { .. }) => false,
        };
        if passes {
            Fault::Passing { reason, detail, retry_after_ms: self.retry_after_ms() }
        } else {
            Fault::Wrong { reason, detail }
        }
    }

    fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Status { retry_after_ms, .. } => *retry_after_ms,
            Self::Link { .. }
            | Self::Untrusted { .. }
            | Self::Slow { .. }
            | Self::Endless { .. }
            | Self::Answer { .. }
            | Self::Thread(_)
            | Self::Panicked
            | Self::Store(_) => None,
        }
    }

    /// Whether a server answered, and not as one does that means well, or is not the controller at all. That it can not
    /// be reached, or says that it is busy, happens every day.
    pub fn is_suspicious(&self) -> bool {
        match self {
            Self::Untrusted { .. } | Self::Slow { .. } | Self::Endless { .. } | Self::Answer { .. } => true,
            Self::Link { .. } | Self::Status { .. } | Self::Thread(_) | Self::Panicked | Self::Store(_) => {
                false
            }
        }
    }
}

/// An error with its causes, for people.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
