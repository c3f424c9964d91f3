//! `dunlin key`: keys and offline signatures. Works on files, without a controller and without a network.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use dunlin_protocol::TaskId;
use dunlin_trust::metadata::{Kind, Root, Snapshot, Targets, Timestamp};
use dunlin_trust::{RepoKind, Signed, Signer, pin, write};
use serde_json::{Value, json};

use super::{Exit, Output};
use crate::audit::Audit;
use crate::clock;
use crate::identity::Identity;
use crate::init::DATABASE;
use crate::keys::{self, CeremonyOptions, Keyring, OfflineRole, OnlineKeys, OnlineRole, Request};
use crate::repo::{Offline, Repos};
use crate::store::Store;

mod delegate;
mod passphrase;
mod roots;

pub use delegate::Delegate;
pub use passphrase::{Seal, Unlock};
pub use roots::{RenewRoot, Revoke, Rotate};

/// Verbs of `dunlin key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make the offline keys and the first signed files. Run this away from the controller.
    Ceremony(Ceremony),
    /// Take the ceremony's public folder into a data folder.
    Import(Import),
    /// Sign the next targets file: approve, withdraw, raise floors, or only renew.
    Sign(Sign),
    /// Add the signatures of further keys to a signed file.
    Cosign(Cosign),
    /// Make the next root of a repository: renew it, or name other online keys.
    RenewRoot(RenewRoot),
    /// Make the next root with new keys for an offline role, or with another threshold.
    Rotate(Rotate),
    /// Make the next root without some keys of an offline role.
    Revoke(Revoke),
    /// Give a task signers of its own, or change their keys.
    Delegate(Delegate),
    /// Put a key file under a passphrase, or under another one.
    Seal(Seal),
    /// Publish what was signed offline, in the data folder of a controller that is not running.
    Publish(Publish),
    /// Say what a key file or a metadata file holds.
    Show(Show),
}

/// `dunlin key ceremony`.
#[derive(Debug, Args)]
pub struct Ceremony {
    /// `keys/online.json` of the controller's data folder.
    #[arg(long)]
    online: PathBuf,
    /// Folder to make; OUT/private goes to the safe, OUT/public to the controller.
    #[arg(long)]
    out: PathBuf,
    /// Keys made for each offline role.
    #[arg(long, default_value_t = 3)]
    keys: u32,
    /// Of these, how many must sign: approvals, and roots if it is not said otherwise.
    #[arg(long, default_value_t = 2)]
    threshold: u32,
    /// How many must sign a root.
    #[arg(long)]
    root_threshold: Option<u32>,
    /// Leave the keys unencrypted: for media that are encrypted themselves.
    #[arg(long, conflicts_with = "passphrase_file")]
    plain: bool,
    /// What the keys are put under.
    #[command(flatten)]
    unlock: Unlock,
}

/// `dunlin key import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Data folder of the controller.
    #[arg(long)]
    data: PathBuf,
    /// The ceremony's public folder.
    #[arg(long)]
    from: PathBuf,
}

/// `dunlin key sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// The targets file that is published now, or that of the task's role.
    #[arg(long)]
    current: PathBuf,
    /// Sign for this task alone, with the keys of its own signers.
    #[arg(long, conflicts_with = "online")]
    task: Option<TaskId>,
    /// What to change, JSON; without it only the expiry is renewed.
    #[arg(long)]
    request: Option<PathBuf>,
    /// New online keys, `online.json`, of which the key of the retrained role is taken over.
    #[arg(long)]
    online: Option<PathBuf>,
    /// Folder with `image-targets*.pem`, or with the task's keys.
    #[arg(long)]
    keys: PathBuf,
    /// What opens them.
    #[command(flatten)]
    unlock: Unlock,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
}

/// An offline role.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    ImageTargets,
    ImageRoot,
    DirectorRoot,
}

impl From<Role> for OfflineRole {
    fn from(role: Role) -> Self {
        match role {
            Role::ImageTargets => Self::ImageTargets,
            Role::ImageRoot => Self::ImageRoot,
            Role::DirectorRoot => Self::DirectorRoot,
        }
    }
}

/// `dunlin key cosign`.
#[derive(Debug, Args)]
pub struct Cosign {
    /// The signed file; it is replaced.
    #[arg(long)]
    file: PathBuf,
    /// Whose keys sign.
    #[arg(long, required_unless_present = "task", conflicts_with = "task")]
    role: Option<Role>,
    /// The keys of this task's own signers do.
    #[arg(long)]
    task: Option<TaskId>,
    /// Folder with the keys.
    #[arg(long)]
    keys: PathBuf,
    /// What opens them.
    #[command(flatten)]
    unlock: Unlock,
}

