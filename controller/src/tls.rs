//! The HTTPS listener: TLS with optional client certificates, and the limits a public port needs.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::api::auth::Peer;
use crate::identity::{self, Identity, IdentityError};
use crate::serve::Shutdown;

/// Connections at once: each costs some tens of KiB, so this many fit a small server. Further ones wait in
/// the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// A device on a slow link completes a handshake within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for a request's head, and also how long a connection may idle between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long open requests may run on after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the listener can not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Files of the identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// rustls refuses the certificate or the authority.
    #[error("could not set up TLS for the API")]
    Rustls(#[source] rustls::Error),
    /// The verifier of client certificates can not be built.
    #[error("could not set up the verification of device certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// TLS with the server's chain; client certificates are optional and must come from our authority.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = identity.server_chain()?;
    let mut roots = RootCertStore::empty();
    let authority = chain.last().expect("a chain that was read holds a certificate");
    roots.add(authority.clone()).map_err(TlsError::Rustls)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Rustls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves `router` until shutdown, then lets open requests end.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, mut shutdown: Shutdown) {
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely; accepting again at once would spin.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shutdown.requested() => break,
        };
        let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, acceptor, router, shutdown).await {
                tracing::debug!(%peer, %error, "a connection ended");
            }
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
    let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::info!("requests that did not end in time are cut off");
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    mut shutdown: Shutdown,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer(certificate.and_then(identity::device_of));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(remote_info(remote));
        router.clone().oneshot(Request::from(request.map(axum::body::Body::new)))
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 * 1024);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    result.map_err(io::Error::other)
}

fn remote_info(remote: SocketAddr) -> axum::extract::ConnectInfo<SocketAddr> {
    axum::extract::ConnectInfo(remote)
}
