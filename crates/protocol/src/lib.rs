//! The vocabulary of Dunlin: what devices, controller and tools say to one another.
//!
//! This crate names things and fixes their wire forms. It deliberately does nothing else: no signature is
//! checked here (`dunlin-trust` does), no statistic is computed (`dunlin-monitor` does), and there is no
//! clock, file or socket in it.
//!
//! Invariants:
//! - Messages on MQTT are CBOR maps with short text keys (RFC 8949), never packed, never positional.
//!   Unknown fields are ignored and new fields are optional, so old and new releases understand each other.
//! - What is signed as JSON holds no floats: integers carry their unit in the name (`latency_us_max`).
//! - An id that parsed is safe in a topic level, a file name and a TUF target name.
//!
//! ```
//! use dunlin_protocol::{DeviceId, Topic, Up};
//! let device: DeviceId = "pole-17".parse().unwrap();
//! let topic = Topic::up(&device, Up::Telemetry);
//! assert_eq!(topic.to_string(), "dunlin/v1/d/pole-17/up/telemetry");
//! assert_eq!(Topic::parse("dunlin/v1/d/pole-17/up/telemetry"), Some(topic));
//! ```
#![no_std]

extern crate alloc;

mod assignment;
pub mod auth;
mod bundle;
mod bytes;
pub mod cbor;
mod digest;
mod down;
mod enrol;
mod envelope;
mod ids;
mod lineup;
mod profile;
mod program;
mod reason;
mod tensor;
mod time;
mod topic;
mod tree;
mod up;
pub mod varint;
pub mod weaken;
mod window;

pub use assignment::{Assignment, Probation, TaskAssignment};
pub use bundle::{
    BaselineRule, Blob, Bundle, FeatureMeta, Hard, Lineage, ModelSignature, ReferenceFeature,
    ReferenceProfile, RetrainedBounds, SamplePolicy, TargetCustom, TargetsCustom, TaskPolicy, TaskType,
};
pub use bytes::Bytes;
pub use digest::Digest;
pub use down::{ACK_LIFE_MS, AckBody, AckRange, Check, Cmd, CmdBody, Desired, RepoFiles, RepoVersions};
pub use enrol::{
    ClaimToken, ClaimTokenError, EnrolRequest, EnrolResponse, EnrolWaiting, RenewRequest, RenewResponse,
    Validity,
};
pub use envelope::{Envelope, EnvelopeError, Header, Kind, SIGN_CONTEXT};
pub use ids::{ClassName, DeviceId, GroupId, IdError, ModelName, ReleaseId, TaskId};
pub use lineup::{
    CONTEXT_MAX, Conduct, ContextRule, LineUp, LineUpError, MEMBERS_MAX, Member, Role, Rule, Signal,
};
pub use profile::{Arch, Budgets, DeviceProfile};
pub use program::{PROGRAM_BYTES_MAX, PROGRAM_REACH_S, ProgramAssignment, ProgramCustom};
pub use reason::ReasonCode;
pub use tensor::{DType, GoldenSet, TensorData, TensorSpec};
pub use time::{BootId, Now};
pub use topic::{Down, Topic, Up};
pub use tree::IntoTree;
pub use up::{
    Gap, Indicator, Installed, Outcome, Phase, Reply, Report, Sample, SampleKind, Samples, Status,
    WindowsDigest,
};
pub use window::{Confusion, Counts, PairCounts, ResourceUse, Sketch, Window};

/// Version of the message schemas in this crate; carried by every envelope.
pub const SCHEMA: u32 = 1;
/// Largest MQTT payload either side accepts, in bytes. A telemetry window of 64 features stays under 8 KiB;
/// the rest is room for a `desired` that carries whole metadata files.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