/// `dunlin key publish`.
#[derive(Debug, Args)]
pub struct Publish {
    /// Data folder of the controller.
    #[arg(long)]
    data: PathBuf,
    /// The next root of the image repository.
    #[arg(long)]
    image_root: Option<PathBuf>,
    /// The next root of the director repository.
    #[arg(long)]
    director_root: Option<PathBuf>,
    /// The next targets of the image repository.
    #[arg(long)]
    targets: Option<PathBuf>,
    /// The next file of a task's own signers; may be given several times.
    #[arg(long = "task", value_name = "TASK=FILE", value_parser = of_task)]
    tasks: Vec<(TaskId, PathBuf)>,
}

fn of_task(text: &str) -> Result<(TaskId, PathBuf)> {
    let (task, file) = text.split_once('=').context("write it TASK=FILE")?;
    Ok((task.parse()?, file.into()))
}

/// `dunlin key show`.
#[derive(Debug, Args)]
pub struct Show {
    /// A key file or a metadata file.
    file: PathBuf,
    /// What opens a key file.
    #[command(flatten)]
    unlock: Unlock,
}

impl KeyCommand {
    /// Carries the verb out.
    pub fn run(self, out: &Output) -> Result<Exit> {
        match self {
            Self::Ceremony(verb) => verb.run(out),
            Self::Import(verb) => verb.run(out),
            Self::Sign(verb) => verb.run(out),
            Self::Cosign(verb) => verb.run(out),
            Self::RenewRoot(verb) => verb.run(out),
            Self::Rotate(verb) => verb.run(out),
            Self::Revoke(verb) => verb.run(out),
            Self::Delegate(verb) => verb.run(out),
            Self::Seal(verb) => verb.run(out),
            Self::Publish(verb) => verb.run(out),
            Self::Show(verb) => verb.run(out),
        }
    }
}

impl Ceremony {
    fn run(self, out: &Output) -> Result<Exit> {
        let online = OnlineKeys::read(&self.online)?;
        let options = CeremonyOptions {
            threshold: self.threshold,
            root_threshold: self.root_threshold.unwrap_or(self.threshold),
            n: self.keys,
            now_ms: clock::wall_ms(),
        };
        let made = if self.plain {
            keys::ceremony(&self.out, &online, options)?
        } else {
            keys::sealed_ceremony(&self.out, &online, options, &self.unlock.fresh()?)?
        };
        let value = json!({ "image_root": made.image_root, "director_root": made.director_root });
        out.show(&value, |_| {
            format!(
                "pin of the image root:    {}\npin of the director root: {}\n\
                 {out}/private holds the keys that approve models: keep it offline, and keep a copy elsewhere.\n\
                 {out}/public goes to the controller: dunlin key import --data DATA --from {out}/public",
                made.image_root,
                made.director_root,
                out = self.out.display(),
            )
        })?;
        Ok(Exit::Ok)
    }
}

impl Import {
    fn run(self, out: &Output) -> Result<Exit> {
        let repos = Repos::open(&self.data)?;
        repos.import(&self.from, clock::wall_ms())?;
        keys::guard(&self.data)?;
        let value = json!({ "image_root": repos.pin(RepoKind::Image)?, "director_root": repos.pin(RepoKind::Director)? });
        log(&self.data, out, "key.import", Value::Null, value.clone())?;
        out.show(&value, |value| {
            format!("imported; pins: image {}, director {}", value["image_root"], value["director_root"])
        })?;
        Ok(Exit::Ok)
    }
}

impl Sign {
    fn run(self, out: &Output) -> Result<Exit> {
        let current = read(&self.current)?;
        let mut request: Request = match &self.request {
            Some(path) => serde_json::from_slice(&read(path)?)
                .with_context(|| format!("{} is no signing request", path.display()))?,
            None => Request::default(),
        };
        if let Some(path) = &self.online {
            request.retrained_key =
                Some(OnlineKeys::read(path)?.of(OnlineRole::Retrained).declared().clone());
        }
        let signed = sign(self.task.as_ref(), &current, &request, &self.keys, &self.unlock)?;
        put(&self.out, &signed)?;
        out.show(&describe(&signed)?, |_| summary(&request, &self.out))?;
        Ok(Exit::Ok)
    }
}

/// What the key files of the targets' signers begin with, or those of a task's own.
fn prefix(task: Option<&TaskId>) -> String {
    task.map_or_else(|| OfflineRole::ImageTargets.prefix().to_owned(), keys::task_prefix)
}

/// Signs the next targets, or the next file of a task's own signers.
pub fn sign(
    task: Option<&TaskId>,
    current: &[u8],
    request: &Request,
    folder: &Path,
    unlock: &Unlock,
) -> Result<Vec<u8>> {
    let passphrase = unlock.of(folder, &prefix(task))?;
    let keys = Keyring::new(folder, passphrase.as_ref());
    Ok(match task {
        Some(task) => keys::sign_task(task, current, request, keys, clock::wall_ms())?,
        None => keys::sign_targets(current, request, keys, clock::wall_ms())?,
    })
}

