//! The embedded broker with nothing behind it but a client that counts.
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dunlin_controller::broker::Broker;
use dunlin_controller::broker::link::{ChallengeAnswer, Message, Proof, client, drive, options, tls};
use dunlin_controller::config::Mqtt;
use dunlin_controller::identity::{CONTROLLER, Identity, certificates};
use dunlin_controller::serve::Shutdown;
use dunlin_trust::{EcdsaP256Signer, Signer};
use rumqttc::mqttbytes::QoS;
use rumqttc::{Event, Incoming, PublishOptions};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::ingest::{Device, database};

/// Devices that publish at once.
const PUBLISHERS: usize = 8;
/// Messages on their way at most: the broker drops what a client is too slow for, and this counts all.
const AHEAD_MAX: usize = 2000;
/// How long the messages of one round may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Messages a second from devices to one subscriber.
pub(crate) async fn rate(folder: &Path, devices: &[Device], messages: &[Message]) -> Result<f64> {
    let store = database(folder, devices).await?;
    std::fs::create_dir_all(folder.join("tls"))?;
    Identity::create(folder, &[])?;
    let identity = Identity::open(folder)?;
    let config = Mqtt { listen: "127.0.0.1:0".parse()?, ..Mqtt::default() };
    let (broker, _handle) = Broker::open(&config, &identity, &store).await?;
    let port = broker.port();
    let running = broker.run();
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&identity.files().ca)? {
        roots.add(certificate)?;
    }
    let tls = tls(roots, None)?;
    let outcome = tokio::time::timeout(LIMIT, relay(&identity, port, &tls, devices, messages)).await;
    running.stop().await;
    store.close().await;
    std::fs::remove_dir_all(folder).context("removing a broker's folder")?;
    outcome.with_context(|| format!("the broker did not pass {} messages in {LIMIT:?}", messages.len()))?
}

fn settings(
    name: &str,
    signer: Arc<dyn Signer + Send + Sync>,
    port: u16,
    tls: &ClientConfig,
) -> rumqttc::MqttOptions {
    let host = "127.0.0.1";
    options(name, host, port, tls.clone(), Proof::Challenge(ChallengeAnswer::new(name, host, signer)))
}

async fn relay(
    identity: &Identity,
    port: u16,
    tls: &ClientConfig,
    devices: &[Device],
    messages: &[Message],
) -> Result<f64> {
    let (trigger, shutdown) = Shutdown::new();
    let (to, mut from) = mpsc::channel(AHEAD_MAX);
    let (tell, mut connected) = watch::channel(false);
    let (subscriber, events) =
        client(settings(CONTROLLER, Arc::new(identity.controller_signer()?), port, tls));
    let driving = tokio::spawn(drive(subscriber, events, to, tell, shutdown));
    connected.wait_for(|connected| *connected).await?;

    let mut publishers = JoinSet::new();
    let received = Arc::new(AtomicUsize::new(0));
    let sent = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(tokio::sync::Barrier::new(PUBLISHERS + 1));
    for device in &devices[..PUBLISHERS] {
        let signer: Arc<dyn Signer + Send + Sync> = Arc::new(EcdsaP256Signer::from_pkcs8(&device.key)?);
        let (client, mut events) = client(settings(device.id.as_str(), signer, port, tls));
        while !matches!(events.poll().await?, Event::Incoming(Incoming::ConnAck(_))) {}
        // Only on its own topics is a device heard.
        let topic = dunlin_protocol::Topic::up(&device.id, dunlin_protocol::Up::Telemetry).to_string();
        let (gate, received, sent) = (Arc::clone(&gate), Arc::clone(&received), Arc::clone(&sent));
        let payloads: Vec<_> = messages.iter().map(|message| message.payload.clone()).collect();
        publishers.spawn(async move {
            let polling = tokio::spawn(async move { while events.poll().await.is_ok() {} });
            gate.wait().await;
            loop {
                let next = sent.fetch_add(1, Ordering::Relaxed);
                let Some(payload) = payloads.get(next) else { break };
                while next > received.load(Ordering::Relaxed) + AHEAD_MAX {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
                client.publish(topic.clone(), payload.clone(), PublishOptions::new(QoS::AtLeastOnce)).await?;
            }
            // What is still queued is sent by the connection, which lives until everything has arrived.
            anyhow::Ok(polling)
        });
    }
    gate.wait().await;
    let start = Instant::now();
    for n in 0..messages.len() {
        from.recv().await.context("the subscriber ended early")?;
        received.store(n + 1, Ordering::Relaxed);
    }
    let rate = messages.len() as f64 / start.elapsed().as_secs_f64();
    while let Some(publisher) = publishers.join_next().await {
        publisher??.abort();
    }
    trigger.pull();
    driving.await?;
    Ok(rate)
}
