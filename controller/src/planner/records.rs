//! What the planner keeps in the database.
use dunlin_protocol::{Assignment, DeviceId, Phase, ReasonCode, ReleaseId, TaskId, Window};
use dunlin_rollout::{Plan, Policy, Report};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::TaskDefinition;
use crate::api::shape;

/// A task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskRow {
    /// What the operator said.
    pub definition: TaskDefinition,
    /// Who owns it.
    pub owner: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// From when on the retraining schedule counts, Unix milliseconds.
    pub schedule_ms: u64,
    /// The last weighing of the triggers.
    #[schema(value_type = Option<shape::TriggerDecision>)]
    pub triggers: Option<dunlin_pipeline::Decision>,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutRow {
    /// Its newest plan.
    #[schema(value_type = shape::Plan)]
    pub plan: Plan,
    /// Its rules.
    #[schema(value_type = shape::RolloutPolicy)]
    pub policy: Policy,
    /// Who made it.
    pub created_by: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Run that made the candidates, if one did.
    pub run: Option<String>,
    /// What the last look found.
    #[schema(value_type = Option<shape::RolloutReport>)]
    pub report: Option<Report>,
}

/// The candidate a device was ordered to take for a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutOrder {
    /// The candidate.
    pub release: ReleaseId,
    /// Generation of the assignment that first named it.
    pub generation: u64,
    /// Unix milliseconds.
    pub since_ms: u64,
}

/// What a device shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignmentRow {
    /// What it is told.
    pub assignment: Assignment,
    /// Whether that is published.
    pub published: bool,
    /// When it was made, Unix milliseconds.
    pub made_ms: u64,
}

/// A step of an update, as a device reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOutcome {
    /// The device.
    pub device: DeviceId,
    /// The release.
    pub release: ReleaseId,
    /// Generation of the assignment.
    pub generation: u64,
    /// Where it stands.
    pub phase: Phase,
    /// Why.
    pub reason: ReasonCode,
    /// When it was stored, Unix milliseconds.
    pub received_ms: u64,
}

/// A window in which a candidate answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairedWindow {
    /// The device.
    pub device: DeviceId,
    /// The candidate.
    pub release: ReleaseId,
    /// The window.
    pub window: Window,
}

/// Why a device runs what it runs for one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// The device.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// The task.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// The release; absent means the constant baseline.
    #[schema(value_type = Option<String>)]
    pub chosen: Option<ReleaseId>,
    /// Rollouts of the task and what each means for the device.
    pub rollouts: Vec<RolloutStance>,
    /// Whether the task's definition holds the device out of rollouts.
    pub held: bool,
    /// Every candidate with its scores or with what excludes it.
    #[schema(value_type = shape::Selection)]
    pub selection: Value,
    /// Who is in the line-up beside champion and fallback, and who was to be and why not: a line for each.
    #[serde(default)]
    pub members: Vec<String>,
    /// Selection and members for people.
    pub text: String,
    /// Unix milliseconds.
    pub made_ms: u64,
}

/// What was decided last, without the numbers that it stood on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// [`Decision::chosen`].
    pub chosen: Option<ReleaseId>,
    /// [`Decision::rollouts`].
    pub rollouts: Vec<RolloutStance>,
    /// [`Decision::members`].
    pub members: Vec<String>,
    /// Unix milliseconds.
    pub made_ms: u64,
}

impl Decided {
    /// Whether a later decision says the same, if perhaps with fresher numbers.
    pub fn is_said_by(&self, decision: &Decision) -> bool {
        self.chosen == decision.chosen
            && self.rollouts == decision.rollouts
            && self.members == decision.members
    }
}

/// What a rollout means for a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutStance {
    /// The rollout.
    pub rollout: String,
    /// Where the rollout stands.
    pub state: String,
    /// `hold`, `open` or `return`.
    pub stance: String,
}
