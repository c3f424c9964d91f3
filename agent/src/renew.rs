//! Renewal of the device's certificate, for as long as the agent runs.
//!
//! The device asks with the certificate it has and a new request signed by the same key. If the server does not take
//! that certificate any more, it asks without one: the request itself proves that it holds the key. When the time is
//! not known, the controller is asked once a day; it answers with the present certificate while that is young.

use std::path::PathBuf;
use std::time::Duration;

use dunlin_protocol::{RenewRequest, RenewResponse, Validity};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock;
use crate::enrol::request_pem;
use crate::exchange::{ExchangeError, post_json};
use crate::identity::{Identity, IdentityError};
use crate::update::chain;

/// Largest answer, bytes: a certificate.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest time for one exchange over a poor link.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest pause between two looks at the clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_secs(24 * 3600);
/// First pause after a renewal that failed; doubled each time.
const RETRY: Duration = Duration::from_secs(1);
/// Longest it becomes.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The server could not be reached, with the certificate or without.
    #[error("could not reach {url}")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server said no.
    #[error("{url} refused to renew the certificate ({status}): {answer}")]
    Refused {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it said, cut.
        answer: String,
    },
    /// The answer is not what the protocol says.
    #[error("{url} gave an answer that is no renewal: {problem}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The request could not be made.
    #[error("could not make the certificate request")]
    Request(#[from] rcgen::Error),
    /// The HTTP client could not be set up.
    #[error("could not set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The certificate is not for this device's key, or could not be kept.
    #[error("could not take the new certificate")]
    Identity(#[from] IdentityError),
}

/// Renews the certificate of `identity`, which lies in `dir`, whenever it is due, until `stop`.
pub(crate) async fn keep_renewed(identity: Identity, dir: PathBuf, mut stop: watch::Receiver<bool>) {
    let (mut valid, spread, mut pause) = (identity.enrolment.valid, spread_ppm(), Duration::ZERO);
    loop {
        let rest = until_due(valid, spread, clock::now().wall_ms).unwrap_or(pause);
        if timeout(rest, stop.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
        let wall_ms = clock::now().wall_ms;
        if until_due(valid, spread, wall_ms).is_some() {
            continue;
        }
        let again = (pause * 2).clamp(RETRY, RETRY_MAX);
        pause = match renew(&identity, &dir).await {
            Ok(now) => {
                let young = Some(now) == valid;
                if !young {
                    tracing::info!(until_ms = now.until_ms, "the certificate is renewed");
                }
                valid = Some(now);
                pause_after(wall_ms, young, again)
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the certificate is not renewed");
                again
            }
        };
    }
}

/// The pause after an answer. Without a clock the controller's word is all there is, and it holds for a day; with one,
/// an answer that the certificate is `young` tells that the two clocks differ.
fn pause_after(wall_ms: Option<u64>, young: bool, again: Duration) -> Duration {
    match wall_ms {
        None => LOOK,
        Some(_) if young => again,
        Some(_) => RETRY,
    }
}

/// The wait until the next look; none if the certificate is due. It is from two thirds of its life on, and this
/// device at a moment of its own after that, so that a fleet that was enrolled in a day does not return in a second.
fn until_due(valid: Option<Validity>, spread_ppm: u64, wall_ms: Option<u64>) -> Option<Duration> {
    let (valid, wall_ms) = (valid?, wall_ms?);
    let life_ms = valid.until_ms.saturating_sub(valid.from_ms);
    let share_ppm = 666_667 + spread_ppm / 12;
    let after_ms = u128::from(life_ms) * u128::from(share_ppm) / 1_000_000;
    let due_ms = valid.from_ms.saturating_add(u64::try_from(after_ms).unwrap_or(u64::MAX));
    let rest = Duration::from_millis(due_ms.checked_sub(wall_ms).filter(|rest| *rest > 0)?);
    Some(rest.min(LOOK))
}

/// A share between nothing and the whole, parts per million.
fn spread_ppm() -> u64 {
    let mut bytes = [0; 2];
    SystemRandom::new().fill(&mut bytes).expect("the operating system has randomness after boot");
    u64::from(u16::from_be_bytes(bytes)) * 1_000_000 / 65_536
}

async fn renew(identity: &Identity, dir: &std::path::Path) -> Result<Validity, RenewError> {
    let url = format!("{}/v1/renew", identity.enrolment.url.trim_end_matches('/'));
    let device = identity.device().clone();
    let csr_pem = request_pem(identity.key_pkcs8(), Some(&device))?;
    let body = serde_json::to_vec(&RenewRequest { device, csr_pem }).expect("a request holds only text");
    let mut last = None;
    for tls in [identity.tls()?, identity.tls_nameless()?] {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(RenewError::Client)?;
        let answer = match post_json(&client, &url, body.clone(), ANSWER_BYTES_MAX).await {
            Ok(answer) => answer,
            Err(ExchangeError::TooLong) => {
                let problem = format!("it is longer than {ANSWER_BYTES_MAX} bytes");
                return Err(RenewError::Answer { url, problem });
            }
            Err(ExchangeError::Link(source)) => {
                last = Some(RenewError::Unreachable { url: url.clone(), source });
                continue;
            }
        };
        if answer.status != 200 {
            return Err(RenewError::Refused { url, status: answer.status, answer: answer.text() });
        }
        let renewed: RenewResponse = serde_json::from_slice(&answer.body)
            .map_err(|error| RenewError::Answer { url: url.clone(), problem: error.to_string() })?;
        identity.renewed(dir, &renewed.certificate_pem, renewed.valid)?;
        return Ok(renewed.valid);
    }
    Err(last.expect("both ways were tried and neither answered"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    #[test]
    fn a_certificate_is_due_in_its_last_third_and_at_once_when_it_is_not_known_when() {
        let valid = Some(Validity { from_ms: 10 * DAY_MS, until_ms: 100 * DAY_MS });
        for spread in [0, 500_000, 999_999] {
            assert_eq!(until_due(valid, spread, Some(20 * DAY_MS)), Some(LOOK));
            assert!(until_due(valid, spread, Some(70 * DAY_MS - 1)).is_some());
            assert_eq!(until_due(valid, spread, Some(78 * DAY_MS)), None);
            assert_eq!(until_due(valid, spread, Some(200 * DAY_MS)), None);
        }
        assert!(until_due(valid, 999_999, Some(71 * DAY_MS)).is_some(), "devices are spread");
        assert_eq!(until_due(None, 0, Some(20 * DAY_MS)), None);
        assert_eq!(until_due(valid, 0, None), None);
    }
}
