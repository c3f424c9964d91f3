//! `dunlin model`.
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use dunlin_engine::Rewrite;
use dunlin_engine::prove::{Examined, ProveError};
use dunlin_learn::data::Table;
use dunlin_learn::job::{Feature, Schema};
use dunlin_protocol::{Blob, ClassName, FeatureMeta, ModelName, ReleaseId, TargetCustom, TaskId, TaskType};
use serde_json::{Value, json};

use super::key::{self, Unlock};
use super::{ApiClient, Exit, Output};
use crate::api::models::{AliasBody, Changed, PushBody, ReleaseView};
use crate::keys::{self, Addition, Request};
use crate::registry::{self, anchor_set};
use crate::store::ReleaseState;

/// Sample rows that are sent along: enough for drift bins, little enough for one request.
const SAMPLES_MAX: usize = 20_000;

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

/// Where the offline keys are.
#[derive(Debug, Args)]
pub struct Signing {
    /// Sign for this task alone, with the keys of its own signers (`dunlin key delegate`).
    #[arg(long)]
    task: Option<TaskId>,
    /// Folder with the `image-targets*.pem` keys of the ceremony, or with the task's keys.
    #[arg(long)]
    keys: PathBuf,
    /// What opens them.
    #[command(flatten)]
    unlock: Unlock,
    /// Write the signed targets to this file instead of publishing them: for further signers
    /// (`dunlin key cosign`), and then `dunlin model publish`.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// `dunlin model anchor`.
#[derive(Debug, Args)]
pub struct AnchorArgs {
    /// Labelled rows, CSV: the model's features in order, and the label column.
    rows: PathBuf,
    /// The label column.
    #[arg(long)]
    label: String,
    /// Class names in the order of the scores, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    labels: Vec<String>,
    /// File to write; its digest and length go into the policy, itself to the controller (`dunlin model blob`).
    #[arg(long)]
    out: PathBuf,
}

/// `dunlin model push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The ONNX file.
    file: PathBuf,
    /// The task it is for.
    #[arg(long)]
    task: TaskId,
    /// The model line.
    #[arg(long)]
    name: ModelName,
    /// Rows of real inputs, CSV with a header of feature names: golden vectors and drift bins are made of them.
    #[arg(long)]
    samples: Option<PathBuf>,
    /// Column of the samples that is no feature; may be given several times.
    #[arg(long = "skip", value_name = "COLUMN")]
    skipped: Vec<String>,
    /// Class names, separated by commas.
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// Validation accuracy, parts per million.
    #[arg(long)]
    accuracy_ppm: Option<u32>,
    /// Rows the accuracy stands on.
    #[arg(long)]
    accuracy_n: Option<u64>,
    /// SPDX licence expression.
    #[arg(long, default_value = "")]
    licence: String,
    /// A hardware class it is for; may be given several times, none means any.
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<ClassName>,
    /// The model answers with numbers rather than classes.
    #[arg(long)]
    regression: bool,
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

/// Features and rows of a CSV file with a header.
fn samples(path: &Path, skipped: &[String]) -> Result<(Vec<FeatureMeta>, Vec<Vec<f32>>)> {
    let mut reader =
        csv::Reader::from_path(path).with_context(|| format!("could not read {}", path.display()))?;
    let header = reader.headers()?.clone();
    if let Some(missing) = skipped.iter().find(|name| !header.iter().any(|column| column == name.as_str())) {
        bail!("{} has no column {missing:?} to skip", path.display());
    }
    let columns: Vec<usize> =
        (0..header.len()).filter(|&i| !skipped.iter().any(|name| name == &header[i])).collect();
    let features =
        columns.iter().map(|&i| FeatureMeta { name: header[i].to_owned(), unit: String::new() }).collect();
    let mut rows = Vec::new();
    for record in reader.records().take(SAMPLES_MAX) {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let value = |&i: &usize| {
            let text = record.get(i).unwrap_or_default().trim();
            text.parse::<f32>().with_context(|| {
                format!("{} line {line}: {text:?} in column {:?} is no number", path.display(), &header[i])
            })
        };
        rows.push(columns.iter().map(value).collect::<Result<Vec<f32>>>()?);
    }
    Ok((features, rows))
}

impl PushArgs {
    async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        let (features, samples) = match &self.samples {
            Some(path) => samples(path, &self.skipped)?,
            None => (vec![], vec![]),
        };
        let accuracy = self.accuracy_ppm.map(|value| ("accuracy_ppm".to_owned(), i64::from(value)));
        let n = self.accuracy_n.map(|n| ("n".to_owned(), i64::try_from(n).unwrap_or(i64::MAX)));
        let body = PushBody {
            task: self.task,
            task_type: if self.regression { TaskType::Regression } else { TaskType::Classification },
            onnx: read(&self.file)?.into(),
            samples,
            golden: None,
            features,
            labels: self.labels,
            metrics: accuracy.into_iter().chain(n).collect::<BTreeMap<_, _>>(),
            licence: self.licence,
            classes: self.classes.into_iter().collect(),
        };
        let path = format!("/v1/models/{}/releases", self.name);
        let view: ReleaseView = client.post(&path, &body).await?;
        out.show(&view, |view| {
            let hard = &view.bundle.hard;
            format!(
                "{} is {}: {} bytes, {} bytes of memory, {} us a row\nnext: dunlin model approve {} --keys DIR",
                view.release, view.state, hard.bundle_bytes, hard.ram_bytes, view.bundle.latency_us, view.release
            )
        })?;
        Ok(Exit::Ok)
    }
}

