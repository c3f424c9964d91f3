//! `dunlin token`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};

/// Verbs of `dunlin token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {}

impl TokenCommand {
    /// Carries the verb out.
    pub async fn run(self, _client: &ApiClient, _out: &Output) -> Result<Exit> {
        match self {}
    }
}
