//! What devices send, on its way into the database.
//!
//! Messages are verified in parallel, stored many to a transaction, and acknowledged after the commit. What
//! is refused is counted by device and reason; nothing a device sends can stop the loop.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{AckBody, DeviceId, ReasonCode, Topic};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::api::Wake;
use crate::broker::link::Message;
use crate::clock;
use crate::config;
use crate::downlink::Downlink;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError, Stored};

pub(crate) mod record;
mod seen;

pub use record::{Record, Refused};
pub use seen::{Seen, TooManyHoles};

/// Messages between the connection and the verifiers: two full batches, so that the connection rarely waits.
pub const QUEUE_MAX: usize = 2048;
/// Verified batches that wait for the database: one being stored, one ready.
const BATCHES_MAX: usize = 1;
/// Messages that one verifier takes at a time: about 5 ms of work.
const VERIFY_CHUNK: usize = 64;
/// Pause before a batch that the database refused is stored again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Kinds of refusal kept apart between two writes; further ones count as one of an unknown sender.
const REFUSED_MAX: usize = 256;

/// Refusals since the last write, by device and reason code.
type RefusedCounts = BTreeMap<(String, &'static str), (u64, Refused)>;

/// Stores verified records in one transaction. What the result says to acknowledge is durable.
pub async fn store_batch(store: &Store, records: Vec<Record>) -> Result<Stored, StoreError> {
    store.store_records(&records).await
}

/// Verifies messages against the keys in the database, on as many threads as there are cores. The order of
/// what is taken is kept. A record that is signed and whose body is refused is in both lists: its number counts.
pub async fn verify_batch(
    store: &Store,
    messages: Vec<Message>,
) -> Result<(Vec<Record>, Vec<(Option<DeviceId>, Refused)>), StoreError> {
    let now_ms = clock::wall_ms();
    let mut refused = Vec::new();
    let mut addressed = Vec::with_capacity(messages.len());
    for message in messages {
        match std::str::from_utf8(&message.topic).ok().and_then(Topic::parse) {
            Some(Topic::Up(device, _)) => addressed.push((device, message.payload)),
            Some(Topic::Down(..) | Topic::Notice) | None => {
                refused.push((
                    None,
                    Refused {
                        reason: ReasonCode::EnvelopeMalformed,
                        detail: "not a topic of a device".into(),
                    },
                ));
            }
        }
    }
    let ids: BTreeSet<&DeviceId> = addressed.iter().map(|(device, _)| device).collect();
    let keys = Arc::new(store.device_keys(&ids).await?);
    let mut tasks = Vec::new();
    let mut rest = addressed.into_iter().peekable();
    while rest.peek().is_some() {
        let chunk: Vec<_> = rest.by_ref().take(VERIFY_CHUNK).collect();
        let keys = Arc::clone(&keys);
        tasks.push(tokio::task::spawn_blocking(move || {
            chunk
                .into_iter()
                .map(|(device, payload)| open(&keys, device, &payload, now_ms))
                .collect::<Vec<_>>()
        }));
    }
    let mut records = Vec::new();
    for task in tasks {
        for result in task.await.expect("verification does not panic, whatever the bytes") {
            match result {
                Ok(record) => {
                    let refusal = record.refusal().cloned();
                    refused.extend(refusal.map(|refusal| (Some(record.device().clone()), refusal)));
                    records.push(record);
                }
                Err(refusal) => refused.push(refusal),
            }
        }
    }
    Ok((records, refused))
}

fn open(
    keys: &BTreeMap<DeviceId, Vec<u8>>,
    device: DeviceId,
    payload: &[u8],
    now_ms: u64,
) -> Result<Record, (Option<DeviceId>, Refused)> {
    let Some(spki) = keys.get(&device) else {
        return Err((
            None,
            Refused {
                reason: ReasonCode::EnvelopeSignature,
                detail: format!("the device {device} is unknown, retired or revoked"),
            },
        ));
    };
    Record::open(payload, &device, spki, now_ms).map_err(|refusal| (Some(device), refusal))
}

/// The ingest of a running controller.
#[derive(Debug)]
pub struct Ingest {
    /// Database.
    pub store: Store,
    /// Acknowledges.
    pub downlink: Downlink,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Wakes those who act on what came in.
    pub wake: Wake,
    /// Batch sizes.
    pub config: config::Ingest,
}

impl Ingest {
    /// Runs until the sender of `messages` is gone and everything it sent is stored.
    pub async fn run(self, messages: mpsc::Receiver<Message>) {
        let this = Arc::new(self);
        let (verified, batches) = mpsc::channel(BATCHES_MAX);
        tokio::join!(Arc::clone(&this).verify(messages, verified), this.write(batches));
    }

    async fn verify(
        self: Arc<Self>,
        mut messages: mpsc::Receiver<Message>,
        verified: mpsc::Sender<(Vec<Record>, RefusedCounts)>,
    ) {
        loop {
            let mut batch = Vec::with_capacity(self.config.batch_max);
            if messages.recv_many(&mut batch, self.config.batch_max).await == 0 {
                return;
            }
            let deadline = Instant::now() + Duration::from_millis(self.config.batch_ms);
            while batch.len() < self.config.batch_max {
                let room = self.config.batch_max - batch.len();
                match timeout_at(deadline, messages.recv_many(&mut batch, room)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            let (records, refused) = match verify_batch(&self.store, batch).await {
                Ok(both) => both,
                Err(error) => {
                    // Nothing is lost: what is not acknowledged is sent again.
                    tracing::error!(%error, "a batch can not be verified and is dropped");
                    continue;
                }
            };
            let refused = self.count(refused);
            if verified.send((records, refused)).await.is_err() {
                return;
            }
        }
    }

    fn count(&self, refused: Vec<(Option<DeviceId>, Refused)>) -> RefusedCounts {
        let mut counts = RefusedCounts::new();
        for (device, refusal) in refused {
            let reason = refusal.reason.as_str();
            self.metrics.refused(reason);
            tracing::warn!(
                device = device.as_ref().map(DeviceId::as_str),
                reason,
                detail = refusal.detail,
                "a message is refused"
            );
            let mut key = (device.map(|device| device.to_string()).unwrap_or_default(), reason);
            if counts.len() >= REFUSED_MAX && !counts.contains_key(&key) {
                key = (String::new(), ReasonCode::Unknown.as_str());
            }
            let entry = counts.entry(key).or_insert_with(|| (0, refusal.clone()));
            *entry = (entry.0 + 1, refusal);
        }
        counts
    }

    /// Gives devices with a new session what they have not replied to.
    async fn give_again(&self, returned: &BTreeSet<DeviceId>) -> Result<(), StoreError> {
        let mut waiting = self.store.pending_commands(clock::wall_ms()).await?;
        waiting.retain(|device, _| returned.contains(device));
        for pending in waiting.into_values().flatten() {
            if let Err(error) = self.downlink.pending(&pending).await {
                tracing::warn!(%error, id = pending.cmd.id, "a command was not given again; it is with the next session");
            }
        }
        Ok(())
    }

    async fn write(&self, mut batches: mpsc::Receiver<(Vec<Record>, RefusedCounts)>) {
        while let Some((records, refused)) = batches.recv().await {
            if !refused.is_empty()
                && let Err(error) = self.store.count_refused(&refused, clock::wall_ms()).await
            {
                tracing::error!(%error, "refused messages can not be counted in the database");
            }
            if records.is_empty() {
                continue;
            }
            let started = Instant::now();
            let stored = match self.store.store_records(&records).await {
                Ok(stored) => stored,
                Err(error) => {
                    self.metrics.store_failed();
                    tracing::error!(error = %chain(&error), records = records.len(), "a batch can not be stored; it is tried once more");
                    tokio::time::sleep(STORE_RETRY).await;
                    match self.store.store_records(&records).await {
                        Ok(stored) => stored,
                        Err(error) => {
                            tracing::error!(error = %chain(&error), "the batch is dropped; the devices send it again");
                            continue;
                        }
                    }
                }
            };
            self.metrics.stored(&stored, started.elapsed());
            if stored.news {
                self.wake.planner.notify_one();
            }
            if !stored.returned.is_empty()
                && let Err(error) = self.give_again(&stored.returned).await
            {
                tracing::error!(error = %chain(&error), "commands are not given again; they are with the next session");
            }
            if !stored.sampled.is_empty() {
                self.wake.training.notify_one();
            }
            for (device, ranges) in stored.acks {
                if let Err(error) = self.downlink.ack(&device, &AckBody { ranges }).await {
                    tracing::warn!(%error, %device, "an acknowledgement was not sent; the device sends again");
                }
            }
        }
    }
}

/// An error with its causes, for a line of text.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
