//! Somebody who has a device's identity: its key, its certificate, its place at the broker.
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dunlin_agent::identity::Identity;
use dunlin_controller::broker::link::{ChallengeAnswer, Proof, client, options};
use dunlin_protocol::{BootId, Bytes, Envelope, Header, Kind, SCHEMA, Topic, Up};
use dunlin_trust::envelope;
use rumqttc::mqttbytes::QoS;
use rumqttc::{Event, Incoming, PublishOptions};

/// How long the broker may take to acknowledge.
const LIMIT: Duration = Duration::from_secs(30);

/// Holds a device's identity.
#[derive(Debug)]
pub struct Thief {
    identity: Identity,
    broker: SocketAddr,
}

impl Thief {
    /// Takes the identity out of a device's folder.
    pub fn new(folder: &Path, broker: SocketAddr) -> Result<Self> {
        Ok(Self { identity: Identity::load(&folder.join("state/identity"))?, broker })
    }

    /// An envelope of schema `v`, signed with the device's key.
    pub fn seal(&self, v: u32, kind: Kind, seq: u64, body: Vec<u8>) -> Result<Envelope> {
        let device = self.identity.device().clone();
        let header = Header { v, kind, device, boot: BootId([0xee; 16]), seq, exp: None, body: Bytes(body) };
        Ok(envelope::seal_up(&header, self.identity.signer.as_ref())?)
    }

    /// The same of the schema that everybody speaks.
    pub fn envelope(&self, kind: Kind, seq: u64, body: Vec<u8>) -> Result<Envelope> {
        self.seal(SCHEMA, kind, seq, body)
    }

    /// Says that a packet of `bytes` begins, and sends zeros until the broker ends the connection; returns how many bytes
    /// went out. Blocks.
    pub fn flood(&self, bytes: u32) -> Result<u64> {
        let name = rustls::pki_types::ServerName::from(self.broker.ip());
        let session = rustls::ClientConnection::new(Arc::new(self.identity.tls()?), name)?;
        let socket = TcpStream::connect_timeout(&self.broker, LIMIT)?;
        socket.set_write_timeout(Some(LIMIT))?;
        let mut stream = rustls::StreamOwned::new(session, socket);
        // PUBLISH with QoS 1, and a length of four bytes, MQTT 5 §1.5.5.
        let digit = |place: u32| (bytes >> (7 * place)) as u8 & 0x7f;
        stream.write_all(&[0x32, digit(0) | 0x80, digit(1) | 0x80, digit(2) | 0x80, digit(3)])?;
        let (zeros, mut sent) = (vec![0; 64 << 10], 0);
        while sent < u64::from(bytes) {
            match stream.write(&zeros) {
                Ok(n) => sent += n as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    bail!("the broker neither read nor ended the connection in {LIMIT:?}")
                }
                Err(_) => break,
            }
        }
        Ok(sent)
    }

    /// Publishes under the device's name, and waits until the broker has taken everything.
    pub async fn publish(&self, up: Up, payloads: Vec<Vec<u8>>) -> Result<()> {
        let (device, host) = (self.identity.device(), self.broker.ip().to_string());
        let answer = ChallengeAnswer::new(device.as_str(), &host, self.identity.signer.clone());
        let proof = Proof::Challenge(answer);
        let (client, mut events) =
            client(options(device.as_str(), &host, self.broker.port(), self.identity.tls()?, proof));
        let mut waiting = payloads.len();
        for payload in payloads {
            let topic = Topic::up(device, up).to_string();
            client.try_publish(topic, payload, PublishOptions::new(QoS::AtLeastOnce))?;
        }
        let acknowledged = async {
            while waiting > 0 {
                if let Event::Incoming(Incoming::PubAck(_)) = events.poll().await? {
                    waiting -= 1;
                }
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(LIMIT, acknowledged).await {
            Ok(done) => done.context("publishing under a device's name"),
            Err(_) => bail!("the broker did not acknowledge in {LIMIT:?}"),
        }
    }
}
