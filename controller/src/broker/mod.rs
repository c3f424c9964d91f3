//! The MQTT broker: embedded, or one that somebody else runs.
//!
//! Whatever it does, it can not move a model or delete a record: authority is in signatures. It keeps
//! devices apart and proves who connects.
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dunlin_protocol::{DeviceId, PAYLOAD_BYTES_MAX, Up};
use dunlin_trust::Signer;
use mqtt5::broker::config::{StorageBackend, StorageConfig, TlsConfig};
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::{BrokerConfig, BrokerShutdownHandle, MqttBroker};

use crate::config::{ExternalBroker, Mqtt};
use crate::identity::Identity;
use crate::store::Store;

pub mod acl;
pub mod challenge;
mod gate;
pub mod link;
pub mod lists;

/// An envelope and the MQTT packet round it.
const PACKET_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 4096;
/// Topics a device subscribes to, with room to spare.
const SUBSCRIPTIONS_MAX: usize = 16;
/// Messages kept for a client that is away or slow. Devices send again what was never acknowledged, so a
/// dropped message costs time and no data.
const QUEUED_MESSAGES_MAX: usize = 20_000;
/// The same in bytes.
const QUEUED_BYTES_MAX: usize = 64 << 20;
/// A retained status.
const RETAINED_BYTES_MAX: usize = 4096;
/// Retained messages of one device: its status, and whatever it makes its will, which the broker asks nobody about.
const RETAINED_PER_DEVICE_MAX: usize = Up::ALL.len();
/// QoS 1 messages on their way to one client; the ingest is the one that needs many.
const INFLIGHT_MAX: u16 = 2048;
/// How long a session survives its connection.
const SESSION_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The embedded broker can not start.
    #[error("could not start the embedded broker on {listen}")]
    Start {
        /// The address asked for.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: mqtt5::MqttError,
    },
    /// The controller's own key can not be read.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
}

/// Which broker carries the messages.
#[derive(Debug)]
pub enum Broker {
    /// In this process.
    Embedded(Box<Embedded>),
    /// Elsewhere; devices and controller prove themselves by certificate.
    External(ExternalBroker),
}

/// The broker in this process.
pub struct Embedded {
    broker: MqttBroker,
    address: SocketAddr,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedded({})", self.address)
    }
}

/// Reaches the running broker. Cheap to clone.
#[derive(Clone)]
pub struct BrokerHandle {
    shut_out: Arc<RwLock<BTreeSet<String>>>,
    router: Option<Arc<MessageRouter>>,
}

impl std::fmt::Debug for BrokerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.router.is_some() { "BrokerHandle(embedded)" } else { "BrokerHandle(external)" })
    }
}

impl BrokerHandle {
    fn new(router: Option<Arc<MessageRouter>>) -> Self {
        Self { shut_out: Arc::default(), router }
    }

    /// Ends the live session of a device and lets none of its messages through any more. With an external
    /// broker the ingest still refuses its messages; the session ends when that broker learns of it.
    pub async fn shut_out(&self, device: &DeviceId) {
        self.shut_out.write().unwrap_or_else(PoisonError::into_inner).insert(device.to_string());
        if let Some(router) = &self.router {
            router.disconnect_client(device.as_str()).await;
        }
    }

    /// Lets a device in again after it was enrolled anew.
    pub fn let_in(&self, device: &DeviceId) {
        self.shut_out.write().unwrap_or_else(PoisonError::into_inner).remove(device.as_str());
    }

    /// Whether a device was shut out while this process ran.
    pub fn is_shut_out(&self, device: &str) -> bool {
        self.shut_out.read().unwrap_or_else(PoisonError::into_inner).contains(device)
    }
}

/// Where clients of a broker at `config` dial: the name they give as TLS server name, and sign.
pub fn public_host(config: &Mqtt) -> String {
    match &config.external {
        Some(external) => external.host.clone(),
        None if !config.public_host.is_empty() => config.public_host.clone(),
        None if config.listen.ip().is_unspecified() => IpAddr::from([127, 0, 0, 1]).to_string(),
        None => config.listen.ip().to_string(),
    }
}

impl Broker {
    /// Binds the embedded broker, or takes note of the external one. Devices are looked up in `store`.
    pub async fn open(
        config: &Mqtt,
        identity: &Identity,
        store: &Store,
    ) -> Result<(Self, BrokerHandle), BrokerError> {
        if let Some(external) = &config.external {
            return Ok((Self::External(external.clone()), BrokerHandle::new(None)));
        }
        let start = |source| BrokerError::Start { listen: config.listen, source };
        let files = identity.files();
        let settings = BrokerConfig {
            bind_addresses: Vec::new(),
            max_clients: config.clients_max,
            session_expiry_interval: SESSION_EXPIRY,
            max_packet_size: PACKET_BYTES_MAX,
            maximum_qos: 1,
            shared_subscription_available: false,
            max_subscriptions_per_client: SUBSCRIPTIONS_MAX,
            max_retained_messages: config.clients_max * RETAINED_PER_DEVICE_MAX,
            max_retained_message_size: RETAINED_BYTES_MAX,
            max_outbound_inflight: INFLIGHT_MAX,
            sys_topics_enabled: false,
            tls_config: Some(
                TlsConfig::new(files.server.clone(), files.server_key.clone())
                    .with_bind_address(config.listen),
            ),
            storage_config: StorageConfig {
                // Nothing the broker could keep is needed: devices keep what the database has not committed, announce
                // themselves at each connect, and ask for metadata by themselves.
                backend: StorageBackend::Memory,
                max_queued_messages_per_client: QUEUED_MESSAGES_MAX,
                max_queued_bytes_per_client: QUEUED_BYTES_MAX,
                ..StorageConfig::default()
            },
            event_handler: Some(Arc::new(gate::RetainedOnlyStatus)),
            ..BrokerConfig::default()
        };
        let broker = MqttBroker::with_config(settings).await.map_err(start)?;
        let address = broker.tls_local_addr().unwrap_or(config.listen);
        let handle = BrokerHandle::new(Some(broker.router()));
        let controller = identity.controller_signer()?.public().to_vec();
        let gate = gate::Gate::new(store.clone(), handle.clone(), controller, public_host(config));
        let broker = broker.with_auth_provider(Arc::new(gate));
        Ok((Self::Embedded(Box::new(Embedded { broker, address })), handle))
    }

    /// Port that clients dial.
    pub fn port(&self) -> u16 {
        match self {
            Self::Embedded(embedded) => embedded.address.port(),
            Self::External(external) => external.port,
        }
    }

    /// Address listened on; none if somebody else listens.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Embedded(embedded) => Some(embedded.address),
            Self::External(_) => None,
        }
    }

    /// Starts serving; ends when the returned handle says so.
    pub fn run(self) -> Running {
        match self {
            Self::External(_) => Running(None),
            Self::Embedded(embedded) => {
                let mut broker = embedded.broker;
                let lever = broker.shutdown_handle();
                let task = tokio::spawn(async move {
                    if let Err(error) = broker.run().await {
                        tracing::error!(%error, "the embedded broker ended");
                    }
                });
                Running(Some((lever, task)))
            }
        }
    }
}

/// A broker that runs.
pub struct Running(Option<(BrokerShutdownHandle, tokio::task::JoinHandle<()>)>);

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

impl Running {
    /// Ends the embedded broker and waits until its storage is flushed.
    pub async fn stop(self) {
        let Some((lever, task)) = self.0 else { return };
        lever.shutdown();
        if let Err(error) = task.await {
            tracing::error!(%error, "the embedded broker did not end well");
        }
    }
}
