use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_protocol::auth::METHOD;
use dunlin_protocol::{PAYLOAD_BYTES_MAX, Topic};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{DisconnectReasonCode, LastWill, LastWillProperties, Packet};
use rumqttc::{
    AsyncClient, ClientError, Event, EventLoop, MqttOptions, PublishOptions, SessionMode, TlsConfiguration,
    Transport,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::challenge::ChallengeAnswer;
use super::forgetful::Forgetful;
use super::{Link, LinkError, LinkEvent, Opening, Session};
use crate::config::{MqttAuth, MqttSettings};
use crate::identity::Identity;
use crate::tls::{Doubt, doubt};

/// Room for topic and properties round a payload.
const PACKET_OVERHEAD_BYTES: u32 = 1024;
/// Queued requests: two windows of records, the status and the subscriptions.
const REQUESTS_MAX: usize = 192;
/// Messages on their way at once; more than are ever queued.
const INFLIGHT_MAX: u16 = 192;
/// Events between the task that polls and the one that acts; the former waits when it is full, and the broker
/// with it.
const EVENTS_MAX: usize = 64;
/// Time for TCP, TLS and the authentication exchange; enough for a slow modem.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for a goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The will waits this long, so that a reconnect does not make presence flap.
const WILL_DELAY_S: u32 = 10;

/// MQTT 5 over TLS with the pinned authority.
#[derive(Debug)]
pub struct MqttLink {
    identity: Identity,
    settings: MqttSettings,
}

/// An open MQTT session; a task of its own polls it.
#[derive(Debug)]
pub struct MqttSession {
    client: AsyncClient,
    events: mpsc::Receiver<LinkEvent>,
    polling: JoinHandle<()>,
    resumed: bool,
    packet_bytes_max: usize,
}

impl MqttLink {
    /// A link for this identity.
    pub fn new(identity: Identity, settings: MqttSettings) -> Self {
        Self { identity, settings }
    }

    fn options(&self, opening: Opening) -> Result<MqttOptions, crate::identity::IdentityError> {
        let enrolment = &self.identity.enrolment;
        let device = self.identity.device();
        let mut options =
            MqttOptions::new(device.as_str(), (enrolment.mqtt_host.clone(), enrolment.mqtt_port));
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(
            self.identity.tls()?,
        ))));
        let keep_alive = u16::try_from(self.settings.keep_alive.as_secs()).unwrap_or(u16::MAX);
        options.set_keep_alive(keep_alive).set_connect_timeout(CONNECT_TIMEOUT);
        // The broker keeps what arrives while the device is away; what the device sends is kept by its spool.
        options.set_session_mode(SessionMode::Persistent);
        let expiry = u32::try_from(self.settings.session_expiry.as_secs()).unwrap_or(u32::MAX);
        options.set_session_expiry_interval(Some(expiry));
        options.set_session_store(Forgetful::new(device.as_str(), expiry, INFLIGHT_MAX));
        let packet_max = u32::try_from(PAYLOAD_BYTES_MAX).unwrap_or(u32::MAX) + PACKET_OVERHEAD_BYTES;
        options.set_max_packet_size(Some(packet_max));
        // The client makes a slot for each message that may be on its way; its default of 65,535 costs 16 MiB.
        options.set_outgoing_inflight_upper_limit(INFLIGHT_MAX);
        let (topic, payload) = opening.will;
        let delay = LastWillProperties {
            delay_interval: Some(WILL_DELAY_S),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        options.set_last_will(LastWill::new(topic.to_string(), payload, QoS::AtLeastOnce, true, Some(delay)));
        if self.settings.auth == MqttAuth::Challenge {
            options.set_authentication_method(Some(METHOD.to_owned()));
            options.set_authenticator(Arc::new(Mutex::new(ChallengeAnswer {
                signer: self.identity.signer.clone(),
                client: device.clone(),
                broker: enrolment.mqtt_host.clone(),
            })));
        }
        Ok(options)
    }
}

impl Link for MqttLink {
    type Session = MqttSession;

