//! Verbs that make the next root.
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use dunlin_trust::{Ed25519Signer, RepoKind, Signer};
use serde_json::json;

use super::super::{Exit, Output};
use super::{Role, Unlock, describe, put, read};
use crate::clock;
use crate::keys::{self, Keyring, OfflineRole, OnlineKeys, RoleChange};

/// A repository.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Repo {
    Image,
    Director,
}

impl From<Repo> for RepoKind {
    fn from(repo: Repo) -> Self {
        match repo {
            Repo::Image => Self::Image,
            Repo::Director => Self::Director,
        }
    }
}

/// `dunlin key renew-root`.
#[derive(Debug, Args)]
pub struct RenewRoot {
    /// Which repository.
    #[arg(long)]
    repo: Repo,
    /// The newest root.
    #[arg(long)]
    current: PathBuf,
    /// New online keys, `online.json`; without it they stay.
    #[arg(long)]
    online: Option<PathBuf>,
    /// Folder with the root keys.
    #[arg(long)]
    keys: PathBuf,
    /// What opens them.
    #[command(flatten)]
    unlock: Unlock,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
}

impl RenewRoot {
    pub(super) fn run(self, out: &Output) -> Result<Exit> {
        let online = self.online.as_deref().map(OnlineKeys::read).transpose()?;
        let kind = RepoKind::from(self.repo);
        let passphrase = self.unlock.of(&self.keys, root_of(kind).prefix())?;
        let keys = Keyring::new(&self.keys, passphrase.as_ref());
        let current = read(&self.current)?;
        let next = keys::renew_root(kind, &current, online.as_ref(), keys, clock::wall_ms())?;
        written(out, kind, &current, &next, &self.out)
    }
}

/// What rotation and revocation share.
#[derive(Debug, Args)]
struct Change {
    /// Whose keys change.
    #[arg(long)]
    role: Role,
    /// The newest root of the role's repository.
    #[arg(long)]
    current: PathBuf,
    /// Folder with the present root keys, which sign the next root.
    #[arg(long)]
    keys: PathBuf,
    /// What opens them, and what new keys are put under.
    #[command(flatten)]
    unlock: Unlock,
    /// How many of the role's keys must sign from now on; as many as before without it.
    #[arg(long)]
    threshold: Option<u32>,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
}

impl Change {
    /// Signs the next root with the present root keys and `fresh` ones of the root itself.
    fn sign(&self, out: &Output, change: &RoleChange, fresh: &[Ed25519Signer]) -> Result<Exit> {
        let role = OfflineRole::from(self.role);
        let present = root_of(role.repo());
        let passphrase = self.unlock.of(&self.keys, present.prefix())?;
        let signers = Keyring::new(&self.keys, passphrase.as_ref()).signers(present.prefix())?;
        let fresh = if role == present { fresh } else { &[] };
        let signers: Vec<&dyn Signer> =
            signers.iter().chain(fresh).map(|signer| signer as &dyn Signer).collect();
        let current = read(&self.current)?;
        let next = keys::change_role(role, &current, change, &signers, clock::wall_ms())?;
        if role == OfflineRole::ImageTargets {
            out.note("the targets have to be signed by the role's new keys (dunlin key sign), and published together with this root");
        }
        written(out, role.repo(), &current, &next, &self.out)
    }
}

/// `dunlin key rotate`.
#[derive(Debug, Args)]
pub struct Rotate {
    #[command(flatten)]
    change: Change,
    /// Keys to make; none only changes the threshold.
    #[arg(long, default_value_t = 0)]
    new: u32,
    /// Folder for them.
    #[arg(long, required_unless_present = "threshold")]
    new_keys: Option<PathBuf>,
    /// Keep the present keys beside the new ones.
    #[arg(long)]
    keep: bool,
    /// Leave new keys unencrypted: for media that are encrypted themselves.
    #[arg(long)]
    plain: bool,
}

impl Rotate {
    pub(super) fn run(self, out: &Output) -> Result<Exit> {
        let role = OfflineRole::from(self.change.role);
        let made = match (&self.new_keys, self.new) {
            (_, 0) => vec![],
            (None, _) => bail!("--new needs --new-keys, the folder for the keys"),
            (Some(folder), n) => {
                let passphrase = if self.plain { None } else { Some(self.change.unlock.fresh()?) };
                keys::make_keys(folder, role.prefix(), n, passphrase.as_ref())?
            }
        };
        let drop = if self.keep || made.is_empty() {
            vec![]
        } else {
            keys::role_key_ids(role, &read(&self.change.current)?)?
        };
        let add = made.iter().map(|signer| signer.key().clone()).collect();
        let change = RoleChange { add, drop, threshold: self.change.threshold };
        self.change.sign(out, &change, &made)
    }
}

/// `dunlin key revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    #[command(flatten)]
    change: Change,
    /// Id of a key that is lost or stolen, as `dunlin key show` prints it; may be repeated.
    #[arg(long = "key", required = true)]
    ids: Vec<String>,
}

impl Revoke {
    pub(super) fn run(self, out: &Output) -> Result<Exit> {
        let change = RoleChange { add: vec![], drop: self.ids, threshold: self.change.threshold };
        self.change.sign(out, &change, &[])
    }
}

fn root_of(kind: RepoKind) -> OfflineRole {
    match kind {
        RepoKind::Image => OfflineRole::ImageRoot,
        RepoKind::Director => OfflineRole::DirectorRoot,
    }
}

/// Writes the next root and says whether it can be published already.
fn written(out: &Output, kind: RepoKind, current: &[u8], next: &[u8], path: &Path) -> Result<Exit> {
    put(path, next)?;
    let lacks = keys::lacks(kind, current, next)?.map(|error| error.to_string());
    let mut value = describe(next)?;
    value["lacks"] = json!(lacks);
    out.show(&value, |_| {
        let lacks =
            lacks.as_ref().map(|lacks| format!("\nnot yet to be published: {lacks}; see dunlin key cosign"));
        format!("signed    {}{}", path.display(), lacks.unwrap_or_default())
    })?;
    Ok(Exit::Ok)
}
