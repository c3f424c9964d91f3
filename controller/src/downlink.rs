//! Signed messages to devices.
//!
//! Each carries a counter that only rises per device, also over restarts and when the clock steps back, and
//! an expiry.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{
    ACK_LIFE_MS, AckBody, BootId, Bytes, Cmd, CmdBody, Desired, DeviceId, Down, Header, Kind, SCHEMA, Topic,
    cbor,
};
use dunlin_trust::{Signer, envelope};
use rumqttc::mqttbytes::QoS;
use rumqttc::{AsyncClient, PublishOptions};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::clock;
use crate::init::short_id;
use crate::metrics::Metrics;
use crate::store::{PendingCommand, Store, StoreError};

/// An operator who gave a command has turned to something else after this.
const CMD_LIFE_MS: u64 = 10 * 60 * 1000;
/// A device that was away finds its assignment by itself when it checks.
const DESIRED_LIFE_MS: u64 = 60 * 60 * 1000;
/// Counters are reserved this far ahead of the clock, so that not every message is a write to the database.
const RESERVE_MS: u64 = 10 * 60 * 1000;
/// The broker is near; if it takes no message for this long, it is away.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a message did not go out.
#[derive(Debug, thiserror::Error)]
pub enum DownlinkError {
    /// The link to the broker is gone.
    #[error("the message for {0} was not sent: the broker can not be reached")]
    Closed(String),
    /// The counter can not be reserved.
    #[error("the message for {device} was not sent: no counter for it")]
    Counter {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The key refused.
    #[error("the message for {device} was not signed")]
    Sign {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: dunlin_trust::TrustError,
    },
}

#[derive(Debug, Clone, Copy)]
struct Counter {
    last: u64,
    ceiling: u64,
}

struct Inner {
    client: AsyncClient,
    signer: Arc<dyn Signer + Send + Sync>,
    store: Store,
    metrics: Arc<Metrics>,
    counters: Mutex<BTreeMap<DeviceId, Counter>>,
}

/// A command with an id of its own, which the reply echoes; to be kept ([`Store::keep_command`]) before it is sent.
pub fn command(device: &DeviceId, cmd: CmdBody, now_ms: u64) -> PendingCommand {
    let cmd = Cmd { id: short_id(), cmd };
    PendingCommand { device: device.clone(), cmd, until_ms: now_ms + CMD_LIFE_MS }
}

/// Sends signed messages. Cheap to clone.
#[derive(Clone)]
pub struct Downlink(Arc<Inner>);

impl std::fmt::Debug for Downlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Downlink({})", self.0.signer.key_id())
    }
}

impl Downlink {
    /// Sends through `client`, signed by a key of the director's timestamp role.
    pub fn new(
        client: AsyncClient,
        signer: Arc<dyn Signer + Send + Sync>,
        store: Store,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner { client, signer, store, metrics, counters: Mutex::default() }))
    }

    /// The next counter: above the last one, and never below the clock.
    async fn next_seq(&self, device: &DeviceId, now_ms: u64) -> Result<u64, DownlinkError> {
        let mut counters = self.0.counters.lock().await;
        let counter = match counters.get(device) {
            Some(counter) => *counter,
            None => {
                let before = self.0.store.reserve_down_seq(device, 0).await;
                let before =
                    before.map_err(|source| DownlinkError::Counter { device: device.clone(), source })?;
                Counter { last: before, ceiling: before }
            }
        };
        let mut next = Counter { last: (counter.last + 1).max(now_ms), ceiling: counter.ceiling };
        if next.last > next.ceiling {
            next.ceiling = next.last + RESERVE_MS;
            let reserved = self.0.store.reserve_down_seq(device, next.ceiling).await;
            reserved.map_err(|source| DownlinkError::Counter { device: device.clone(), source })?;
        }
        counters.insert(device.clone(), next);
        Ok(next.last)
    }

    async fn send<T: Serialize>(
        &self,
        device: &DeviceId,
        kind: Kind,
        topic: Down,
        until_ms: u64,
        body: &T,
    ) -> Result<(), DownlinkError> {
        let seq = self.next_seq(device, clock::wall_ms()).await?;
        let body = Bytes(cbor::encode(body));
        let header = Header {
            v: SCHEMA,
            kind,
            device: device.clone(),
            boot: BootId([0; 16]),
            seq,
            exp: Some(until_ms),
            body,
        };
        let sealed = envelope::seal_down(&header, self.0.signer.as_ref());
        let sealed = sealed.map_err(|source| DownlinkError::Sign { device: device.clone(), source })?;
        self.publish(&Topic::down(device, topic), sealed.encode()).await
    }

    async fn publish(&self, topic: &Topic, payload: Vec<u8>) -> Result<(), DownlinkError> {
        let publish =
            self.0.client.publish(topic.to_string(), payload, PublishOptions::new(QoS::AtLeastOnce));
        match timeout(SEND_TIMEOUT, publish).await {
            Ok(Ok(())) => {
                self.0.metrics.sent(match topic {
                    Topic::Down(_, Down::Desired) => "desired",
                    Topic::Down(_, Down::Cmd) => "cmd",
                    Topic::Down(_, Down::Ack) => "ack",
                    Topic::Up(..) | Topic::Notice => "notice",
                });
                Ok(())
            }
            Ok(Err(_)) | Err(_) => Err(DownlinkError::Closed(topic.to_string())),
        }
    }

    /// Tells a device which generation waits for it, with the files themselves if they are small.
    pub async fn desired(&self, device: &DeviceId, desired: &Desired) -> Result<(), DownlinkError> {
        self.send(device, Kind::Desired, Down::Desired, clock::wall_ms() + DESIRED_LIFE_MS, desired).await
    }

    /// Sends a command that waits for its reply. The device carries it out once, however often it comes.
    pub async fn pending(&self, pending: &PendingCommand) -> Result<(), DownlinkError> {
        self.send(&pending.device, Kind::Cmd, Down::Cmd, pending.until_ms, &pending.cmd).await
    }

    /// Tells a device what is committed.
    pub async fn ack(&self, device: &DeviceId, ack: &AckBody) -> Result<(), DownlinkError> {
        self.send(device, Kind::Ack, Down::Ack, clock::wall_ms() + ACK_LIFE_MS, ack).await
    }

    /// Tells every device that metadata changed. Unsigned: it can only cause a check.
    pub async fn notice(&self) -> Result<(), DownlinkError> {
        self.publish(&Topic::Notice, Vec::new()).await
    }
}
