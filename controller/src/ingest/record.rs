use dunlin_protocol::{
    BootId, DeviceId, Envelope, Gap, Header, Kind, PAYLOAD_BYTES_MAX, ReasonCode, Reply, Report, Samples,
    Status, Window, cbor,
};
use dunlin_trust::{Verified, envelope};
use serde::de::DeserializeOwned;

use super::chain;

/// Largest record number that the database can hold.
const SEQ_MAX: u64 = i64::MAX as u64;

/// Ranges in one gap record: as many as an agent puts into one. Each is looked up and stored by itself.
pub(crate) const GAP_RANGES_MAX: usize = 1024;
/// Steps of updates in one report: as many as an agent puts into one.
pub(crate) const OUTCOMES_MAX: usize = 64;
/// Indicators in one report: there is one for each reason, and there will not be this many reasons.
pub(crate) const INDICATORS_MAX: usize = 256;

/// A record whose signature was verified. Only [`Record::open`] makes one.
#[derive(Debug, Clone)]
pub struct Record {
    device: DeviceId,
    boot: BootId,
    seq: u64,
    received_ms: u64,
    pub(crate) body: Body,
}

/// What a record says.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Window(Box<Window>, Vec<u8>),
    Report(Box<Report>),
    Samples(Samples),
    Gap(Gap),
    Status(Status),
    Reply(Reply),
    /// It says nothing this controller understands or takes. Its number counts: sent again it would be the same, and
    /// the records after it would wait for it for ever.
    Refused(Refused),
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refused {
    /// Stable code.
    pub reason: ReasonCode,
    /// The same for people.
    pub detail: String,
}

fn refused(reason: ReasonCode, detail: impl ToString) -> Refused {
    Refused { reason, detail: detail.to_string() }
}

fn decoded<T: DeserializeOwned>(header: &Header) -> Result<T, Refused> {
    cbor::decode(&header.body.0, PAYLOAD_BYTES_MAX)
        .map_err(|error| refused(ReasonCode::EnvelopeMalformed, format!("{:?}: {error}", header.kind)))
}

fn at_most(count: usize, max: usize, what: &str) -> Result<(), Refused> {
    if count > max {
        return Err(refused(ReasonCode::TooLarge, format!("{count} {what} in one record, at most {max}")));
    }
    Ok(())
}

fn body(header: &Header) -> Result<Body, Refused> {
    Ok(match header.kind {
        Kind::Window => Body::Window(Box::new(decoded(header)?), header.body.0.clone()),
        Kind::Report => {
            let report: Report = decoded(header)?;
            at_most(report.outcomes.len(), OUTCOMES_MAX, "outcomes")?;
            at_most(report.indicators.len(), INDICATORS_MAX, "indicators")?;
            Body::Report(Box::new(report))
        }
        Kind::Samples => Body::Samples(decoded(header)?),
        Kind::Gap => {
            let gap: Gap = decoded(header)?;
            at_most(gap.ranges.len(), GAP_RANGES_MAX, "ranges")?;
            Body::Gap(gap)
        }
        Kind::Status => Body::Status(decoded(header)?),
        Kind::Reply => Body::Reply(decoded(header)?),
        Kind::Desired | Kind::Cmd | Kind::Ack => {
            return Err(refused(ReasonCode::EnvelopeMalformed, "a kind that travels down"));
        }
    })
}

impl Record {
    /// Verifies a payload that came on the topic of `device`, whose public key is `spki`.
    ///
    /// # Errors
    /// It is no envelope, not signed by the device, of an unknown schema, or has no number. A body that can not be
    /// taken is no error here but [`Record::refusal`].
    pub fn open(payload: &[u8], device: &DeviceId, spki: &[u8], received_ms: u64) -> Result<Self, Refused> {
        let envelope = Envelope::decode(payload).map_err(|error| {
            let reason = if payload.len() > PAYLOAD_BYTES_MAX {
                ReasonCode::TooLarge
            } else {
                ReasonCode::EnvelopeMalformed
            };
            refused(reason, chain(&error))
        })?;
        let header = envelope::open_up(&envelope, spki).map_err(|error| refused(error.reason(), &error))?;
        Self::of(&header, device, received_ms)
    }

    fn of(header: &Verified<Header>, device: &DeviceId, received_ms: u64) -> Result<Self, Refused> {
        if header.device != *device {
            return Err(refused(
                ReasonCode::EnvelopeWrongDevice,
                format!("the envelope is of {}, the topic of {device}", header.device),
            ));
        }
        if header.seq == 0 || header.seq > SEQ_MAX {
            return Err(refused(ReasonCode::EnvelopeMalformed, "records are numbered from 1"));
        }
        let body = match body(header) {
            Ok(body) => body,
            // The number of a status is the session's; it is no record that others wait for.
            Err(refusal) if header.kind == Kind::Status => return Err(refusal),
            Err(refusal) => Body::Refused(refusal),
        };
        Ok(Self { device: header.device.clone(), boot: header.boot, seq: header.seq, received_ms, body })
    }

    /// The device that signed it.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The boot it was recorded in.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Its number within the boot; of a status, the session's epoch.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// When it arrived, Unix milliseconds.
    pub fn received_ms(&self) -> u64 {
        self.received_ms
    }

    /// Why its body is not taken, if it is not.
    pub fn refusal(&self) -> Option<&Refused> {
        match &self.body {
            Body::Refused(refusal) => Some(refusal),
            Body::Window(..)
            | Body::Report(_)
            | Body::Samples(_)
            | Body::Gap(_)
            | Body::Status(_)
            | Body::Reply(_) => None,
        }
    }

    /// Name of its kind, for counters.
    pub fn kind(&self) -> &'static str {
        match self.body {
            Body::Window(..) => "window",
            Body::Report(_) => "report",
            Body::Samples(_) => "samples",
            Body::Gap(_) => "gap",
            Body::Status(_) => "status",
            Body::Reply(_) => "reply",
            Body::Refused(_) => "refused",
        }
    }
}
