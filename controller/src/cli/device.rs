//! `dunlin device`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};

/// Verbs of `dunlin device`.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {}

impl DeviceCommand {
    /// Carries the verb out.
    pub async fn run(self, _client: &ApiClient, _out: &Output) -> Result<Exit> {
        match self {}
    }
}
