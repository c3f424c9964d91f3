//! `dunlin task`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};

/// Verbs of `dunlin task`.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {}

impl TaskCommand {
    /// Carries the verb out.
    pub async fn run(self, _client: &ApiClient, _out: &Output) -> Result<Exit> {
        match self {}
    }
}
