//! What an external broker goes by: its access list, and the list of certificates that count for nothing.
//!
//! Both are written whole at every change and renamed into place; then the broker is told, by the command that the
//! configuration names. The access list ends what a live session may do, the revocation list refuses the next one.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::DeviceId;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock;
use crate::config::ExternalBroker;
use crate::identity::{CONTROLLER, Identity, IdentityError};
use crate::serve::Shutdown;
use crate::store::{DeviceState, Store, StoreError};

/// The access list, in mosquitto's form.
pub const ACL_FILE: &str = "dunlin.acl";
/// The certificate revocation list, PEM.
pub const CRL_FILE: &str = "revoked.pem";
/// Time for the broker's reload command; a signal takes none.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before lists that could not be written or handed over are tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How often the lists are written without a change: certificates that ended leave them.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Kind of the alert while the broker does not have the lists.
const ALERT: &str = "broker_lists";

/// Why the broker does not have the present lists.
#[derive(Debug, thiserror::Error)]
pub enum ListsError {
    /// Who is kept out can not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The revocation list can not be signed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file can not be written.
    #[error("could not write {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The broker could not be told.
    #[error("the broker's reload command {command:?} failed ({how}); run it by hand")]
    Reload {
        /// The command.
        command: Vec<String>,
        /// How it ended.
        how: String,
    },
}

/// The lists of an external broker.
#[derive(Debug)]
pub struct Lists {
    folder: PathBuf,
    reload: Vec<String>,
    store: Store,
    identity: Arc<Identity>,
}

impl Lists {
    /// The lists of the broker at `config`; without a folder of their own they lie under `data`.
    pub fn new(data: &Path, config: &ExternalBroker, store: Store, identity: Arc<Identity>) -> Self {
        let folder = config.lists.clone().unwrap_or_else(|| data.join("broker"));
        Self { folder, reload: config.reload.clone(), store, identity }
    }

    /// Writes both lists and tells the broker.
    ///
    /// # Errors
    /// Either failed; what the broker had is in force still.
    pub async fn publish(&self) -> Result<(), ListsError> {
        let devices = self.store.devices().await?;
        let out: Vec<DeviceId> = devices
            .into_iter()
            .filter(|device| device.state != DeviceState::Active)
            .map(|device| device.id)
            .collect();
        let now_ms = clock::wall_ms();
        let refused = self.store.certificates_refused(now_ms).await?;
        let crl = self.identity.revocation_list(&refused, now_ms)?;
        std::fs::create_dir_all(&self.folder)
            .map_err(|source| ListsError::File { path: self.folder.clone(), source })?;
        self.put(CRL_FILE, &crl)?;
        self.put(ACL_FILE, &access_list(&out))?;
        self.tell().await
    }

    fn put(&self, name: &str, text: &str) -> Result<(), ListsError> {
        let (path, fresh) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
        written.map_err(|source| ListsError::File { path, source })
    }

    async fn tell(&self) -> Result<(), ListsError> {
        let Some((program, arguments)) = self.reload.split_first() else { return Ok(()) };
        let failed = |how: String| ListsError::Reload { command: self.reload.clone(), how };
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status();
        match timeout(RELOAD_TIMEOUT, child).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(status.to_string())),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no end in {RELOAD_TIMEOUT:?}"))),
        }
    }
}

/// The access list in mosquitto's form: every device has its own topics, those kept out have none.
fn access_list(out: &[DeviceId]) -> String {
    let mut text = format!(
        "# Written by the Dunlin controller; replaced at every change.\n\
         pattern write dunlin/v1/d/%u/up/#\npattern read dunlin/v1/d/%u/down/#\npattern read dunlin/v1/all/notice\n\n\
         user {CONTROLLER}\ntopic read dunlin/v1/d/+/up/#\ntopic write dunlin/v1/d/+/down/#\ntopic write dunlin/v1/all/notice\n"
    );
    for device in out {
        writeln!(text, "\nuser {device}\ntopic deny #").expect("a string takes text");
    }
    text
}

/// Keeps the broker's lists up to date: at the start, whenever `changed` rings, and after a failure until it works.
pub(crate) async fn keep(lists: Lists, changed: Arc<Notify>, mut shutdown: Shutdown) {
    loop {
        let pause = match lists.publish().await {
            Ok(()) => {
                if let Err(error) = lists.store.alert_clear(ALERT, "broker", clock::wall_ms()).await {
                    tracing::error!(%error, "an alert can not be cleared");
                }
                AGAIN
            }
            Err(error) => {
                tracing::error!(%error, "the external broker does not have the present lists");
                let facts = serde_json::Value::Null;
                let detail = error.to_string();
                if let Err(error) =
                    lists.store.alert_raise(ALERT, "broker", &detail, &facts, clock::wall_ms()).await
                {
                    tracing::error!(%error, "an alert can not be raised");
                }
                RETRY
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = shutdown.requested() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_kept_out_is_denied_everything_by_name() {
        let text = access_list(&["pole-17".parse().unwrap()]);
        assert!(text.ends_with("user pole-17\ntopic deny #\n"), "{text}");
        assert_eq!(text.matches("deny").count(), 1);
        assert!(!access_list(&[]).contains("deny"));
    }
}
