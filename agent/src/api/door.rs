//! Ways in: TCP and the Unix socket, and what hides the difference from what serves a connection.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::access::Peer;

/// A stream of either kind: one dynamic call a read, instead of a second copy of everything that serves it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

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

    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Small answers must not wait for the acknowledgement of the one before; a failure costs time only.
                let _slower = stream.set_nodelay(true);
                Ok((Box::new(stream), Peer::Tcp))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let own = rustix::process::geteuid().as_raw();
                let owner = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
                Ok((Box::new(stream), Peer::Unix { owner }))
            }
        }
    }
}
