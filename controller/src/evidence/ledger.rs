use std::collections::{BTreeMap, BTreeSet};

use dunlin_monitor::rate::Rate;
use dunlin_monitor::summary::{Pairs, Summary, WindowError};
use dunlin_protocol::{
    DeviceId, Digest, PAYLOAD_BYTES_MAX, ReferenceProfile, ReleaseId, TaskId, Window, cbor,
};
use serde::{Deserialize, Serialize};

use super::drift::{Drift, Watch};
use super::{EvidenceConfig, Roster};
use crate::ingest::chain;

/// How far a device's clock may run ahead of ours before its times are not believed.
const AHEAD_MS_MAX: u64 = 5 * 60_000;
/// Releases that one device may have paired evidence against; more is no evidence but noise.
const PAIRS_MAX: usize = 64;

/// A stored window, not decoded.
#[derive(Debug, Clone)]
pub struct Row {
    /// Row number; rises with arrival.
    pub id: u64,
    /// The device that signed it.
    pub device: DeviceId,
    /// When it arrived, Unix milliseconds.
    pub received_ms: u64,
    /// [`Window`] as CBOR.
    pub body: Vec<u8>,
}

/// Why a row was not counted.
#[derive(Debug, thiserror::Error)]
pub enum Skipped {
    /// It can not be decoded.
    #[error("decoding a stored window")]
    Undecodable(#[from] cbor::CborError),
    /// Its counts can not be used.
    #[error("reading the counts of a stored window")]
    Counts(#[from] WindowError),
    /// Its body names another task than its row.
    #[error("checking a stored window: its row says task {expected}, its body {found}")]
    Task {
        /// Task of the row.
        expected: TaskId,
        /// Task of the body.
        found: TaskId,
    },
    /// It names more releases than a device can have.
    #[error("checking a stored window: paired with more than {PAIRS_MAX} releases")]
    Pairs,
}

/// Rows of one device that were not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedCount {
    /// How many.
    pub rows: u64,
    /// Number of the last one.
    pub last_row: u64,
    /// What was wrong with it.
    pub last_cause: String,
}

/// Which windows to sum up. The default takes all that are kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    /// Only this release.
    pub release: Option<&'a ReleaseId>,
    /// Only these devices.
    pub devices: Option<&'a BTreeSet<DeviceId>>,
    /// Only from this time on, Unix milliseconds; rounded down to a multiple of [`EvidenceConfig::window_ms`].
    pub since_ms: u64,
}

type Key = (DeviceId, Option<ReleaseId>);

/// Labels that are kept of a device's and release's time before the buckets: with more, the newest would say too little.
const EARLIER_LABELS_MAX: u64 = 5_000;

/// What the windows of one task say.
#[derive(Debug)]
pub struct Ledger {
    task: TaskId,
    config: EvidenceConfig,
    /// Start of the bucket → sums without input counts. Buckets are as long as merged windows, so that old ones can
    /// be dropped whole.
    quality: BTreeMap<u64, BTreeMap<Key, Summary>>,
    /// Right answers among the labelled ones of buckets that were dropped; older ones count less and less.
    pub(super) earlier: BTreeMap<(DeviceId, ReleaseId), Rate>,
    /// (device, release) → other release → sums.
    pairs: BTreeMap<(DeviceId, ReleaseId), BTreeMap<ReleaseId, Paired>>,
    watch: Watch,
    skipped: BTreeMap<DeviceId, SkippedCount>,
    /// The last row that was folded.
    pub(super) upto: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Paired {
    last_ms: u64,
    sums: Pairs,
}

impl Ledger {
    /// An empty ledger of `task`. Merged windows shorter than a second are taken as one of a second.
    pub fn new(task: TaskId, config: EvidenceConfig) -> Self {
        let config = EvidenceConfig { window_ms: config.window_ms.max(1000), ..config };
        let watch = Watch::new(config);
        Self {
            task,
            config,
            quality: BTreeMap::new(),
            earlier: BTreeMap::new(),
            pairs: BTreeMap::new(),
            watch,
            skipped: BTreeMap::new(),
            upto: 0,
        }
    }

