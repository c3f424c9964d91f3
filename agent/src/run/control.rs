//! The control socket: what changes a running agent is asked here, and only its owner and root may.
//!
//! One command a connection, as a line of JSON in the form of [`CmdBody`]; the answer is a line of JSON too.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::{CmdBody, ReasonCode};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::update::Order;

/// Longest command, bytes.
const LINE_BYTES_MAX: u64 = 4096;
/// Longest wait for a client, and for the updater to answer: returning to a release takes no load.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

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
    let answer = match serde_json::from_str::<CmdBody>(&line) {
        Ok(command) => {
            tracing::info!(?command, "command on the control socket");
            json!({ "reason": carry_out(command, orders).await })
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
    if orders.send(order).await.is_err() {
        tracing::error!("the updater has ended");
        return ReasonCode::Unknown;
    }
    if !answered {
        return ReasonCode::Ok;
    }
    match timeout(PATIENCE, answer).await {
        Ok(Ok(reason)) => reason,
        Ok(Err(_)) | Err(_) => ReasonCode::Unknown,
    }
}
