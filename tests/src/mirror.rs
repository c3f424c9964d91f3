//! A mirror: somebody who answers devices in the controller's place, with the server's key or without.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use dunlin_controller::identity::Identity;
use dunlin_controller::serve::{Shutdown, ShutdownTrigger};
use dunlin_controller::tls;
use dunlin_protocol::{Check, cbor};
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::attacker::find;

/// Bytes of an endless answer that are sent at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Pause between the bytes of a slow answer.
const DRIP: Duration = Duration::from_secs(1);

/// What a request gets.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Metadata, as they may be put together by who can not sign any.
    Check(Box<Check>),
    /// Bytes without end.
    Endless,
    /// One byte a second, without end.
    Drip,
    /// The file is not there.
    Missing,
    /// The file as it lies in the stolen data folder.
    Genuine,
}

struct Stolen {
    data: PathBuf,
    /// By what the request's path and query contain; the first that fits counts.
    answers: Vec<(String, Answer)>,
}

/// Stands where the controller stood until it is dropped.
#[derive(Debug)]
pub struct Mirror {
    trigger: ShutdownTrigger,
    serving: JoinHandle<()>,
}

impl Mirror {
    /// Takes the controller's address, which must be free, with the key in its data folder. `answers` go by what path and
    /// query contain, the first that fits; whatever fits none gets [`Answer::Genuine`].
    pub async fn open(data: &Path, at: SocketAddr, answers: Vec<(String, Answer)>) -> Result<Self> {
        let tls = tls::server_config(&Identity::open(data)?)?;
        let listener = TcpListener::bind(at).await.with_context(|| format!("taking {at}"))?;
        let stolen = Arc::new(Stolen { data: data.into(), answers });
        let router = Router::new().fallback(answer).with_state(stolen);
        let (trigger, shutdown) = Shutdown::new();
        Ok(Self { trigger, serving: tokio::spawn(tls::serve(listener, tls, router, shutdown)) })
    }

    /// Takes the controller's address without its key, under an authority of its own in a folder that is to be made.
    pub async fn impostor(folder: &Path, at: SocketAddr) -> Result<Self> {
        std::fs::create_dir_all(folder.join("tls"))?;
        Identity::create(folder, &[])?;
        Self::open(folder, at, Vec::new()).await
    }

    /// Gives the address back.
    pub async fn close(self) -> Result<()> {
        self.trigger.pull();
        self.serving.await.context("closing a mirror")
    }
}

async fn answer(State(stolen): State<Arc<Stolen>>, request: Request) -> Response {
    let asked = request.uri().to_string();
    let fits = stolen.answers.iter().find(|(part, _)| asked.contains(part.as_str()));
    match fits.map_or(&Answer::Genuine, |(_, answer)| answer) {
        Answer::Check(check) => cbor::encode(check.as_ref()).into_response(),
        Answer::Endless => without_end(CHUNK_BYTES, Duration::ZERO),
        Answer::Drip => without_end(1, DRIP),
        Answer::Missing => StatusCode::NOT_FOUND.into_response(),
        Answer::Genuine => genuine(&stolen.data, request.uri().path()),
    }
}

fn without_end(bytes: usize, pause: Duration) -> Response {
    let body = stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        Some((Ok::<_, std::io::Error>(Bytes::from(vec![0; bytes])), ()))
    });
    Body::from_stream(body).into_response()
}

/// Manifests, policies and blobs, by the last part of their path.
fn genuine(data: &Path, path: &str) -> Response {
    let file = path.rsplit('/').next().filter(|name| name.len() >= 64);
    let found = file.and_then(|name| find(data, name).ok().flatten());
    match found.and_then(|path| std::fs::read(path).ok()) {
        Some(bytes) => bytes.into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// A mirror's answers to the checks of devices, by id.
pub fn checks(answers: BTreeMap<&str, Answer>) -> Vec<(String, Answer)> {
    answers.into_iter().map(|(device, answer)| (format!("/v1/check?d={device}&"), answer)).collect()
}