    /// The task.
    pub fn task(&self) -> &TaskId {
        &self.task
    }

    /// The configuration.
    pub fn config(&self) -> &EvidenceConfig {
        &self.config
    }

    /// Names the active devices and where they belong.
    pub fn set_roster(&mut self, roster: Roster) {
        self.watch.set_roster(roster);
    }

    /// Names the reference profile of a release, as its manifest does. Inputs counted on any other bins judge
    /// nothing. Drift of a release is watched from the next window on.
    pub fn set_profile(&mut self, release: ReleaseId, digest: Digest, profile: ReferenceProfile) {
        self.watch.set_profile(release, digest, profile);
    }

    /// Folds one row. A row that is not newer than the last one changes nothing; a row that can not be used is
    /// counted as skipped.
    pub fn fold(&mut self, row: &Row) {
        if row.id <= self.upto {
            return;
        }
        self.upto = row.id;
        if let Err(cause) = self.take(row) {
            let skipped = self.skipped.entry(row.device.clone()).or_default();
            skipped.rows += 1;
            skipped.last_row = row.id;
            skipped.last_cause = chain(&cause);
        }
        self.forget(row.received_ms);
    }

    fn take(&mut self, row: &Row) -> Result<(), Skipped> {
        let window: Window = cbor::decode(&row.body, PAYLOAD_BYTES_MAX)?;
        if window.task != self.task {
            return Err(Skipped::Task { expected: self.task.clone(), found: window.task });
        }
        let mut sum = Summary::of(&window)?;
        let at_ms = believable(&window, row.received_ms);
        // Rows that are only there for their pairs, or that waited for days in a spool, are not recent quality.
        let recent = at_ms + self.config.quality_ms > row.received_ms;
        if let (Some(release), Some(pair)) = (&window.release, &window.pair)
            && let Some(sums) = sum.pairs.get(&pair.other)
        {
            let others = self.pairs.entry((row.device.clone(), release.clone())).or_default();
            if others.len() >= PAIRS_MAX && !others.contains_key(&pair.other) {
                return Err(Skipped::Pairs);
            }
            let paired = others.entry(pair.other.clone()).or_default();
            paired.last_ms = paired.last_ms.max(at_ms);
            paired.sums.merge(*sums);
        }
        if let Some(release) = &window.release {
            self.watch.add(release, &row.device, at_ms, &sum);
        }
        if recent {
            sum.drop_features();
            let bucket = self.quality.entry(self.bucket(at_ms)).or_default();
            bucket.entry((row.device.clone(), window.release)).or_default().merge(&sum);
        }
        Ok(())
    }

    /// Tells the ledger how late it is: judges the merged windows that are over and drops what is too old.
    pub fn advance(&mut self, now_ms: u64) {
        self.forget(now_ms);
        let oldest = now_ms.saturating_sub(self.config.pairs_ms);
        self.pairs.retain(|_, others| {
            others.retain(|_, paired| paired.last_ms >= oldest);
            !others.is_empty()
        });
    }

    fn forget(&mut self, now_ms: u64) {
        self.watch.advance(now_ms);
        let oldest = now_ms.saturating_sub(self.config.quality_ms + self.config.window_ms);
        let kept = self.quality.split_off(&oldest);
        for bucket in std::mem::replace(&mut self.quality, kept).into_values() {
            add_labels(&mut self.earlier, &bucket);
        }
    }

    /// The sum of what `filter` takes, without input counts.
    pub fn summary(&self, filter: Filter<'_>) -> Summary {
        let mut sum = Summary::new();
        for (_, one) in self.taken(filter) {
            sum.merge(one);
        }
        sum
    }

    /// The same by device.
    pub fn by_device(&self, filter: Filter<'_>) -> BTreeMap<DeviceId, Summary> {
        let mut sums: BTreeMap<DeviceId, Summary> = BTreeMap::new();
        for ((device, _), one) in self.taken(filter) {
            sums.entry(device.clone()).or_default().merge(one);
        }
        sums
    }

