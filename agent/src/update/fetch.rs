use std::time::{Duration, Instant};

use dunlin_protocol::{Blob, Check, DeviceId, ReasonCode, RepoVersions, cbor};
use dunlin_update::Fault;
use reqwest::header::{CONTENT_RANGE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::store::{Store, StoreError};
use crate::identity::{Identity, IdentityError};

/// Largest manifest or policy; both are some kilobytes of JSON.
pub const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// Largest answer to a check: whole metadata of both repositories at a large catalogue.
const CHECK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Time for TCP and TLS on a poor radio link.
const CONNECT: Duration = Duration::from_secs(20);
/// Longest silence within an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// The speed is judged over stretches of this length.
const STRETCH: Duration = Duration::from_secs(60);
/// Least bytes in a stretch: half a kilobit a second still moves a model in a day; less is a stuck link, and a new
/// connection does better.
const STRETCH_BYTES_MIN: u64 = 4 * 1024;

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
    /// The answer is longer than it may be, or not what it should be.
    #[error("fetching {url}: {problem}")]
    Answer {
        /// What was fetched.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The store refused what came.
    #[error("storing what was fetched")]
    Store(#[from] StoreError),
}

impl FetchError {
    /// The same as the update machine sees it.
    pub fn fault(&self) -> Fault {
        let detail = chain(self);
        let passing =
            |reason, retry_after_ms| Fault::Passing { reason, detail: detail.clone(), retry_after_ms };
        let wrong = |reason| Fault::Wrong { reason, detail: detail.clone() };
        match self {
            Self::Link { .. } | Self::Slow { .. } => passing(ReasonCode::FetchFailed, None),
            // What is gone or was never there may still be on its way to this mirror; but not for ever.
            Self::Status { status: 404 | 410, .. } => wrong(ReasonCode::FetchFailed),
            Self::Status { retry_after_ms, .. } => passing(ReasonCode::FetchFailed, *retry_after_ms),
            Self::Answer { .. } => wrong(ReasonCode::FetchFailed),
            Self::Store(error) => match error {
                StoreError::Io { .. } if error.is_full() => passing(ReasonCode::DiskFull, None),
                StoreError::Io { .. } | StoreError::Short { .. } => passing(ReasonCode::FetchFailed, None),
                StoreError::TooLong { .. } => wrong(ReasonCode::LengthMismatch),
                StoreError::Mismatch { .. } => wrong(ReasonCode::DigestMismatch),
            },
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

/// Fetches from one controller.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    base: String,
}

impl Fetcher {
    /// A fetcher that believes the pinned authority alone and shows the device's certificate.
    ///
    /// # Errors
    /// The identity's keys or certificates are not usable for TLS.
    pub fn pinned(identity: &Identity) -> Result<Self, IdentityError> {
        let builder = reqwest::Client::builder().tls_backend_preconfigured(identity.tls()?).https_only(true);
        let client = build(builder).map_err(|e| IdentityError::Tls(rustls::Error::General(chain(&e))))?;
        Ok(Self { client, base: identity.enrolment.url.trim_end_matches('/').to_owned() })
    }

    /// A check with the versions this device holds.
    ///
    /// # Errors
    /// There is no answer, or none that can be read. Whether it may be believed is not judged here.
    pub async fn check(
        &self,
        device: &DeviceId,
        image: RepoVersions,
        director: RepoVersions,
    ) -> Result<Check, FetchError> {
        let RepoVersions { root, timestamp, snapshot, targets, retrained } = image;
        let image = format!("{root}.{timestamp}.{snapshot}.{targets}.{retrained}");
        let RepoVersions { root, timestamp, snapshot, targets, retrained: _ } = director;
        let director = format!("{root}.{timestamp}.{snapshot}.{targets}");
        let path = format!("/v1/check?d={device}&i={image}&o={director}");
        let url = format!("{}{path}", self.base);
        let mut response = self.get(&url, None).await?;
        success(&url, &response)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = next(&url, &mut response).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > CHECK_BYTES_MAX {
                return Err(FetchError::Answer {
                    url,
                    problem: format!("it is longer than {CHECK_BYTES_MAX} bytes"),
                });
            }
        }
        cbor::decode(&bytes, CHECK_BYTES_MAX).map_err(|e| FetchError::Answer { url, problem: e.to_string() })
    }

    /// Fetches a manifest or policy by its TUF name into the store.
    ///
    /// # Errors
    /// It did not come, or is not what was signed.
    pub async fn target(&self, store: &Store, name: &str, blob: &Blob) -> Result<(), FetchError> {
        let url = format!("{}/v1/targets/{}.{name}", self.base, blob.digest);
        if blob.length > MANIFEST_BYTES_MAX {
            return Err(FetchError::Answer {
                url,
                problem: format!("it is signed to be longer than {MANIFEST_BYTES_MAX} bytes"),
            });
        }
        self.stream(store, &url, blob).await
    }

    /// Fetches a blob into the store, from where it has it.
    ///
    /// # Errors
    /// It did not come, or not all of it, or is not what was signed. What came is resumed the next time.
    pub async fn blob(&self, store: &Store, blob: &Blob) -> Result<(), FetchError> {
        let url = format!("{}/v1/blobs/{}", self.base, blob.digest);
        self.stream(store, &url, blob).await
    }

    async fn stream(&self, store: &Store, url: &str, blob: &Blob) -> Result<(), FetchError> {
        if store.holds(blob) {
            return Ok(());
        }
        let mut partial = store.resume(blob)?;
        if partial.offset() < blob.length || blob.length == 0 {
            let mut response = self.get(url, Some(partial.offset()).filter(|offset| *offset > 0)).await?;
            match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let wanted = format!(
                        "bytes {}-{}/{}",
                        partial.offset(),
                        blob.length.saturating_sub(1),
                        blob.length
                    );
                    let got = response
                        .headers()
                        .get(CONTENT_RANGE)
                        .and_then(|value| value.to_str().ok())
                        .unwrap_or_default();
                    if got != wanted {
                        let problem = format!("asked for {wanted}, answered with {got:?}");
                        return Err(FetchError::Answer { url: url.to_owned(), problem });
                    }
                }
                // The server does not know ranges: what it sends begins at zero.
                StatusCode::OK => partial.restart()?,
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    partial.discard()?;
                    return Err(FetchError::Answer {
                        url: url.to_owned(),
                        problem: "it is shorter there than what is here".to_owned(),
                    });
                }
                _ => return Err(status(url, &response)),
            }
            let (mut since, mut bytes) = (Instant::now(), 0);
            while let Some(chunk) = next(url, &mut response).await? {
                partial.write(&chunk)?;
                bytes += chunk.len() as u64;
                if since.elapsed() >= STRETCH {
                    if bytes < STRETCH_BYTES_MIN {
                        return Err(FetchError::Slow { url: url.to_owned() });
                    }
                    (since, bytes) = (Instant::now(), 0);
                }
            }
        }
        Ok(partial.finish()?)
    }

    async fn get(&self, url: &str, offset: Option<u64>) -> Result<Response, FetchError> {
        let mut request = self.client.get(url);
        if let Some(offset) = offset {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        request.send().await.map_err(|source| FetchError::Link { url: url.to_owned(), source })
    }
}

fn build(builder: reqwest::ClientBuilder) -> reqwest::Result<reqwest::Client> {
    builder
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

async fn next(url: &str, response: &mut Response) -> Result<Option<bytes::Bytes>, FetchError> {
    response.chunk().await.map_err(|source| FetchError::Link { url: url.to_owned(), source })
}

fn success(url: &str, response: &Response) -> Result<(), FetchError> {
    if response.status() == StatusCode::OK { Ok(()) } else { Err(status(url, response)) }
}

fn status(url: &str, response: &Response) -> FetchError {
    FetchError::Status {
        url: url.to_owned(),
        status: response.status().as_u16(),
        retry_after_ms: retry_after_ms(response.headers()),
    }
}

/// Seconds of `Retry-After` (RFC 9110 §10.2.3); its date form is left to the backoff.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(seconds.saturating_mul(1000))
}

#[cfg(test)]
pub(crate) mod tests;