    async fn open(&mut self, opening: Opening) -> Result<MqttSession, LinkError> {
        let broker = format!("{}:{}", self.identity.enrolment.mqtt_host, self.identity.enrolment.mqtt_port);
        let fail = |detail: String| LinkError::Connect { broker: broker.clone(), detail };
        let options = self.options(opening).map_err(|e| fail(chain(&e)))?;
        let (client, mut event_loop) =
            AsyncClient::builder(options).capacity(REQUESTS_MAX).try_build().map_err(|e| fail(chain(&e)))?;
        let acknowledged = async {
            loop {
                match event_loop.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(acknowledged))) => return Ok(acknowledged),
                    Ok(_) => {}
                    Err(e) => {
                        return Err(match doubt(&e) {
                            Some(Doubt::Untimely) => {
                                fail(format!("{}; is this device's clock right?", chain(&e)))
                            }
                            Some(Doubt::Untrusted) => {
                                LinkError::Untrusted { broker: broker.clone(), detail: chain(&e) }
                            }
                            None => fail(chain(&e)),
                        });
                    }
                }
            }
        };
        let acknowledged = timeout(2 * CONNECT_TIMEOUT, acknowledged).await;
        let acknowledged =
            acknowledged.unwrap_or_else(|_| Err(fail("the broker did not answer in time".to_owned())))?;
        let limit = acknowledged.properties.and_then(|properties| properties.max_packet_size);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        Ok(MqttSession {
            client,
            events,
            polling: tokio::spawn(poll(event_loop, sender)),
            resumed: acknowledged.session_present,
            packet_bytes_max: limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        })
    }
}

/// Polls until the session ends, whatever anybody else waits for.
async fn poll(mut event_loop: EventLoop, sender: mpsc::Sender<LinkEvent>) {
    let mut taken_over = false;
    loop {
        let event = match event_loop.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => LinkEvent::Received {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload.to_vec(),
            },
            Ok(Event::Incoming(Packet::Disconnect(disconnect))) => {
                taken_over |= disconnect.reason_code == DisconnectReasonCode::SessionTakenOver;
                continue;
            }
            Ok(_) => continue,
            Err(error) => {
                let detail = chain(&error);
                taken_over |= detail.contains("SessionTakenOver");
                // Nobody listens any more when the agent shuts down.
                let _closed = sender.send(LinkEvent::Lost { taken_over, detail }).await;
                return;
            }
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn queue_error(error: &ClientError) -> LinkError {
    if matches!(error, ClientError::RequestChannelFull(_)) { LinkError::Full } else { LinkError::Closed }
}

impl Session for MqttSession {
    fn resumed(&self) -> bool {
        self.resumed
    }

    async fn next(&mut self) -> LinkEvent {
        let ended = || LinkEvent::Lost { taken_over: false, detail: "the session ended".to_owned() };
        self.events.recv().await.unwrap_or_else(ended)
    }

    fn publish(&mut self, topic: &Topic, payload: Vec<u8>, retain: bool) -> Result<(), LinkError> {
        let topic = topic.to_string();
        let bytes = payload.len() + topic.len() + 16;
        if bytes > self.packet_bytes_max {
            return Err(LinkError::TooLarge { bytes, max: self.packet_bytes_max });
        }
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(retain);
        self.client.try_publish(topic, payload, options).map_err(|e| queue_error(&e))
    }

    fn subscribe(&mut self, filter: &str) -> Result<(), LinkError> {
        self.client.try_subscribe(filter, QoS::AtLeastOnce).map_err(|e| queue_error(&e))
    }

    async fn close(mut self) {
        if self.client.try_disconnect().is_ok() {
            // The polling task may be waiting for room, so events are drained while it says goodbye.
            let goodbye = async { while self.events.recv().await.is_some() {} };
            if timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
                tracing::debug!("the broker did not take the goodbye in time");
            }
        }
        self.polling.abort();
    }
}

impl Drop for MqttSession {
    fn drop(&mut self) {
        self.polling.abort();
    }
}
