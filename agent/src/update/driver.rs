use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_protocol::{BootId, Check, Envelope, Header, Installed, Now, Phase, ReasonCode, TaskId};
use dunlin_update::{Command, Event, Slot, Updater};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::carry::{Hands, Told};
use super::fetch::{FetchError, Fetcher};
use super::marker::Marker;
use super::trusted::{Acknowledged, Trusted};
use crate::api::Residency;
use crate::clock;
use crate::config::Settings;
use crate::identity::Identity;
use crate::serve::Serving;

mod config;
mod metadata;
mod order;
mod program;
mod restore;
mod told;

pub use config::{UpdateConfig, UpdateError};
pub use order::{Notice, Order};

/// How often the inhibit file is looked at while it holds something back.
const INHIBIT_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for the driver to end; what it has in hand goes on at the next start.
const END: Duration = Duration::from_secs(5);

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

    /// Notes whether an opened message acknowledges a record of this process, which was started under `boot`. Gives the wall
    /// time that it tells, see [`Trusted::time_hint`].
    pub fn heard(&self, header: &Header, boot: BootId) -> Option<u64> {
        let heard = Acknowledged::of(header, boot)?;
        if heard.upto > 0 {
            self.reached.send_replace(true);
        }
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner).time_hint(&heard)
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

impl Driver {
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
                // What is assigned now goes before a switch to what was.
                self.approve().await;
                self.updater.switch_again();
                self.drain().await;
            }
            self.leave_for_program();
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
            Order::Install { folder, reply } => answer(reply, self.install(folder).await),
            Order::Rollback { task, reply } => self.asked(Event::OperatorRollback { task }, reply).await,
            Order::Residency { task, wanted, reply } => answer(reply, self.reside(task, wanted).await),
            Order::Retarget { release, reply } => {
                let floors = {
                    let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
                    trusted.floors().releases.clone()
                };
                self.asked(Event::Retarget { release, floors }, reply).await;
            }
        }
    }

    async fn asked(&mut self, event: Event, reply: oneshot::Sender<ReasonCode>) {
        let reason = match self.updater.handle(event, clock::now()) {
            Ok(()) => ReasonCode::Ok,
            Err(ignored) => ignored.reason(),
        };
        self.drain().await;
        answer(reply, reason);
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
            // It lies until the file is gone; the machine waits for it, also over a restart.
            if let Command::SwitchTo { task, .. } = &command
                && self.inhibit()
            {
                tracing::info!(%task, "an inhibit file holds a switch back");
                continue;
            }
            match self.hands.carry_out(command, &self.updater).await {
                Told::Nothing => {}
                Told::Event(event) => events.push(event),
                Told::Outcome(seq, outcome) => {
                    self.outcome(outcome);
                    events.push(Event::Reported { seq });
                }
                Told::Trouble(reason, detail) => self.indicate(reason, detail),
                Told::StartAnew => self.start_anew = true,
            }
        }
        events
    }
}

fn answer(reply: oneshot::Sender<ReasonCode>, reason: ReasonCode) {
    if reply.send(reason).is_err() {
        tracing::debug!("nobody waits for the answer to a command");
    }
}

/// Ends when a flag is set, or nobody is left who could.
async fn set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        tracing::debug!("the updater's handle is gone");
    }
}

/// The instant at which the monotonic clock reads `mono_ms`.
fn at(mono_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(mono_ms.saturating_sub(clock::now().mono_ms))
}

#[cfg(test)]
mod tests;
