//! `dunlin train-worker`.
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::Exit;
use crate::config::Training;
use crate::training::{self, WorkerLimits};

/// `dunlin train-worker`: runs one job folder; started by the controller's supervisor.
#[derive(Debug, Args)]
pub struct TrainWorker {
    /// The job folder.
    dir: PathBuf,
    /// Processor time it may take, seconds.
    #[arg(long)]
    cpu_s: Option<u64>,
    /// Address space it may take, bytes.
    #[arg(long)]
    memory_bytes: Option<u64>,
}

impl TrainWorker {
    /// Runs the job to its end. What came of it is in the folder: `result.json`, or `error.json`, which says
    /// whether the data is at fault.
    pub fn run(self) -> Result<Exit> {
        let defaults = Training::default();
        training::limit(WorkerLimits {
            cpu_s: self.cpu_s.unwrap_or(defaults.cpu_s_max),
            memory_bytes: self.memory_bytes.unwrap_or(defaults.memory_bytes_max),
        })
        .context("could not set this worker's limits")?;
        let confined = training::confine(&self.dir)
            .with_context(|| format!("could not confine this worker to {}", self.dir.display()))?;
        // Nobody is left to tell if standard error is closed.
        drop(writeln!(std::io::stderr().lock(), "{}", confined.text()));
        match dunlin_learn::train_worker(&self.dir) {
            Ok(_) => Ok(Exit::Ok),
            Err(error) => Err(error.into()),
        }
    }
}
