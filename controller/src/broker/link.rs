//! The controller's own connection to the broker.
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::auth::{METHOD, signing_bytes};
use dunlin_protocol::{PAYLOAD_BYTES_MAX, Topic};
use dunlin_trust::Signer;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::AuthProperties;
use rumqttc::{
    AsyncClient, AuthAction, AuthContext, AuthError, Authenticator, Event, EventLoop, Incoming, MqttOptions,
    TlsConfiguration, Transport,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{mpsc, watch};

use crate::identity::CONTROLLER;
use crate::serve::Shutdown;

/// An envelope and the MQTT packet round it.
const PACKET_BYTES_MAX: u32 = PAYLOAD_BYTES_MAX as u32 + 8192;
/// Messages the broker may send before it waits for us; what ingest lives on.
const RECEIVE_MAX: u16 = 2048;
/// Requests waiting to be written: acks and commands of one burst of devices.
const REQUESTS_MAX: usize = 1024;
/// Seconds between pings on an idle connection.
const KEEP_ALIVE_S: u16 = 30;
/// Pause before a new attempt; the broker is near and its return is wanted soon.
const RETRY: Duration = Duration::from_secs(1);

/// A message of a device as it came from the broker.
#[derive(Debug, Clone)]
pub struct Message {
    /// Topic.
    pub topic: Bytes,
    /// Payload.
    pub payload: Bytes,
}

/// Answers the embedded broker's challenge with a P-256 key.
pub struct ChallengeAnswer {
    client: String,
    broker: String,
    signer: Arc<dyn Signer + Send + Sync>,
}

impl ChallengeAnswer {
    /// For the client id `client` at a broker that is dialled as `broker`.
    pub fn new(client: &str, broker: &str, signer: Arc<dyn Signer + Send + Sync>) -> Self {
        Self { client: client.to_owned(), broker: broker.to_owned(), signer }
    }
}

impl std::fmt::Debug for ChallengeAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChallengeAnswer({} at {})", self.client, self.broker)
    }
}

impl Authenticator for ChallengeAnswer {
    fn start(&mut self, _context: AuthContext<'_>) -> Result<Option<AuthProperties>, AuthError> {
        Ok(Some(AuthProperties {
            method: Some(METHOD.into()),
            data: None,
            reason: None,
            user_properties: Vec::new(),
        }))
    }

    fn continue_auth(
        &mut self,
        _context: AuthContext<'_>,
        incoming: Option<AuthProperties>,
    ) -> Result<AuthAction, AuthError> {
        let challenge =
            incoming.and_then(|properties| properties.data).ok_or("the broker sent no challenge")?;
        let message = signing_bytes(&self.client, &self.broker, &challenge);
        let signature = self.signer.sign(&message).map_err(|error| AuthError::Failed(error.to_string()))?;
        Ok(AuthAction::Send(AuthProperties {
            method: Some(METHOD.into()),
            data: Some(signature.into()),
            reason: None,
            user_properties: Vec::new(),
        }))
    }

    fn success(
        &mut self,
        _context: AuthContext<'_>,
        _incoming: Option<AuthProperties>,
    ) -> Result<(), AuthError> {
        Ok(())
    }

    fn failure(&mut self, _context: AuthContext<'_>, error: AuthError) {
        tracing::warn!(%error, "the broker refuses the challenge's answer");
    }
}

/// How the controller proves itself to the broker.
#[derive(Debug)]
pub enum Proof {
    /// The embedded broker's challenge.
    Challenge(ChallengeAnswer),
    /// A client certificate, in the TLS settings already.
    Certificate,
}

/// Settings of a TLS client that trusts `roots` alone, with a client certificate if the broker asks for it.
pub fn tls(
    roots: RootCertStore,
    certificate: Option<(
        Vec<rustls_pki_types::CertificateDer<'static>>,
        rustls_pki_types::PrivateKeyDer<'static>,
    )>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder().with_root_certificates(roots);
    match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// Options for a client of the broker at `host:port`.
pub fn options(client: &str, host: &str, port: u16, tls: ClientConfig, proof: Proof) -> MqttOptions {
    let mut options = MqttOptions::new(client, (host, port));
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
    options.set_keep_alive(KEEP_ALIVE_S);
    options.set_clean_start(true);
    options.set_max_packet_size(Some(PACKET_BYTES_MAX));
    options.set_receive_maximum(Some(RECEIVE_MAX));
    if let Proof::Challenge(answer) = proof {
        options.set_authentication_method(Some(METHOD.into()));
        options.set_authenticator(Arc::new(Mutex::new(answer)));
    }
    options
}

/// The controller's client: what publishes, and what must be driven by [`drive`].
pub fn client(options: MqttOptions) -> (AsyncClient, EventLoop) {
    AsyncClient::builder(options).capacity(REQUESTS_MAX).build()
}

/// Drives the connection: subscribes after each connect, hands messages on, tells `connected` how it stands.
/// Waits when the receiver is behind, so that the broker queues and not this process.
pub async fn drive(
    client: AsyncClient,
    mut events: EventLoop,
    messages: mpsc::Sender<Message>,
    connected: watch::Sender<bool>,
    mut shutdown: Shutdown,
) {
    loop {
        let event = tokio::select! {
            event = events.poll() => event,
            () = shutdown.requested() => return,
        };
        match event {
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                let message = Message { topic: publish.topic, payload: publish.payload };
                if messages.send(message).await.is_err() {
                    return;
                }
            }
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                if let Err(error) = client.try_subscribe(Topic::all_up_filter(), QoS::AtLeastOnce) {
                    tracing::error!(%error, "could not ask for the devices' messages");
                }
            }
            Ok(Event::Incoming(Incoming::SubAck(_))) => {
                tracing::info!(client = CONTROLLER, "connected to the broker");
                connected.send_replace(true);
            }
            Ok(_) => {}
            Err(error) => {
                connected.send_replace(false);
                tracing::warn!(%error, "the connection to the broker is down");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
