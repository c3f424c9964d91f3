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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::identity::{Identity, IdentityError, Presented};
use crate::serve::Shutdown;

/// Connections at once: each costs some tens of KiB, so this many fit a small server. Further ones wait in
/// the kernel's queue.
const CONNECTIONS_MAX: u32 = 4096;
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
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
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
            if let Err(error) = connection(stream, acceptor, router, Arc::new(slot), shutdown).await {
                tracing::debug!(%peer, %error, "a connection ended");
            }
        });
        while connections.try_join_next().is_some() {}
    }
    // All slots are free once every connection and every handler has ended.
    let drained = timeout(DRAIN, slots.acquire_many(CONNECTIONS_MAX)).await;
    if drained.is_err() {
        tracing::info!("requests that did not end in time are cut off");
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    slot: Arc<OwnedSemaphorePermit>,
    mut shutdown: Shutdown,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let presented = certificate.and_then(Presented::of);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(presented) = presented.clone() {
            request.extensions_mut().insert(presented);
        }
        request.extensions_mut().insert(remote_info(remote));
        // A task of its own runs to its end also when the client goes away: a change is never left without what
        // follows from it. It holds the connection's slot, so there are no more of them than connections.
        let (router, slot) = (router.clone(), Arc::clone(&slot));
        tokio::spawn(async move {
            let answer = router.oneshot(Request::from(request.map(axum::body::Body::new))).await;
            drop(slot);
            match answer {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::routing::get;
    use rustls_pki_types::ServerName;
    use rustls_pki_types::pem::PemObject;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::Notify;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::init;

    async fn dial(data: &Path, address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_file(data.join("ca.pem")).unwrap()).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::from(address.ip());
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
    }

    #[tokio::test]
    async fn a_handler_runs_to_its_end_although_the_client_is_gone() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let any = "127.0.0.1:0".parse().ok();
        let options = init::Options { names: Vec::new(), listen: any, mqtt_listen: any };
        init::init(&data, &options).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (ended, mut end) = tokio::sync::mpsc::channel::<()>(1);
        let handler = {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            move || async move {
                let ended = ended;
                begun.notify_one();
                go.notified().await;
                ended.send(()).await.unwrap();
            }
        };
        let (trigger, shutdown) = Shutdown::new();
        let router = Router::new().route("/", get(handler));
        let tls = server_config(&Identity::open(&data).unwrap()).unwrap();
        let server = tokio::spawn(serve(listener, tls, router, shutdown));
        let mut client = dial(&data, address).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        timeout(HANDSHAKE_TIMEOUT, begun.notified()).await.unwrap();
        drop(client);
        // Time for the server to see that; a handler that is dropped then would close the channel.
        tokio::time::sleep(Duration::from_millis(300)).await;
        trigger.pull();
        go.notify_one();
        server.await.unwrap();
        assert_eq!(end.recv().await, Some(()), "a server that ends waits for its handlers too");
    }
}
