//! What `/metrics` shows, in the Prometheus text format.
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::store::Stored;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// The counters. Labels come from closed lists only, so that no device can make series.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    records: Family<Kind, Counter>,
    refused: Family<Reason, Counter>,
    duplicates: Counter,
    put_off: Counter,
    store_failures: Counter,
    batch_seconds: Histogram,
    down: Family<Kind, Counter>,
    /// Devices of the fleet.
    pub devices: Gauge,
    /// Devices whose session is up.
    pub devices_online: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("dunlin"),
            records: Family::default(),
            refused: Family::default(),
            duplicates: Counter::default(),
            put_off: Counter::default(),
            store_failures: Counter::default(),
            batch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 12)),
            down: Family::default(),
            devices: Gauge::default(),
            devices_online: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("ingest_records", "Records stored, by kind", metrics.records.clone());
        registry.register("ingest_refused", "Messages refused, by reason code", metrics.refused.clone());
        registry.register("ingest_duplicates", "Records that were stored before", metrics.duplicates.clone());
        registry.register(
            "ingest_put_off",
            "Records left for the device to send again",
            metrics.put_off.clone(),
        );
        registry.register(
            "ingest_store_failures",
            "Batches the database did not take at once",
            metrics.store_failures.clone(),
        );
        registry.register(
            "ingest_batch_seconds",
            "Time to store and commit a batch",
            metrics.batch_seconds.clone(),
        );
        registry.register("down_messages", "Messages sent to devices, by kind", metrics.down.clone());
        registry.register("devices", "Active devices", metrics.devices.clone());
        registry.register(
            "devices_online",
            "Active devices whose session is up",
            metrics.devices_online.clone(),
        );
        metrics
    }

    /// A message was refused.
    pub fn refused(&self, reason: &str) {
        self.refused.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    /// A batch was committed.
    pub fn stored(&self, stored: &Stored, took: Duration) {
        for (kind, count) in &stored.stored {
            self.records.get_or_create(&Kind { kind: (*kind).to_owned() }).inc_by(*count);
        }
        self.duplicates.inc_by(stored.duplicates);
        self.put_off.inc_by(stored.put_off);
        self.batch_seconds.observe(took.as_secs_f64());
    }

    /// A batch was not taken.
    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    /// A message was handed to the broker.
    pub fn sent(&self, kind: &str) {
        self.down.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// The text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a string does not fail");
        text
    }
}
