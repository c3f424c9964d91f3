use core::fmt;
use core::str::FromStr;

use alloc::string::String;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! reasons {
    ($(#[doc = $doc:literal] $variant:ident = $text:literal,)*) => {
        /// Why something happened, as it crosses the wire: stable, documented, one word per cause.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ReasonCode {
            $(#[doc = $doc] $variant,)*
            /// A code of a newer release than this one.
            Unknown,
        }

        impl ReasonCode {
            /// Every code this build knows.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Unknown => "unknown",
                }
            }

            /// What the code means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $doc,)*
                    Self::Unknown => " A code of a newer release than this one.",
                }
                .trim_ascii()
            }
        }
    };
}

reasons! {
    /// It went as it should.
    Ok = "ok",
    /// A newer assignment took its place.
    Superseded = "superseded",
    /// Interrupted by a restart and taken up again.
    Resumed = "resumed",
    /// Too few signatures of trusted keys on a metadata file.
    SignatureThreshold = "signature_threshold",
    /// A metadata file is past its expiry.
    MetadataExpired = "metadata_expired",
    /// A metadata file is older than one already seen.
    MetadataRollback = "metadata_rollback",
    /// A metadata file is not what the file above it names.
    MetadataMismatch = "metadata_mismatch",
    /// A metadata file is not of the form the specification gives.
    MetadataMalformed = "metadata_malformed",
    /// A metadata file is over its byte limit.
    MetadataTooLarge = "metadata_too_large",
    /// The chain of roots is broken or too long.
    RootChain = "root_chain",
    /// An assignment that names another device.
    WrongDevice = "wrong_device",
    /// An assignment whose generation is not above the last.
    GenerationRollback = "generation_rollback",
    /// The director names what the image repository does not hold.
    NotApproved = "not_approved",
    /// Director and image repository disagree on length or digest.
    TargetMismatch = "target_mismatch",
    /// The release lies below the release floor of its line.
    BelowReleaseFloor = "below_release_floor",
    /// A retrained model for a task whose signed policy does not allow them.
    RetrainedNotAllowed = "retrained_not_allowed",
    /// A retrained model outside the bounds of its task's signed policy.
    RetrainedOutOfBounds = "retrained_out_of_bounds",
    /// A retrained model that scores too low on the signed anchor set.
    AnchorScore = "anchor_score",
    /// The time is unknown, so nothing new can be judged fresh.
    ClockUnknown = "clock_unknown",
    /// The clock lies before a time that was already verified; that time is taken instead.
    ClockStepped = "clock_stepped",
    /// The record of what was seen is damaged; nothing new is accepted until the device is enrolled anew.
    FloorsDamaged = "floors_damaged",
    /// Assigned models do not go together: they take other inputs, or all need more memory than there is.
    LineupConflict = "lineup_conflict",
    /// The release is not built for this architecture.
    ArchMismatch = "arch_mismatch",
    /// The release is not approved for this hardware class, or the assignment is for another one.
    ClassMismatch = "class_mismatch",
    /// The release needs operators this agent does not run.
    OpsMissing = "ops_missing",
    /// The release needs more memory than the budget.
    RamExceeded = "ram_exceeded",
    /// The bundle is larger than the budget.
    SizeExceeded = "size_exceeded",
    /// The release needs a newer agent.
    AgentTooOld = "agent_too_old",
    /// The server could not be reached or answered with an error.
    FetchFailed = "fetch_failed",
    /// Somebody answered in the server's place, without a certificate of the authority that this device trusts.
    ServerUntrusted = "server_untrusted",
    /// The server is silent, or slower than any link that is of use.
    SlowRetrieval = "slow_retrieval",
    /// The server does not have a file that is signed.
    FileMissing = "file_missing",
    /// A file's digest is not the one that was signed.
    DigestMismatch = "digest_mismatch",
    /// A file's length is not the one that was signed.
    LengthMismatch = "length_mismatch",
    /// Not enough free space.
    NoSpace = "no_space",
    /// The manifest is not of a form this agent reads.
    ManifestMalformed = "manifest_malformed",
    /// The ONNX file can not be parsed or is unsound.
    ModelMalformed = "model_malformed",
    /// The ONNX file uses what this agent refuses.
    ModelUnsupported = "model_unsupported",
    /// The golden vectors gave other answers here.
    GoldenMismatch = "golden_mismatch",
    /// The proof was slower than the budget.
    LatencyExceeded = "latency_exceeded",
    /// The proof process died.
    ProofCrashed = "proof_crashed",
    /// The proof process ran out of time.
    ProofTimeout = "proof_timeout",
    /// Too many errors in probation.
    GuardErrors = "guard_errors",
    /// Too slow in probation.
    GuardLatency = "guard_latency",
    /// Too much memory in probation.
    GuardMemory = "guard_memory",
    /// Too much disagreement with the previous release in probation.
    GuardDisagreement = "guard_disagreement",
    /// The agent died repeatedly in probation.
    CrashLoop = "crash_loop",
    /// Programs can not be started from the device's state folder.
    NotExecutable = "not_executable",
    /// A program did not reach its controller within its time.
    ControllerUnreached = "controller_unreached",
    /// A program is older than the one that is installed.
    ProgramOlder = "program_older",
    /// Failed here before; not tried again until an operator says so.
    KnownBad = "known_bad",
    /// An operator asked for it.
    Operator = "operator",
    /// An operator holds updates back on this device.
    Inhibited = "inhibited",
    /// There is nothing to return to.
    NothingToReturnTo = "nothing_to_return_to",
    /// A payload is no envelope.
    EnvelopeMalformed = "envelope_malformed",
    /// An envelope's signature is not of a trusted key.
    EnvelopeSignature = "envelope_signature",
    /// An envelope was seen before.
    EnvelopeReplayed = "envelope_replayed",
    /// An envelope is past its expiry.
    EnvelopeExpired = "envelope_expired",
    /// An envelope is addressed to another device.
    EnvelopeWrongDevice = "envelope_wrong_device",
    /// A schema version this build does not know.
    SchemaUnknown = "schema_unknown",
    /// A payload over the size limit.
    TooLarge = "too_large",
    /// The disk is full; what could not be kept is counted.
    DiskFull = "disk_full",
    /// Records were dropped by the spool's bound.
    SpoolEvicted = "spool_evicted",
    /// The spool was damaged and set aside.
    SpoolDamaged = "spool_damaged",
    /// A state file was damaged and recovered from its copy.
    StateRecovered = "state_recovered",
    /// A model failed while serving and the next one answered.
    ModelFailed = "model_failed",
    /// A model failed too often while serving and is not asked any more.
    Quarantined = "quarantined",
    /// A smaller member answers because of the device's context, or the champion does again.
    Degraded = "degraded",
    /// Two live sessions with one identity.
    ClonedIdentity = "cloned_identity",
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a reason code of this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a reason code of this build")]
pub struct UnknownReason(String);

impl FromStr for ReasonCode {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or_else(|| UnknownReason(text.into()))
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ReasonCode {
    /// A code of a newer release reads as [`ReasonCode::Unknown`].
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(d)?.parse().unwrap_or(Self::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_its_own() {
        for (i, a) in ReasonCode::ALL.iter().enumerate() {
            assert_eq!(a.as_str().parse(), Ok(*a));
            assert!(ReasonCode::ALL[i + 1..].iter().all(|b| a.as_str() != b.as_str()), "{a} is there twice");
        }
    }
}