/// What the signers put their names to, in words.
fn summary(request: &Request, path: &Path) -> String {
    let added = request.add.iter().map(|entry| format!("approved  {} {}\n", entry.name, entry.sha256));
    let removed = request.remove.iter().map(|name| format!("removed   {name}\n"));
    let floors = request.floors.iter().map(|(model, floor)| format!("floor     {model} {floor}\n"));
    let lines: String = added.chain(removed).chain(floors).collect();
    format!("{lines}signed    {}", path.display())
}

impl Cosign {
    fn run(self, out: &Output) -> Result<Exit> {
        let prefix = match self.role {
            Some(role) => OfflineRole::from(role).prefix().to_owned(),
            None => prefix(self.task.as_ref()),
        };
        let passphrase = self.unlock.of(&self.keys, &prefix)?;
        let keys = Keyring::new(&self.keys, passphrase.as_ref());
        let signed = keys::cosign(&read(&self.file)?, &prefix, keys)?;
        put(&self.file, &signed)?;
        out.show(&describe(&signed)?, |_| format!("signed    {}", self.file.display()))?;
        Ok(Exit::Ok)
    }
}

impl Publish {
    fn run(self, out: &Output) -> Result<Exit> {
        let file = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let offline = Offline {
            image_root: file(&self.image_root)?,
            director_root: file(&self.director_root)?,
            targets: file(&self.targets)?,
            tasks: self
                .tasks
                .iter()
                .map(|(task, path)| Ok((task.clone(), read(path)?)))
                .collect::<Result<_>>()?,
        };
        let before =
            Repos::open(&self.data).and_then(|repos| repos.image()).map(|image| image.versions()).ok();
        Repos::publish_offline(&self.data, &offline, clock::wall_ms())?;
        let versions = Repos::open(&self.data)?.image()?.versions();
        let digest = |file: &Option<Vec<u8>>| file.as_deref().map(pin);
        let tasks: BTreeMap<_, _> = offline.tasks.iter().map(|(task, file)| (task, pin(file))).collect();
        let after = json!({
            "versions": versions,
            "image_root": digest(&offline.image_root),
            "director_root": digest(&offline.director_root),
            "targets": digest(&offline.targets),
            "tasks": tasks,
        });
        log(&self.data, out, "key.publish", json!(before), after)?;
        out.show(&versions, |versions| {
            format!("published; image root {}, targets {}", versions.root, versions.targets)
        })?;
        Ok(Exit::Ok)
    }
}

impl Show {
    fn run(self, out: &Output) -> Result<Exit> {
        let bytes = read(&self.file)?;
        let value = if bytes.starts_with(b"-----BEGIN") {
            let passphrase = self.unlock.of_file(&self.file)?;
            let signer = keys::load(&self.file, passphrase.as_ref())?;
            json!({ "key": signer.key().declared(), "id": signer.key_id() })
        } else {
            describe(&bytes)?
        };
        out.text(&serde_json::to_string_pretty(&value)?)?;
        Ok(Exit::Ok)
    }
}

/// Notes in the audit log what was changed in the data folder of a controller that is not running. The files are in force
/// before: where this is cut in between, the controller's own row at its next start tells which releases and policies they
/// changed.
fn log(data: &Path, out: &Output, what: &str, before: Value, after: Value) -> Result<()> {
    let path = data.join(DATABASE);
    if !path.is_file() {
        out.note("there is no database in the data folder, so nothing goes to an audit log");
        return Ok(());
    }
    let identity = Identity::open(data)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let store = Store::open(&path).await?;
        Audit::open(store.clone(), data, &identity)?.record("dunlin key", what, before, after).await?;
        store.close().await;
        Ok(())
    })
}

/// What a metadata file says about itself; nothing of it is verified.
fn describe(bytes: &[u8]) -> Result<Value> {
    let file: Value =
        serde_json::from_slice(bytes).context("this is neither a key file nor a metadata file")?;
    let signed = write::signed_value(bytes)?;
    let kind = signed["_type"].as_str().unwrap_or_default().to_owned();
    let version = match kind.as_str() {
        Root::TYPE => head::<Root>(bytes)?,
        Targets::TYPE => head::<Targets>(bytes)?,
        Snapshot::TYPE => head::<Snapshot>(bytes)?,
        Timestamp::TYPE => head::<Timestamp>(bytes)?,
        other => bail!("{other:?} is no kind of metadata"),
    };
    let signers =
        file["signatures"].as_array().into_iter().flatten().map(|signature| signature["keyid"].clone());
    Ok(json!({
        "type": kind,
        "version": version,
        "expires": signed["expires"],
        "sha256": pin(bytes),
        "signed_by": signers.collect::<Vec<_>>(),
    }))
}

fn head<T: Kind>(bytes: &[u8]) -> Result<u64> {
    Ok(Signed::<T>::parse(T::TYPE, bytes)?.head().version)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("could not write {}", path.display()))
}
