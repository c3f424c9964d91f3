//! Bodies of requests, whole and within their bounds.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::EXPECT;
use hyper::{Request, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::refusal::Refusal;
use super::{Api, Limits};

/// How long a client may take to send a body: the largest one at the speed of a slow card reader.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a body that is refused is still read, so that a client that sends all before it listens gets to read why.
const REFUSED_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long that is tried.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);

/// A whole body.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    /// Its part of what all bodies may hold, to be kept until the request is answered.
    pub(super) held: OwnedSemaphorePermit,
}

/// Reads a whole body, if it is not too large.
pub(super) async fn read(request: Request<Incoming>, api: &Api) -> Result<Whole, Refusal> {
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    if body.size_hint().lower() > api.limits.body_bytes_max as u64 {
        if !waits {
            read_off(&mut body).await;
        }
        return Err(too_large(&api.limits));
    }
    match timeout(BODY_TIMEOUT, collect(&mut body, api)).await {
        Ok(Ok(whole)) => Ok(whole),
        Ok(Err(refusal)) => {
            read_off(&mut body).await;
            Err(refusal)
        }
        Err(_) => Err(late()),
    }
}

/// Said to a client whose body took too long.
pub(super) fn late() -> Refusal {
    let error = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
    Refusal::new(StatusCode::REQUEST_TIMEOUT, error)
}

fn too_large(limits: &Limits) -> Refusal {
    let error = format!("the body is over {} bytes", limits.body_bytes_max);
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error)
}

/// Puts the frames of a body together; one alone is not copied.
async fn collect(body: &mut Incoming, api: &Api) -> Result<Whole, Refusal> {
    let mut held = api.room(0)?;
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(0);
    let (mut first, mut all, mut read) = (Bytes::new(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::bad(format!("reading the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        read += data.len();
        if read > api.limits.body_bytes_max {
            return Err(too_large(&api.limits));
        }
        held.merge(api.room(data.len())?);
        if read == data.len() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(announced.max(read));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(Whole { bytes: if all.is_empty() { first } else { all.into() }, held })
}

async fn read_off(body: &mut Incoming) {
    let all = async {
        let mut left = REFUSED_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(after) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { break };
            left = after;
        }
    };
    if timeout(REFUSED_TIMEOUT, all).await.is_err() {
        tracing::debug!("a refused body is still being sent");
    }
}
