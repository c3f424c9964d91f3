use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::cbor::{self, CborError};
use crate::{BootId, Bytes, DeviceId, PAYLOAD_BYTES_MAX, SCHEMA};

/// What is signed begins with these bytes, so that a signature made for an envelope fits nothing else.
pub const SIGN_CONTEXT: &[u8] = b"dunlin-envelope-v1\0";

/// What an envelope's body is. Up and down kinds are one list, so that a message can not be replayed in the
/// other direction under another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`crate::Status`]
    Status,
    /// [`crate::Window`]
    Window,
    /// [`crate::Report`]
    Report,
    /// [`crate::Samples`]
    Samples,
    /// [`crate::Gap`]
    Gap,
    /// [`crate::Reply`]
    Reply,
    /// [`crate::Desired`]
    Desired,
    /// [`crate::Cmd`]
    Cmd,
    /// [`crate::AckBody`]
    Ack,
}

/// The signed part of every MQTT payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Schema version, [`SCHEMA`].
    pub v: u32,
    /// What the body is.
    pub kind: Kind,
    /// The device that sends, or that is addressed.
    pub device: DeviceId,
    /// Up: the boot of the sending agent. Down: zero.
    pub boot: BootId,
    /// Up: number of the record within the boot, from 1 (`status`: the session epoch). Down: a counter that
    /// only rises, per device.
    pub seq: u64,
    /// Down: the wall time in Unix milliseconds after which the message is void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// The message, CBOR.
    pub body: Bytes,
}

/// Every MQTT payload but `notice`: signed bytes, the id of the key, the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The [`Header`], encoded; kept and forwarded as it came.
    pub p: Bytes,
    /// Id of the signing key. Up: the lower-case hex SHA-256 of the device's public key (SubjectPublicKeyInfo,
    /// DER). Down: the TUF key id of a key of the director's timestamp role.
    pub k: String,
    /// Up: ECDSA P-256 with SHA-256, fixed form (64 bytes). Down: Ed25519. Over [`SIGN_CONTEXT`] and `p`.
    pub s: Bytes,
}

/// Why a payload is not an envelope of ours.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not CBOR, or not of an envelope's shape, or too large.
    #[error("payload is no envelope")]
    Shape(#[source] CborError),
    /// A schema this build does not know.
    #[error("schema version {0} is unknown; this build speaks {SCHEMA}")]
    Schema(u32),
}

impl Header {
    /// The bytes to put in [`Envelope::p`].
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }
}

impl Envelope {
    /// Decodes a payload, without believing a word of it.
    pub fn decode(payload: &[u8]) -> Result<Self, EnvelopeError> {
        cbor::decode(payload, PAYLOAD_BYTES_MAX).map_err(EnvelopeError::Shape)
    }

    /// The header, if its schema is known. The caller has checked the signature, or does so next.
    pub fn header(&self) -> Result<Header, EnvelopeError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let version: Version = cbor::decode(&self.p.0, PAYLOAD_BYTES_MAX).map_err(EnvelopeError::Shape)?;
        if version.v != SCHEMA {
            return Err(EnvelopeError::Schema(version.v));
        }
        cbor::decode(&self.p.0, PAYLOAD_BYTES_MAX).map_err(EnvelopeError::Shape)
    }

    /// The bytes that are signed for the encoded header `p`.
    pub fn signing_bytes(p: &[u8]) -> Vec<u8> {
        [SIGN_CONTEXT, p].concat()
    }

    /// The payload to publish.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }
}
