//! The doors of the local API, as the settings open them.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{RunError, until, write_file};
use crate::api::{Access, Api, Door, Token};
use crate::config::{ApiSettings, Settings};

/// The tokens that the settings name.
pub(super) fn access(settings: &ApiSettings) -> Result<Access, RunError> {
    let read = |file: &Option<PathBuf>| {
        let token = |file: &PathBuf| Token::read(file).map_err(|e| RunError::Token(file.clone(), e));
        file.as_ref().map(token).transpose()
    };
    Ok(Access { token: read(&settings.token_file)?, admin: read(&settings.admin_token_file)? })
}

/// Serves `api` by every door, until the agent stops.
pub(super) async fn open(
    settings: &Settings,
    api: &Api,
    stopped: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let mut doors = Vec::new();
    let (listener, address) = bind(settings.api.listen).await?;
    doors.push(tokio::spawn(api.clone().serve(Door::Tcp(listener), until(stopped.clone()))));
    if let Some(path) = &settings.api.socket {
        let door =
            Door::unix(path, settings.api.socket_mode).map_err(|e| RunError::Socket(path.clone(), e))?;
        doors.push(tokio::spawn(api.clone().serve(door, until(stopped.clone()))));
        tracing::info!(socket = %path.display(), "local API");
    }
    #[cfg(feature = "grpc")]
    if let Some(listen) = settings.api.grpc_listen {
        let (listener, address) = bind(listen).await?;
        doors.push(tokio::spawn(api.clone().serve_grpc(Door::Tcp(listener), until(stopped.clone()))));
        write_file(&settings.grpc_addr_file(), &address.to_string())?;
        tracing::info!(%address, "local API, gRPC");
    }
    // Written last: who finds the address finds every door open.
    write_file(&settings.api_addr_file(), &address.to_string())?;
    tracing::info!(%address, "local API");
    Ok(doors)
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let problem = |e| RunError::Listen(listen, e);
    let listener = TcpListener::bind(listen).await.map_err(problem)?;
    let address = listener.local_addr().map_err(problem)?;
    Ok((listener, address))
}

/// What is left on the disk while the doors are open.
pub(super) fn files(settings: &Settings) -> Vec<PathBuf> {
    let grpc = settings.api.grpc_listen.map(|_| settings.grpc_addr_file());
    [settings.api_addr_file()].into_iter().chain(grpc).chain(settings.api.socket.clone()).collect()
}
