use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::{ClassName, DeviceId, GroupId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a device belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its hardware class.
    pub class: ClassName,
    /// Its groups.
    pub groups: BTreeSet<GroupId>,
}

/// The active devices. Windows of devices that are not on it are counted but judge nothing.
pub type Roster = BTreeMap<DeviceId, Place>;

/// What a verdict is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// One device, on its own samples.
    #[schema(value_type = String)]
    Device(DeviceId),
    /// Those devices of a group that have too few samples of their own, together.
    #[schema(value_type = String)]
    Group(GroupId),
    /// All devices that have too few samples of their own, together.
    Fleet,
}
