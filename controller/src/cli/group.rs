//! `dunlin group`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};

/// Verbs of `dunlin group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {}

impl GroupCommand {
    /// Carries the verb out.
    pub async fn run(self, _client: &ApiClient, _out: &Output) -> Result<Exit> {
        match self {}
    }
}
