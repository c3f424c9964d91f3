use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use dunlin_protocol::cbor::{self, CborError};
use dunlin_protocol::{Blob, IntoTree, Outcome, ReasonCode, ReleaseId, TaskId};
use dunlin_trust::CountedBy;
use serde::{Deserialize, Serialize};

use crate::{Designation, ProgramState, Record, Slot, Step};

/// Format of the journal this build writes.
pub const JOURNAL_FORMAT: u32 = 1;
/// Largest journal that is read: some thirty tasks, each with two line-ups and a goal under way, all of them full.
pub const JOURNAL_BYTES_MAX: usize = 1 << 22;
/// Releases remembered as bad; a line of models that fails more often than this needs a person, not a list.
pub const KNOWN_BAD_MAX: usize = 64;
/// Outcomes that wait for the spool; it takes them within the same turn, so this only bounds a broken spool.
pub const OUTBOX_MAX: usize = 256;

/// A release that failed here by its own fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownBad {
    /// The release.
    pub release: ReleaseId,
    /// How it failed.
    pub reason: ReasonCode,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskState {
    pub(crate) policy: Option<Blob>,
    pub(crate) serving: Designation,
    pub(crate) previous: Designation,
    pub(crate) step: Step,
    /// Deaths of the process in a row, each soon after its start, while a committed line-up served.
    #[serde(default)]
    pub(crate) crashes: u32,
}

impl TaskState {
    pub(crate) fn new() -> Self {
        Self {
            policy: None,
            serving: Designation::Baseline,
            previous: Designation::Baseline,
            step: Step::Idle,
            crashes: 0,
        }
    }
}

/// All that outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub(crate) format: u32,
    pub(crate) generation: u64,
    /// The keys that counted it; `None` in journals of agents before this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counted_by: Option<CountedBy>,
    pub(crate) tasks: BTreeMap<TaskId, TaskState>,
    pub(crate) known_bad: VecDeque<KnownBad>,
    pub(crate) outbox: VecDeque<(u64, Outcome)>,
    pub(crate) next_seq: u64,
    /// Where the agent's own program stands; agents before this field run the installed one.
    #[serde(default, skip_serializing_if = "ProgramState::is_new")]
    pub(crate) program: ProgramState,
}

impl Default for Journal {
    /// That of a device that was never assigned anything.
    fn default() -> Self {
        Self {
            format: JOURNAL_FORMAT,
            generation: 0,
            counted_by: None,
            tasks: BTreeMap::new(),
            known_bad: VecDeque::new(),
            outbox: VecDeque::new(),
            next_seq: 1,
            program: ProgramState::default(),
        }
    }
}

/// Why bytes are no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not CBOR of a journal's shape.
    #[error("decoding the update journal")]
    Shape(#[source] CborError),
    /// Written by a newer agent.
    #[error("update journal has format {0}; this agent reads format {JOURNAL_FORMAT}")]
    Format(u32),
}

impl Journal {
    /// The bytes that [`crate::Command::Persist`] carries.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads persisted bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, JournalError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = cbor::decode(bytes, JOURNAL_BYTES_MAX).map_err(JournalError::Shape)?;
        if format != JOURNAL_FORMAT {
            return Err(JournalError::Format(format));
        }
        cbor::decode(bytes, JOURNAL_BYTES_MAX).map_err(JournalError::Shape)
    }

    /// What can be known without a journal: the line-ups of the last generation record. Work under way is
    /// forgotten, and comes back with the next check because the generation counts as not taken up.
    pub fn adopt(record: Record) -> Self {
        let task = |slot: Slot| TaskState {
            policy: slot.policy,
            serving: slot.serving,
            previous: slot.previous,
            step: Step::Idle,
            crashes: 0,
        };
        let tasks = record.tasks.into_iter().map(|(id, slot)| (id, task(slot))).into_tree();
        Self { generation: record.generation.saturating_sub(1), tasks, ..Self::default() }
    }
}