    /// The same by release; windows of the constant baseline stand under `None`.
    pub fn by_release(&self, filter: Filter<'_>) -> BTreeMap<Option<ReleaseId>, Summary> {
        let mut sums: BTreeMap<Option<ReleaseId>, Summary> = BTreeMap::new();
        for ((_, release), one) in self.taken(filter) {
            sums.entry(release.clone()).or_default().merge(one);
        }
        sums
    }

    /// The same by device and release; windows of the constant baseline are left out.
    pub fn by_device_and_release(&self, filter: Filter<'_>) -> BTreeMap<(DeviceId, ReleaseId), Summary> {
        let mut sums: BTreeMap<(DeviceId, ReleaseId), Summary> = BTreeMap::new();
        for ((device, release), one) in self.taken(filter) {
            if let Some(release) = release {
                sums.entry((device.clone(), release.clone())).or_default().merge(one);
            }
        }
        sums
    }

    /// Right answers among labelled ones before `since_ms`, by device and release; the newest say the most.
    pub fn labels_before(&self, since_ms: u64) -> BTreeMap<(DeviceId, ReleaseId), Rate> {
        let mut all = self.earlier.clone();
        for bucket in self.quality.range(..self.bucket(since_ms)).map(|(_, bucket)| bucket) {
            add_labels(&mut all, bucket);
        }
        all
    }

    /// Start of the bucket that a time belongs to.
    fn bucket(&self, at_ms: u64) -> u64 {
        at_ms - at_ms % self.config.window_ms
    }

    fn taken<'a>(&'a self, filter: Filter<'a>) -> impl Iterator<Item = (&'a Key, &'a Summary)> {
        let from = self.bucket(filter.since_ms);
        self.quality.range(from..).flat_map(|(_, bucket)| bucket).filter(move |((device, release), _)| {
            filter.release.is_none_or(|wanted| release.as_ref() == Some(wanted))
                && filter.devices.is_none_or(|wanted| wanted.contains(device))
        })
    }

    /// Paired evidence of `release` on `device` against `other`, over all of its roll-out.
    pub fn pairs(&self, device: &DeviceId, release: &ReleaseId, other: &ReleaseId) -> Pairs {
        let others = self.pairs.get(&(device.clone(), release.clone()));
        others.and_then(|others| others.get(other)).map(|paired| paired.sums).unwrap_or_default()
    }

    /// Paired evidence of `release` on `device` against whatever it was paired with.
    pub fn pairs_with_any(&self, device: &DeviceId, release: &ReleaseId) -> Pairs {
        let others = self.pairs.get(&(device.clone(), release.clone()));
        let mut sum = Pairs::default();
        others.into_iter().flat_map(BTreeMap::values).for_each(|paired| sum.merge(paired.sums));
        sum
    }

    /// What the last windows say about the inputs of `release`.
    pub fn drift(&self, release: &ReleaseId) -> Drift {
        self.watch.verdict(release)
    }

    /// Releases whose inputs were judged lately.
    pub fn watched(&self) -> BTreeSet<ReleaseId> {
        self.watch.releases()
    }

    /// Rows that were not counted, by device.
    pub fn skipped(&self) -> &BTreeMap<DeviceId, SkippedCount> {
        &self.skipped
    }
}

fn add_labels(all: &mut BTreeMap<(DeviceId, ReleaseId), Rate>, bucket: &BTreeMap<Key, Summary>) {
    for ((device, release), sum) in bucket {
        let (Some(release), labels) = (release, sum.accuracy()) else { continue };
        if labels.n > 0 {
            let rate = all.entry((device.clone(), release.clone())).or_default();
            *rate = rate.at_most(EARLIER_LABELS_MAX).plus(labels);
        }
    }
}

/// The end of the window by the device's clock, unless it has none or runs ahead; then the time of arrival.
fn believable(window: &Window, received_ms: u64) -> u64 {
    if window.wall && window.end_ms <= received_ms + AHEAD_MS_MAX {
        window.end_ms.min(received_ms)
    } else {
        received_ms
    }
}