impl AnchorArgs {
    fn run(self, out: &Output) -> Result<Exit> {
        let bytes = read(&self.rows)?;
        let header = csv::Reader::from_reader(bytes.as_slice()).headers()?.clone();
        let names = header.iter().filter(|column| *column != self.label.as_str());
        let feature =
            |name: &str| Feature { name: name.to_owned(), unit: String::new(), min: None, max: None };
        let schema = Schema {
            features: names.map(feature).collect(),
            label: self.label,
            labels: self.labels,
            time: None,
        };
        let table = Table::parse(&bytes, &schema)?;
        let set = dunlin_protocol::cbor::encode(&anchor_set(&table));
        std::fs::write(&self.out, &set).with_context(|| format!("could not write {}", self.out.display()))?;
        let blob = Blob { digest: dunlin_trust::sha256(&set), length: set.len() as u64 };
        out.show(&blob, |blob| format!("{} rows: {} {}", table.rows(), blob.digest, blob.length))?;
        Ok(Exit::Ok)
    }
}

impl Signing {
    /// Signs the published targets with `request` carried out, and publishes them.
    pub(super) async fn sign(&self, client: &ApiClient, out: &Output, request: &Request) -> Result<Exit> {
        let task = self.task.as_ref();
        let current = client.download(&approvals("/current", task)).await?;
        let signed = key::sign(task, &current, request, &self.keys, &self.unlock)?;
        if let Some(path) = &self.out {
            std::fs::write(path, &signed).with_context(|| format!("could not write {}", path.display()))?;
            out.show(&json!({ "file": path }), |_| format!("signed targets are in {}", path.display()))?;
            return Ok(Exit::Ok);
        }
        publish(client, out, signed, task).await
    }
}

/// Where the targets are, or the file of a task's own signers.
fn approvals(below: &str, task: Option<&TaskId>) -> String {
    let query = task.map(|task| format!("?task={task}")).unwrap_or_default();
    format!("/v1/approvals{below}{query}")
}

/// Tasks that have signers of their own, by what the published targets say.
async fn delegated(client: &ApiClient) -> Result<Vec<TaskId>> {
    let targets = dunlin_trust::write::signed_value(&client.download("/v1/approvals/current").await?)?;
    let roles = targets["delegations"]["roles"].as_array().into_iter().flatten();
    let tasks = roles.filter_map(|role| dunlin_trust::task_of(role["name"].as_str()?)?.parse().ok());
    Ok(tasks.collect())
}

/// Hands signed targets to the controller, which judges them as a device would.
async fn publish(client: &ApiClient, out: &Output, signed: Vec<u8>, task: Option<&TaskId>) -> Result<Exit> {
    let changed: Vec<Changed> = client.upload(&approvals("", task), signed).await?;
    let rows: Vec<Vec<String>> =
        changed.iter().map(|one| vec![one.release.to_string(), one.state.to_string()]).collect();
    out.table(&changed, &["release", "state"], &rows)?;
    Ok(Exit::Ok)
}

async fn approve(
    client: &ApiClient,
    out: &Output,
    releases: &[ReleaseId],
    classes: &[ClassName],
    signing: &Signing,
) -> Result<Exit> {
    let pending: Vec<Addition> = client.get("/v1/approvals/pending").await?;
    let names: Vec<String> = releases.iter().map(ReleaseId::target_name).collect();
    if let Some(missing) =
        names.iter().position(|name| !pending.iter().any(|addition| addition.name == *name))
    {
        bail!("{} does not wait for approval; see `dunlin model pending`", releases[missing]);
    }
    // What waits for others is left to them, unless it is asked for by name.
    let others = if signing.task.is_none() { delegated(client).await? } else { vec![] };
    let is_ours = |addition: &Addition| match &signing.task {
        Some(task) => keys::is_of(task, &addition.name, &addition.custom),
        None => !others.iter().any(|task| keys::is_of(task, &addition.name, &addition.custom)),
    };
    let is_meant = |addition: &Addition| {
        if names.is_empty() { is_ours(addition) } else { names.contains(&addition.name) }
    };
    let mut add: Vec<Addition> = pending.into_iter().filter(is_meant).collect();
    if add.is_empty() {
        out.note("nothing waits for approval");
        return Ok(Exit::Ok);
    }
    // What is signed is what its bytes say, not what the controller says about them.
    for addition in &add {
        check(client, addition).await?;
    }
    add.iter_mut().try_for_each(|addition| narrow(addition, classes))?;
    for addition in &add {
        out.note(&format!("signing {} ({} bytes, {})", addition.name, addition.length, addition.sha256));
    }
    signing.sign(client, out, &Request { add, ..Request::default() }).await
}

