//! `dunlin key`: works on files, offline.
use anyhow::Result;
use clap::Subcommand;

use super::{Exit, Output};

/// Verbs of `dunlin key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {}

impl KeyCommand {
    /// Carries the verb out.
    pub fn run(self, _out: &Output) -> Result<Exit> {
        match self {}
    }
}
