use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{Blob, Bundle, Digest, Outcome, ReasonCode, Role, TaskId, TaskPolicy};
use dunlin_update::{
    Command, Designation, Event, Fault, FileRef, Line, Observed, Pack, Record, Slot, Updater,
};
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use super::crowd::Crowd;
use super::fetch::{Fetcher, chain};
use super::store::Store;
use super::twin::Twin;
use super::{at_disk, load, program, prove};
use crate::clock;
use crate::serve::{Crew, Resident, Serving};

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

/// What the serving side was told last.
#[derive(Debug, Default)]
struct Live {
    line: Option<Line>,
    /// What is kept warm of the line-up before.
    previous: Option<Line>,
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

    /// Takes a task's models out of memory. What it designates is not live then, so that whatever comes next loads it.
    pub(super) fn unload(&mut self, task: TaskId) {
        self.serving.unload(&task);
        self.live.remove(&task);
        self.crowd.forget(&task);
    }

    /// Takes out of memory what a line-up that serves is not designated with any more, because members failed too often. What
    /// serves instead of a champion was loaded by an order of its own.
    pub(super) fn trim(&mut self, task: &TaskId, designated: &Designation) {
        let (Some(live), Some(line)) = (self.live.get_mut(task), designated.line()) else { return };
        if live.line.as_ref().is_some_and(|now| now.champion == line.champion) {
            self.serving.trim(task, |release| line.packs().any(|pack| pack.release == *release));
            live.line = Some(line.clone());
        }
    }

    /// Whether memory or processor time of all models together is bounded.
    pub(super) fn is_bounded(&self) -> bool {
        self.crowd.is_bounded()
    }

