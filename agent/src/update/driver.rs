use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_protocol::{
    BootId, Check, Envelope, Header, Indicator, Installed, Now, Outcome, Phase, ReasonCode, ReleaseId, TaskId,
};
use dunlin_update::{Command, Event, Journal, ProgramStep, Record, Setup, Slot, Stop, Updater};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::at_disk;
use super::carry::{Hands, Told};
use super::fetch::{FetchError, Fetcher, chain};
use super::marker::Marker;
use super::program;
use super::store::Store;
use super::trusted::{FloorsFound, Trusted, TrustedError, acknowledged};
use super::twin::Twin;
use crate::api::Residency;
use crate::clock;
use crate::config::Settings;
use crate::identity::{Identity, IdentityError};
use crate::serve::Serving;

/// Bytes of the file system that downloads leave free: the spool, logs and the system itself write there too.
const RESERVE_BYTES: u64 = 32 * 1024 * 1024;
/// How often the inhibit file is looked at while it holds something back.
const INHIBIT_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for the driver to end; what it has in hand goes on at the next start.
const END: Duration = Duration::from_secs(5);

/// A clock that lies this much behind is told; less is the jitter of clocks that are being set.
const CLOCK_BEHIND_MS: u64 = 60_000;

/// Reasons of a task's outcome that are told as an indicator as well: somebody assigned, or served, what is not signed for
/// this device. A controller that made a mistake looks the same.
const SUSPICIOUS: [ReasonCode; 19] = [
    ReasonCode::MetadataMismatch,
    ReasonCode::NotApproved,
    ReasonCode::TargetMismatch,
    ReasonCode::BelowReleaseFloor,
    ReasonCode::RetrainedNotAllowed,
    ReasonCode::RetrainedOutOfBounds,
    ReasonCode::AnchorScore,
    ReasonCode::LineupConflict,
    ReasonCode::ArchMismatch,
    ReasonCode::ClassMismatch,
    ReasonCode::OpsMissing,
    ReasonCode::RamExceeded,
    ReasonCode::SizeExceeded,
    ReasonCode::AgentTooOld,
    ReasonCode::FileMissing,
    ReasonCode::SlowRetrieval,
    ReasonCode::DigestMismatch,
    ReasonCode::LengthMismatch,
    ReasonCode::ServerUntrusted,
];

/// What the driver is told to do.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "some sixty wait at most, and an order is moved twice in its life"
)]
pub enum Order {
    /// Ask the controller for new metadata.
    Check,
    /// Judge metadata that came some other way.
    Files {
        /// The files.
        files: Check,
        /// Which way they came, for the log.
        via: &'static str,
    },
    /// Take what a medium holds for this device.
    Install {
        /// The folder that `dunlin export` filled.
        folder: PathBuf,
        /// Told what came of judging its metadata.
        reply: oneshot::Sender<ReasonCode>,
    },
    /// Return to the previous release of a task.
    Rollback {
        /// The task.
        task: TaskId,
        /// Told what came of it.
        reply: oneshot::Sender<ReasonCode>,
    },
    /// Put what a task's assignment designates into memory, or take it out.
    Residency {
        /// The task.
        task: TaskId,
        /// Which of the two.
        wanted: Residency,
        /// Told what came of it.
        reply: oneshot::Sender<ReasonCode>,
    },
    /// Forget that a release failed here.
    Retarget {
        /// The release.
        release: ReleaseId,
        /// Told what came of it.
        reply: oneshot::Sender<ReasonCode>,
    },
}

/// What the driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A step of an update.
    Outcome(Outcome),
    /// Something was refused or went wrong.
    Indicator(Indicator),
    /// What every task runs, and the generation of the assignment in force; told at the start and when it changed.
    Installed(BTreeMap<TaskId, Installed>, u64),
    /// This process is to end in order, and to become the installed program again, which starts the one that is to run.
    StartAnew,
}

