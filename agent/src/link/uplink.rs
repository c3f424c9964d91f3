//! One task that keeps a session open, drains the spool through it and passes on what comes in.

use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{BootId, Bytes, DeviceId, Header, Kind, ReasonCode, SCHEMA, Status, Topic, Up, cbor};
use dunlin_trust::{Signer, envelope};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::inbound::{self, Inbound, Opener, Refusal};
use super::{Link, LinkError, LinkEvent, Opening, Session};
use crate::spool::{Spool, SpoolError};

mod flight;

use flight::Flight;

/// First pause before a reconnect; doubled at each failure, and drawn at random below.
const BACKOFF: Duration = Duration::from_secs(1);
/// Longest it becomes: a fleet of 10,000 then makes some 300 connects a second at worst.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A session this long counts as a success.
const STABLE: Duration = Duration::from_secs(30);
/// At shutdown, time for what is still waiting to be acknowledged.
const DRAIN: Duration = Duration::from_secs(2);
/// Notices are unsigned, so anyone the broker lets publish could make devices check: at most one per interval.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// What the uplink tells the main loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A session is open.
    Up {
        /// Its epoch.
        epoch: u64,
    },
    /// The session is over, or could not be opened.
    Down {
        /// For people.
        detail: String,
    },
    /// A verified message, or a notice; never an acknowledgement.
    Order(Inbound),
    /// Something that was not believed, or went wrong.
    Refused(Refusal),
}

/// What the uplink works with.
#[derive(Clone)]
pub struct UplinkContext {
    /// This device.
    pub device: DeviceId,
    /// Signs envelopes.
    pub signer: Arc<dyn Signer + Send + Sync>,
    /// Opens envelopes.
    pub open: Opener,
    /// The records.
    pub spool: Arc<Spool>,
    /// Rung when records were appended.
    pub wake: Arc<Notify>,
    /// Where news go. Bounded: when the main loop is busy, the uplink waits.
    pub news: mpsc::Sender<News>,
    /// Turns true when the agent shuts down.
    pub stop: watch::Receiver<bool>,
}

impl std::fmt::Debug for UplinkContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UplinkContext({})", self.device)
    }
}

/// Keeps one session after another.
#[derive(Debug)]
pub struct Uplink<L> {
    link: L,
    context: UplinkContext,
    /// The last epoch, for when the disk does not take the next one.
    epoch: u64,
    subscribed: bool,
    noticed: Option<Instant>,
    /// Whether it was told that somebody answers in the broker's place, since that last answered itself.
    untrusted_told: bool,
}

impl<L: Link> Uplink<L> {
    /// An uplink over `link`; nothing happens before [`Self::run`].
    pub fn new(link: L, context: UplinkContext) -> Self {
        Self { link, context, epoch: 0, subscribed: false, noticed: None, untrusted_told: false }
    }

    /// Runs until the context's `stop`.
    pub async fn run(mut self) {
        let mut pause = BACKOFF;
        while !stopping(&self.context.stop) {
            let started = Instant::now();
            let detail = match self.session().await {
                Ok(detail) => detail,
                Err(error) => {
                    self.tell_untrusted(&error).await;
                    error.to_string()
                }
            };
            if stopping(&self.context.stop) {
                return;
            }
            tracing::info!(%detail, "no session with the broker");
            self.tell(News::Down { detail }).await;
            if started.elapsed() >= STABLE {
                pause = BACKOFF;
            }
            let resume = Instant::now() + jittered(pause);
            pause = (pause * 2).min(BACKOFF_MAX);
            let mut stop = self.context.stop.clone();
            tokio::select! {
                () = sleep_until(resume) => {}
                () = stopped(&mut stop) => {}
            }
        }
    }

    async fn tell_untrusted(&mut self, error: &LinkError) {
        if matches!(error, LinkError::Untrusted { .. }) && !self.untrusted_told {
            let reason = ReasonCode::ServerUntrusted;
            tracing::warn!(%reason, %error, "somebody answers in the broker's place");
            self.refused(reason, error.to_string()).await;
            self.untrusted_told = true;
        }
    }

    async fn tell(&self, news: News) {
        if self.context.news.send(news).await.is_err() {
            tracing::debug!("the main loop has ended");
        }
    }

    async fn refused(&self, reason: ReasonCode, detail: String) {
        self.tell(News::Refused(Refusal { reason, detail })).await;
    }

