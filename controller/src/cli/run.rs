//! `dunlin run`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};

/// Verbs of `dunlin run`.
#[derive(Debug, Subcommand)]
pub enum RunCommand {}

impl RunCommand {
    /// Carries the verb out.
    pub async fn run(self, _client: &ApiClient, _out: &Output) -> Result<Exit> {
        match self {}
    }
}
