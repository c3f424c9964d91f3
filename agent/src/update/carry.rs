use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{Digest, Outcome, ReasonCode, TaskId};
use dunlin_update::{Command, Designation, Event, Observed, Record, Slot, Updater};
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use super::crowd::Crowd;
use super::fetch::{Fetcher, chain};
use super::store::Store;
use super::twin::Twin;
use super::{at_disk, load, prove};
use crate::serve::Serving;

mod download;
mod live;
mod program;

use download::Item;
use live::{Live, failed, warm};

/// Downloads at one time: two, so that a stalled one does not hold up another task's; each needs its buffers.
const FETCHES: usize = 2;
/// Proofs at one time: their latencies count, so they must not run beside each other.
const PROOFS: usize = 1;
/// Pause before state that could not be written is written again.
const DISK_RETRY: Duration = Duration::from_secs(5);

/// What came of an order.
pub(super) enum Told {
    /// Nothing, or an event will come from [`Hands::done`].
    Nothing,
    /// A fact.
    Event(Event),
    /// A numbered outcome, to be told outside.
    Outcome(u64, Outcome),
    /// Something that is not the machine's business.
    Trouble(ReasonCode, String),
    /// This process is to end in order, and to begin anew.
    StartAnew,
}

/// What goes on beside the machine, and the fact that comes of it; in a box, as the runtime has its own code for each kind of
/// future.
type Job = BoxFuture<'static, Option<Event>>;

/// The same, for what blocks.
type Work = Box<dyn FnOnce() -> Event + Send>;

async fn apart(work: Work) -> Option<Event> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// The same when there is a turn.
async fn in_turn(turns: Arc<Semaphore>, work: Work) -> Option<Event> {
    let turn = turns.acquire_owned().await.ok()?;
    apart(Box::new(move || {
        let event = work();
        drop(turn);
        event
    }))
    .await
}

/// Carries out the orders of the machine.
pub(super) struct Hands {
    store: Store,
    journal: Twin,
    record: Twin,
    recorded: Vec<u8>,
    fetcher: Fetcher,
    serving: Arc<Serving>,
    exe: PathBuf,
    live: BTreeMap<TaskId, Live>,
    crowd: Crowd,
    jobs: JoinSet<Option<Event>>,
    aborts: BTreeMap<TaskId, AbortHandle>,
    /// The last fetch of a program; a newer one ends it.
    program: Option<AbortHandle>,
    fetches: Arc<Semaphore>,
    /// By blob: two tasks may want the same one, and only one may write it.
    writers: BTreeMap<Digest, Arc<Mutex<()>>>,
    proofs: Arc<Semaphore>,
}

impl Hands {
    pub(super) fn new(
        store: Store,
        journal: Twin,
        record: Twin,
        recorded: Vec<u8>,
        fetcher: Fetcher,
        serving: Arc<Serving>,
        exe: PathBuf,
    ) -> Self {
        let crowd = Crowd::new(serving.budget());
        Self {
            store,
            journal,
            record,
            recorded,
            fetcher,
            serving,
            exe,
            live: BTreeMap::new(),
            crowd,
            jobs: JoinSet::new(),
            aborts: BTreeMap::new(),
            program: None,
            fetches: Arc::new(Semaphore::new(FETCHES)),
            writers: BTreeMap::new(),
            proofs: Arc::new(Semaphore::new(PROOFS)),
        }
    }

    /// The models in memory.
    pub(super) fn serving(&self) -> Arc<Serving> {
        self.serving.clone()
    }

