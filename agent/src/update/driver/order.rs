//! What the driver is told to do, and what it tells.
use std::collections::BTreeMap;
use std::path::PathBuf;

use dunlin_protocol::{Check, Indicator, Installed, Outcome, ReasonCode, ReleaseId, TaskId};
use tokio::sync::oneshot;

use crate::api::Residency;

/// What the driver is told to do.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "some sixty wait at most, and an order is moved twice in its life"
)]
pub enum Order {
    /// Ask the controller for new metadata.
    Check,
    /// Judge metadata that came some other way.
    Files {
        /// The files.
        files: Check,
        /// Which way they came, for the log.
        via: &'static str,
    },
    /// Take what a medium holds for this device.
    Install {
        /// The folder that `dunlin export` filled.
        folder: PathBuf,
        /// Told what came of judging its metadata.
        reply: oneshot::Sender<ReasonCode>,
    },
    /// Return to the previous release of a task.
    Rollback {
        /// The task.
        task: TaskId,
        /// Told what came of it.
        reply: oneshot::Sender<ReasonCode>,
    },
    /// Put what a task's assignment designates into memory, or take it out.
    Residency {
        /// The task.
        task: TaskId,
        /// Which of the two.
        wanted: Residency,
        /// Told what came of it.
        reply: oneshot::Sender<ReasonCode>,
    },
    /// Forget that a release failed here.
    Retarget {
        /// The release.
        release: ReleaseId,
        /// Told what came of it.
        reply: oneshot::Sender<ReasonCode>,
    },
}

/// What the driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A step of an update.
    Outcome(Outcome),
    /// Something was refused or went wrong.
    Indicator(Indicator),
    /// What every task runs, and the generation of the assignment in force; told at the start and when it changed.
    Installed(BTreeMap<TaskId, Installed>, u64),
    /// This process is to end in order, and to become the installed program again, which starts the one that is to run.
    StartAnew,
}
