//! The link to the broker: a seam ([`Link`], [`Session`]), its implementation over MQTT 5 ([`MqttLink`]), what
//! comes in ([`inbound`]) and what goes out of the spool ([`uplink`]).
//!
//! Brokers lose acknowledged messages when they are killed, so nothing here counts on one: a record is sent
//! again after each connect and after each acknowledgement that does not come, until the controller's own
//! `ack` names it. Each connect is a fresh client with a fresh session epoch; what the library would keep in
//! memory between connects is not needed.

mod challenge;
mod forgetful;
pub mod inbound;
mod mqtt;
pub mod uplink;

use std::future::Future;

use dunlin_protocol::Topic;

pub use challenge::answer;
pub use inbound::{Inbound, Opener, Refusal};
pub use mqtt::MqttLink;
pub use uplink::{News, Uplink, UplinkContext};

/// What a connect needs beside the link's own settings.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The retained message that the broker publishes when this session dies.
    pub will: (Topic, Vec<u8>),
}

/// What a session tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// A message.
    Received {
        /// As the broker named it.
        topic: String,
        /// As it came.
        payload: Vec<u8>,
    },
    /// The session is over; nothing follows.
    Lost {
        /// Another client took the session over: two devices with one identity.
        taken_over: bool,
        /// For people.
        detail: String,
    },
}

/// Why something could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connect failed.
    #[error("could not connect to {broker}: {detail}")]
    Connect {
        /// Host and port.
        broker: String,
        /// Why; the library's chain of causes.
        detail: String,
    },
    /// Somebody answered in the broker's place.
    #[error("{broker} does not prove to be the broker: {detail}")]
    Untrusted {
        /// Host and port.
        broker: String,
        /// How it shows.
        detail: String,
    },
    /// Too much is queued: try again after the next event.
    #[error("the send queue is full")]
    Full,
    /// The message is over what the broker takes.
    #[error("a message of {bytes} bytes is over the broker's limit of {max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The session is over.
    #[error("the session is over")]
    Closed,
}

/// One way to reach a broker.
pub trait Link: Send {
    /// An open connection.
    type Session: Session;

    /// Connects and proves who this is.
    fn open(&mut self, opening: Opening) -> impl Future<Output = Result<Self::Session, LinkError>> + Send;
}

/// An open connection. Something else keeps it alive: it does not depend on these calls being made.
pub trait Session: Send {
    /// Whether the broker still knew this client's subscriptions.
    fn resumed(&self) -> bool;

    /// The next event; may be dropped while it waits without losing one.
    fn next(&mut self) -> impl Future<Output = LinkEvent> + Send;

    /// Queues a message at QoS 1. Never waits.
    fn publish(&mut self, topic: &Topic, payload: Vec<u8>, retain: bool) -> Result<(), LinkError>;

    /// Queues a subscription at QoS 1. Never waits.
    fn subscribe(&mut self, filter: &str) -> Result<(), LinkError>;

    /// Says goodbye, so that the broker does not publish the will.
    fn close(self) -> impl Future<Output = ()> + Send;
}
