use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dunlin_protocol::{Blob, Check, DeviceId, RepoVersions, cbor};
use reqwest::header::{CONTENT_RANGE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::aside::{AsideError, aside};
use super::store::Store;
use crate::identity::{Identity, IdentityError};
use crate::tls::{Doubt, doubt};

mod error;
mod medium;

pub use error::FetchError;
pub(crate) use error::chain;

/// Largest manifest or policy; both are some kilobytes of JSON.
pub const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// Largest answer to a check: whole metadata of both repositories at a large catalogue.
const CHECK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest device id that a check names: with it, a check that finds nothing new fits into a kibibyte.
const SENT_ID_CHARS_MAX: usize = 8;
/// Time for TCP and TLS on a poor radio link.
const CONNECT: Duration = Duration::from_secs(20);

/// How fast a server has to be.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Longest silence before and within an answer.
    silence: Duration,
    /// The speed is judged over stretches of this length.
    stretch: Duration,
    /// Least bytes in a stretch.
    bytes_min: u64,
}

/// Half a kilobit a second still moves a small model in a day; less is a stuck link, with which a new connection does
/// better, or a server that wants to hold the device up.
const PACE: Pace =
    Pace { silence: Duration::from_secs(30), stretch: Duration::from_secs(60), bytes_min: 4 * 1024 };

/// Fetches from one controller.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// For checks, over a connection that is kept.
    client: reqwest::Client,
    /// For files: a connection ends with the thread that it was made on.
    files: reqwest::Client,
    base: String,
    pace: Pace,
    /// A medium that files are looked for on first; shared by every copy of this fetcher.
    medium: Arc<Mutex<Option<PathBuf>>>,
}

impl Fetcher {
    /// A fetcher that believes the pinned authority alone and shows the device's certificate.
    ///
    /// # Errors
    /// The identity's keys or certificates are not usable for TLS.
    pub fn pinned(identity: &Identity) -> Result<Self, IdentityError> {
        // Both with the same sessions, so that a connection for one more file costs no exchange of certificates.
        let tls = identity.tls()?;
        let builder = || reqwest::Client::builder().tls_backend_preconfigured(tls.clone()).https_only(true);
        let failed = |e: reqwest::Error| IdentityError::Tls(rustls::Error::General(chain(&e)));
        let client = build(builder(), PACE).map_err(failed)?;
        let files = build(builder().pool_max_idle_per_host(0), PACE).map_err(failed)?;
        let base = identity.enrolment.url.trim_end_matches('/').to_owned();
        Ok(Self { client, files, base, pace: PACE, medium: Arc::default() })
    }

    /// A check with the versions this device holds, and what it says of the roles of single tasks
    /// ([`dunlin_trust::held_roles`]).
    ///
    /// # Errors
    /// There is no answer, or none that can be read. Whether it may be believed is not judged here.
    pub async fn check(
        &self,
        device: &DeviceId,
        image: RepoVersions,
        director: RepoVersions,
        roles: &str,
    ) -> Result<Check, FetchError> {
        let url = format!("{}{}", self.base, check_path(device, image, director, roles));
        let mut response = get(&self.client, &url, None).await?;
        success(&url, &response)?;
        let (mut bytes, mut meter) = (Vec::new(), Meter::new(self.pace));
        while let Some(chunk) = next(&url, &mut response, &mut meter).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > CHECK_BYTES_MAX {
                return Err(FetchError::Endless { url });
            }
        }
        cbor::decode(&bytes, CHECK_BYTES_MAX).map_err(|e| FetchError::Answer { url, problem: e.to_string() })
    }

    /// Fetches a manifest or policy by its TUF name into the store. `held` is let go when nothing is written any more.
    ///
    /// # Errors
    /// It did not come, or is not what was signed.
    pub async fn target(
        &self,
        store: &Store,
        name: &str,
        blob: &Blob,
        held: impl Send + 'static,
    ) -> Result<(), FetchError> {
        let url = format!("{}/v1/targets/{}.{name}", self.base, blob.digest);
        if blob.length > MANIFEST_BYTES_MAX {
            return Err(FetchError::Answer {
                url,
                problem: format!("it is signed to be longer than {MANIFEST_BYTES_MAX} bytes"),
            });
        }
        self.file(store, url, blob, held).await
    }

    /// Fetches a blob into the store, from where it has it. `held` is let go when nothing is written any more.
    ///
    /// # Errors
    /// It did not come, or not all of it, or is not what was signed. What came is resumed the next time.
    pub async fn blob(
        &self,
        store: &Store,
        blob: &Blob,
        held: impl Send + 'static,
    ) -> Result<(), FetchError> {
        let url = format!("{}/v1/blobs/{}", self.base, blob.digest);
        self.file(store, url, blob, held).await
    }

    /// Who gives this up is gone before its thread is, which may be in the middle of a write: what keeps others from writing
    /// the same file is held by the thread.
    async fn file(
        &self,
        store: &Store,
        url: String,
        blob: &Blob,
        held: impl Send + 'static,
    ) -> Result<(), FetchError> {
        let (fetcher, store, blob) = (self.clone(), store.clone(), *blob);
        let transfer = async move {
            let _held = held;
            fetcher.transfer(&store, &url, &blob).await
        };
        match aside(transfer).await {
            Ok(fetched) => fetched,
            Err(AsideError::Thread(error)) => Err(FetchError::Thread(error)),
            Err(AsideError::Panicked) => Err(FetchError::Panicked),
        }
    }

    /// Blocks on the disk.
    async fn transfer(&self, store: &Store, url: &str, blob: &Blob) -> Result<(), FetchError> {
        if store.holds(blob) || self.take_from_medium(store, blob) {
            return Ok(());
        }
        let mut partial = store.resume(blob)?;
        tracing::info!(digest = %blob.digest, from = partial.offset(), length = blob.length, "downloading");
        if partial.offset() < blob.length || blob.length == 0 {
            let from = Some(partial.offset()).filter(|offset| *offset > 0);
            let mut response = get(&self.files, url, from).await?;
            match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let got = response
                        .headers()
                        .get(CONTENT_RANGE)
                        .and_then(|value| value.to_str().ok())
                        .unwrap_or_default();
                    if !is_the_rest(got, partial.offset(), blob.length) {
                        let (from, length) = (partial.offset(), blob.length);
                        let problem = format!("asked from {from} of {length}, answered with {got:?}");
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
            let mut meter = Meter::new(self.pace);
            while let Some(chunk) = next(url, &mut response, &mut meter).await? {
                partial.write(&chunk)?;
            }
        }
        Ok(partial.finish()?)
    }
}

