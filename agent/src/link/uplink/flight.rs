//! What is on its way: records go out of the spool as far as the window allows, and out of mind when they are acknowledged.
use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{AckBody, AckRange, BootId, Kind, ReasonCode, Topic, Up};
use tokio::time::Instant;

use super::super::{Link, LinkError, Session};
use super::Uplink;
use crate::spool::{Key, Record, Spool};

/// Records on their way at once; with one round trip and one database commit per window this is hundreds of
/// records a second, far above what a device makes.
const WINDOW: usize = 64;
/// Bytes of records read from the spool at once.
const WINDOW_BYTES: usize = 1024 * 1024;
/// Longest wait for an acknowledgement that makes progress, at first; doubled at each resend.
const ACK_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest it becomes.
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Records that were sent in this session and not acknowledged yet.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) sent: BTreeMap<Key, BootId>,
    cursor: Option<Key>,
    ack_timeout: Duration,
    progress: Instant,
}

impl Flight {
    pub(super) fn new() -> Self {
        Self { sent: BTreeMap::new(), cursor: None, ack_timeout: ACK_TIMEOUT, progress: Instant::now() }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.progress + self.ack_timeout
    }

    fn acknowledged(&mut self, boot: BootId, upto: u64) {
        let before = self.sent.len();
        self.sent.retain(|key, sent| *sent != boot || key.seq > upto);
        if self.sent.len() < before {
            self.progress = Instant::now();
            self.ack_timeout = ACK_TIMEOUT;
        }
    }

    /// Begins again with the oldest record.
    pub(super) fn resend(&mut self) {
        self.sent.clear();
        self.cursor = None;
        self.progress = Instant::now();
        self.ack_timeout = (self.ack_timeout * 2).min(ACK_TIMEOUT_MAX);
    }
}

fn topic_of(kind: Kind) -> Up {
    match kind {
        Kind::Window => Up::Telemetry,
        Kind::Samples => Up::Samples,
        Kind::Reply => Up::Reply,
        Kind::Status => Up::Status,
        Kind::Report | Kind::Gap | Kind::Desired | Kind::Cmd | Kind::Ack => Up::Report,
    }
}

impl<L: Link> Uplink<L> {
    /// Turns a record that this broker will never take into a gap, so that the acknowledgement can pass it and what comes
    /// after it leaves the spool. A gap itself stays, as giving it up would only make another like it.
    async fn give_up(&self, key: &Key, kind: Kind) {
        if kind == Kind::Gap {
            return;
        }
        let key = *key;
        match self.spool(move |spool| spool.give_up(key)).await {
            Ok(()) => self.context.wake.notify_one(),
            Err(error) => tracing::warn!(%error, "could not give a record up"),
        }
    }

    pub(super) async fn acknowledged(&self, flight: &mut Flight, body: AckBody) {
        for range in body.ranges {
            let (boot, upto) = (range.boot, range.upto);
            match self.spool(move |spool| spool.acknowledge(&range)).await {
                Ok(_) => flight.acknowledged(boot, upto),
                // It stays in the spool and is sent again; the controller knows it already.
                Err(error) => tracing::warn!(%error, "could not note an acknowledgement"),
            }
        }
    }

    /// Sends gaps first, then the oldest records, as far as the window allows.
    pub(super) async fn pump(
        &mut self,
        session: &mut L::Session,
        flight: &mut Flight,
    ) -> Result<(), LinkError> {
        if flight.sent.is_empty() {
            flight.progress = Instant::now();
        }
        match self.spool(Spool::pending_gaps).await {
            Ok(gaps) => {
                let fresh: Vec<_> =
                    gaps.into_iter().filter(|gap| !flight.sent.contains_key(&gap.key)).collect();
                if !self.send(session, flight, fresh, false).await? {
                    return Ok(());
                }
            }
            Err(error) => tracing::warn!(%error, "could not read the spool"),
        }
        while flight.sent.len() < WINDOW {
            let (after, room) = (flight.cursor, WINDOW - flight.sent.len());
            let records = match self.spool(move |spool| spool.pending(after, room, WINDOW_BYTES)).await {
                Ok(records) => records,
                Err(error) => {
                    tracing::warn!(%error, "could not read the spool");
                    return Ok(());
                }
            };
            if records.is_empty() || !self.send(session, flight, records, true).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends records in order; false if the queue was full before the last.
    async fn send(
        &self,
        session: &mut L::Session,
        flight: &mut Flight,
        records: Vec<Record>,
        advance: bool,
    ) -> Result<bool, LinkError> {
        for record in records {
            let on_its_way = flight.sent.contains_key(&record.key);
            if !on_its_way {
                let topic = Topic::up(&self.context.device, topic_of(record.kind));
                let payload = self.seal(record.kind, record.boot, record.key.seq, record.body)?;
                match session.publish(&topic, payload, false) {
                    Ok(()) => {
                        flight.sent.insert(record.key, record.boot);
                        if weaken::off(Defence::Acknowledgement) {
                            let sent = AckRange { boot: record.boot, upto: record.key.seq };
                            self.acknowledged(flight, AckBody { ranges: vec![sent] }).await;
                        }
                    }
                    Err(LinkError::Full) => return Ok(false),
                    Err(error @ LinkError::TooLarge { .. }) => {
                        self.refused(ReasonCode::TooLarge, error.to_string()).await;
                        self.give_up(&record.key, record.kind).await;
                    }
                    Err(error) => return Err(error),
                }
            }
            if advance {
                flight.cursor = Some(record.key);
            }
        }
        Ok(true)
    }
}
