//! `dunlin init` and `dunlin serve`.
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{Exit, Output};

/// `dunlin init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Data folder to make.
    #[arg(long)]
    data: PathBuf,
}

impl Init {
    /// Makes the folder.
    pub fn run(self, _out: &Output) -> Result<Exit> {
        drop(self.data);
        Ok(Exit::Ok)
    }
}

/// `dunlin serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Data folder.
    #[arg(long)]
    data: PathBuf,
}

impl Serve {
    /// Runs until a signal.
    pub fn run(self, _json_logs: bool) -> Result<Exit> {
        drop(self.data);
        Ok(Exit::Ok)
    }
}
