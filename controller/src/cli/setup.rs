//! `dunlin init` and `dunlin serve`: the two verbs that own a data folder.
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tracing_subscriber::EnvFilter;

use super::{Exit, Output};
use crate::{init, serve};

/// `dunlin init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Data folder to make.
    #[arg(long)]
    data: PathBuf,
    /// Host name or address that devices and operators dial, besides loopback; may be repeated.
    #[arg(long = "name")]
    names: Vec<String>,
    /// Address of the API.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address of the embedded broker.
    #[arg(long)]
    mqtt_listen: Option<SocketAddr>,
}

impl Init {
    /// Makes the folder and prints the first administrator token, once.
    pub fn run(self, out: &Output) -> Result<Exit> {
        let options = init::Options { names: self.names, listen: self.listen, mqtt_listen: self.mqtt_listen };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let token = runtime.block_on(init::init(&self.data, &options))?;
        let (data, ca) = (self.data.display(), self.data.join("ca.pem"));
        let online = self.data.join("keys").join("online.json");
        let value = serde_json::json!({ "data": self.data, "ca": ca, "online_keys": online, "token": token });
        out.show(&value, |_| {
            format!(
                "made {data}\n\n\
                 administrator token, shown only now:\n  {token}\n\n\
                 next:\n\
                 1. on a machine that is not this one: dunlin key ceremony --online {online} --out KEYS\n\
                 2. here, with the public folder of that: dunlin key import --data {data} --from KEYS/public\n\
                 3. dunlin serve --data {data}\n\
                 4. export DUNLIN_TOKEN=... DUNLIN_CA={ca}",
                online = online.display(),
                ca = ca.display(),
            )
        })?;
        Ok(Exit::Ok)
    }
}

/// `dunlin serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Data folder.
    #[arg(long)]
    data: PathBuf,
    /// What is logged: a level, or directives as in RUST_LOG.
    #[arg(long, env = "DUNLIN_LOG", default_value = "info,mqtt5=warn")]
    log: String,
    /// Start although the clock stands before what this controller signed or noted: it was ahead then, and is right.
    #[arg(long)]
    clock_is_right: bool,
}

impl Serve {
    /// Runs until the process is asked to end; logs go to standard error, as JSON lines with `--json`.
    pub fn run(self, json_logs: bool) -> Result<Exit> {
        let filter =
            EnvFilter::try_new(&self.log).with_context(|| format!("{:?} is no log filter", self.log))?;
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        if json_logs {
            logs.json().init()
        } else {
            logs.init()
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve::serve(&self.data, self.clock_is_right))?;
        Ok(Exit::Ok)
    }
}