    /// Runs `f` on the spool off the async threads: it waits for the disk.
    async fn spool<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let spool = self.context.spool.clone();
        tokio::task::spawn_blocking(move || f(&spool))
            .await
            .expect("the spool returns errors and does not panic")
    }

    fn seal(&self, kind: Kind, boot: BootId, seq: u64, body: Vec<u8>) -> Result<Vec<u8>, LinkError> {
        let header = Header {
            v: SCHEMA,
            kind,
            device: self.context.device.clone(),
            boot,
            seq,
            exp: None,
            body: Bytes(body),
        };
        match envelope::seal_up(&header, self.context.signer.as_ref()) {
            Ok(envelope) => Ok(envelope.encode()),
            Err(error) => {
                tracing::error!(%error, "could not sign a message");
                Err(LinkError::Closed)
            }
        }
    }

    fn status(&self, online: bool) -> Result<Vec<u8>, LinkError> {
        let status = Status { online, epoch: self.epoch, agent: crate::VERSION.to_owned() };
        self.seal(Kind::Status, self.context.spool.boot(), self.epoch, cbor::encode(&status))
    }

    /// One session from connect to loss; returns why it ended.
    async fn session(&mut self) -> Result<String, LinkError> {
        self.epoch = match self.spool(Spool::next_epoch).await {
            Ok(epoch) => epoch.max(self.epoch + 1),
            Err(error) => {
                tracing::warn!(%error, "could not keep the session epoch");
                self.epoch + 1
            }
        };
        let topic = Topic::up(&self.context.device, Up::Status);
        let mut stop = self.context.stop.clone();
        let will = (topic.clone(), self.status(false)?);
        let opened = tokio::select! {
            opened = self.link.open(Opening { will }) => opened,
            () = stopped(&mut stop) => return Ok("shutting down".to_owned()),
        };
        let mut session = opened?;
        self.untrusted_told = false;
        // A new release may want other subscriptions, so the first session of a process asks in any case.
        if !session.resumed() || !self.subscribed {
            session.subscribe(&Topic::down_filter(&self.context.device))?;
            session.subscribe(&Topic::Notice.to_string())?;
            self.subscribed = true;
        }
        // After the subscriptions: who sees the device come back gives it what it has missed.
        session.publish(&topic, self.status(true)?, true)?;
        tracing::info!(epoch = self.epoch, resumed = session.resumed(), "session with the broker");
        self.tell(News::Up { epoch: self.epoch }).await;
        let ended = self.serve(&mut session, &mut stop).await;
        if stopping(&stop) && ended.is_ok() {
            if let Err(error) = session.publish(&topic, self.status(false)?, true) {
                tracing::debug!(%error, "could not say goodbye");
            }
            session.close().await;
        }
        ended
    }

    async fn serve(
        &mut self,
        session: &mut L::Session,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<String, LinkError> {
        let mut flight = Flight::new();
        let wake = self.context.wake.clone();
        self.pump(session, &mut flight).await?;
        while !stopping(stop) {
            tokio::select! {
                event = session.next() => match event {
                    LinkEvent::Received { topic, payload } => self.received(session, &mut flight, &topic, &payload).await?,
                    LinkEvent::Lost { taken_over, detail } => {
                        if taken_over {
                            self.refused(ReasonCode::ClonedIdentity, "another client took the session over".into()).await;
                        }
                        return Ok(detail);
                    }
                },
                () = wake.notified() => self.pump(session, &mut flight).await?,
                () = sleep_until(flight.deadline()) => {
                    if !flight.sent.is_empty() {
                        tracing::info!(records = flight.sent.len(), "no acknowledgement in time, sending again");
                    }
                    flight.resend();
                    self.pump(session, &mut flight).await?;
                }
                () = stopped(stop) => {}
            }
        }
        self.drain(session, &mut flight).await?;
        Ok("shutting down".to_owned())
    }

    /// At shutdown: sends what is left and waits a little for its acknowledgement.
    async fn drain(&mut self, session: &mut L::Session, flight: &mut Flight) -> Result<(), LinkError> {
        let deadline = Instant::now() + DRAIN;
        self.pump(session, flight).await?;
        while !flight.sent.is_empty() {
            let Ok(event) = timeout(deadline.saturating_duration_since(Instant::now()), session.next()).await
            else {
                return Ok(());
            };
            match event {
                LinkEvent::Received { topic, payload } => {
                    self.received(session, flight, &topic, &payload).await?
                }
                LinkEvent::Lost { .. } => return Ok(()),
            }
        }
        Ok(())
    }

    async fn received(
        &mut self,
        session: &mut L::Session,
        flight: &mut Flight,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), LinkError> {
        // The opener keeps its counter on disk before it returns.
        let (device, open) = (self.context.device.clone(), self.context.open.clone());
        let (topic, payload) = (topic.to_owned(), payload.to_vec());
        let judged =
            tokio::task::spawn_blocking(move || inbound::accept(&device, &topic, &payload, &open)).await;
        match judged.expect("judging a message returns refusals and does not panic") {
            Ok(Inbound::Ack(body)) => {
                self.acknowledged(flight, body).await;
                self.pump(session, flight).await
            }
            Ok(Inbound::Notice) => {
                let due = self.noticed.is_none_or(|last| last.elapsed() >= NOTICE_INTERVAL);
                if due {
                    self.noticed = Some(Instant::now());
                    self.tell(News::Order(Inbound::Notice)).await;
                }
                Ok(())
            }
            Ok(order @ (Inbound::Desired(_) | Inbound::Cmd(_))) => {
                self.tell(News::Order(order)).await;
                Ok(())
            }
            Err(refusal) => {
                tracing::warn!(reason = %refusal.reason, detail = %refusal.detail, "message refused");
                self.tell(News::Refused(refusal)).await;
                Ok(())
            }
        }
    }
}

/// Waits for the order to stop; an agent that is gone gives it too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        tracing::debug!("the main loop has ended");
    }
}

fn stopping(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// A random share of `pause`, between a half and the whole, so that a fleet does not return in step.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    SystemRandom::new().fill(&mut byte).expect("the operating system has randomness after boot");
    pause / 2 + pause / 2 * u32::from(byte[0]) / 255
}

#[cfg(test)]
mod tests;
