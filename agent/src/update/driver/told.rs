//! What the driver tells outside, in which words.
use dunlin_protocol::{Indicator, Outcome, Phase, ReasonCode};

use super::{Driver, Notice};
use crate::clock;

/// Notices in memory; the oldest go first if nobody reads them.
const PENDING_MAX: usize = 1024;

/// Reasons of a task's outcome that are told as an indicator as well: somebody assigned, or served, what is not signed for
/// this device. A controller that made a mistake looks the same.
const SUSPICIOUS: [ReasonCode; 19] = [
    ReasonCode::MetadataMismatch,
    ReasonCode::NotApproved,
    ReasonCode::TargetMismatch,
    ReasonCode::BelowReleaseFloor,
    ReasonCode::RetrainedNotAllowed,
    ReasonCode::RetrainedOutOfBounds,
    ReasonCode::AnchorScore,
    ReasonCode::LineupConflict,
    ReasonCode::ArchMismatch,
    ReasonCode::ClassMismatch,
    ReasonCode::OpsMissing,
    ReasonCode::RamExceeded,
    ReasonCode::SizeExceeded,
    ReasonCode::AgentTooOld,
    ReasonCode::FileMissing,
    ReasonCode::SlowRetrieval,
    ReasonCode::DigestMismatch,
    ReasonCode::LengthMismatch,
    ReasonCode::ServerUntrusted,
];

impl Driver {
    pub(super) fn indicate(&mut self, reason: ReasonCode, detail: String) {
        tracing::warn!(%reason, detail, "refused or failed");
        self.notice(Notice::Indicator(indicator(reason, detail)));
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        if self.pending.len() >= PENDING_MAX {
            self.pending.pop_front();
        }
        self.pending.push_back(notice);
    }

    /// Tells an outcome, and that it is suspicious if it is.
    pub(super) fn outcome(&mut self, outcome: Outcome) {
        tracing::info!(task = ?outcome.task, release = ?outcome.release, phase = ?outcome.phase, reason = %outcome.reason, detail = outcome.detail, "update");
        if SUSPICIOUS.contains(&outcome.reason) && refused(outcome.phase) {
            // What is of no task is of the agent's own program.
            let of = outcome.task.as_ref().map(ToString::to_string);
            let of = of.or_else(|| outcome.release.as_ref().map(ToString::to_string));
            let of = of.unwrap_or_default();
            self.indicate(outcome.reason, format!("{of}: {}", outcome.detail));
        }
        self.notice(Notice::Outcome(outcome));
    }

    /// Tells what is installed, if that changed.
    pub(super) fn announce(&mut self) {
        let installed = (self.updater.installed(), self.updater.generation());
        if self.announced.as_ref() != Some(&installed) {
            self.notice(Notice::Installed(installed.0.clone(), installed.1));
            self.announced = Some(installed);
        }
    }
}

/// Whether something is not taken, as opposed to left again: a release that signers withdraw is left in all honesty.
fn refused(phase: Phase) -> bool {
    match phase {
        Phase::Rejected | Phase::Failed | Phase::Deferred => true,
        Phase::Assigned
        | Phase::Fetching
        | Phase::Verifying
        | Phase::Staged
        | Phase::Proving
        | Phase::Probation
        | Phase::Committed
        | Phase::RolledBack
        | Phase::Superseded => false,
    }
}

pub(super) fn indicator(reason: ReasonCode, detail: String) -> Indicator {
    Indicator { reason, detail, count: 1, at_ms: clock::now().wall_ms }
}
