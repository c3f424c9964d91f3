//! What the driver finds on the disk at its start, and takes up.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use dunlin_protocol::{Indicator, ReasonCode};
use dunlin_update::{Journal, Record, Setup, Stop, Updater};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::carry::Hands;
use super::super::fetch::{Fetcher, chain};
use super::super::marker::Marker;
use super::super::program;
use super::super::store::Store;
use super::super::trusted::{FloorsFound, Trusted};
use super::super::twin::Twin;
use super::told::indicator;
use super::{Driver, Notice, Order, UpdateConfig, UpdateError};
use crate::clock;
use crate::serve::Serving;

impl Driver {
    #[allow(clippy::too_many_arguments, reason = "the parts of the one struct that is made here")]
    pub(super) fn restore(
        config: UpdateConfig,
        seed: u64,
        trusted: Arc<Mutex<Trusted>>,
        fetcher: Fetcher,
        serving: Arc<Serving>,
        orders: mpsc::Receiver<Order>,
        notices: mpsc::Sender<Notice>,
    ) -> Result<(Self, Stop), UpdateError> {
        let dir = config.slots_dir.clone();
        let state = |source| UpdateError::State { dir: dir.clone(), source };
        std::fs::create_dir_all(&dir).map_err(state)?;
        let store = Store::open(&dir.join("blobs"), config.reserve_bytes).map_err(state)?;
        let (journal_file, journal) = Twin::open(&dir, "journal").map_err(state)?;
        let (record_file, record) = Twin::open(&dir, "slots").map_err(state)?;
        let (marker, stop) = Marker::set(&dir).map_err(state)?;
        let mut pending = VecDeque::new();
        for (found, what) in [(&journal, "update journal"), (&record, "generation record")] {
            if found.damaged {
                pending.push_back(Notice::Indicator(indicator(
                    ReasonCode::StateRecovered,
                    format!("one copy of the {what} is damaged"),
                )));
            }
        }
        let taken = match journal.body.map(|bytes| Journal::decode(&bytes)) {
            Some(Ok(journal)) => journal,
            other => {
                if let Some(Err(error)) = other {
                    pending
                        .push_back(Notice::Indicator(indicator(ReasonCode::StateRecovered, chain(&error))));
                }
                let record = record.body.as_deref().and_then(|bytes| Record::decode(bytes).ok());
                record.map_or_else(Journal::default, Journal::adopt)
            }
        };
        let now = clock::now();
        let updater = Updater::restore(
            taken,
            Setup { budgets: config.profile.budgets, seed, program: program::runs() },
            now,
        );
        let hands = Hands::new(
            store,
            journal_file,
            record_file,
            record.body.unwrap_or_default(),
            fetcher.clone(),
            serving,
            config.exe.clone(),
        );
        {
            let mut trusted = trusted.lock().unwrap_or_else(PoisonError::into_inner);
            let found = trusted.found();
            let older = trusted.not_behind(updater.generation(), updater.counted_by())?;
            pending.extend(found_indicator(found, older).map(Notice::Indicator));
        }
        let check_at = Instant::now();
        let driver = Self {
            updater,
            hands,
            marker,
            trusted,
            fetcher,
            config,
            orders,
            notices,
            pending,
            announced: None,
            checking: JoinSet::new(),
            check_at,
            failed_checks: 0,
            inhibited: false,
            refused: None,
            clock_told: false,
            stale_told: false,
            untrusted_told: false,
            reached: watch::Sender::new(false),
            start_anew: false,
        };
        Ok((driver, stop))
    }
}

/// What is told of the state in which the floors were found.
fn found_indicator(found: FloorsFound, older: bool) -> Option<Indicator> {
    let (reason, detail) = match (found, older) {
        (FloorsFound::Lost, _) => (
            ReasonCode::FloorsDamaged,
            "no copy of the floors record is whole, and no cache to raise them from",
        ),
        (FloorsFound::Rebuilt, _) => (
            ReasonCode::StateRecovered,
            "the floors record was damaged; it was rebuilt from verified metadata",
        ),
        (FloorsFound::Repaired | FloorsFound::Whole, true) => {
            (ReasonCode::StateRecovered, "the trust folder is older than the update journal")
        }
        (FloorsFound::Repaired, false) => {
            (ReasonCode::StateRecovered, "one copy of the floors record is damaged")
        }
        (FloorsFound::Whole, false) => return None,
    };
    Some(indicator(reason, detail.to_owned()))
}
