use core::fmt;

use base16ct::lower;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Bytes;

/// The present, as the shell saw it when the event happened. Pure code gets it as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Milliseconds on a clock that never steps back; only differences mean anything.
    pub mono_ms: u64,
    /// Milliseconds since the Unix epoch, if the board knows the time. `None` means that nothing can be
    /// judged fresh: keep running, accept nothing new.
    pub wall_ms: Option<u64>,
}

/// 128 random bits drawn at each start of an agent; record numbers count within one boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub [u8; 16]);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lower::encode_string(&self.0))
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for BootId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for BootId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = if d.is_human_readable() {
            let text = <alloc::string::String>::deserialize(d)?;
            lower::decode_vec(text).map_err(D::Error::custom)?
        } else {
            Bytes::deserialize(d)?.0
        };
        bytes.as_slice().try_into().map(Self).map_err(|_| D::Error::invalid_length(bytes.len(), &"16 bytes"))
    }
}