/// Approves a release for fewer hardware classes than its manifest names.
fn narrow(addition: &mut Addition, classes: &[ClassName]) -> Result<()> {
    if classes.is_empty() || ReleaseId::from_target_name(&addition.name).is_none() {
        return Ok(());
    }
    let mut custom: TargetCustom = serde_json::from_value(addition.custom.clone())?;
    let manifest = custom.hard.clone();
    custom.hard.classes = classes.iter().cloned().collect();
    if !custom.hard.approves(&manifest) {
        bail!("{} is made for other hardware classes than these", addition.name);
    }
    addition.custom = serde_json::to_value(custom)?;
    Ok(())
}

/// Fetches what a target stands for and compares it with its description.
async fn check(client: &ApiClient, addition: &Addition) -> Result<()> {
    let content = client.download(&format!("/v1/targets/{}.{}", addition.sha256, addition.name)).await?;
    if dunlin_trust::sha256(&content) != addition.sha256 || content.len() as u64 != addition.length {
        bail!("the controller describes {} otherwise than it is; do not sign", addition.name);
    }
    if ReleaseId::from_target_name(&addition.name).is_some() {
        let bundle: dunlin_protocol::Bundle =
            serde_json::from_slice(&content).with_context(|| format!("{} is no manifest", addition.name))?;
        let custom: TargetCustom = serde_json::from_value(addition.custom.clone())?;
        if bundle.release.target_name() != addition.name
            || custom.task != bundle.task
            || custom.hard != bundle.hard
        {
            bail!("the controller's constraints for {} are not its manifest's; do not sign", addition.name);
        }
    }
    Ok(())
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

/// Imports the file in a child process, and loads what comes of it there in the engine that devices have.
fn check_file(file: &Path, out: &Output) -> Result<Exit> {
    let model = file.canonicalize().with_context(|| format!("could not read {}", file.display()))?;
    let program = dunlin_engine::this_program().context("could not find this program")?;
    let folder =
        tempfile::Builder::new().prefix("dunlin-check-").permissions(Permissions::from_mode(0o700)).tempdir();
    let folder = folder.context("could not make a temporary folder")?;
    let examined = registry::examine(&program, folder.path(), model, true);
    folder.close().context("could not remove the temporary folder")?;
    let Examined { inspection, rewritten: changes } = match examined {
        Ok((examined, _)) => examined,
        Err(error) => {
            let reason = error.reason();
            let text = match error {
                ProveError::Failed { detail, .. } => detail,
                error @ (ProveError::Timeout { .. } | ProveError::Crashed { .. }) => error.to_string(),
                error @ ProveError::Start { .. } => return Err(error.into()),
            };
            out.show(&json!({ "refused": reason, "error": text }), |_| {
                format!("refused ({reason}): {text}")
            })?;
            return Ok(Exit::Refused);
        }
    };
    let value = json!({
        "inputs": inspection.inputs,
        "outputs": inspection.outputs,
        "ops": inspection.ops,
        "rewritten": changes,
    });
    out.show(&value, |_| {
        let specs = |specs: &[dunlin_protocol::TensorSpec]| {
            specs
                .iter()
                .map(|spec| format!("{} {} {:?}", spec.name, spec.datatype.as_str(), spec.shape))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let ops: Vec<&str> = inspection.ops.iter().map(String::as_str).collect();
        let rewritten: Vec<String> = changes.iter().map(rewritten).collect();
        format!(
            "inputs:    {}\noutputs:   {}\nops:       {}\nrewritten: {}",
            specs(&inspection.inputs),
            specs(&inspection.outputs),
            ops.join(", "),
            if rewritten.is_empty() { "nothing".to_owned() } else { rewritten.join("\n           ") }
        )
    })?;
    Ok(Exit::Ok)
}

fn rewritten(one: &Rewrite) -> String {
    let more = one.count - one.nodes.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} -> {} ({}{more})", one.what, one.became, one.nodes.join(", "))
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