async fn get(client: &reqwest::Client, url: &str, offset: Option<u64>) -> Result<Response, FetchError> {
    let mut request = client.get(url);
    if let Some(offset) = offset {
        request = request.header(RANGE, format!("bytes={offset}-"));
    }
    request.send().await.map_err(|source| broken(url, source))
}

/// What is asked for by a device that holds these versions. A long id is left to its certificate, which names it anyway.
pub fn check_path(device: &DeviceId, image: RepoVersions, director: RepoVersions, roles: &str) -> String {
    let RepoVersions { root, timestamp, snapshot, targets, retrained } = image;
    let image = format!("{root}.{timestamp}.{snapshot}.{targets}.{retrained}");
    let RepoVersions { root, timestamp, snapshot, targets, retrained: _ } = director;
    let held = format!("i={image}&o={root}.{timestamp}.{snapshot}.{targets}&r={roles}");
    if device.as_str().len() <= SENT_ID_CHARS_MAX {
        format!("/v1/check?d={device}&{held}")
    } else {
        format!("/v1/check?{held}")
    }
}

fn build(builder: reqwest::ClientBuilder, pace: Pace) -> reqwest::Result<reqwest::Client> {
    builder
        .connect_timeout(CONNECT)
        .read_timeout(pace.silence)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

/// Watches the speed of one answer.
struct Meter {
    pace: Pace,
    since: Instant,
    bytes: u64,
}

impl Meter {
    fn new(pace: Pace) -> Self {
        Self { pace, since: Instant::now(), bytes: 0 }
    }

    /// Counts what came; whether it was enough in the stretch that ended with it.
    fn fast_enough(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as u64;
        if self.since.elapsed() < self.pace.stretch {
            return true;
        }
        let enough = self.bytes >= self.pace.bytes_min;
        *self = Self::new(self.pace);
        enough
    }
}

async fn next(
    url: &str,
    response: &mut Response,
    meter: &mut Meter,
) -> Result<Option<bytes::Bytes>, FetchError> {
    let chunk = response.chunk().await.map_err(|source| broken(url, source))?;
    match &chunk {
        Some(bytes) if !meter.fast_enough(bytes.len()) => Err(FetchError::Slow { url: url.to_owned() }),
        Some(_) | None => Ok(chunk),
    }
}

/// A server that took the connection and is silent, and one that is not the controller, are told from one that can not be
/// reached.
fn broken(url: &str, source: reqwest::Error) -> FetchError {
    let url = url.to_owned();
    if source.is_timeout() && !source.is_connect() {
        return FetchError::Slow { url };
    }
    match doubt(&source) {
        Some(Doubt::Untrusted) => FetchError::Untrusted { url, source },
        Some(Doubt::Untimely) | None => FetchError::Link { url, source },
    }
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

/// Whether a `Content-Range` (RFC 9110 §14.4) is that of a file of this length from here to its end: nothing else may be
/// put behind what is held.
pub fn is_the_rest(content_range: &str, from: u64, length: u64) -> bool {
    content_range == format!("bytes {from}-{}/{length}", length.saturating_sub(1))
}

/// Seconds of `Retry-After` (RFC 9110 §10.2.3) as milliseconds; its date form is left to the backoff.
pub fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(seconds.saturating_mul(1000))
}

#[cfg(test)]
pub(crate) mod tests;
