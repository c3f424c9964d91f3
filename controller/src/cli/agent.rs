//! `dunlin agent`: programs of the agent itself.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use dunlin_protocol::{Arch, ClassName, GroupId, ModelName, ProgramCustom, ReleaseId};

use super::signing::OfflineKeys;
use super::{ApiClient, Exit, Output};
use crate::api::programs::{OrderBody, ProgramView};
use crate::keys::{Addition, Request};
use crate::registry::arch_of;
use crate::store::ProgramOrder;

/// Verbs of `dunlin agent`.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Take a program in: it is stored as the next release of the line of its triple, and never run here.
    Push(PushArgs),
    /// List programs with where they stand, and which of them devices are to run.
    List,
    /// Approve a program: sign the image targets that list it, here, with offline keys.
    Approve {
        /// `agent.TRIPLE@N`, as `dunlin agent push` names it.
        release: ReleaseId,
        /// Your own build of it, which the controller's has to be byte for byte. Without it, what the controller holds is signed.
        #[arg(long)]
        file: Option<PathBuf>,
        /// With which keys.
        #[command(flatten)]
        keys: OfflineKeys,
    },
    /// Withdraw a program and all older ones of its line, for ever: devices that run one return to their installed program.
    Withdraw {
        /// The newest release to withdraw.
        release: ReleaseId,
        /// With which keys.
        #[command(flatten)]
        keys: OfflineKeys,
    },
    /// Have devices run an approved program. Some take it first; then at most as many try it at a time as have committed to
    /// it, and after a device failed with it none that has not been told yet.
    RollOut {
        /// The release.
        release: ReleaseId,
        /// The devices of this group; without it, all that the program was built for.
        #[arg(long)]
        group: Option<GroupId>,
        /// So many devices before all others: the first by id of those that are online. 0 tells all of them at once.
        #[arg(long, default_value_t = 1)]
        canaries: u32,
        /// Seconds that it has on a device to reach this controller, before it is left again.
        #[arg(long, default_value_t = 600)]
        reach: u64,
    },
}

/// `dunlin agent push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The program, as `cargo xtask cross dist` builds it.
    file: PathBuf,
    /// Target triple that it was built for.
    #[arg(long)]
    triple: String,
    /// Release of the agent that it is, such as 0.4.1: foreign programs are not run here to ask them.
    #[arg(long = "version", value_name = "VERSION")]
    agent: String,
    /// A hardware class it is for; may be given several times, none means any.
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<ClassName>,
}

impl PushArgs {
    async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        let content =
            std::fs::read(&self.file).with_context(|| format!("could not read {}", self.file.display()))?;
        let classes: Vec<&str> = self.classes.iter().map(ClassName::as_str).collect();
        let (triple, agent, classes) = (escaped(&self.triple), escaped(&self.agent), classes.join(","));
        let path = format!("/v1/programs?triple={triple}&agent={agent}&classes={classes}");
        let target: Addition = client.upload(&path, content).await?;
        let release = ReleaseId::from_program_name(&target.name).context("the answer names no program")?;
        out.show(&target, |target| {
            format!(
                "{release} is pending: {} bytes, {}\nnext: dunlin agent approve {release} --keys DIR",
                target.length, target.sha256
            )
        })?;
        Ok(Exit::Ok)
    }
}

/// A value of a query (RFC 3986 §3.4).
fn escaped(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~,".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(escape).collect()
}

async fn find(client: &ApiClient, release: &ReleaseId) -> Result<ProgramView> {
    let programs: Vec<ProgramView> = client.get("/v1/programs").await?;
    let found = programs.into_iter().find(|view| view.program.release == *release);
    found.with_context(|| format!("there is no program {release}; see `dunlin agent list`"))
}

/// What is signed is what the bytes are, not what the controller says about them.
async fn check(
    client: &ApiClient,
    release: &ReleaseId,
    target: &Addition,
    own: Option<&Path>,
) -> Result<ProgramCustom> {
    let content = client.download(&format!("/v1/targets/{}.{}", target.sha256, target.name)).await?;
    let custom: ProgramCustom = serde_json::from_value(target.custom.clone())?;
    if target.name != release.program_name()
        || dunlin_trust::sha256(&content) != target.sha256
        || content.len() as u64 != target.length
        || arch_of(&content) != Some(custom.arch)
        || Arch::of_triple(&custom.triple) != Some(custom.arch)
        || ModelName::program(&custom.triple).as_ref() != Ok(&release.model)
    {
        bail!("the controller describes {release} otherwise than it is; do not sign");
    }
    if let Some(own) = own {
        let build = std::fs::read(own).with_context(|| format!("could not read {}", own.display()))?;
        if build != content {
            bail!("{} is not what the controller holds as {release}; do not sign", own.display());
        }
    }
    Ok(custom)
}

impl AgentCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Push(push) => push.run(client, out).await,
            Self::List => {
                let programs: Vec<ProgramView> = client.get("/v1/programs").await?;
                let group = |order: &ProgramOrder| {
                    order.group.as_ref().map_or_else(|| "all".to_owned(), ToString::to_string)
                };
                let row = |view: &ProgramView| {
                    let groups: Vec<String> = view.orders.iter().map(group).collect();
                    let program = &view.program;
                    vec![
                        program.release.to_string(),
                        program.custom.agent.clone(),
                        view.state.to_string(),
                        program.blob.length.to_string(),
                        groups.join(" "),
                    ]
                };
                let rows: Vec<_> = programs.iter().map(row).collect();
                out.table(&programs, &["release", "agent", "state", "bytes", "for"], &rows)?;
                Ok(Exit::Ok)
            }
            Self::Approve { release, file, keys } => {
                let target = find(client, &release).await?.target;
                let custom = check(client, &release, &target, file.as_deref()).await?;
                let classes: Vec<&str> = custom.classes.iter().map(ClassName::as_str).collect();
                let classes = if classes.is_empty() { "any".to_owned() } else { classes.join(", ") };
                out.note(&format!(
                    "signing {} ({} bytes, {}): agent {}, for hardware classes: {classes}",
                    target.name, target.length, target.sha256, custom.agent
                ));
                keys.sign(client, out, &Request { add: vec![target], ..Request::default() }).await
            }
            Self::Withdraw { release, keys } => {
                // A floor can not be taken back: not for what is no program, or not here.
                find(client, &release).await?;
                let floors = BTreeMap::from([(release.model.clone(), release.version.saturating_add(1))]);
                keys.sign(client, out, &Request { floors, ..Request::default() }).await
            }
            Self::RollOut { release, group, canaries, reach } => {
                let body = OrderBody { group, canaries, reach_s: reach };
                let order: ProgramOrder =
                    client.post(&format!("/v1/programs/{release}/orders"), &body).await?;
                out.show(&order, |order| {
                    let group = order.group.as_ref().map_or("every device", GroupId::as_str);
                    format!("{} is ordered for {group}, {} first", order.release, order.canaries)
                })?;
                Ok(Exit::Ok)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn programs_are_signed_for_the_owner_alone_and_not_for_a_task() {
        for verb in ["approve", "withdraw"] {
            let line = ["dunlin", "agent", verb, "agent.x86-64-unknown-linux-musl@1", "--keys", "keys"];
            assert!(Cli::try_parse_from(line).is_ok(), "{verb}");
            assert!(Cli::try_parse_from(line.into_iter().chain(["--task", "meter"])).is_err(), "{verb}");
        }
    }

    #[test]
    fn what_is_put_into_a_query_is_escaped() {
        assert_eq!(escaped("0.4.1-rc+1 &x"), "0.4.1-rc%2B1%20%26x");
    }
}
