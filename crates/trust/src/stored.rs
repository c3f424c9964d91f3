use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use dunlin_protocol::Bytes;

/// The files of one repository that a client keeps between runs, byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredFiles {
    /// The trusted root.
    pub root: Bytes,
    /// The trusted timestamp.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Bytes>,
    /// The trusted snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Bytes>,
    /// The trusted top-level targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Bytes>,
    /// Trusted delegated roles by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub delegated: BTreeMap<String, Bytes>,
}