    /// Whether something is under way.
    pub(super) fn busy(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// The next fact from what is under way; `None` if something ended without one.
    pub(super) async fn done(&mut self) -> Option<Event> {
        loop {
            match self.jobs.join_next().await? {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(error) if error.is_cancelled() => {}
                Err(error) => tracing::error!(%error, "a step of an update ended badly"),
            }
        }
    }

    /// Ends what is under way.
    pub(super) fn end(&mut self) {
        self.jobs.abort_all();
    }

    pub(super) async fn carry_out(&mut self, command: Command, updater: &Updater) -> Told {
        match command {
            Command::Persist(bytes) => {
                while let Err(error) = at_disk(|| self.journal.save(&bytes)) {
                    tracing::error!(error = %chain(&error), "could not write the update journal");
                    tokio::time::sleep(DISK_RETRY).await;
                }
                Told::Nothing
            }
            Command::FetchPolicy { task, file } => {
                self.fetch(task, Item::Policy(file));
                Told::Nothing
            }
            Command::FetchManifest { task, file } => {
                self.fetch(task, Item::Manifest(file));
                Told::Nothing
            }
            Command::FetchBlob { task, blob } => {
                self.fetch(task, Item::Blob(blob));
                Told::Nothing
            }
            Command::ApplyPolicy { task, policy } => match load::policy(&self.store, &policy) {
                Ok(policy) => {
                    self.serving.set_policy(&policy);
                    Told::Nothing
                }
                Err(detail) => {
                    Told::Trouble(ReasonCode::StateRecovered, format!("policy of {task}: {detail}"))
                }
            },
            Command::CheckSpace { task, blobs } => {
                let (enough, detail) = match self.store.room(&blobs) {
                    Ok(room) => (room.enough(), format!("{} bytes needed, {} free", room.missing, room.free)),
                    Err(error) => (false, chain(&error)),
                };
                Told::Event(Event::SpaceChecked { task, enough, detail })
            }
            Command::Cancel { task } => {
                if let Some(job) = self.aborts.remove(&task) {
                    job.abort();
                }
                Told::Nothing
            }
            Command::Verify { task, files } => {
                let store = self.store.clone();
                let of = task.clone();
                let verify = Box::new(move || {
                    // A file that can not be read is as good as damaged: it is fetched again.
                    let damaged = files.iter().find(|file| !store.verify(file).unwrap_or(false));
                    match damaged {
                        Some(file) => Event::StagedDamaged { task, digest: file.digest },
                        None => Event::StagedVerified { task, files },
                    }
                });
                self.keep_track(of, Box::pin(apart(verify)));
                Told::Nothing
            }
            Command::Prove { task, pack, terms } => {
                let (store, exe) = (self.store.clone(), self.exe.clone());
                let of = task.clone();
                let prove = Box::new(move || {
                    let manifest = pack.manifest.digest;
                    match prove::prove(&exe, &store, &pack, &terms) {
                        Ok(proof) => Event::Proved { task, manifest, proof },
                        Err((reason, detail)) => Event::ProofFailed { task, manifest, reason, detail },
                    }
                });
                self.keep_track(of, Box::pin(in_turn(self.proofs.clone(), prove)));
                Told::Nothing
            }
            Command::Restore { task, serving, previous, trial } => match serving {
                Designation::Baseline => Told::Nothing,
                Designation::Line(line) => {
                    if let (true, Designation::Line(previous)) = (trial, previous)
                        && let Err(detail) = self.serve(&task, &warm(previous), false).await
                    {
                        tracing::warn!(%task, detail, "the predecessor of a release on probation can not be loaded");
                    }
                    self.serve(&task, &line, trial)
                        .await
                        .map_or_else(|detail| failed(task, &line, detail), |()| Told::Nothing)
                }
            },
            Command::SwitchTo { task, line, previous, trial } => {
                let residents = match self.residents(&line).await {
                    Ok(residents) => residents,
                    Err(detail) => return failed(task, &line, detail),
                };
                let mut record = updater.record();
                let policy = record.tasks.get(&task).and_then(|slot| slot.policy);
                record.tasks.insert(
                    task.clone(),
                    Slot { policy, serving: Designation::Line(line.clone()), previous },
                );
                self.write_record(&record).await;
                self.switch(&task, &line, residents, trial).await;
                Told::Event(Event::Switched { task })
            }
            Command::Commit { task } => {
                self.serving.commit(&task);
                self.live.entry(task).or_default().previous = None;
                self.write_record(&updater.record()).await;
                Told::Nothing
            }
            Command::RollBack { task, to } => {
                // What serves first: the journal knows, and the record follows it.
                let record = updater.record();
                let told = self.roll_back(task, to, &record).await;
                self.write_record(&record).await;
                told
            }
            Command::Remove { task } => {
                self.serving.remove(&task);
                self.live.remove(&task);
                self.crowd.forget(&task);
                self.write_record(&updater.record()).await;
                Told::Nothing
            }
            Command::DropBlobs { keep } => {
                // The record must not name what is gone.
                self.write_record(&updater.record()).await;
                match self.store.keep_only(&keep) {
                    Ok(dropped) => tracing::debug!(dropped, "dropped files that nothing needs"),
                    Err(error) => tracing::warn!(%error, "could not drop files that nothing needs"),
                }
                Told::Nothing
            }
            Command::ReadGuard { task } => match self.serving.guard(&task) {
                Some(guard) => {
                    let seen = Observed {
                        requests: guard.requests,
                        errors: guard.errors,
                        p99_us: guard.p99_us,
                        previous_p99_us: Some(guard.previous_p99_us).filter(|us| *us > 0),
                        rss_bytes: resident_bytes().unwrap_or(0),
                        paired: guard.paired,
                        disagree: guard.disagree,
                    };
                    Told::Event(Event::GuardObserved { task, seen })
                }
                None => Told::Nothing,
            },
            Command::FetchProgram { file } => {
                self.fetch_program(file);
                Told::Nothing
            }
            Command::ProveProgram { file } => {
                self.prove_program(file);
                Told::Nothing
            }
            Command::StartAnew => Told::StartAnew,
            Command::Report { seq, outcome } => Told::Outcome(seq, outcome),
        }
    }

    fn keep_track(&mut self, task: TaskId, job: Job) {
        if let Some(before) = self.aborts.remove(&task) {
            before.abort();
        }
        self.aborts.insert(task, self.jobs.spawn(job));
    }

    async fn write_record(&mut self, record: &Record) {
        let bytes = record.encode();
        if bytes == self.recorded {
            return;
        }
        while let Err(error) = at_disk(|| self.record.save(&bytes)) {
            tracing::error!(error = %chain(&error), "could not write the generation record");
            tokio::time::sleep(DISK_RETRY).await;
        }
        self.recorded = bytes;
    }
}

/// Resident memory of this process, bytes (`VmRSS` of proc(5)).
fn resident_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}
