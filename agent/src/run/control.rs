//! The control socket: what changes a running agent is asked here, and only its owner and root may.
//!
//! One command a connection, as a line of JSON in the form of [`LocalCommand`]; the answer is a line of JSON too.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{CmdBody, ReasonCode};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::api::Loader;
use crate::update::Order;

/// What may be asked here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum LocalCommand {
    /// Take what a medium holds for this device; only who has the device in hand may.
    Install {
        /// The folder that `dunlin export` filled.
        install: PathBuf,
    },
    /// What the controller may ask as well.
    Remote(CmdBody),
}

/// Longest command, bytes.
const LINE_BYTES_MAX: u64 = 4096;
/// Longest wait for a client, and for the updater to answer: returning to a release takes no load.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// Longest wait for a model to be loaded: large ones take seconds on small boards, and the updater may be at work.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);

/// Binds the socket for the owner alone; one that a killed agent left is replaced.
pub(super) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves one connection after another, for ever.
pub(super) async fn serve(listener: UnixListener, orders: mpsc::Sender<Order>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        match timeout(2 * PATIENCE, answer(stream, &orders)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a control connection ended early"),
            Err(_) => tracing::debug!("a control connection took too long"),
        }
    }
}

async fn answer(stream: UnixStream, orders: &mpsc::Sender<Order>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let answer = match serde_json::from_str::<LocalCommand>(&line) {
        Ok(command) => {
            tracing::info!(?command, "command on the control socket");
            let reason = match command {
                LocalCommand::Install { install: folder } => {
                    let (reply, answer) = oneshot::channel();
                    ask(Order::Install { folder, reply }, Some(answer), orders, PATIENCE).await
                }
                LocalCommand::Remote(command) => carry_out(command, orders).await,
            };
            json!({ "reason": reason })
        }
        Err(error) => json!({ "reason": ReasonCode::Unknown, "detail": error.to_string() }),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await
}

/// Passes a command to the updater and waits for its word. A report is not the updater's business.
pub(super) async fn carry_out(command: CmdBody, orders: &mpsc::Sender<Order>) -> ReasonCode {
    let (reply, answer) = oneshot::channel();
    let (order, answered) = match command {
        CmdBody::Report => return ReasonCode::Ok,
        CmdBody::Check => (Order::Check, false),
        CmdBody::Rollback { task } => (Order::Rollback { task, reply }, true),
        CmdBody::Retarget { release } => (Order::Retarget { release, reply }, true),
    };
    ask(order, Some(answer).filter(|_| answered), orders, PATIENCE).await
}

/// Loads and unloads for the local API, through the updater: it knows what is designated.
pub(super) fn loader(orders: mpsc::Sender<Order>) -> Loader {
    Arc::new(move |task, wanted| {
        let orders = orders.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            ask(Order::Residency { task, wanted, reply }, Some(answer), &orders, LOAD_PATIENCE).await
        }
        .boxed()
    })
}

async fn ask(
    order: Order,
    answer: Option<oneshot::Receiver<ReasonCode>>,
    orders: &mpsc::Sender<Order>,
    patience: Duration,
) -> ReasonCode {
    if orders.send(order).await.is_err() {
        tracing::error!("the updater has ended");
        return ReasonCode::Unknown;
    }
    let Some(answer) = answer else { return ReasonCode::Ok };
    match timeout(patience, answer).await {
        Ok(Ok(reason)) => reason,
        Ok(Err(_)) | Err(_) => ReasonCode::Unknown,
    }
}
