//! Ways in: TCP and the Unix socket, and what hides the difference from what serves a connection.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};

use super::access::Peer;
use crate::serve::Serving;

/// A stream of either kind: one dynamic call a read, instead of a second copy of everything that serves it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream that has answers counted once they are written, which nobody then waits for.
struct Settling<S> {
    stream: S,
    serving: Arc<Serving>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Settling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Settling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.serving.settle();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Who asks from an address. On a listener for both families an IPv4 one comes as one of IPv6.
fn tcp(from: SocketAddr) -> Peer {
    Peer::Tcp { local: from.ip().to_canonical().is_loopback() }
}

/// A listener of either kind.
#[derive(Debug)]
pub enum Door {
    /// An address.
    Tcp(TcpListener),
    /// A file.
    Unix(UnixListener),
}

impl Door {
    /// Opens the Unix socket at `path` for those whom `mode` lets write to it. A socket that a killed agent left is
    /// replaced; any other file stays.
    ///
    /// # Errors
    /// If the path is taken by another kind of file, or its folder can not be written.
    pub fn unix(path: &Path, mode: u32) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "another file is there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Ok(Self::Unix(listener))
    }

    /// The next connection. What was answered over it is counted when the answer is written.
    pub(super) async fn accept(&self, serving: &Arc<Serving>) -> io::Result<(Box<dyn Stream>, Peer)> {
        let serving = Arc::clone(serving);
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                // Small answers must not wait for the acknowledgement of the one before; a failure costs time only.
                let _slower = stream.set_nodelay(true);
                Ok((Box::new(Settling { stream, serving }), tcp(from)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let own = rustix::process::geteuid().as_raw();
                let owner = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
                Ok((Box::new(Settling { stream, serving }), Peer::Unix { owner }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_this_device() {
        for (from, local) in [
            ("127.0.0.1:9", true),
            ("127.8.0.1:9", true),
            ("[::1]:9", true),
            ("[::ffff:127.0.0.1]:9", true),
            ("192.168.0.7:9", false),
            ("[::ffff:10.0.0.1]:9", false),
            ("[fe80::1]:9", false),
            ("0.0.0.0:9", false),
        ] {
            assert_eq!(tcp(from.parse().unwrap()), Peer::Tcp { local }, "{from}");
        }
    }
}