/// Why the driver can not start.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// State can not be read or written.
    #[error("accessing update state in {dir}")]
    State {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Trust can not be judged.
    #[error("taking up what this device trusts")]
    Trusted(#[from] TrustedError),
    /// The identity is not usable for TLS.
    #[error("setting up downloads")]
    Identity(#[from] IdentityError),
    /// The path of this program is not known.
    #[error("finding this program's own file")]
    Program(#[source] std::io::Error),
}

/// What the driver works with.
#[derive(Debug, Clone)]
pub struct UpdateConfig {
    /// Where journal, generation records and blobs lie.
    pub slots_dir: PathBuf,
    /// What this device is.
    pub profile: dunlin_protocol::DeviceProfile,
    /// The program whose verb [`super::ENGINE_CHILD`] proves models.
    pub exe: PathBuf,
    /// Interval of checks that nobody asked for.
    pub check: Duration,
    /// Pause after a check that got no answer, at first.
    pub retry_min: Duration,
    /// The same at most.
    pub retry_max: Duration,
    /// While this file exists, nothing new is installed.
    pub inhibit_file: Option<PathBuf>,
    /// Bytes of the file system that are left free.
    pub reserve_bytes: u64,
}

impl UpdateConfig {
    /// As the settings say.
    ///
    /// # Errors
    /// The path of this program is not known.
    pub fn of(settings: &Settings) -> Result<Self, UpdateError> {
        Ok(Self {
            slots_dir: settings.state_dir.join("slots"),
            profile: settings.device.clone(),
            exe: dunlin_engine::this_program().map_err(UpdateError::Program)?,
            check: settings.update.check,
            retry_min: settings.update.retry_min,
            retry_max: settings.update.retry_max,
            inhibit_file: settings.update.inhibit_file.clone(),
            reserve_bytes: RESERVE_BYTES,
        })
    }
}

/// A handle on the task that keeps this device's models up to date.
#[derive(Debug, Clone)]
pub struct UpdateDriver {
    trusted: Arc<Mutex<Trusted>>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    reached: watch::Sender<bool>,
}

impl UpdateDriver {
    /// Restores what was designated to serve, then starts to drive. Serving has resumed on return; no network was
    /// used for it.
    ///
    /// # Errors
    /// State on disk can not be read or written, or trust in it is impossible.
    pub async fn start(
        settings: &Settings,
        identity: &Identity,
        serving: Arc<Serving>,
        orders: mpsc::Receiver<Order>,
        notices: mpsc::Sender<Notice>,
    ) -> Result<Self, UpdateError> {
        let dir = settings.state_dir.join("trust");
        let (device, profile) = (identity.device().clone(), settings.device.clone());
        let trusted = Trusted::open(&dir, device, profile, &identity.image_root, &identity.director_root)?;
        clock::passed(trusted.floors().wall_ms);
        let fetcher = Fetcher::pinned(identity)?;
        Self::start_with(UpdateConfig::of(settings)?, trusted, fetcher, serving, orders, notices).await
    }

    /// The same from parts.
    ///
    /// # Errors
    /// State on disk can not be read or written.
    pub async fn start_with(
        config: UpdateConfig,
        trusted: Trusted,
        fetcher: Fetcher,
        serving: Arc<Serving>,
        orders: mpsc::Receiver<Order>,
        notices: mpsc::Sender<Notice>,
    ) -> Result<Self, UpdateError> {
        let seed = seed(trusted.device().as_str());
        let trusted = Arc::new(Mutex::new(trusted));
        let (driver, stopped) =
            Driver::restore(config, seed, trusted.clone(), fetcher, serving, orders, notices)?;
        let mut driver = driver;
        driver.tell(Event::ProcessStarted(stopped)).await;
        driver.announce();
        let (stop, stopping) = watch::channel(false);
        let (end, ended) = watch::channel(false);
        let reached = driver.reached.clone();
        tokio::spawn(async move {
            driver.run(stopping).await;
            // Nobody waits any more if the handle is gone.
            end.send_replace(true);
        });
        Ok(Self { trusted, stop, ended, reached })
    }

    /// Opens a signed message for this device, see [`Trusted::open_down`].
    ///
    /// # Errors
    /// Why it may not be believed.
    pub fn open_down(&self, envelope: &Envelope, now: Now) -> Result<Header, ReasonCode> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner).open_down(envelope, now)
    }

    /// Notes whether an opened message acknowledges a record of this process, which was started under `boot`.
    pub fn note_reached(&self, header: &Header, boot: BootId) {
        if acknowledged(header, boot).is_some_and(|upto| upto > 0) {
            self.reached.send_replace(true);
        }
    }

    /// The wall time that an opened message tells, see [`Trusted::time_hint`].
    pub fn time_hint(&self, header: &Header, boot: BootId) -> Option<u64> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner).time_hint(header, boot)
    }

    /// Ends the driver in order.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        if tokio::time::timeout(END, ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::warn!("the updater did not end in time");
        }
    }
}

