//! `dunlin key delegate`.
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dunlin_protocol::{ModelName, TaskId};
use dunlin_trust::Signer;
use serde_json::json;

use super::super::{Exit, Output};
use super::{Unlock, describe, prefix, put, read};
use crate::clock;
use crate::keys::{self, Delegation, Keyring, RoleChange};

/// `dunlin key delegate`.
#[derive(Debug, Args)]
pub struct Delegate {
    /// The task.
    #[arg(long)]
    task: TaskId,
    /// The targets file that is published now.
    #[arg(long)]
    current: PathBuf,
    /// The file of the task's signers that is published now, if they have one.
    #[arg(long)]
    current_task: Option<PathBuf>,
    /// A model line they may list, besides TASK and TASK.*; may be repeated.
    #[arg(long = "line")]
    lines: Vec<ModelName>,
    /// Folder with `image-targets*.pem`.
    #[arg(long)]
    keys: PathBuf,
    /// Folder of the task's keys, which sign its file.
    #[arg(long)]
    task_keys: PathBuf,
    /// Keys to make there.
    #[arg(long, default_value_t = 0)]
    new: u32,
    /// Leave them unencrypted: for media that are encrypted themselves.
    #[arg(long)]
    plain: bool,
    /// Id of a key of the task that is not to count any more; may be repeated.
    #[arg(long = "revoke", value_name = "ID")]
    revoked: Vec<String>,
    /// How many of the task's keys must sign; 1 at first, then as many as before.
    #[arg(long)]
    threshold: Option<u32>,
    /// What opens keys, and what new ones are put under.
    #[command(flatten)]
    unlock: Unlock,
    /// File to write the next targets to.
    #[arg(long)]
    out: PathBuf,
    /// File to write the next file of the task's signers to.
    #[arg(long)]
    task_out: PathBuf,
}

impl Delegate {
    pub(super) fn run(self, out: &Output) -> Result<Exit> {
        let (targets_prefix, task_prefix) = (prefix(None), prefix(Some(&self.task)));
        let passphrase = self.unlock.of(&self.keys, &targets_prefix)?;
        let owners = Keyring::new(&self.keys, passphrase.as_ref()).signers(&targets_prefix)?;
        let made = if self.new == 0 {
            vec![]
        } else {
            let passphrase = if self.plain { None } else { Some(self.unlock.fresh()?) };
            keys::make_keys(&self.task_keys, &task_prefix, self.new, passphrase.as_ref())?
        };
        let passphrase = self.unlock.of(&self.task_keys, &task_prefix)?;
        let team = Keyring::new(&self.task_keys, passphrase.as_ref()).signers(&task_prefix)?;
        let delegation = Delegation {
            task: self.task,
            lines: self.lines,
            keys: RoleChange {
                add: made.iter().map(|signer| signer.key().clone()).collect(),
                drop: self.revoked,
                threshold: self.threshold,
            },
        };
        let role = self.current_task.as_deref().map(read).transpose()?;
        let owners: Vec<&dyn Signer> = owners.iter().map(|signer| signer as &dyn Signer).collect();
        let team: Vec<&dyn Signer> = team.iter().map(|signer| signer as &dyn Signer).collect();
        let targets = read(&self.current)?;
        let made = keys::delegate(&targets, role.as_deref(), &delegation, &owners, &team, clock::wall_ms())?;
        put(&self.out, &made.targets)?;
        put(&self.task_out, &made.role)?;
        let value = json!({ "targets": describe(&made.targets)?, "task": describe(&made.role)? });
        out.show(&value, |_| {
            format!(
                "signed    {}\nsigned    {}\nonce enough holders signed both (dunlin key cosign), stop the controller and publish them together:\n\
                 dunlin key publish --data DATA --targets {} --task {}={}",
                self.out.display(),
                self.task_out.display(),
                self.out.display(),
                delegation.task,
                self.task_out.display(),
            )
        })?;
        Ok(Exit::Ok)
    }
}
