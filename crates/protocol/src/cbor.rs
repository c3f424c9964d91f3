//! The one way in and out of CBOR (RFC 8949): maps with text keys, and a size check before any decoding.
use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a payload is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum CborError {
    /// The payload is longer than the receiver accepts.
    #[error("payload of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// Bytes received.
        len: usize,
        /// Bytes accepted.
        max: usize,
    },
    /// The bytes are not CBOR of the expected shape.
    #[error("malformed CBOR: {0}")]
    Malformed(#[from] serde_cbor::Error),
}

/// Encodes a message.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_cbor::to_vec(value).expect("messages of this crate hold only types that CBOR can express")
}

/// Decodes a message of at most `max` bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CborError> {
    if bytes.len() > max {
        return Err(CborError::TooLarge { len: bytes.len(), max });
    }
    Ok(serde_cbor::from_slice(bytes)?)
}