/// Differs between devices (FNV-1a).
fn seed(device: &str) -> u64 {
    device
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The task itself: one event after the other, and all orders of one before the next.
struct Driver {
    updater: Updater,
    hands: Hands,
    marker: Marker,
    trusted: Arc<Mutex<Trusted>>,
    fetcher: Fetcher,
    config: UpdateConfig,
    orders: mpsc::Receiver<Order>,
    notices: mpsc::Sender<Notice>,
    /// Notices that wait for room, so that the driver never waits for who reads them.
    pending: VecDeque<Notice>,
    announced: Option<(BTreeMap<TaskId, Installed>, u64)>,
    /// At most one check is under way.
    checking: JoinSet<Result<Check, FetchError>>,
    check_at: Instant,
    failed_checks: u32,
    inhibited: bool,
    /// The last refusal of a whole assignment, which is told once.
    refused: Option<(ReasonCode, String)>,
    /// Whether it was told that the clock lies behind.
    clock_told: bool,
    /// Whether it was told that nothing fresh comes any more.
    stale_told: bool,
    /// Whether it was told that somebody answers in the controller's place, since that last answered itself.
    untrusted_told: bool,
    /// Whether the controller has acknowledged a record of this process.
    reached: watch::Sender<bool>,
    /// Whether this process is to begin anew as soon as the moment is right.
    start_anew: bool,
}

/// Pause between two looks at what all models together take: rates of requests change no faster than that matters.
const ROOM_EVERY: Duration = Duration::from_secs(10);
/// Notices in memory; the oldest go first if nobody reads them.
const PENDING_MAX: usize = 1024;

impl Driver {
    #[allow(clippy::too_many_arguments, reason = "the parts of the one struct that is made here")]
    fn restore(
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

    async fn run(&mut self, mut stopping: watch::Receiver<bool>) {
        let notices = self.notices.clone();
        let serving = self.hands.serving();
        let mut room_at = Instant::now() + ROOM_EVERY;
        let (mut reached, mut reach_told) = (self.reached.subscribe(), false);
        loop {
            let due = self.updater.poll_timeout().map(at);
            let inhibit_at = self.inhibited.then(|| Instant::now() + INHIBIT_EVERY);
            tokio::select! {
                () = set(&mut stopping) => break,
                () = set(&mut reached), if !reach_told => {
                    reach_told = true;
                    self.tell(Event::ControllerReached).await;
                }
                Ok(room) = notices.reserve(), if !self.pending.is_empty() => {
                    if let Some(notice) = self.pending.pop_front() {
                        room.send(notice);
                    }
                }
                Some(order) = self.orders.recv() => self.order(order).await,
                Some(event) = self.hands.done(), if self.hands.busy() => self.tell(event).await,
                fallen = serving.fallen() => for (task, release, detail) in fallen {
                    self.tell(Event::ServeFailed { task: task.clone(), release, detail }).await;
                    self.hands.trim(&task, self.updater.designation(&task));
                },
                Some(answer) = self.checking.join_next(), if !self.checking.is_empty() => match answer {
                    Ok(answer) => self.checked(answer).await,
                    Err(error) => tracing::error!(%error, "a check ended badly"),
                },
                () = sleep_until(self.check_at), if self.checking.is_empty() => self.check(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tell(Event::TimePassed).await,
                () = sleep_until(room_at), if self.hands.is_bounded() => {
                    self.hands.make_room().await;
                    room_at = Instant::now() + ROOM_EVERY;
                }
                () = sleep_until(inhibit_at.unwrap_or_else(Instant::now)), if inhibit_at.is_some() => {}
            }
            if self.inhibited && !self.inhibit() {
                self.approve().await;
            }
            if self.start_anew && !self.holds_trial() {
                self.start_anew = false;
                self.notice(Notice::StartAnew);
            }
            self.announce();
        }
        self.hands.end();
        if let Err(error) = self.marker.clear() {
            tracing::warn!(%error, "the next start will count this end as a crash");
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Check => {
                self.failed_checks = 0;
                self.check_at = Instant::now();
            }
            Order::Files { files, via } => {
                tracing::debug!(via, "metadata came in");
                self.judge(files).await;
            }
            Order::Install { folder, reply } => {
                let reason = self.install(folder).await;
                if reply.send(reason).is_err() {
                    tracing::debug!("nobody waits for the answer to a command");
                }
            }
            Order::Rollback { task, reply } => self.asked(Event::OperatorRollback { task }, reply).await,
            Order::Residency { task, wanted, reply } => {
                let reason = self.reside(task, wanted).await;
                if reply.send(reason).is_err() {
                    tracing::debug!("nobody waits for the answer to a command");
                }
            }
            Order::Retarget { release, reply } => {
                self.asked(Event::Retarget { release }, reply).await;
                // What was withdrawn meanwhile is not tried again.
                let floors = {
                    let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
                    trusted.floors().releases.clone()
                };
                self.tell(Event::FloorsRaised(floors)).await;
            }
        }
    }

    async fn asked(&mut self, event: Event, reply: oneshot::Sender<ReasonCode>) {
        let reason = match self.updater.handle(event, clock::now()) {
            Ok(()) => ReasonCode::Ok,
            Err(ignored) => ignored.reason(),
        };
        self.drain().await;
        if reply.send(reason).is_err() {
            tracing::debug!("nobody waits for the answer to a command");
        }
    }

    /// Loads or unloads what a task designates. What is designated stays as it is.
    async fn reside(&mut self, task: TaskId, wanted: Residency) -> ReasonCode {
        let Some(slot) = self.updater.record().tasks.remove(&task) else {
            return ReasonCode::NothingToReturnTo;
        };
        let Slot { serving, previous, .. } = slot;
        let Some(release) = serving.release().cloned() else { return ReasonCode::NothingToReturnTo };
        match wanted {
            Residency::Unloaded => self.hands.unload(task),
            Residency::Loaded => {
                let trial = self.updater.step(&task).phase() == Phase::Probation;
                let restore = Command::Restore { task: task.clone(), serving, previous, trial };
                if let Told::Event(failed) = self.hands.carry_out(restore, &self.updater).await {
                    self.tell(failed).await;
                }
                if self.updater.designation(&task).release() != Some(&release) {
                    return ReasonCode::ModelFailed;
                }
            }
        }
        ReasonCode::Ok
    }

    fn check(&mut self) {
        self.check_at = Instant::now() + self.config.check;
        let (device, (image, director), roles) = {
            let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
            (trusted.device().clone(), trusted.versions(), trusted.held_roles())
        };
        let fetcher = self.fetcher.clone();
        self.checking.spawn(async move { fetcher.check(&device, image, director, &roles).await });
    }

    async fn checked(&mut self, answer: Result<Check, FetchError>) {
        match answer {
            Ok(files) => {
                self.failed_checks = 0;
                self.untrusted_told = false;
                self.judge(files).await;
            }
            Err(error) => {
                tracing::debug!(error = %chain(&error), "a check got no answer");
                let told_before = self.untrusted_told;
                self.untrusted_told = match &error {
                    FetchError::Untrusted { .. } => true,
                    // What is wrong came from the controller itself.
                    FetchError::Status { .. } | FetchError::Endless { .. } | FetchError::Answer { .. } => {
                        false
                    }
                    FetchError::Link { .. }
                    | FetchError::Slow { .. }
                    | FetchError::Thread(_)
                    | FetchError::Panicked
                    | FetchError::Store(_) => told_before,
                };
                let untrusted = matches!(error, FetchError::Untrusted { .. });
                if error.is_suspicious() && !(untrusted && told_before) {
                    self.indicate(error.reason(), chain(&error));
                }
                self.tell_stale();
                let factor = 1u32.checked_shl(self.failed_checks.min(16)).unwrap_or(u32::MAX);
                self.failed_checks = self.failed_checks.saturating_add(1);
                let pause = self.config.retry_min.saturating_mul(factor).min(self.config.retry_max);
                self.check_at = self.check_at.min(Instant::now() + pause);
            }
        }
    }

    /// Tells once that all that is held has expired, so that a device from which everything is kept away is not silent about it.
    fn tell_stale(&mut self) {
        let expired = {
            let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
            trusted.expired_ms(clock::now())
        };
        if let Some(ms) = expired.filter(|_| !self.stale_told) {
            let detail = format!("no check is answered, and what is held expired {ms} ms ago");
            self.indicate(ReasonCode::MetadataExpired, detail);
            self.stale_told = true;
        }
    }

    /// Takes metadata from a medium through the same checks as any, and its files as they are asked for.
    async fn install(&mut self, folder: PathBuf) -> ReasonCode {
        let device = self.trusted.lock().unwrap_or_else(PoisonError::into_inner).device().clone();
        match at_disk(|| Fetcher::check_on(&folder, &device)) {
            Ok(files) => {
                self.fetcher.look_on(folder);
                self.judge(files).await
            }
            Err(error) => {
                self.indicate(ReasonCode::FetchFailed, chain(&error));
                ReasonCode::FetchFailed
            }
        }
    }

    /// The one way in for metadata, fetched, pushed or carried.
    async fn judge(&mut self, files: Check) -> ReasonCode {
        let now = clock::now();
        let behind_ms = self.trusted.lock().unwrap_or_else(PoisonError::into_inner).clock_behind_ms(now);
        if behind_ms > CLOCK_BEHIND_MS && !self.clock_told {
            let detail =
                format!("the clock lies {behind_ms} ms before a time that was verified; that time is taken");
            self.indicate(ReasonCode::ClockStepped, detail);
        }
        self.clock_told = behind_ms > CLOCK_BEHIND_MS;
        let judged =
            at_disk(|| self.trusted.lock().unwrap_or_else(PoisonError::into_inner).accept(&files, now));
        match judged {
            Ok(Ok(())) => {
                self.stale_told = false;
                self.approve().await
            }
            Ok(Err(refused)) => {
                let reason = refused.reason();
                self.indicate(reason, chain(&refused));
                reason
            }
            Err(error) => {
                self.indicate(ReasonCode::DiskFull, chain(&error));
                ReasonCode::DiskFull
            }
        }
    }

    async fn approve(&mut self) -> ReasonCode {
        let (judged, floors) = {
            let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
            let judged = trusted.approve();
            (judged, trusted.floors().releases.clone())
        };
        self.tell(Event::FloorsRaised(floors)).await;
        match judged {
            Ok(Ok(approved)) => {
                self.refused = None;
                let generation = approved.assignment.generation;
                if self.inhibit() {
                    if generation > self.updater.generation() {
                        let detail = "an inhibit file holds updates back".to_owned();
                        self.refuse(
                            generation,
                            approved.assignment.correlation.clone(),
                            Phase::Deferred,
                            ReasonCode::Inhibited,
                            detail,
                        );
                    }
                    return ReasonCode::Inhibited;
                }
                self.tell(Event::AssignmentApproved(Box::new(approved))).await;
                ReasonCode::Ok
            }
            Ok(Err(refused)) => {
                let (reason, detail) = (refused.reason(), chain(&refused));
                if self.refused.as_ref() != Some(&(reason, detail.clone())) {
                    self.indicate(reason, detail.clone());
                }
                self.refuse(self.updater.generation(), String::new(), Phase::Rejected, reason, detail);
                reason
            }
            Err(error) => {
                self.indicate(ReasonCode::DiskFull, chain(&error));
                ReasonCode::DiskFull
            }
        }
    }

    /// Tells once that a whole assignment is not taken up.
    fn refuse(
        &mut self,
        generation: u64,
        correlation: String,
        phase: Phase,
        reason: ReasonCode,
        detail: String,
    ) {
        let told = Some((reason, detail.clone()));
        if self.refused == told {
            return;
        }
        self.refused = told;
        let at_ms = clock::now().wall_ms;
        self.notice(Notice::Outcome(Outcome {
            generation,
            task: None,
            release: None,
            correlation,
            phase,
            reason,
            detail,
            at_ms,
        }));
    }

    fn inhibit(&mut self) -> bool {
        self.inhibited = self.config.inhibit_file.as_deref().is_some_and(Path::exists);
        self.inhibited
    }

    /// Whether this is not the moment to leave for a program on trial: updates are held back, or a model is on probation, and
    /// two things that change at one time would be two causes of one failure. To return from one every moment is right.
    fn holds_trial(&mut self) -> bool {
        let on_probation = |task: &TaskId| self.updater.step(task).phase() == Phase::Probation;
        let probation = self.updater.tasks().any(on_probation);
        let trial = matches!(self.updater.journal().program().step(), ProgramStep::Trying { .. });
        trial && (probation || self.inhibit())
    }

    fn indicate(&mut self, reason: ReasonCode, detail: String) {
        tracing::warn!(%reason, detail, "refused or failed");
        self.notice(Notice::Indicator(indicator(reason, detail)));
    }

    fn notice(&mut self, notice: Notice) {
        if self.pending.len() >= PENDING_MAX {
            self.pending.pop_front();
        }
        self.pending.push_back(notice);
    }

    /// Tells a fact, carries out what follows, and the facts that follow from that.
    async fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if let Err(ignored) = self.updater.handle(event, clock::now()) {
                tracing::debug!(%ignored, "a fact changed nothing");
            }
            events.extend(self.carry_out().await);
        }
    }

    async fn drain(&mut self) {
        for event in self.carry_out().await {
            self.tell(event).await;
        }
    }

    async fn carry_out(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(command) = self.updater.poll_command() {
            match self.hands.carry_out(command, &self.updater).await {
                Told::Nothing => {}
                Told::Event(event) => events.push(event),
                Told::Outcome(seq, outcome) => {
                    tracing::info!(task = ?outcome.task, release = ?outcome.release, phase = ?outcome.phase, reason = %outcome.reason, detail = outcome.detail, "update");
                    if SUSPICIOUS.contains(&outcome.reason) && refused(outcome.phase) {
                        // What is of no task is of the agent's own program.
                        let of = outcome.task.as_ref().map(ToString::to_string);
                        let of = of.or_else(|| outcome.release.as_ref().map(ToString::to_string));
                        let of = of.unwrap_or_default();
                        self.indicate(outcome.reason, format!("{of}: {}", outcome.detail));
                    }
                    self.notice(Notice::Outcome(outcome));
                    events.push(Event::Reported { seq });
                }
                Told::Trouble(reason, detail) => self.indicate(reason, detail),
                Told::StartAnew => self.start_anew = true,
            }
        }
        events
    }

    /// Tells what is installed, if that changed.
    fn announce(&mut self) {
        let installed = (self.updater.installed(), self.updater.generation());
        if self.announced.as_ref() != Some(&installed) {
            self.notice(Notice::Installed(installed.0.clone(), installed.1));
            self.announced = Some(installed);
        }
    }
}

/// Whether something is not taken, as opposed to left again: a release that signers withdraw is left in all honesty.
fn refused(phase: Phase) -> bool {
    match phase {
        Phase::Rejected | Phase::Failed | Phase::Deferred => true,
        Phase::Assigned
        | Phase::Fetching
        | Phase::Verifying
        | Phase::Staged
        | Phase::Proving
        | Phase::Probation
        | Phase::Committed
        | Phase::RolledBack
        | Phase::Superseded => false,
    }
}

/// Ends when a flag is set, or nobody is left who could.
async fn set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        tracing::debug!("the updater's handle is gone");
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

fn indicator(reason: ReasonCode, detail: String) -> Indicator {
    Indicator { reason, detail, count: 1, at_ms: clock::now().wall_ms }
}

/// The instant at which the monotonic clock reads `mono_ms`.
fn at(mono_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(mono_ms.saturating_sub(clock::now().mono_ms))
}

#[cfg(test)]
mod tests;
