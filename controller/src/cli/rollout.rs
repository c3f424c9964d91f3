//! `dunlin rollout`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};

/// Verbs of `dunlin rollout`.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {}

impl RolloutCommand {
    /// Carries the verb out.
    pub async fn run(self, _client: &ApiClient, _out: &Output) -> Result<Exit> {
        match self {}
    }
}
