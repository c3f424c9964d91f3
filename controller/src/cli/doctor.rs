//! `dunlin doctor`.
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{Exit, Output};

/// `dunlin doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Data folder.
    #[arg(long)]
    data: PathBuf,
}

impl Doctor {
    /// Examines the folder.
    pub fn run(self, _out: &Output) -> Result<Exit> {
        drop(self.data);
        Ok(Exit::Ok)
    }
}
