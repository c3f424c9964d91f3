use dunlin_protocol::{ClassName, DeviceId, EnvelopeError, ReasonCode};

/// Why something was not trusted, or could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A metadata file is not of the form the specification gives.
    #[error("{role} metadata is malformed: {what}")]
    Malformed {
        /// The role the file stands for.
        role: String,
        /// What is wrong with it.
        what: &'static str,
        /// What the JSON parser said, if it was the parser that objected.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// A metadata file is over its byte limit.
    #[error("{role} metadata of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// The role the file stands for.
        role: String,
        /// Bytes received.
        len: usize,
        /// Bytes accepted.
        max: usize,
    },
    /// Too few distinct keys signed a metadata file.
    #[error("{role} metadata carries {have} good signatures of keys named by {authority}, of {need} needed")]
    Threshold {
        /// The role the file stands for.
        role: String,
        /// Who names the keys.
        authority: String,
        /// Distinct keys with a good signature.
        have: usize,
        /// Distinct keys needed.
        need: u32,
    },
    /// A metadata file is past its expiry.
    #[error("{role} metadata expired at Unix time {expires_ms} ms; it is {now_ms} ms")]
    Expired {
        /// The role the file stands for.
        role: String,
        /// Its expiry, Unix milliseconds.
        expires_ms: u64,
        /// The time it was judged at, Unix milliseconds.
        now_ms: u64,
    },
    /// A metadata file, or what it names, is older than one already seen.
    #[error("{role} metadata has version {got}, below version {floor} that was already seen")]
    Rollback {
        /// The role the file stands for.
        role: String,
        /// The version it carries.
        got: u64,
        /// The least acceptable version.
        floor: u64,
    },
    /// A metadata file is not what the file above it names.
    #[error("{role} metadata is not what the file above it names: {what}")]
    Mismatch {
        /// The role the file stands for.
        role: String,
        /// What differs.
        what: &'static str,
    },
    /// A file that is needed was not there.
    #[error("{role} metadata is needed but was not given")]
    Missing {
        /// The role the file stands for.
        role: String,
    },
    /// The chain of roots is broken or too long.
    #[error("the chain of roots is broken after version {at}: {what}")]
    RootChain {
        /// The last root that was accepted.
        at: u64,
        /// What is wrong with the next one.
        what: &'static str,
    },
    /// The time is unknown, so nothing new can be judged fresh.
    #[error("the time is unknown, so that nothing new can be judged fresh")]
    ClockUnknown,
    /// An assignment that names another device.
    #[error("the assignment is for device {named}, not for {device}")]
    WrongDevice {
        /// The device that judges.
        device: DeviceId,
        /// The device that is named.
        named: DeviceId,
    },
    /// An assignment that was made for another hardware class.
    #[error("the assignment is for the hardware class {named}, this device is of {class}")]
    WrongClass {
        /// The class of the device that judges.
        class: ClassName,
        /// The class that is named.
        named: ClassName,
    },
    /// An assignment that is not newer than the last, yet another one.
    #[error("the assignment has generation {got}; {floor} was already accepted")]
    Generation {
        /// The generation it carries.
        got: u64,
        /// The last accepted generation.
        floor: u64,
    },
    /// Both copies of the floors record are damaged.
    #[error(
        "no copy of the floors record is whole, so that nothing new is accepted; `dunlin-agent enrol --force` begins anew"
    )]
    FloorsDamaged,
    /// A payload is no envelope.
    #[error("the payload is no envelope")]
    EnvelopeShape(#[from] EnvelopeError),
    /// An envelope of a kind that does not travel in this direction, or without what its kind must carry.
    #[error("the envelope is not acceptable: {0}")]
    EnvelopeForm(&'static str),
    /// An envelope's signature is not of a trusted key.
    #[error("the envelope's signature is not good for key {key:?}")]
    EnvelopeSignature {
        /// The key id it carries, cut to a bounded length.
        key: String,
    },
    /// An envelope was seen before.
    #[error("the envelope has number {got}; {floor} was already seen")]
    EnvelopeReplayed {
        /// The number it carries.
        got: u64,
        /// The last number seen.
        floor: u64,
    },
    /// An envelope is past its expiry.
    #[error("the envelope expired at Unix time {expires_ms} ms; it is {now_ms} ms")]
    EnvelopeExpired {
        /// Its expiry, Unix milliseconds.
        expires_ms: u64,
        /// The time it was judged at, Unix milliseconds.
        now_ms: u64,
    },
    /// An envelope is addressed to another device, or comes from another one.
    #[error("the envelope is for device {named}, not for {device}")]
    EnvelopeWrongDevice {
        /// The device that judges.
        device: DeviceId,
        /// The device that is named.
        named: DeviceId,
    },
    /// A private or public key is not of the form it should have.
    #[error("not a usable key: {0}")]
    Key(&'static str),
    /// A value that is to be signed can not be: it holds a float, or a time outside the calendar.
    #[error("can not sign {role}: {what}")]
    Unsignable {
        /// The role that was to be signed.
        role: String,
        /// What stands in the way.
        what: &'static str,
    },
}

impl TrustError {
    /// The code that crosses the wire for this error.
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::Malformed { .. } | Self::Key(_) | Self::Unsignable { .. } => ReasonCode::MetadataMalformed,
            Self::TooLarge { .. } => ReasonCode::MetadataTooLarge,
            Self::Threshold { .. } => ReasonCode::SignatureThreshold,
            Self::Expired { .. } => ReasonCode::MetadataExpired,
            Self::Rollback { .. } => ReasonCode::MetadataRollback,
            Self::FloorsDamaged => ReasonCode::FloorsDamaged,
            Self::Mismatch { .. } | Self::Missing { .. } => ReasonCode::MetadataMismatch,
            Self::RootChain { .. } => ReasonCode::RootChain,
            Self::ClockUnknown => ReasonCode::ClockUnknown,
            Self::WrongDevice { .. } => ReasonCode::WrongDevice,
            Self::WrongClass { .. } => ReasonCode::ClassMismatch,
            Self::Generation { .. } => ReasonCode::GenerationRollback,
            Self::EnvelopeShape(EnvelopeError::Schema(_)) => ReasonCode::SchemaUnknown,
            Self::EnvelopeShape(EnvelopeError::Shape(_)) | Self::EnvelopeForm(_) => {
                ReasonCode::EnvelopeMalformed
            }
            Self::EnvelopeSignature { .. } => ReasonCode::EnvelopeSignature,
            Self::EnvelopeReplayed { .. } => ReasonCode::EnvelopeReplayed,
            Self::EnvelopeExpired { .. } => ReasonCode::EnvelopeExpired,
            Self::EnvelopeWrongDevice { .. } => ReasonCode::EnvelopeWrongDevice,
        }
    }

    pub(crate) fn malformed(role: &str, what: &'static str) -> Self {
        Self::Malformed { role: role.to_owned(), what, source: None }
    }
}
