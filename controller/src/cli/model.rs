//! `dunlin model`.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use dunlin_protocol::{Blob, ClassName, ModelName, ReleaseId, TaskId};
use serde_json::Value;

use super::signing::{Signing, publish};
use super::{ApiClient, Exit, Output};
use crate::api::models::{AliasBody, ReleaseView};
use crate::keys::{Addition, Request};
use crate::store::ReleaseState;

mod anchor;
mod approve;
mod check;
mod golden;
mod push;

use anchor::AnchorArgs;
use approve::approve;
use check::check_file;
use push::PushArgs;

/// Verbs of `dunlin model`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Take a model in: it is proven and stored as the next release of its line.
    Push(PushArgs),
    /// Say what an ONNX file needs and what the intake rewrites in it, or why it is refused. Needs no controller.
    Check {
        /// The ONNX file.
        file: PathBuf,
    },
    /// List releases.
    List {
        /// Of this task only.
        #[arg(long)]
        task: Option<TaskId>,
        /// Of this line only.
        #[arg(long)]
        name: Option<ModelName>,
    },
    /// Show one release.
    Show {
        /// `name@version` or `name@alias`.
        release: String,
    },
    /// List what waits for offline signatures.
    Pending,
    /// Approve releases: sign the image targets that list them, here, with offline keys.
    #[command(alias = "sign")]
    Approve {
        /// `name@version`; none means everything that waits, policies included.
        releases: Vec<ReleaseId>,
        /// Approve for this hardware class alone; may be given several times. Without it, for what the manifest says.
        #[arg(long = "class", value_name = "CLASS")]
        classes: Vec<ClassName>,
        /// With which keys.
        #[command(flatten)]
        signing: Signing,
    },
    /// Publish targets that were signed with `--out`, once enough holders have signed them.
    Publish {
        /// The signed targets file.
        file: PathBuf,
        /// It is the file of this task's own signers.
        #[arg(long)]
        task: Option<TaskId>,
    },
    /// Withdraw a release and all older ones of its line, for ever: raises the release floor.
    Withdraw {
        /// The newest release to withdraw.
        release: ReleaseId,
        /// With which keys.
        #[command(flatten)]
        signing: Signing,
    },
    /// Point an alias at a release.
    Alias {
        /// The release.
        release: ReleaseId,
        /// The alias, such as `stable`.
        alias: String,
    },
    /// List the aliases of a model line with the releases that they point at.
    Aliases {
        /// The line.
        model: ModelName,
    },
    /// Store a file as a blob and print its digest and length: an anchor set of a policy.
    Blob {
        /// The file.
        file: PathBuf,
    },
    /// Make the anchor set of a policy from labelled rows. Needs no controller.
    Anchor(AnchorArgs),
    /// Task policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Verbs of `dunlin model policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Sign a task policy with offline keys and put it in force.
    Sign {
        /// The policy, a JSON file.
        #[arg(long)]
        file: PathBuf,
        /// With which keys.
        #[command(flatten)]
        signing: Signing,
    },
    /// Show the policy in force.
    Show {
        /// The task.
        task: TaskId,
    },
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

impl ModelCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Push(push) => push.run(client, out).await,
            Self::Check { file } => check_file(&file, out),
            Self::List { task, name } => list(client, out, task, name).await,
            Self::Show { release } => {
                let view: ReleaseView = client.get(&format!("/v1/releases/{release}")).await?;
                out.show(&view, |view| serde_json::to_string_pretty(view).unwrap_or_default())?;
                Ok(Exit::Ok)
            }
            Self::Publish { file, task } => publish(client, out, read(&file)?, task.as_ref()).await,
            Self::Pending => {
                let pending: Vec<Addition> = client.get("/v1/approvals/pending").await?;
                let rows: Vec<Vec<String>> = pending
                    .iter()
                    .map(|one| vec![one.name.clone(), one.length.to_string(), one.sha256.to_string()])
                    .collect();
                out.table(&pending, &["target", "bytes", "sha256"], &rows)?;
                Ok(Exit::Ok)
            }
            Self::Approve { releases, classes, signing } => {
                approve(client, out, &releases, &classes, &signing).await
            }
            Self::Withdraw { release, signing } => {
                let floors = BTreeMap::from([(release.model.clone(), release.version.saturating_add(1))]);
                signing.sign(client, out, &Request { floors, ..Request::default() }).await
            }
            Self::Alias { release, alias } => {
                let path = format!("/v1/models/{}/aliases/{alias}", release.model);
                let answer: Value = client.put(&path, &AliasBody { version: release.version }).await?;
                out.show(&answer, |_| format!("{alias} is {release}"))?;
                Ok(Exit::Ok)
            }
            Self::Aliases { model } => {
                let aliases: BTreeMap<String, u32> =
                    client.get(&format!("/v1/models/{model}/aliases")).await?;
                let row =
                    |(alias, version): (&String, &u32)| vec![alias.clone(), format!("{model}@{version}")];
                let rows: Vec<_> = aliases.iter().map(row).collect();
                out.table(&aliases, &["alias", "release"], &rows)?;
                Ok(Exit::Ok)
            }
            Self::Blob { file } => {
                let blob: Blob = client.upload("/v1/blobs", read(&file)?).await?;
                out.show(&blob, |blob| format!("{} {}", blob.digest, blob.length))?;
                Ok(Exit::Ok)
            }
            Self::Anchor(anchor) => anchor.run(out),
            Self::Policy(PolicyCommand::Sign { file, signing }) => {
                let body = read(&file)?;
                let sha256 = dunlin_trust::sha256(&body);
                let addition: Addition = client.upload("/v1/policies", body).await?;
                if addition.sha256 != sha256 {
                    bail!("the controller describes another policy than {}; do not sign", file.display());
                }
                signing.sign(client, out, &Request { add: vec![addition], ..Request::default() }).await
            }
            Self::Policy(PolicyCommand::Show { task }) => {
                let policy: Value = client.get(&format!("/v1/policies/{task}")).await?;
                out.text(&serde_json::to_string_pretty(&policy)?)?;
                Ok(Exit::Ok)
            }
        }
    }
}

async fn list(
    client: &ApiClient,
    out: &Output,
    task: Option<TaskId>,
    name: Option<ModelName>,
) -> Result<Exit> {
    let task = task.map(|task| format!("task={task}"));
    let name = name.map(|name| format!("model={name}"));
    let query: Vec<String> = task.into_iter().chain(name).collect();
    let views: Vec<ReleaseView> = client.get(&format!("/v1/releases?{}", query.join("&"))).await?;
    let row = |view: &ReleaseView| {
        let accuracy = view
            .bundle
            .metrics
            .get("accuracy_ppm")
            .map_or_else(|| "-".to_owned(), |ppm| format!("{:.1} %", *ppm as f64 / 1e4));
        let state = match view.state {
            ReleaseState::Pending => "pending",
            ReleaseState::Approved => "approved",
            ReleaseState::Withdrawn => "withdrawn",
        };
        let bundle = &view.bundle;
        vec![
            view.release.to_string(),
            bundle.task.to_string(),
            bundle.family.clone(),
            state.to_owned(),
            accuracy,
            bundle.hard.bundle_bytes.to_string(),
            bundle.latency_us.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = views.iter().map(row).collect();
    out.table(&views, &["release", "task", "family", "state", "accuracy", "bytes", "us"], &rows)?;
    Ok(Exit::Ok)
}
