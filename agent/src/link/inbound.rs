//! What comes in: nothing acts before size, form, signature, addressee, freshness and kind were checked.

use std::sync::Arc;

use dunlin_protocol::{
    AckBody, Cmd, Desired, DeviceId, Down, Envelope, EnvelopeError, Header, Kind, PAYLOAD_BYTES_MAX,
    ReasonCode, Topic, cbor,
};

/// Opens a signed envelope for this device: checks signature, addressee, counter and expiry, and raises the
/// counter's floor durably before it returns.
pub type Opener = Arc<dyn Fn(&Envelope) -> Result<Header, ReasonCode> + Send + Sync>;

/// A message that may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// Something changed somewhere; unsigned, so it can only cause a check.
    Notice,
    /// A new assignment.
    Desired(Box<Desired>),
    /// A command.
    Cmd(Cmd),
    /// What the controller has in its database.
    Ack(AckBody),
}

/// A message that was not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: ReasonCode,
    /// The same for people.
    pub detail: String,
}

impl Refusal {
    fn new(reason: ReasonCode, topic: &str, problem: impl std::fmt::Display) -> Self {
        // The topic is the broker's word; it is cut, as a report is no place for a flood.
        Self { reason, detail: format!("{}: {problem}", topic.chars().take(100).collect::<String>()) }
    }
}

/// Judges one message.
pub fn accept(device: &DeviceId, topic: &str, payload: &[u8], open: &Opener) -> Result<Inbound, Refusal> {
    let refuse = |reason, problem: &dyn std::fmt::Display| Refusal::new(reason, topic, problem);
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(refuse(ReasonCode::TooLarge, &format_args!("{} bytes", payload.len())));
    }
    let down = match Topic::parse(topic) {
        Some(Topic::Notice) => return Ok(Inbound::Notice),
        Some(Topic::Down(addressee, down)) if addressee == *device => down,
        Some(Topic::Down(..)) => {
            return Err(refuse(ReasonCode::EnvelopeWrongDevice, &"another device's topic"));
        }
        Some(Topic::Up(..)) | None => {
            return Err(refuse(ReasonCode::EnvelopeMalformed, &"no topic of this device"));
        }
    };
    let envelope = Envelope::decode(payload).map_err(|e| refuse(shape(&e), &e))?;
    // The schema is looked at first, so that a newer controller is told from a forger in the reports.
    envelope.header().map_err(|e| refuse(shape(&e), &e))?;
    let header = open(&envelope).map_err(|reason| refuse(reason, &"envelope refused"))?;
    let body = header.body.as_slice();
    let malformed = |e: cbor::CborError| refuse(ReasonCode::EnvelopeMalformed, &e);
    match (down, header.kind) {
        (Down::Desired, Kind::Desired) => cbor::decode(body, PAYLOAD_BYTES_MAX)
            .map(|desired| Inbound::Desired(Box::new(desired)))
            .map_err(malformed),
        (Down::Cmd, Kind::Cmd) => cbor::decode(body, PAYLOAD_BYTES_MAX).map(Inbound::Cmd).map_err(malformed),
        (Down::Ack, Kind::Ack) => cbor::decode(body, PAYLOAD_BYTES_MAX).map(Inbound::Ack).map_err(malformed),
        (Down::Desired | Down::Cmd | Down::Ack, kind) => {
            Err(refuse(ReasonCode::EnvelopeMalformed, &format_args!("a {kind:?} does not belong there")))
        }
    }
}

fn shape(error: &EnvelopeError) -> ReasonCode {
    match error {
        EnvelopeError::Shape(cbor::CborError::TooLarge { .. }) => ReasonCode::TooLarge,
        EnvelopeError::Shape(cbor::CborError::Malformed(_)) => ReasonCode::EnvelopeMalformed,
        EnvelopeError::Schema(_) => ReasonCode::SchemaUnknown,
    }
}

#[cfg(test)]
mod tests;