    /// Takes members out of memory until the rest keeps to the bounds, and brings back what there is room for.
    pub(super) async fn make_room(&mut self) {
        if !self.crowd.is_bounded() {
            return;
        }
        let moves = self.crowd.decide(self.serving.held(), self.serving.rows(), clock::now().mono_ms);
        for held in moves.out {
            tracing::warn!(task = %held.task, release = %held.release, role = held.role.as_str(), bytes = held.bytes, "taken out of memory: all models together are over the bounds");
            self.serving.take_out(&held);
        }
        for held in moves.back {
            // Who is not designated any more has nothing to come back for.
            let line = self.live.get(&held.task).and_then(|live| live.line.as_ref());
            let found = line.into_iter().flat_map(Line::packs).find(|pack| pack.release == held.release);
            let Some(pack) = found.cloned() else { continue };
            let (store, in_memory) = (self.store.clone(), self.serving.residents());
            let load = move || load::resident(&store, &pack, &in_memory);
            let loaded = tokio::task::spawn_blocking(load).await;
            match loaded.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(resident) => {
                    tracing::info!(task = %held.task, release = %held.release, "there is room for it again");
                    self.serving.put_back(&held, resident);
                }
                Err(detail) => {
                    tracing::warn!(task = %held.task, release = %held.release, detail, "could not be loaded again");
                    self.crowd.stayed_away(held, clock::now().mono_ms);
                }
            }
        }
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
                let (store, fetcher, fetches) =
                    (self.store.clone(), self.fetcher.clone(), self.fetches.clone());
                let writer = self.writer(file.digest);
                let job: Job = Box::pin(async move {
                    let writer = writer.lock_owned().await;
                    let held = (writer, fetches.acquire_owned().await.ok()?);
                    let fetched = match program::admits(&store, &file) {
                        Ok(()) => fetcher.blob(&store, &file, held).await.map_err(|error| error.fault()),
                        Err(fault) => Err(fault),
                    };
                    Some(match fetched {
                        Ok(()) => Event::ProgramStored { file: file.digest },
                        Err(fault) => Event::ProgramFailed { file: file.digest, fault },
                    })
                });
                if let Some(before) = self.program.replace(self.jobs.spawn(job)) {
                    before.abort();
                }
                Told::Nothing
            }
            Command::ProveProgram { file } => {
                let store = self.store.clone();
                let prove = Box::new(move || match program::prove(&store, &file) {
                    Ok(()) => Event::ProgramProved { file: file.digest },
                    Err((reason, detail)) => {
                        Event::ProgramFailed { file: file.digest, fault: Fault::Wrong { reason, detail } }
                    }
                });
                let job: Job = Box::pin(in_turn(self.proofs.clone(), prove));
                self.jobs.spawn(job);
                Told::Nothing
            }
            Command::StartAnew => Told::StartAnew,
            Command::Report { seq, outcome } => Told::Outcome(seq, outcome),
        }
    }

    /// What keeps others from writing a blob.
    fn writer(&mut self, digest: Digest) -> Arc<Mutex<()>> {
        self.writers.retain(|_, writer| Arc::strong_count(writer) > 1);
        self.writers.entry(digest).or_default().clone()
    }

    fn keep_track(&mut self, task: TaskId, job: Job) {
        if let Some(before) = self.aborts.remove(&task) {
            before.abort();
        }
        self.aborts.insert(task, self.jobs.spawn(job));
    }

    fn fetch(&mut self, task: TaskId, item: Item) {
        let (store, fetcher, fetches) = (self.store.clone(), self.fetcher.clone(), self.fetches.clone());
        let writer = self.writer(item.blob().digest);
        let of = task.clone();
        let job = async move {
            let writer = writer.lock_owned().await;
            let held = (writer, fetches.acquire_owned().await.ok()?);
            let blob = item.blob();
            let fetched = match &item {
                Item::Policy(file) | Item::Manifest(file) => {
                    fetcher.target(&store, &file.name, &blob, held).await
                }
                Item::Blob(blob) => fetcher.blob(&store, blob, held).await,
            };
            Some(match fetched {
                Ok(()) => item.stored(task, &store),
                Err(error) => Event::FetchFailed { task, digest: blob.digest, fault: error.fault() },
            })
        };
        self.keep_track(of, Box::pin(job));
    }

    async fn roll_back(&mut self, task: TaskId, to: Designation, record: &Record) -> Told {
        let live = self.live.entry(task.clone()).or_default();
        let line = match to {
            Designation::Baseline => {
                *live = Live::default();
                self.crowd.forget(&task);
                self.serving.remove(&task);
                // The constant baseline goes with the task, so it is put back.
                return self.reapply(&task, record);
            }
            Designation::Line(line) => line,
        };
        if live.line.as_ref().is_some_and(|now| now.serves_as(&line)) {
            return Told::Nothing;
        }
        // At once with what is warm; if that is not all of it, or may be without what there was no room for, then the whole
        // line-up.
        let bounded = self.crowd.is_bounded();
        if let Some(previous) = live.previous.take_if(|warm| warm.champion.manifest == line.champion.manifest)
            && self.serving.rollback(&task)
        {
            let whole = !bounded && previous.serves_as(&line);
            live.line = Some(previous);
            if whole {
                return Told::Nothing;
            }
        }
        self.serve(&task, &line, false)
            .await
            .map_or_else(|detail| failed(task, &line, detail), |()| Told::Nothing)
    }

    /// Puts the policy of a task in force that the generation record names.
    fn reapply(&self, task: &TaskId, record: &Record) -> Told {
        let policy = record.tasks.get(task).and_then(|slot| slot.policy);
        match policy.map(|blob| load::policy(&self.store, &blob)) {
            Some(Ok(policy)) => self.serving.set_policy(&policy),
            Some(Err(detail)) => {
                return Told::Trouble(ReasonCode::StateRecovered, format!("policy of {task}: {detail}"));
            }
            None => {}
        }
        Told::Nothing
    }

    async fn serve(&mut self, task: &TaskId, line: &Line, trial: bool) -> Result<(), String> {
        let residents = self.residents(line).await?;
        self.switch(task, line, residents, trial).await;
        Ok(())
    }

    async fn switch(&mut self, task: &TaskId, line: &Line, crew: Crew, trial: bool) {
        let live = self.live.entry(task.clone()).or_default();
        let before = live.line.take();
        *live = Live { line: Some(line.clone()), previous: before.filter(|_| trial).map(warm) };
        self.crowd.forget(task);
        self.serving.line_up(task, crew, line.generation, trial);
        self.make_room().await;
    }

    /// Loads a line-up. A fallback or member that does not load is gone without; the champion decides.
    async fn residents(&self, line: &Line) -> Result<Crew, String> {
        let (store, line) = (self.store.clone(), line.clone());
        // What is in memory is shared: each twice would be twice the memory.
        let mut in_memory = self.serving.residents();
        let load = move || {
            let mut resident = |pack: &Pack| -> Result<Resident, String> {
                let resident = load::resident(&store, pack, &in_memory)?;
                in_memory.push(resident.clone());
                Ok(resident)
            };
            let champion = resident(&line.champion)?;
            let mut loaded = BTreeMap::new();
            for pack in line.packs().skip(1) {
                match resident(pack) {
                    Ok(resident) => drop(loaded.insert(pack.release.clone(), resident)),
                    Err(detail) => {
                        tracing::warn!(release = %pack.release, detail, "a member can not be loaded");
                    }
                }
            }
            let line = line.with_members(|pack| loaded.contains_key(&pack.release));
            let fallback = line.fallback.as_ref().and_then(|pack| loaded.remove(&pack.release));
            let member = |(member, pack): (_, Pack)| Some((member, loaded.remove(&pack.release)?));
            let members = line.members.into_iter().filter_map(member).collect();
            Ok(Crew { champion, fallback, members, conduct: line.conduct })
        };
        tokio::task::spawn_blocking(load).await.map_err(|e| e.to_string())?
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

/// What of a line-up is kept warm in probation: champion and fallbacks.
fn warm(mut line: Line) -> Line {
    line.members.retain(|(member, _)| member.role == Role::Fallback);
    line
}

fn failed(task: TaskId, line: &Line, detail: String) -> Told {
    Told::Event(Event::ServeFailed { task, release: line.champion.release.clone(), detail })
}

/// What is fetched.
enum Item {
    Policy(FileRef),
    Manifest(FileRef),
    Blob(Blob),
}

impl Item {
    fn blob(&self) -> Blob {
        match self {
            Self::Policy(file) | Self::Manifest(file) => Blob { digest: file.sha256, length: file.length },
            Self::Blob(blob) => *blob,
        }
    }

    /// The fact that it is in the store.
    fn stored(self, task: TaskId, store: &Store) -> Event {
        let blob = self.blob();
        let malformed = |task, detail| Event::FileMalformed { task, file: blob.digest, detail };
        match self {
            Self::Policy(_) => match load::json::<TaskPolicy>(store, &blob) {
                Ok(policy) => Event::PolicyFetched { task, file: blob.digest, policy: Box::new(policy) },
                Err(detail) => malformed(task, detail),
            },
            Self::Manifest(_) => match load::json::<Bundle>(store, &blob) {
                Ok(bundle) => Event::ManifestFetched { task, file: blob.digest, bundle: Box::new(bundle) },
                Err(detail) => malformed(task, detail),
            },
            Self::Blob(_) => Event::BlobStored { task, digest: blob.digest },
        }
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

#[cfg(test)]
mod tests {
    use dunlin_protocol::{Conduct, Member, Rule};
    use dunlin_update::Proof;

    use super::*;

    fn pack(release: &str) -> Pack {
        let manifest = Blob { digest: Digest([0; 32]), length: 1 };
        Pack { release: release.parse().unwrap(), manifest, blobs: vec![], retrained: false }
    }

    fn line(rule: Rule, members: &[(&str, Role)]) -> Line {
        let member = |&(release, role): &(&str, Role)| {
            let pack = pack(release);
            (Member { release: pack.release.clone(), role, limit_us: None }, pack)
        };
        Line {
            generation: 1,
            champion: pack("m@1"),
            fallback: Some(pack("f@1")),
            members: members.iter().map(member).collect(),
            conduct: Conduct { rule, context: vec![] },
            proof: Proof::default(),
            policy: None,
        }
    }

    #[test]
    fn champion_and_fallbacks_are_kept_warm_and_a_roll_back_to_more_is_not_whole() {
        let fallbacks = line(Rule::First, &[("g@1", Role::Fallback)]);
        assert!(warm(fallbacks.clone()).serves_as(&fallbacks));
        let voter = Role::Voter { weight_ppm: 1_000_000 };
        let voting = line(Rule::SoftVote, &[("v@1", voter), ("g@1", Role::Fallback), ("s@1", Role::Smaller)]);
        let kept = warm(voting.clone());
        let names: Vec<_> = kept.packs().map(|pack| pack.release.to_string()).collect();
        assert_eq!(names, ["m@1", "f@1", "g@1"]);
        assert!(!kept.serves_as(&voting));
    }
}
